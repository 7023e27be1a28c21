"""Bus: what it admits, what it makes, how it ends, and what a fork or a pickle of it can do."""

from __future__ import annotations

import gc
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from events import ORDERS, RAW, Order, Renamed, drain, opened, orders, take
from support import SHM, Processes, entries, line

import shmbus
from shmbus import Bus


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    with opened(bus_name) as bus:
        yield bus


# -- what is admitted

BAD_NAMES = ["", "-a", ".a", "_a", "A", "a b", "a/b", "ä", "a\n", "a" * 49, "a\0b", "..", "a:b"]


@pytest.mark.parametrize("name", [*BAD_NAMES, None, 3, b"shop"])
@pytest.mark.parametrize("make", [Bus, Bus.attach])
def test_bad_bus_name(name: Any, make: Any) -> None:
    """A bus name outside `[a-z0-9][a-z0-9._-]{0,47}` is a ConfigError and a ValueError that quotes it."""
    with pytest.raises(shmbus.ConfigError, match="name") as caught:
        make(name)
    assert isinstance(caught.value, ValueError)
    assert repr(name) in str(caught.value)
    assert [entry for entry in os.listdir(SHM) if entry.startswith(f"shmbus-{name}:")] == []


@pytest.mark.parametrize(
    "options",
    [
        {"idle": "busy"},
        {"idle": None},
        {"stall_timeout": 0},
        {"stall_timeout": -1.0},
        {"stall_timeout": float("nan")},
        {"stall_timeout": float("inf")},
        {"stall_timeout": "10"},
    ],
)
def test_bad_bus_option(bus_name: str, options: dict[str, Any]) -> None:
    """An option of Bus that cannot be is a ConfigError, and no bus comes to be."""
    with pytest.raises(shmbus.ConfigError, match=next(iter(options))):
        Bus(bus_name, **options)
    assert not entries(bus_name)


BAD_CALLS: dict[str, Callable[[Any], object]] = {
    "publisher topic": lambda bus: bus.publisher("orders"),
    "publisher on_full": lambda bus: bus.publisher(ORDERS, on_full="wait"),
    "publisher timeout": lambda bus: bus.publisher(ORDERS, timeout=-1),
    "publisher timeout nan": lambda bus: bus.publisher(ORDERS, timeout=float("nan")),
    "publisher timeout str": lambda bus: bus.publisher(ORDERS, timeout="1"),
    "publisher name": lambda bus: bus.publisher(ORDERS, name=""),
    "publisher name type": lambda bus: bus.publisher(ORDERS, name=5),
    "subscriber topic": lambda bus: bus.subscriber(Order),
    "subscriber mode": lambda bus: bus.subscriber(ORDERS, mode="fast"),
    "subscriber start": lambda bus: bus.subscriber(ORDERS, start="newest"),
    "subscriber on_gap": lambda bus: bus.subscriber(ORDERS, on_gap="ignore"),
    "subscriber idle": lambda bus: bus.subscriber(ORDERS, idle="sleep"),
    "subscriber name": lambda bus: bus.subscriber(ORDERS, name="a\nb"),
    "subscriber name long": lambda bus: bus.subscriber(ORDERS, name="x" * 64),
    "group topic": lambda bus: bus.group(None, "billing"),
    "group name": lambda bus: bus.group(ORDERS, " billing"),
    "worker group": lambda bus: bus.worker(ORDERS, group=""),
    "worker group type": lambda bus: bus.worker(ORDERS, group=None),
    "worker max_deliver": lambda bus: bus.worker(ORDERS, group="g", max_deliver=0),
    "worker max_deliver type": lambda bus: bus.worker(ORDERS, group="g", max_deliver=2.5),
    "worker max_deliver bool": lambda bus: bus.worker(ORDERS, group="g", max_deliver=True),
    "worker prefetch": lambda bus: bus.worker(ORDERS, group="g", prefetch=0),
    "worker prefetch large": lambda bus: bus.worker(ORDERS, group="g", prefetch=10**9),
    "worker idle": lambda bus: bus.worker(ORDERS, group="g", idle=1),
    "worker dead letters": lambda bus: bus.worker(shmbus.Topic("t" * 44, Order), group="g"),
}


@pytest.mark.parametrize("call", BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_option_creates_nothing(bus: Bus, bus_name: str, call: Callable[[Bus], object]) -> None:
    """A handle asked for with an option that cannot be is a ConfigError, before anything is created."""
    before = entries(bus_name)
    with pytest.raises(shmbus.ConfigError):
        call(bus)
    stats = bus.stats()
    assert entries(bus_name) == before
    assert (stats.topics, stats.publishers, stats.consumers) == ((), (), ())


@pytest.mark.parametrize("method", ["publisher", "subscriber"])
def test_name_taken(bus: Bus, method: str) -> None:
    """The name of a live publisher or subscriber cannot be taken again, and is free once it has closed."""
    make = getattr(bus, method)
    first = make(ORDERS, name="one")
    with pytest.raises(shmbus.ConfigError, match=rf"'one'.*{os.getpid()}"):
        make(ORDERS, name="one")
    make(shmbus.Topic("others", Order), name="one").close()
    first.close()
    make(ORDERS, name="one").close()


def test_schema_mismatch(bus: Bus) -> None:
    """A topic that exists with another event type is refused, and the error names the difference."""
    with bus.publisher(ORDERS):
        other = shmbus.Topic("orders", Renamed)
        for make in (bus.publisher, bus.subscriber, lambda topic: bus.worker(topic, group="g")):
            with pytest.raises(shmbus.SchemaMismatchError) as caught:
                make(other)
            assert caught.value.topic == "orders"
            assert "number" in "\n".join(caught.value.difference)
        assert [c.name for c in bus.stats().consumers] == []


def test_no_space(bus: Bus, bus_name: str) -> None:
    """A ring that /dev/shm cannot hold is a NoSpaceError with both sizes, leaves nothing, and harms nobody."""
    before = entries(bus_name)
    huge = shmbus.Topic("huge", Order, capacity=1 << 40)
    with pytest.raises(shmbus.NoSpaceError, match="--shm-size") as caught:
        bus.publisher(huge)
    assert isinstance(caught.value, OSError)
    assert caught.value.size >= 1 << 40
    assert 0 <= caught.value.free < caught.value.size
    assert entries(bus_name) == before
    assert bus.stats().topics == ()
    with bus.publisher(shmbus.Topic("huge", Order)) as pub, bus.subscriber(huge, start="oldest") as sub:
        pub.publish(Order(1))
        assert sub.try_receive() == Order(1)


# -- what there is


def test_attach(bus_name: str) -> None:
    """Bus.attach opens the bus that is there, and raises BusNotFoundError where none is, creating nothing."""
    with pytest.raises(shmbus.BusNotFoundError, match=bus_name) as caught:
        Bus.attach(bus_name)
    assert isinstance(caught.value, LookupError)
    assert caught.value.bus == bus_name
    assert not entries(bus_name)
    with Bus(bus_name, supervise=False) as bus, Bus.attach(bus_name) as attached, attached.subscriber(ORDERS) as sub:
        assert attached.name == bus.name == bus_name
        with bus.publisher(ORDERS) as pub:
            pub.publish(Order(1))
        assert sub.receive(timeout=0) == Order(1)


def test_two_buses_in_one_process(bus_name: str) -> None:
    """Two Bus objects of one name in one process are two participants; the bus goes with the second one."""
    with Bus(bus_name, supervise=False) as one:
        two = Bus(bus_name, supervise=False)
        assert [p.pid for p in one.stats().participants] == [os.getpid()] * 2
        with one.publisher(ORDERS) as pub, two.subscriber(ORDERS) as sub:
            pub.publish_many(orders(3))
            assert drain(sub) == orders(3)
        two.close()
        assert [p.pid for p in one.stats().participants] == [os.getpid()]
        assert entries(bus_name)
    assert not entries(bus_name)


def test_buses_are_apart(bus_name: str) -> None:
    """A topic of one bus has nothing to do with the same topic of another, even where one name begins the other."""
    with Bus(bus_name, supervise=False) as bus, Bus(bus_name + ".two", supervise=False) as other:
        with bus.subscriber(ORDERS) as sub, other.publisher(ORDERS) as pub:
            pub.publish(Order(1))
            assert sub.try_receive() is None
        bus.close()
        assert other.stats().bus == bus_name + ".two"
        with other.publisher(ORDERS) as pub:
            assert pub.publish(Order(2)) == 1


def test_names_and_modes(bus: Bus, bus_name: str) -> None:
    """Everything in /dev/shm begins with `shmbus-<bus>` and is the owner's alone."""
    with bus.publisher(ORDERS), bus.subscriber(ORDERS) as sub, bus.worker(ORDERS, group="g"):
        with pytest.raises(shmbus.Empty):
            sub.receive(timeout=0.01)
        found = entries(bus_name)
        own = [entry.removeprefix("sem.") for entry in found]
        assert all(entry.startswith(f"shmbus-{bus_name}") for entry in own), found
        assert {stat.S_IMODE((SHM / entry).stat().st_mode) for entry in found} == {0o600}


def test_handles_say_who_they_are(bus: Bus, bus_name: str) -> None:
    """The repr of a bus and of every handle names it, its topic and its bus; so do its attributes."""
    with (
        bus.publisher(ORDERS, name="p") as pub,
        bus.subscriber(ORDERS, name="s") as sub,
        bus.worker(ORDERS, group="g", name="w") as worker,
    ):
        for handle in (pub, sub, worker):
            assert repr(handle.name) in repr(handle)
            assert "orders" in repr(handle)
            assert bus_name in repr(handle)
            assert handle.topic == ORDERS
            assert not handle.closed
        assert worker.group == "g"
        assert sub.mode == "reliable"
        assert bus_name in repr(bus)


# -- the end


def test_closed(bus_name: str) -> None:
    """A closed bus and its handles raise ClosedError, iteration over them ends, and close() may be repeated."""
    bus = Bus(bus_name, supervise=False)
    pub, sub, worker = bus.publisher(ORDERS), bus.subscriber(ORDERS), bus.worker(ORDERS, group="g")
    bus.close()
    bus.close()
    assert bus.closed
    calls: list[Callable[[], object]] = [
        lambda: bus.publisher(ORDERS),
        lambda: bus.subscriber(ORDERS),
        lambda: bus.worker(ORDERS, group="g"),
        lambda: bus.group(ORDERS, "g"),
        bus.stats,
        bus.losses,
        lambda: pub.publish(Order(1)),
        lambda: pub.publish_many(orders(2)),
        worker.ack,
    ]
    for receiver in (sub, worker):
        calls += [receiver.receive, lambda r=receiver: r.receive(timeout=0), receiver.try_receive]  # type: ignore[misc]
        calls.append(lambda r=receiver: r.receive_many(2, timeout=0))  # type: ignore[misc]
        assert list(receiver) == []
        assert list(receiver.messages()) == []
    for call in calls:
        with pytest.raises(shmbus.ClosedError):
            call()
    for handle in (pub, sub, worker):
        assert handle.closed
        handle.close()


def test_unclosed_bus_warns(bus_name: str) -> None:
    """A Bus that is forgotten without close() is a ResourceWarning, and is closed all the same."""
    with pytest.warns(ResourceWarning, match=bus_name):
        Bus(bus_name, supervise=False)
    assert not entries(bus_name)


@pytest.mark.parametrize("method", ["publisher", "subscriber", "worker"])
def test_unclosed_handle_warns(bus: Bus, method: str) -> None:
    """A handle that is forgotten without close() is a ResourceWarning, and is closed: it blocks nobody."""
    options = {"group": "g"} if method == "worker" else {}
    with pytest.warns(ResourceWarning, match="forgotten"):
        getattr(bus, method)(ORDERS, name="forgotten", **options)
    stats = bus.stats()
    assert [p.state for p in stats.publishers if p.state != "closed"] == []
    assert [c.state for c in stats.consumers if c.state not in ("closed", "idle")] == []


def test_exit_without_close(bus: Bus, processes: Processes) -> None:
    """A process that just ends leaves in good order: its events arrive, and nothing of it is a death."""
    code = """
        import sys
        from events import ORDERS, orders
        from shmbus import Bus
        bus = Bus(sys.argv[1], supervise=False)
        pub = bus.publisher(ORDERS, name="brief")
        lost = bus.subscriber(ORDERS, name="there")
        pub.publish_many(orders(5))
        print("ends")
    """
    with bus.subscriber(ORDERS, name="here") as sub:
        child = processes.spawn(code, bus.name)
        assert line(child) == "ends"
        assert child.wait() == 0
        assert [p.pid for p in bus.stats().participants] == [os.getpid()]
        assert [(p.name, p.state) for p in bus.stats().publishers] == [("brief", "closed")]
        assert [c.state for c in bus.stats().consumers if c.name == "there"] == ["closed"]
        assert take(sub, 5) == orders(5)


def test_nothing_is_kept(bus_name: str) -> None:
    """Opening and closing a bus with handles again and again keeps no descriptor, mapping, name or thread."""

    def used() -> tuple[int, int, int, int]:
        with open("/proc/self/maps", encoding="ascii") as maps:
            mapped = sum("shmbus" in text and bus_name in text for text in maps)
        threads = len(os.listdir("/proc/self/task"))
        return len(os.listdir("/proc/self/fd")), mapped, len(entries(bus_name)), threads

    def once() -> None:
        with Bus(bus_name, supervise=False) as bus, bus.publisher(ORDERS) as pub, bus.subscriber(ORDERS) as sub:
            with bus.worker(ORDERS, group="g") as worker, bus.subscriber(RAW) as other:
                pub.publish(Order(1))
                assert (sub.try_receive(), worker.try_receive()) == (Order(1), Order(1))
                with pytest.raises(shmbus.Empty):
                    other.receive(timeout=0.0005)
                worker.ack()
                bus.stats()

    once()
    gc.collect()
    before = used()
    for _ in range(200):
        once()
    gc.collect()
    assert used() == before


def test_handles_are_kept_by_nobody(bus: Bus) -> None:
    """Handles that come and go on an open bus keep no descriptor and no mapping."""

    def used() -> tuple[int, int]:
        with open("/proc/self/maps", encoding="ascii") as maps:
            return len(os.listdir("/proc/self/fd")), sum(bus.name in text for text in maps)

    def once() -> None:
        with bus.publisher(ORDERS) as pub, bus.subscriber(ORDERS) as sub:
            pub.publish(Order(1))
            assert take(sub, 1) == [Order(1)]

    for _ in range(10):
        once()
    gc.collect()  # of other tests' handles too
    before = used()
    for _ in range(100):
        once()
    gc.collect()
    assert used() == before
