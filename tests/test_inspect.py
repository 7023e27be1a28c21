"""inspect: what tools see from outside, and the two things that they can do."""

from __future__ import annotations

import os
from collections.abc import Iterator

import msgspec
import pytest
from events import ORDERS, RAW, SMALL, Order, drain, opened, orders
from support import SHM, Processes, entries, eventually, line

import shmbus
from shmbus import Bus, inspect
from shmbus._shm.names import object_prefix, segment_name


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    with opened(bus_name) as bus:
        yield bus


def test_buses(bus_name: str) -> None:
    """buses() names every bus that is there, and none of its rings and channels."""
    assert bus_name not in inspect.buses()
    with Bus(bus_name, supervise=False) as bus, bus.publisher(ORDERS), bus.subscriber(ORDERS):
        found = inspect.buses()
        assert found == sorted(found)
        assert [name for name in found if bus_name in name] == [bus_name]


@pytest.mark.parametrize("look", [inspect.stats_of, inspect.losses_of, inspect.remove])
def test_not_found(bus_name: str, look: object) -> None:
    """A bus that is not there is a BusNotFoundError, a name that cannot be a ConfigError; nothing is created."""
    assert callable(look)
    with pytest.raises(shmbus.BusNotFoundError, match=bus_name):
        look(bus_name)
    with pytest.raises(shmbus.ConfigError):
        look("../shop")
    assert not entries(bus_name)


def test_stats_of(bus: Bus) -> None:
    """stats_of and losses_of tell what the bus itself tells, from outside."""
    with bus.publisher(SMALL, on_full="drop") as pub, bus.subscriber(SMALL, name="s"):
        pub.publish_many(orders(500))
        seen, own = inspect.stats_of(bus.name), bus.stats()
        assert msgspec.structs.replace(seen.consumers[0], lag_ns=0, publishers=()) == msgspec.structs.replace(
            own.consumers[0], lag_ns=0, publishers=()
        )
        assert inspect.losses_of(bus.name) == bus.losses()
        assert bus.losses()


# -- remove


def test_remove_in_use(bus: Bus, processes: Processes) -> None:
    """A bus in use is not removed, and the error says by whom; with force it goes under them."""
    with pytest.raises(shmbus.ConfigError, match=str(os.getpid())):
        inspect.remove(bus.name)
    assert entries(bus.name)
    inspect.remove(bus.name, force=True)
    assert not entries(bus.name)


def test_remove_owed(bus_name: str) -> None:
    """A bus that owes a group events is not removed without force, and the error says what it owes."""
    with Bus(bus_name, supervise=False) as bus, bus.publisher(ORDERS) as pub:
        bus.group(ORDERS, "billing")
        pub.publish_many(orders(3))
    with pytest.raises(shmbus.ConfigError, match=r"orders/billing.*3"):
        inspect.remove(bus_name)
    inspect.remove(bus_name, force=True)
    assert not entries(bus_name)


def test_remove_after_kill(bus_name: str, processes: Processes) -> None:
    """What a killed process left can be removed without force."""
    code = """
        import signal, sys
        from events import *
        from shmbus import Bus
        bus = Bus(sys.argv[1], supervise=False)
        handles = bus.publisher(ORDERS), bus.subscriber(ORDERS)
        print("ready")
        signal.pause()
    """
    child = processes.spawn(code, bus_name)
    assert line(child) == "ready"
    child.kill()
    child.wait()
    assert entries(bus_name)
    inspect.remove(bus_name)
    assert not entries(bus_name)


def test_remove_leftovers(bus_name: str) -> None:
    """Rings and channels without a bus segment are leftovers, which remove() takes away; foreign files it spares."""
    with Bus(bus_name, supervise=False) as bus, bus.publisher(ORDERS), bus.subscriber(ORDERS):
        (SHM / segment_name(bus_name)).unlink()
        other = SHM / f"{bus_name}-other"
        other.touch()
        try:
            inspect.remove(bus_name)
            assert entries(bus_name) == [other.name]
        finally:
            other.unlink()


def test_remove_what_cannot_be_opened(bus_name: str) -> None:
    """A segment that is no bus is removed with force alone."""
    for name in (segment_name(bus_name), f"{object_prefix(bus_name)}lives"):
        (SHM / name).write_bytes(b"x" * 4096)
    assert bus_name in inspect.buses()
    with pytest.raises(shmbus.LayoutMismatchError):
        inspect.remove(bus_name)
    inspect.remove(bus_name, force=True)
    assert not entries(bus_name)


# -- tail


def test_tail(bus: Bus) -> None:
    """A tail sees what is published from now on, with publisher, sequence, time and headers, and is no consumer."""
    with bus.publisher(ORDERS, name="p") as pub:
        pub.publish(Order(1))
        with inspect.Tail(bus.name, "orders") as tail:
            assert tail.read() == []
            pub.publish(Order(2), headers={"n": 1})
            (seen,) = tail.read()
            assert (seen.publisher, seen.sequence, seen.headers, seen.gap) == ("p", 2, {"n": 1}, 0)
            assert seen.event == {"id": 2, "cents": 0}
            assert seen.time_ns > 0
            with bus.publisher(ORDERS, name="late") as late:
                late.publish(Order(3))
                assert [t.event["id"] for t in tail.read()] == [3]
            assert bus.stats().consumers == ()
            assert not tail.removed


def test_tail_oldest_and_gap(bus: Bus) -> None:
    """A tail from the oldest on begins with what the rings hold; what is overwritten unseen is a gap, exactly."""
    with bus.publisher(SMALL) as pub:
        pub.publish_many(orders(10))
        with inspect.Tail(bus.name, "small", oldest=True) as tail:
            assert [t.event["id"] for t in tail.read(4)] == [1, 2, 3, 4]
            pub.publish_many(orders(500, 11))
            seen = tail.read()
            assert seen[0].gap > 0
            assert [t.event["id"] for t in seen[1:]] == list(range(5 + seen[0].gap, 511))


def test_tail_of_nothing(bus: Bus) -> None:
    """A tail of a topic that is not there names those that are."""
    with bus.publisher(ORDERS):
        with pytest.raises(shmbus.BusNotFoundError, match=r"'nothing'.*orders"):
            inspect.Tail(bus.name, "nothing")


def test_tail_of_a_bus_that_goes(bus_name: str) -> None:
    """A tail of a bus that is removed knows it, and reads what was left."""
    with Bus(bus_name, supervise=False) as bus, bus.publisher(ORDERS) as pub:
        tail = inspect.Tail(bus_name, "orders")
        pub.publish(Order(1))
    with tail:
        assert tail.removed
        assert [t.sequence for t in tail.read()] == [1]


# -- publish


def test_publish_json(bus: Bus) -> None:
    """A JSON text becomes an event of the topic's type, for every consumer."""
    with bus.subscriber(ORDERS) as sub, bus.worker(ORDERS, group="g") as worker:
        assert inspect.publish_json(bus.name, "orders", '{"id": 5, "cents": 7}', headers={"by": "hand"}) == 1
        message = next(sub.messages())
        assert (message.event, message.headers) == (Order(5, 7), {"by": "hand"})
        assert drain(worker) == [Order(5, 7)]
        with inspect.JsonPublisher(bus, "orders") as pub:
            assert [pub.publish('{"id": 1}'), pub.publish(b'{"id": 2}')] == [1, 2]
        assert drain(sub) == orders(2)
        drain(worker)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("{", "JSON"),
        ("5", "expected Order"),
        ('{"id": "x"}', "id"),
        ('{"cents": 1}', "id"),
        ('{"id": 1, "cents": null}', "cents"),
    ],
)
def test_publish_json_wrong(bus: Bus, text: str, where: str) -> None:
    """A text that does not fit the topic is a ConfigError that says where, and nothing is published."""
    with bus.subscriber(ORDERS) as sub:
        with pytest.raises(shmbus.ConfigError, match=where):
            inspect.publish_json(bus.name, "orders", text)
        with pytest.raises(shmbus.BusNotFoundError, match="nothing"):
            inspect.publish_json(bus.name, "nothing", "{}")
        assert sub.try_receive() is None


def test_publish_json_bytes(bus: Bus) -> None:
    """To a topic of bytes a JSON string goes as base64."""
    with bus.subscriber(RAW) as sub:
        inspect.publish_json(bus.name, "raw", '"AAH/"')
        assert eventually(sub.try_receive) == b"\x00\x01\xff"
