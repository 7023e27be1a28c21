"""Bridges and what is around them failing: a broker that is away, credentials, TLS, strangers, a full bus."""

from __future__ import annotations

import asyncio
import io
import subprocess
from functools import partial
from pathlib import Path

import msgspec
import pytest
from bridges import arriving, bridging, eventually, group_is_there, own, topic_of
from brokers import Broker, Nats, Redis
from events import PATIENT, Order, opened, orders
from journals import command, publish
from rich.console import Console
from support import Processes, child_environment

import shmbus
from shmbus.bridge import Bridge
from shmbus.cli._bus_view import BusView
from shmbus.observe.health import problems


@pytest.mark.parametrize("kind", [Nats, Redis])
@pytest.mark.parametrize("spooled", [False, True])
def test_a_broker_that_is_away(
    bus_name: str, tmp_path: Path, kind: type[Broker], spooled: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A broker that is not there yet, and is killed later, is awaited; with a spool the publishers do not wait."""
    broker = own(kind, tmp_path)
    topic = shmbus.Topic("small", Order, capacity=4096)
    spool = tmp_path / "spool" if spooled else None
    count = 1000 if spooled else 30  # twice as many fit into the ring: the kill may come before the first are acked
    with opened(bus_name) as here, opened(bus_name + "b") as there:
        subscriber = there.subscriber(topic)
        with here.publisher(topic, on_full="block", timeout=PATIENT) as publisher:
            with bridging(here, broker, out=[topic], name="here", spool=spool):
                with bridging(there, broker, in_=[topic], name="there"):
                    try:
                        eventually(lambda: "is away" in caplog.text)
                        eventually(lambda: here.stats().consumers, "the group of the bridge, or of its spool")
                        publish(publisher, orders(count))
                        broker.start()
                        got = [subscriber.receive(PATIENT).id for _ in range(count)]
                        broker.kill()
                        publish(publisher, orders(count, count + 1))
                        broker.start()
                        while len(set(got)) < 2 * count:
                            got.append(subscriber.receive(PATIENT).id)
                    finally:
                        broker.kill()
    assert sorted(set(got)) == list(range(1, 2 * count + 1))


@pytest.mark.parametrize("spooled", [False, True])
def test_a_broker_that_is_away_is_seen(bus_name: str, tmp_path: Path, spooled: bool, processes: Processes) -> None:
    """`stat` and health say that the broker is away, since when, and how much waits, for as long as that is so."""
    broker = own(Redis, tmp_path)
    topic = topic_of(bus_name)
    with opened(bus_name) as bus, bus.publisher(topic) as publisher:
        spool = ["--spool", str(tmp_path / "spool")] if spooled else []
        words = command("bridge", bus_name, broker.url, "--out", topic.name, "--name", "here", *spool)
        bridge = processes.run(words, stderr=subprocess.DEVNULL)

        def note() -> shmbus.stats.NoteStats | None:
            found = (note for p in bus.stats().participants for note in p.notes if note.who == "bridge here")
            return next(found, None)

        def state() -> str:
            found = note()
            return found.state if found is not None else ""

        eventually(lambda: state() == "away")
        eventually(lambda: any(c.kind == "group" for c in bus.stats().consumers))
        publish(publisher, orders(7))
        eventually(lambda: (found := note()) is not None and found.waiting == 7, "seven wait")
        found = note()
        assert found is not None
        assert broker.url in found.text
        said = [problem for problem in problems(bus.stats(), {}) if problem.kind == "away"]
        assert [problem.severity for problem in said] == ["critical"]
        assert "7 waiting" in said[0].why
        screen = Console(width=200, file=io.StringIO())
        screen.print(BusView(bus.stats()))
        assert "is away: " in screen.file.getvalue()  # type: ignore[attr-defined]
        broker.start()
        try:
            eventually(lambda: state() == "ok")
            eventually(lambda: (found := note()) is not None and found.waiting == 0, "nothing waits")
            bridge.kill()
            bridge.wait()
            eventually(lambda: note() is None, "what a dead process says")
        finally:
            broker.kill()
            for group in {c.name for c in bus.stats().consumers if c.kind == "group"}:
                bus.remove_group(topic, group, force=True)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [(Nats, ["--user", "shop", "--pass", "secret"]), (Redis, ["--requirepass", "secret"])],
)
def test_credentials(
    bus_name: str, tmp_path: Path, kind: type[Broker], arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong credentials are an error at the start; right ones come from a file or the environment."""
    broker = own(kind, tmp_path, arguments=arguments)
    broker.start()
    topic = topic_of(bus_name)
    secrets = tmp_path / "secrets.toml"
    user = 'user = "shop"\n' if kind is Nats else ""
    try:
        with opened(bus_name) as bus, bus.publisher(topic) as publisher:
            for wrong in (None, f'{user}password = "guess"\n'):
                if wrong:
                    secrets.write_text(wrong)
                    secrets.chmod(0o600)
                with pytest.raises(shmbus.BridgeError, match="refuses our credentials"):
                    Bridge(bus, broker.url, out=[topic], credentials=secrets if wrong else None).run()
            secrets.write_text(f'{user}password = "secret"\n')
            with bridging(bus, broker, out=[topic], credentials=secrets) as bridge:
                eventually(lambda: group_is_there(bus))
                publisher.publish(Order(1))
                eventually(lambda: bridge.sent == 1)
            monkeypatch.setenv("SHMBUS_BRIDGE_PASSWORD", "secret")
            if kind is Nats:
                monkeypatch.setenv("SHMBUS_BRIDGE_USER", "shop")
            with bridging(bus, broker, out=[topic]) as bridge:
                publisher.publish(Order(2))
                eventually(lambda: bridge.sent == 1)
    finally:
        broker.kill()


def test_tls(bus_name: str, tmp_path: Path) -> None:
    """With a CA of its own a broker is spoken to by TLS, and one that another CA vouches for is not."""
    pytest.importorskip("cryptography", reason="makes certificates")
    from certificates import authority, certificate

    ca = authority(tmp_path / "ca.pem")
    certificate(ca, tmp_path / "server.pem", tmp_path / "server.key")
    authority(tmp_path / "other.pem")
    files = ["--tlscert", tmp_path / "server.pem", "--tlskey", tmp_path / "server.key"]
    broker = own(Nats, tmp_path, arguments=["--tls", *files])
    broker.start()
    url = broker.url.replace("nats://127.0.0.1", "tls://localhost")
    topic = topic_of(bus_name)
    secrets = tmp_path / "secrets.toml"
    secrets.touch(mode=0o600)
    try:
        with opened(bus_name) as bus, bus.publisher(topic) as publisher:
            secrets.write_text(f'cafile = "{tmp_path / "ca.pem"}"\n')
            with bridging(bus, url, out=[topic], credentials=secrets) as bridge:
                eventually(lambda: group_is_there(bus))
                publisher.publish(Order(1))
                eventually(lambda: bridge.sent == 1)
            secrets.write_text(f'cafile = "{tmp_path / "other.pem"}"\n')
            with pytest.raises(shmbus.BridgeError, match="certificate"):
                Bridge(bus, url, out=[topic], credentials=secrets).run()
    finally:
        broker.kill()


def test_one_name_once(bus_name: str, tmp_path: Path) -> None:
    """A second bridge of one name on a bus is told who has it."""
    broker = own(Redis, tmp_path)
    broker.start()
    topic = topic_of(bus_name)
    try:
        with opened(bus_name) as bus, bridging(bus, broker, out=[topic], name="here"):
            eventually(lambda: group_is_there(bus))
            with pytest.raises(shmbus.ConfigError, match="bridge 'here' is being run by process"):
                Bridge(bus, broker.url, out=[topic], name="here").run()
    finally:
        broker.kill()


def test_what_cannot_be(bus_name: str, tmp_path: Path) -> None:
    """A password in the URL, a readable file of credentials, no topic, no such scheme: each is refused at once."""
    topic = topic_of(bus_name)
    secrets = tmp_path / "secrets.toml"
    secrets.write_text('password = "x"\n')
    secrets.chmod(0o644)
    with opened(bus_name) as bus:
        for url, options, said in (
            ("nats://a:b@127.0.0.1", {}, "put credentials into a file"),
            ("nats://127.0.0.1", {"credentials": secrets}, "chmod 600"),
            ("nats://127.0.0.1", {"out": []}, "at least one topic"),
            ("nats://127.0.0.1", {"name": "a b"}, "a word"),
            ("carrier://pigeon", {}, "no plugin of shmbus.bridges is named 'carrier'; there is amqp"),
            ("127.0.0.1:4222", {}, "a broker is named by a URL"),
        ):
            with pytest.raises(shmbus.ConfigError, match=said):
                Bridge(bus, url, **{"out": [topic], **options})  # type: ignore[arg-type]
    words = command("bridge", bus_name, "redis://:pw@127.0.0.1", "--out", "t")
    done = subprocess.run(words, env=child_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "put credentials into a file or the environment" in done.stderr


def test_keys_and_strangers(bus_name: str, tmp_path: Path) -> None:
    """What somebody else writes into a stream arrives as an event, with its fields as headers."""
    broker = own(Redis, tmp_path)
    broker.start()
    topic = shmbus.Topic("strange", Order)
    try:
        with opened(bus_name) as bus, bus.subscriber(topic) as subscriber:
            with bridging(bus, broker, in_=[topic], name="here"):
                import redis

                with redis.Redis(port=broker.port) as client:
                    client.xadd("shmbus:strange", {"payload": msgspec.msgpack.encode(Order(7)), "from": "afar"})
                message = next(arriving(subscriber))
                assert (message.event, message.headers["from"]) == (Order(7), "afar")
    finally:
        broker.kill()


def test_what_comes_again(bus_name: str, tmp_path: Path) -> None:
    """What a broker hands out once more, under the id that it had, is not published once more."""
    broker = own(Redis, tmp_path)
    broker.start()
    topic = shmbus.Topic("again", Order)
    try:
        with opened(bus_name) as bus, bus.subscriber(topic) as subscriber:
            with bridging(bus, broker, in_=[topic], name="here"):
                import redis

                with redis.Redis(port=broker.port) as client:
                    for id, came in ((1, "a-1"), (1, "a-1"), (2, "a-2"), (1, "a-1"), (2, "a-2"), (3, "a-3")):
                        fields = {"shmbus-id": came, "payload": msgspec.msgpack.encode(Order(id))}
                        client.xadd("shmbus:again", fields)
                    assert [subscriber.receive(PATIENT).id for _ in range(3)] == [1, 2, 3]
                    assert subscriber.try_receive() is None
    finally:
        broker.kill()


def told(caplog: pytest.LogCaptureFixture, word: str) -> bool:
    return word in caplog.text


def test_a_redis_that_keeps_less(bus_name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A Redis that may lose what it has confirmed, in a death or at its end, is told of."""
    broker = own(Redis, tmp_path)
    broker.start()
    topic = topic_of(bus_name)
    try:
        import redis

        with opened(bus_name) as bus, redis.Redis(port=broker.port) as client:
            for setting, value in (("appendfsync", "everysec"), ("appendonly", "no")):
                client.config_set(setting, value)
                with bridging(bus, broker, out=[topic], name="here"):
                    eventually(partial(told, caplog, setting))
    finally:
        broker.kill()


def test_a_stream_that_is_removed(bus_name: str, tmp_path: Path) -> None:
    """A stream that somebody removes while a bridge reads it is made again, with the group, and read from its start."""
    broker = own(Redis, tmp_path)
    broker.start()
    topic = shmbus.Topic("removed", Order)
    try:
        with (
            opened(bus_name) as bus,
            bus.subscriber(topic) as subscriber,
            bridging(bus, broker, in_=[topic], name="here"),
        ):
            import redis

            with redis.Redis(port=broker.port) as client:
                for id in (1, 2):
                    client.xadd("shmbus:removed", {"payload": msgspec.msgpack.encode(Order(id))})
                    assert subscriber.receive(PATIENT) == Order(id)
                    client.delete("shmbus:removed")
    finally:
        broker.kill()


def test_a_stream_that_is_full(bus_name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What a stream refuses amid a batch stays on the bus, and is in the stream in order once there is room, once."""
    broker = own(Nats, tmp_path)
    broker.start()
    topic = shmbus.Topic("full", Order)
    try:
        asyncio.run(_limited(broker, 100))
        with opened(bus_name) as here, opened(bus_name + "b") as there, there.subscriber(topic) as subscriber:
            here.group(topic, "bridge:here")
            with here.publisher(topic) as publisher:
                publish(publisher, orders(300))
                with bridging(here, broker, out=[topic], name="here") as bridge:
                    eventually(lambda: "maximum messages exceeded" in caplog.text, "that the stream is full")
                    assert bridge.sent <= 100
                    asyncio.run(_limited(broker, 1000))
                    with bridging(there, broker, in_=[topic], name="there"):
                        got = [subscriber.receive(PATIENT).id for _ in range(300)]
                        eventually(lambda: bridge.sent == 300)
                        assert subscriber.try_receive() is None
        assert got == list(range(1, 301))
    finally:
        broker.kill()


async def _limited(broker: Broker, most: int) -> None:
    """A stream of the topic `full` that takes no more than `most` messages."""
    import nats
    from nats.js.api import DiscardPolicy, StreamConfig

    client = await nats.connect(f"nats://127.0.0.1:{broker.port}")
    js = client.jetstream()
    config = StreamConfig(
        name="shmbus-full", subjects=["shmbus.full"], max_msgs=most, discard=DiscardPolicy.NEW, duplicate_window=600
    )
    if await js.streams_info():
        await js.update_stream(config)
    else:
        await js.add_stream(config)
    await client.close()


def test_stops_where_a_bus_is_full(bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bridge whose events find no room on the bus ends when it is told to, and what is not on the bus comes again."""
    from shmbus.bridge import runner

    monkeypatch.setattr(runner, "_GRACE", 0.1)
    broker = own(Redis, tmp_path)
    broker.start()
    topic = shmbus.Topic("full", Order, capacity=4096)
    try:
        with opened(bus_name) as bus, bus.subscriber(topic) as subscriber:
            import redis

            with redis.Redis(port=broker.port) as client:
                for order in orders(300):
                    client.xadd("shmbus:full", {"payload": msgspec.msgpack.encode(order)})
            with bridging(bus, broker, in_=[topic], name="here"):
                eventually(lambda: any(p.waiting for p in bus.stats().publishers), "no room is left")
            got = {order.id for order in iter(subscriber.try_receive, None)}
            assert len(got) < 300
            with bridging(bus, broker, in_=[topic], name="here"):
                while len(got) < 300:
                    got.add(subscriber.receive(PATIENT).id)
    finally:
        broker.kill()
