"""The books: every term, the equation after every kind of drop, who blocks whom, and that looking changes nothing."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from events import (
    ORDERS,
    SMALL,
    Order,
    assert_balanced,
    books,
    consumer,
    drain,
    fill,
    losses,
    opened,
    orders,
    publisher,
    take,
)
from support import SHM, Processes, entries, eventually, line

import shmbus
from shmbus import Bus, inspect
from shmbus.stats import with_rates


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    with opened(bus_name) as bus:
        yield bus


def test_empty_bus(bus: Bus) -> None:
    """A bus with nobody but us says so, when it was made, and what memory it takes."""
    stats = bus.stats()
    assert stats.bus == bus.name
    assert 0 < stats.created_ns <= stats.time_ns <= time.time_ns()
    assert stats.bytes == sum((SHM / entry).stat().st_blocks * 512 for entry in entries(bus.name))
    assert (stats.topics, stats.publishers, stats.consumers) == ((), (), ())
    assert [(p.pid, p.state) for p in stats.participants] == [(os.getpid(), "ok")]
    assert (stats.supervisor.pid, stats.supervisor.state) == (0, "none")
    assert bus.losses() == []


def test_every_field(bus: Bus) -> None:
    """Each participant, topic, publisher and consumer is there, with what is known of it."""
    with (
        bus.publisher(SMALL, name="p") as pub,
        bus.subscriber(SMALL, name="s", mode="lossy"),
        bus.worker(SMALL, group="g", name="w") as worker,
    ):
        pub.publish_many(orders(3))
        assert worker.try_receive() == Order(1)
        stats = bus.stats()
        assert [(t.name, t.capacity, t.codec, t.type) for t in stats.topics] == [("small", 4096, "msgpack", "Order")]
        (p,) = stats.publishers
        assert (p.name, p.topic, p.state, p.pid, p.published, p.unrouted, p.refused) == (
            "p", "small", "ok", os.getpid(), 3, 0, 0,
        )  # fmt: skip
        assert (p.capacity, p.waiting, p.blocked_by) == (4096, False, ())
        assert 0 < p.used < 4096
        s, g = stats.consumers
        assert (s.name, s.topic, s.kind, s.mode, s.state, s.pid) == (
            "s", "small", "subscriber", "lossy", "ok", os.getpid(),
        )  # fmt: skip
        assert (g.name, g.topic, g.kind, g.state, g.claimed, g.depth) == ("g", "small", "group", "ok", 1, 3)
        assert [(w.name, w.pid, w.held) for w in g.workers] == [("w", os.getpid(), 1)]
        assert [(source.publisher, source.depth) for source in (*s.publishers, *g.publishers)] == [("p", 3)] * 2
        drain(worker)


def test_lag(bus: Bus) -> None:
    """Lag is the age of the oldest event not yet received, 0 when there is none."""
    with bus.publisher(ORDERS) as pub, bus.subscriber(ORDERS, name="s") as sub:
        assert consumer(bus, "s").lag_ns == 0
        before = time.time_ns()
        pub.publish(Order(1))
        between = time.time_ns()
        pub.publish(Order(2))
        stats = bus.stats()
        assert stats.time_ns - between <= stats.consumers[0].lag_ns <= stats.time_ns - before
        assert sub.receive() == Order(1)
        stats = bus.stats()
        assert stats.consumers[0].lag_ns <= stats.time_ns - between
        drain(sub)
        assert consumer(bus, "s").lag_ns == 0


def test_offered_since_it_joined(bus: Bus) -> None:
    """A consumer's books begin when it joins."""
    with bus.publisher(ORDERS) as pub, bus.subscriber(ORDERS, name="one"):
        pub.publish_many(orders(5))
        with bus.subscriber(ORDERS, name="two"), bus.worker(ORDERS, group="g") as worker:
            pub.publish_many(orders(2))
            assert [books(bus, name)["offered"] for name in ("one", "two", "g")] == [7, 2, 2]
            drain(worker)


def test_every_cause(bus: Bus) -> None:
    """All causes on one topic: each consumer's terms are exact, and the losses name them with sequences and times."""
    begin = time.time_ns()
    wrong: Any = "x"
    with (
        bus.publisher(SMALL, name="p", on_full="drop") as pub,
        bus.subscriber(SMALL, name="lossy", mode="lossy") as lossy,
        bus.worker(SMALL, group="g") as worker,
    ):
        pub.publish_many([Order(1), Order(wrong), Order(3)])
        assert lossy.receive() == Order(1)
        with pytest.raises(shmbus.DecodeError):
            lossy.receive()
        assert worker.receive() == Order(1)
        with pytest.raises(shmbus.DecodeError):
            worker.receive()
        next(worker.messages()).reject("late")
        for order in orders(500, 4):
            pub.publish(order)
        kept = len(drain(worker))
        refused = 500 - kept
        received = len(drain(lossy))
        assert books(bus, "g") == {
            "offered": 503, "delivered": 1 + kept, "undecodable": 1, "rejected": 1, "refused": refused,
        }  # fmt: skip
        assert books(bus, "lossy") == {
            "offered": 503, "delivered": 1 + received, "undecodable": 1, "overrun": 501 - received,
        }  # fmt: skip
        with bus.subscriber(SMALL, name="leaver"):
            pub.publish_many(orders(4))
        assert books(bus, "leaver") == {"offered": 4, "abandoned": 4}
        assert {(cause, count) for _, cause, _, _, count in losses(bus, "g")} == {
            ("undecodable", 1), ("rejected", 1), ("refused", refused),
        }  # fmt: skip
        assert list(losses(bus, "lossy")) == [
            ("p", "undecodable", 2, 2, 1),
            ("p", "overrun", 3, 503 - received, 501 - received),
        ]
        assert list(losses(bus, "leaver")) == [("p", "abandoned", 504, 507, 4)]
        for loss in bus.losses():
            assert loss.topic == "small"
            assert begin <= loss.first_ns <= loss.last_ns <= time.time_ns()
        drain(worker)
    before = {c.name: books(bus, c.name) for c in bus.stats().consumers}
    assert before["g"]["refused"] == refused, "the books outlive the rings"
    assert sum(loss.count for loss in bus.losses() if loss.consumer == "g") == refused + 2


def test_rejected_and_undecodable_apart(bus: Bus) -> None:
    """What a group rejected and what it could not decode are two losses, each with its own sequences."""
    wrong: Any = "x"
    with bus.publisher(SMALL, name="p") as pub, bus.worker(SMALL, group="g") as worker:
        pub.publish_many([Order(1), Order(wrong), Order(3), Order(4)])
        assert worker.receive() == Order(1)
        with pytest.raises(shmbus.DecodeError):
            worker.receive()
        next(worker.messages()).reject("late")
        drain(worker)
        assert set(losses(bus, "g")) == {("p", "undecodable", 2, 2, 1), ("p", "rejected", 3, 3, 1)}


def test_group_books_outlive_its_publishers(bus: Bus) -> None:
    """Totals of rings that are gone stay on the books, and the losses with them."""
    bus.group(SMALL, "g")
    for turn in range(3):
        with bus.publisher(SMALL, name=f"p{turn}", on_full="drop") as pub:
            kept = pub.publish_many(orders(300))
            with bus.worker(SMALL, group="g") as worker:
                assert take(worker, kept) == orders(kept)
                worker.ack()
    assert books(bus, "g") == {"offered": 900, "delivered": 3 * kept, "refused": 900 - 3 * kept}
    assert [(name, count) for name, _, _, _, count in losses(bus, "g")] == [(f"p{n}", 300 - kept) for n in range(3)]


def test_blocks(bus: Bus) -> None:
    """A full ring shows on both sides: whom the publisher waits for, and whom the consumer holds up."""
    with (
        bus.publisher(SMALL, name="p", on_full="raise") as pub,
        bus.subscriber(SMALL, name="slow"),
        bus.subscriber(SMALL, name="quick") as quick,
        bus.worker(SMALL, group="g") as worker,
    ):
        assert publisher(bus, "p").blocked_by == ()
        fill(pub)
        drain(quick)
        assert publisher(bus, "p").blocked_by == ("g",)
        states = {c.name: (c.blocks, c.state) for c in bus.stats().consumers}
        assert states == {"slow": ((), "slow"), "quick": ((), "ok"), "g": (("p",), "slow")}
        drain(worker)
        assert publisher(bus, "p").blocked_by == ()
        fill(pub)
        drain(quick)
        drain(worker)
        assert publisher(bus, "p").blocked_by == ("slow",)
        assert publisher(bus, "p").used > 4000
        states = {c.name: (c.blocks, c.state) for c in bus.stats().consumers}
        assert states == {"slow": (("p",), "slow"), "quick": ((), "ok"), "g": ((), "ok")}


def test_who_waits_is_seen_to_wait_all_the_time(bus: Bus) -> None:
    """A publisher that wakes up to look again, and must sleep again, is told as one that waits in between too."""
    with bus.subscriber(SMALL, name="slow") as slow, bus.publisher(SMALL, name="p", timeout=600) as pub:
        seen: list[bool] = []
        grow = pub._grow

        def look(*arguments: Any) -> bool:
            """What each look for room begins with."""
            seen.append(publisher(bus, "p").waiting)
            return grow(*arguments)

        pub._grow = look  # type: ignore[assignment, method-assign]
        thread = threading.Thread(target=pub.publish_many, args=(orders(1000),))
        thread.start()
        eventually(lambda: len(seen) > 5, "it has slept some times")
        assert seen[1:5] == [True] * 4
        assert take(slow, 1000) == orders(1000)
        thread.join(60)
        assert not publisher(bus, "p").waiting


def test_rates(bus: Bus) -> None:
    """Rates are events per second between two looks."""
    with bus.publisher(ORDERS, name="p") as pub, bus.subscriber(ORDERS, name="s") as sub:
        one = bus.stats()
        pub.publish_many(orders(100))
        take(sub, 50)
        two = with_rates(one, bus.stats())
        seconds = (two.time_ns - one.time_ns) / 1e9
        assert two.interval == pytest.approx(seconds)
        assert two.publishers[0].rate == pytest.approx(100 / seconds)
        assert two.consumers[0].rate == pytest.approx(50 / seconds)


def test_stats_are_values(bus: Bus) -> None:
    """Statistics are frozen, and go through JSON and back unchanged."""
    with bus.publisher(ORDERS) as pub, bus.subscriber(ORDERS), bus.worker(ORDERS, group="g") as worker:
        pub.publish(Order(1))
        stats = bus.stats()
        with pytest.raises(AttributeError):
            stats.consumers[0].depth = 5  # type: ignore[misc]
        assert msgspec.json.decode(msgspec.json.encode(stats), type=shmbus.BusStats) == stats
        drain(worker)


def test_looking_changes_nothing(bus: Bus) -> None:
    """Looking at a bus, from inside or outside, changes no byte of it."""
    with (
        bus.publisher(SMALL, on_full="drop") as pub,
        bus.subscriber(SMALL, name="s", mode="lossy"),
        bus.worker(SMALL, group="g") as worker,
    ):
        pub.publish_many(orders(300))
        worker.try_receive()

        def whole() -> dict[str, str]:
            return {e: hashlib.sha256((SHM / e).read_bytes()).hexdigest() for e in entries(bus.name)}

        before = whole()
        for _ in range(3):
            mine, theirs = bus.stats(), inspect.stats_of(bus.name)
            assert (mine.consumers[0].depth, mine.publishers[0].used) == (
                theirs.consumers[0].depth,
                theirs.publishers[0].used,
            )
            assert [loss.count for loss in inspect.losses_of(bus.name)] == [loss.count for loss in bus.losses()]
            with inspect.Tail(bus.name, "small", oldest=True) as tail:
                assert tail.read(10)
        assert whole() == before


def test_balance_while_events_flow(bus: Bus, processes: Processes) -> None:
    """Whenever somebody looks, also in the midst of everything, the books balance and only grow."""
    code = """
        import sys
        from events import SMALL, orders
        from shmbus import Bus
        with Bus(sys.argv[1], supervise=False) as bus, bus.publisher(SMALL, on_full=sys.argv[2]) as pub:
            print("ready")
            for order in orders(20_000):
                pub.publish(order)
    """
    with (
        bus.subscriber(SMALL, name="lossy", mode="lossy") as lossy,
        bus.subscriber(SMALL, name="s") as sub,
        bus.worker(SMALL, group="g") as worker,
    ):
        children = [processes.spawn(code, bus.name, how) for how in ("drop", "block")]
        assert [line(child) for child in children] == ["ready", "ready"]
        last: dict[str, int] = {}

        def look() -> None:
            stats = bus.stats()
            assert_balanced(stats)
            for entry in stats.consumers:
                assert entry.offered >= last.get(entry.name, 0)
                last[entry.name] = entry.offered

        while any(child.poll() is None for child in children):
            drain(lossy)
            drain(sub)
            drain(worker)
            look()
        for receiver in (lossy, sub, worker):
            eventually(lambda r=receiver: not drain(r))  # type: ignore[misc]
        look()
        assert last == {"lossy": 40_000, "s": 40_000, "g": 40_000}
        assert books(bus, "s").get("depth", 0) == 0
