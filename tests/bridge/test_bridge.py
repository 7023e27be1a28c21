"""A bridge: what passes a broker arrives as it was, once, in order; what is killed, away or refused loses nothing.

The long form, with kills of everything, is tools/bridge_kills.py.
"""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from brokers import Broker, Nats, Redis, free_port
from events import PATIENT, Order, Renamed, opened, orders
from journals import command, publish
from support import Processes, child_environment, eventually

import shmbus
from shmbus import _plugins
from shmbus.bridge import Bridge
from shmbus.testing import bridge_conformance


@contextmanager
def bridging(bus: shmbus.Bus, broker: Broker | str, **options: Any) -> Iterator[Bridge]:
    """A bridge that runs in a thread, and has ended when the block is left."""
    bridge = Bridge(bus, broker if isinstance(broker, str) else broker.url, **options)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            bridge.run()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield bridge
    finally:
        bridge.stop()
        thread.join()
    if failed:
        raise failed[0]


def topic_of(bus_name: str) -> shmbus.Topic[Order]:
    """A topic that no other test has, for brokers keep what is in theirs."""
    return shmbus.Topic(f"orders-{bus_name}", Order)


def group_is_there(bus: shmbus.Bus) -> bool:
    return any(c.workers for c in bus.stats().consumers)


def test_events_arrive_as_they_were(bus_name: str, broker: Broker) -> None:
    """Events of two publishers arrive on the other bus with their headers and ids, in the order of each publisher."""
    topic = topic_of(bus_name)
    with opened(bus_name) as here, opened(bus_name + "b") as there, there.subscriber(topic) as subscriber:
        local = here.subscriber(topic)
        with bridging(there, broker, in_=[topic], name="there"), bridging(here, broker, out=[topic], name="here"):
            eventually(lambda: group_is_there(here))
            a, b = here.publisher(topic, name="a"), here.publisher(topic, name="b")
            a.publish(Order(1), headers={"traceparent": "00-1-2-01", "deep": {"x": [1]}, "ü": "é"})
            for order in orders(150, 2):
                (a if order.id % 3 else b).publish(order)
            sent = [next(local.messages()) for _ in range(151)]
            got = [message for _, message in zip(range(151), arriving(subscriber), strict=False)]
            assert subscriber.try_receive() is None
    ids = {message.id: message for message in sent}
    assert [ids[message.headers["shmbus-id"]].event for message in got] == [message.event for message in got]
    for name in "ab":
        assert [m.event.id for m in got if m.headers["shmbus-publisher"] == name] == [
            m.event.id for m in sent if m.publisher == name
        ]
    first = next(message for message in got if message.event.id == 1)
    assert {key: first.headers[key] for key in ("traceparent", "deep", "ü")} == {
        "traceparent": "00-1-2-01",
        "deep": {"x": [1]},
        "ü": "é",
    }


def arriving(subscriber: shmbus.Subscriber[Order]) -> Iterator[shmbus.Message[Order]]:
    """Messages; fails where none comes."""
    timer = threading.Timer(PATIENT, subscriber.cancel)
    timer.start()
    try:
        yield from subscriber.messages()
    finally:
        timer.cancel()


def test_drivers_conform(broker: Broker) -> None:
    """Each driver keeps what a bridge relies on."""
    scheme = broker.url.partition(":")[0]
    driver = _plugins.load("shmbus.bridges", scheme)
    bridge_conformance(driver, broker.url, nowhere=f"{scheme}://127.0.0.1:{free_port()}")


def test_two_ways_do_not_loop(bus_name: str, broker: Broker) -> None:
    """Two buses that bridge one topic both ways each get the other's events once, and their own not again."""
    topic = topic_of(bus_name)
    with opened(bus_name) as here, opened(bus_name + "b") as there:
        subscribers = [here.subscriber(topic), there.subscriber(topic)]
        with bridging(here, broker, out=[topic], in_=[topic], name="here"):
            with bridging(there, broker, out=[topic], in_=[topic], name="there"):
                eventually(lambda: group_is_there(here) and group_is_there(there))
                with here.publisher(topic) as a, there.publisher(topic) as b:
                    publish(a, orders(20))
                    publish(b, orders(20, 21))
                    got = [sorted(s.receive(PATIENT).id for _ in range(40)) for s in subscribers]
                    publish(a, orders(1, 41))  # whatever loops would come before it
                    assert [s.receive(PATIENT).id for s in subscribers] == [41, 41]
                    assert [s.try_receive() for s in subscribers] == [None, None]
    assert got == [list(range(1, 41))] * 2


def test_another_schema_is_refused(bus_name: str, broker: Broker) -> None:
    """A topic that carries another type ends the bridge with both fingerprints, and takes nothing off the broker."""
    topic = topic_of(bus_name)
    with opened(bus_name) as here, opened(bus_name + "b") as there, here.publisher(topic) as publisher:
        with bridging(there, broker, in_=[topic], name="there"):
            with bridging(here, broker, out=[topic], name="here") as bridge:
                eventually(lambda: group_is_there(here))
            publisher.publish(Order(1))
        with bridging(here, broker, out=[topic], name="here") as bridge:
            eventually(lambda: bridge.sent == 1)
        other = shmbus.Topic(topic.name, Renamed)
    with opened(bus_name + "c") as other_bus, pytest.raises(shmbus.BridgeError, match="carries another schema"):
        Bridge(other_bus, broker.url, in_=[other], name="there").run()
    with opened(bus_name + "d") as again, again.subscriber(topic) as subscriber:
        with bridging(again, broker, in_=[topic], name="there"):
            assert subscriber.receive(PATIENT) == Order(1)


def test_a_bridge_that_is_killed(bus_name: str, broker: Broker, processes: Processes) -> None:
    """Bridges that are killed again and again lose nothing; what comes twice has one id."""
    topic = topic_of(bus_name)
    with opened(bus_name) as here, opened(bus_name + "b") as there:
        here.group(topic, "bridge:here")
        subscriber = there.subscriber(topic)
        publisher = here.publisher(topic)
        received = there.publisher(topic)  # so that the topic is there

        def started(bus: shmbus.Bus, way: str, name: str) -> subprocess.Popen[str]:
            words = command("bridge", bus.name, broker.url, way, topic.name, "--name", name)
            return processes.run(words, stderr=subprocess.DEVNULL)

        inward = started(there, "--in", "there")
        outward = started(here, "--out", "here")
        total, messages = 600, arriving(subscriber)
        got: dict[str, int] = {}
        for part in range(3):
            publish(publisher, orders(total // 3, 1 + part * total // 3))
            while len(got) < (part + 1) * total // 3 - 50:
                message = next(messages)
                got[message.headers["shmbus-id"]] = message.event.id
            outward.kill()
            outward.wait()
            inward.kill()
            inward.wait()
            inward, outward = started(there, "--in", "there"), started(here, "--out", "here")
        while len(got) < total:
            message = next(messages)
            got[message.headers["shmbus-id"]] = message.event.id
        for child in (inward, outward):
            child.terminate()
            assert child.wait() in (0, -signal.SIGTERM)  # which may come before it has a handler
        for handle in (publisher, received):
            handle.close()
    assert sorted(got.values()) == list(range(1, total + 1))


def own(kind: type[Broker], folder: Path, **options: Any) -> Broker:
    """A broker for one test, not yet started."""
    if why := kind.unavailable():
        pytest.skip(why)
    return kind(folder, **options)


@pytest.mark.parametrize("kind", [Nats, Redis])
@pytest.mark.parametrize("spooled", [False, True])
def test_a_broker_that_is_away(
    bus_name: str, tmp_path: Path, kind: type[Broker], spooled: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A broker that is not there yet, and is killed later, is awaited; with a spool the publishers do not wait."""
    broker = own(kind, tmp_path)
    topic = shmbus.Topic("small", Order, capacity=4096)
    spool = tmp_path / "spool" if spooled else None
    count = 1000 if spooled else 50
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
