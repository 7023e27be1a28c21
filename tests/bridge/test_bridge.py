"""A bridge: what passes a broker arrives as it was, once, in order; what is killed, away or refused loses nothing.

The long form, with kills of everything, is tools/bridge_kills.py.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from bridges import arriving, bridging, eventually, group_is_there, receives, topic_of
from brokers import Broker, Kafka, Nats, Rabbit, Redis, free_port
from events import PATIENT, Order, Renamed, opened, orders
from journals import command, publish
from support import Processes

import shmbus
from shmbus import _plugins
from shmbus.bridge import Bridge
from shmbus.testing import bridge_conformance

Factory: TypeAlias = pytest.TempPathFactory
KINDS: dict[str, type[Broker]] = {"nats": Nats, "redis": Redis, "kafka": Kafka, "amqp": Rabbit}


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Broker]]:
    """The brokers that run, by scheme."""
    found: dict[str, Broker] = {}
    yield found
    for broker in found.values():
        broker.kill()


@pytest.fixture(params=sorted(KINDS))
def broker(
    request: pytest.FixtureRequest, started: dict[str, Broker], tmp_path_factory: pytest.TempPathFactory
) -> Broker:
    """A broker of each kind, that runs; the test is skipped, with the reason, where it cannot be had."""
    return running(KINDS[request.param], started, tmp_path_factory.mktemp(request.param))


def running(kind: type[Broker], started: dict[str, Broker], folder: Path) -> Broker:
    """The broker of a kind, started if need be."""
    if why := kind.unavailable():
        pytest.skip(why)
    if kind.scheme not in started:
        broker = kind(folder)
        broker.start()
        started[kind.scheme] = broker
    return started[kind.scheme]


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


def test_large_events(bus_name: str, broker: Broker) -> None:
    """Events that fill the buffers of sockets and clients many times over arrive whole and in order."""
    topic = shmbus.Topic(f"large-{bus_name}", bytes, capacity=1 << 24)
    events = [bytes([number]) * 120_000 for number in range(30)]  # the mock cluster of Kafka keeps 5 MB
    with opened(bus_name) as here, opened(bus_name + "b") as there, there.subscriber(topic) as subscriber:
        with bridging(there, broker, in_=[topic], name="there"), bridging(here, broker, out=[topic], name="here"):
            eventually(lambda: group_is_there(here))
            with here.publisher(topic) as publisher:
                publisher.publish_many(events)
                got = [subscriber.receive(PATIENT) for _ in events]
                assert subscriber.try_receive() is None
    assert got == events


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


@pytest.mark.parametrize("both", [True, False])
def test_who_starts_first(bus_name: str, broker: Broker, both: bool) -> None:
    """What a bridge sends while nobody but itself has a place at the broker waits for the other one, in order."""
    topic = topic_of(bus_name)
    with opened(bus_name) as here, opened(bus_name + "b") as there:
        subscriber = there.subscriber(topic)
        with bridging(here, broker, in_=[topic], name="here"):
            eventually(lambda: receives(here), "its place at the broker")
        with bridging(here, broker, out=[topic], in_=[topic] * both, name="here") as bridge:
            eventually(lambda: any(c.kind == "group" for c in here.stats().consumers), "its group")
            with here.publisher(topic) as publisher:
                publish(publisher, orders(20))
                eventually(lambda: bridge.sent == 20 or alone(here), "events that are sent, or wait")
                with bridging(there, broker, out=[topic], in_=[topic], name="there"):
                    got = [subscriber.receive(PATIENT).id for _ in range(20)]
                    eventually(lambda: bridge.sent == 20)
    assert got == list(range(1, 21))


def alone(bus: shmbus.Bus) -> bool:
    """A bridge says that nobody receives what it would send."""
    return any("nobody but us" in note.text for p in bus.stats().participants for note in p.notes)


def test_another_schema_is_refused(bus_name: str, broker: Broker) -> None:
    """A topic that carries another type ends the bridge with both fingerprints, and takes nothing off the broker."""
    topic = topic_of(bus_name)
    with opened(bus_name) as here, opened(bus_name + "b") as there, here.publisher(topic) as publisher:
        with bridging(there, broker, in_=[topic], name="there"):
            with bridging(here, broker, out=[topic], name="here") as bridge:
                eventually(lambda: group_is_there(here) and receives(there))
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
