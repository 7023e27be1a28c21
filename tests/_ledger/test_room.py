"""Who is gone costs nothing: closed subscribers, topics and the dead give way to whoever enters, and leaving needs no
room."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from events import (
    ORDERS,
    PATIENT,
    SMALL,
    Order,
    Renamed,
    books,
    close_all,
    consumer,
    document,
    opened,
    orders,
    schema_files,
    take,
)
from support import Processes, entries, line

import shmbus
from shmbus import Bus, Topic, _core
from shmbus._ledger import members, slots
from shmbus._ledger.document import Document
from shmbus._shm.segment import Segment

HOLD = """
    import signal, sys
    from events import *
    from shmbus import Bus
    from shmbus._ledger import slots
    slots.ROOM = int(sys.argv[3])
    bus = Bus(sys.argv[1], supervise=False)
    exec(sys.argv[2])
    print("ready")
    while True:
        signal.pause()
"""
"""Does what its second argument says, says "ready", and stays as it is."""


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    with opened(bus_name) as bus:
        yield bus


def die_with(processes: Processes, bus: str, code: str, room: int = slots.ROOM) -> None:
    """Have a process that holds something die with it."""
    child = processes.spawn(HOLD, bus, code, room)
    assert line(child) == "ready"
    child.kill()
    child.wait()


def endlessly(handles: list[Any], opening: Callable[[int], Any]) -> None:
    for number in itertools.count():
        handles.append(opening(number))


# -- subscribers that are gone


def test_closed_subscribers_hold_no_line(bus: Bus) -> None:
    """However many subscribers have come and gone, nobody is refused for it, and none of their totals is lost."""
    with bus.publisher(ORDERS) as pub:
        for number in range(600):
            with bus.subscriber(ORDERS) as sub:
                pub.publish(Order(number))
                assert sub.receive(PATIENT) == Order(number)
        assert not document(bus).consumers
        found = bus.stats().consumers
        assert len(found) == 32
        assert sum(c.delivered for c in found) == 600
        assert {c.state for c in found} == {"closed"}


def test_totals_wait_for_a_name(bus: Bus) -> None:
    """A subscriber that comes back under its name goes on with its totals, and is on the books once."""
    with bus.publisher(ORDERS) as pub:
        for round in range(1, 4):
            with bus.subscriber(ORDERS, name="s") as sub:
                pub.publish_many(orders(3))
                take(sub, 2)
            assert books(bus, "s") == {"offered": 3 * round, "delivered": 2 * round, "abandoned": round}
    assert [c.name for c in bus.stats().consumers] == ["s"]


# -- what the dead hold goes to who enters


def fill_participants(bus: Bus) -> None:
    Bus.attach(bus.name, supervise=False).close()


DEAD_HOLD: dict[str, tuple[str, Callable[[Bus], object]]] = {
    "participants": ("more = [Bus(sys.argv[1], supervise=False) for _ in range(18)]", fill_participants),
    "topics": (
        "h = [bus.publisher(shmbus.Topic(f't{n}', bytes, capacity=4096)) for n in range(128)]",
        lambda bus: bus.subscriber(ORDERS).close(),
    ),
    "consumers": (
        "h = [bus.subscriber(shmbus.Topic(f't{n % 8}', bytes)) for n in range(512)]",
        lambda bus: bus.group(ORDERS, "g"),
    ),
    "subscribers": (
        "h = [bus.subscriber(ORDERS) for _ in range(64)]",
        lambda bus: bus.subscriber(ORDERS).close(),
    ),
    "workers": (
        "h = [bus.worker(ORDERS, group='g') for _ in range(256)]",
        lambda bus: bus.worker(ORDERS, group="g").close(),
    ),
    "type": (
        "h = bus.subscriber(ORDERS)",
        lambda bus: bus.subscriber(Topic("orders", Renamed)).close(),
    ),
    "name": (
        "h = bus.subscriber(ORDERS, name='s'), bus.publisher(ORDERS, name='s')",
        lambda bus: close_all([bus.subscriber(ORDERS, name="s"), bus.publisher(ORDERS, name="s")]),
    ),
}


def small_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """To fill the tables of a bus as they are would take a test minutes."""
    for table, size in (("TOPICS", 128), ("GROUPS", 64), ("CONSUMERS", 512)):
        monkeypatch.setattr(_core, f"MAX_{table}", size)


@pytest.mark.parametrize("table", DEAD_HOLD)
def test_reclaim_precedes_entering(bus: Bus, table: str, processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is refused for what the dead hold, whatever that is, and nobody else needs to have looked after them."""
    monkeypatch.setattr(members, "MAX_PARTICIPANTS", 20)
    small_tables(monkeypatch)
    code, enter = DEAD_HOLD[table]
    die_with(processes, bus.name, "import shmbus; " + code)
    enter(bus)
    assert len(document(bus).participants) == 1


@pytest.mark.parametrize(
    ("code", "refused", "who"),
    [
        ("[bus.subscriber(ORDERS) for _ in range(64)]", lambda b: b.subscriber(ORDERS), r"64 of 64 in use; .*\(64\)"),
        (
            "[bus.group(shmbus.Topic(f't{n}', bytes), 'g') for n in range(64)]",
            lambda b: b.group(ORDERS, "g"),
            r"groups: 64 of 64 in use; held by group t\d+/g \(1\), .*, 61 others",
        ),
        (
            "[bus.worker(ORDERS, group='g') for _ in range(256)]",
            lambda b: b.worker(ORDERS, group="g"),
            r"256 of 256 in use; held by process \d+ .*\(256\)",
        ),
    ],
)
def test_refused_by_the_living(
    bus: Bus,
    code: str,
    refused: Callable[[Bus], object],
    who: str,
    processes: Processes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the living hold a table, its error says who, and nothing of the attempt stays."""
    small_tables(monkeypatch)
    child = processes.spawn(HOLD, bus.name, "import shmbus; h = " + code, slots.ROOM)
    assert line(child) == "ready"
    before, files = len(slots.encode(document(bus))), len(entries(bus.name))
    with pytest.raises(shmbus.CapacityError, match=who):
        refused(bus)
    assert (len(slots.encode(document(bus))), len(entries(bus.name))) == (before, files)


def test_full_shm_takes_history(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where /dev/shm has no room for a newcomer's rings, history goes, the oldest first and no more than needed; where
    that is not enough, the error says whose the rings are."""
    room = 6
    create = Segment.create.__func__  # type: ignore[attr-defined]

    def limited(cls: Any, name: str, size: int, initialise: Any) -> Segment:
        if ":ring-" in name and sum(":ring-" in entry for entry in entries(bus.name)) >= room:
            raise shmbus.NoSpaceError(28, name, size, 0)
        made: Segment = create(cls, name, size, initialise)
        return made

    monkeypatch.setattr(Segment, "create", classmethod(limited))
    for number in range(6):
        with bus.publisher(Topic(f"t{number % 2}", Order)) as pub:
            pub.publish(Order(number))
    kept = len(document(bus).rings)
    handles = []
    for number in range(room):
        handles.append(bus.publisher(Topic(f"u{number}", Order)))
        assert len(document(bus).rings) == min(kept + number + 1, room)
    with pytest.raises(shmbus.NoSpaceError, match=rf"rings of this bus: process {os.getpid()} "):
        bus.publisher(Topic("one.more", Order))
    assert len(schema_files(bus)) == room
    close_all(handles)


# -- leaving needs no room


ROOM = 170_000
"""Of the document, so that it is soon full."""


OPENINGS: tuple[Callable[[Bus, int], object], ...] = (
    lambda bus, _: bus.publisher(SMALL),
    lambda bus, n: bus.group(SMALL, f"g{n}"),
    lambda bus, _: bus.worker(SMALL, group="g0"),
    lambda bus, _: Bus.attach(bus.name, supervise=False),
)


def test_full_document(bus_name: str, processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever finds the document full is told who fills it; everybody can leave, and the dead be reclaimed."""
    monkeypatch.setattr(slots, "ROOM", ROOM)
    with opened(bus_name) as bus:
        child = processes.spawn(HOLD, bus_name, "h = bus.subscriber(SMALL, name='victim'), bus.publisher(ORDERS)", ROOM)
        assert line(child) == "ready"
        handles: list[Any] = [bus.publisher(SMALL, timeout=PATIENT), bus.subscriber(ORDERS, name="mine")]
        handles[0].publish_many(orders(3))
        with pytest.raises(shmbus.CapacityError, match=rf"is full: .*; held by process {os.getpid()} ") as caught:
            endlessly(
                handles,
                lambda n: bus.subscriber(Topic(f"t{n // 60}", bytes, capacity=4096), name=f"{n}".ljust(63, "x")),
            )
        assert caught.value.table == "registry"
        for opening in OPENINGS:
            with pytest.raises(shmbus.CapacityError):
                endlessly(handles, functools.partial(opening, bus))
        child.kill()
        child.wait()
        with Bus.attach(bus_name, supervise=False) as other:  # for want of room the dead are reclaimed
            assert consumer(other, "victim").state == "dead"
        close_all(handles)
        assert not document(bus).consumers


def test_reserve() -> None:
    """What entering leaves free is enough for all that leaving may add: states, totals, tables of losses and deaths."""
    from shmbus._ledger import document as d

    long, most = "\u20ac" * 21, 1 << 62  # 63 bytes
    full = Document()
    full.topics = [d.TopicEntry(0, 1, long, 4096, "msgpack", 1, "x")]
    for id in range(1, 513):
        full.participants.append(d.Participant(id, 1, 1, 1, "x"))
        full.publishers.append(d.PublisherEntry(id, id, 0, long, id))
        full.consumers.append(d.ConsumerEntry(id, id - 1, 0, "subscriber", long, id % 64, participant=id))
        full.closed.append(d.ClosedEntry(id, 0, "x", "reliable", False, d.Totals()))
        full.rings.append(d.RingEntry(id, 0, id, 0, 4096))
    size, reserve = len(slots.encode(full)), slots.reserve(full)
    totals = d.Totals(*[most] * 7)
    for participant in full.participants:
        participant.state = "reclaiming"
    for publisher in full.publishers:
        publisher.state, publisher.dead = "retired", True
    for ring in full.rings:
        ring.state = "retired"
    for entry in full.consumers:
        entry.state, entry.dead, entry.totals = "leaving", True, totals
    for closed in full.closed:
        closed.name, closed.totals = "(departed)", totals
    large = most * 2
    loss = d.LossEntry(long, long, long, "undecodable", most, large, large, large, large, "x" * d.TRACE)
    full.losses = [loss] * slots.MAX_LOSSES
    full.losses_forgotten = most
    held = [d.HeldRun(most * 2, most * 2, most * 2)] * slots.MAX_HELD
    full.deaths = [d.Death(most * 2, 1 << 22, most * 2, most * 2, True, True, "x" * d.HOW, held)] * slots.MAX_DEATHS
    assert len(slots.encode(full)) <= size + reserve
    sampled = (most, most * 2, most * 2, most * 2)
    full.closed += [
        d.ClosedEntry(c.id, c.topic, c.name, c.mode, c.dead, c.totals, latency=sampled) for c in full.consumers
    ]
    full.consumers = []
    assert len(slots.encode(full)) <= size + reserve


CYCLES = 250


def churn(name: str, cycles: str) -> None:
    import sys

    from events import ORDERS, Order

    import shmbus

    with shmbus.Bus(name, supervise=False) as bus:
        print("ready", flush=True)
        for number in range(int(cycles)):
            topic = shmbus.Topic(f"t{number % 7}", Order, capacity=4096)
            with bus.publisher(topic) as pub, bus.subscriber(topic), bus.subscriber(topic, mode="lossy"):
                pub.publish(Order(number))
            with bus.worker(ORDERS, group="g"), bus.publisher(ORDERS):
                pass
        print("done", flush=True)
        sys.stdin.read()


def test_churn_leaves_nothing(bus: Bus, processes: Processes) -> None:
    """Two processes that open and close every kind of handle 2,500 times leave lines and files as they were, and a
    document that is no longer for it."""
    with bus.worker(ORDERS, group="g"):
        lengths = []
        for _ in range(2):
            children = [processes.spawn(churn, bus.name, CYCLES) for _ in range(2)]
            for child in children:
                assert [line(child), line(child)] == ["ready", "done"]
            found = document(bus)
            assert [len(t) for t in (found.participants, found.consumers, found.workers)] == [3, 1, 1]
            lengths.append(len(slots.encode(found)))
            for child in children:
                child.communicate()
        assert lengths[1] <= lengths[0] + 2000, "names and numbers grow by a digit, nothing else does"
