"""Growing rings: larger under a consumer that lags, smaller once they are mostly empty; order and books are kept."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from events import PATIENT, books, opened
from support import Processes, entries, eventually

import shmbus
from shmbus import Bus, inspect
from shmbus._handles import growing
from shmbus._shm import place

GROWS = shmbus.Topic("grows", bytes, capacity=1 << 14, max_capacity=1 << 17)
FIXED = shmbus.Topic("grows", bytes, capacity=1 << 14)
BODY = bytes(1000)


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    with opened(bus_name) as bus:
        yield bus


@pytest.fixture
def shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ring that was mostly empty for a fiftieth of a second shrinks."""
    monkeypatch.setattr(growing.Growing, "_shrink_ns", 20_000_000)


def event(number: int) -> bytes:
    return number.to_bytes(4, "little") + BODY


def number_of(event: bytes) -> int:
    assert event[4:] == BODY
    return int.from_bytes(event[:4], "little")


def fill(pub: shmbus.Publisher[bytes], first: int = 0) -> int:
    """Publishes until it is full; returns the number of the event that was refused."""
    number = first
    while True:
        try:
            pub.publish(event(number))
        except shmbus.Full:
            return number
        number += 1


def rings(bus: Bus) -> list[tuple[int, int, str]]:
    """Group (0: the broadcast ring), capacity and state of each ring, the oldest first."""
    return [(r.group, r.capacity, r.state) for r in sorted(bus._session.document().rings, key=lambda r: r.id)]


def taken(handle: shmbus.Subscriber[bytes] | shmbus.Worker[bytes], count: int) -> list[int]:
    return [number_of(handle.receive(timeout=PATIENT)) for _ in range(count)]


def test_grows_shrinks_and_loses_nothing(bus: Bus, shrinks: None) -> None:
    """Under a stalled subscriber and group rings grow to their maximum, then block; drained, they shrink again."""
    with (
        bus.publisher(GROWS, name="p", on_full="raise") as pub,
        bus.subscriber(GROWS, name="s") as sub,
        bus.worker(GROWS, group="g") as worker,
    ):
        count = fill(pub)
        assert [r[1:] for r in rings(bus) if not r[0]] == [
            (1 << 14, "retired"),
            (1 << 15, "retired"),
            (1 << 16, "retired"),
            (1 << 17, "active"),
        ]
        [stats] = bus.stats().publishers
        assert (stats.capacity, stats.grown, stats.published) == (1 << 17, 6, count)
        for name in ("s", "g"):
            assert books(bus, name)["depth"] == count
        assert [s.publisher for c in bus.stats().consumers for s in c.publishers] == ["p", "p"]
        assert taken(sub, count) == taken(worker, count) == list(range(count))
        worker.ack()
        pub.flush(PATIENT)

        def shrunk() -> bool:
            pub.publish(event(0))
            assert sub.receive(0)[:4] == worker.receive(0)[:4] == bytes(4)
            worker.ack()
            return {r[1:] for r in rings(bus)} == {(1 << 14, "active")}  # and those that were drained are gone

        eventually(shrunk)
        assert bus.stats().publishers[0].shrunk >= 2
        for name in ("s", "g"):
            found = books(bus, name)
            assert found["offered"] == bus.stats().publishers[0].published + found.get("refused", 0)
            assert found["offered"] == sum(found.values()) - found["offered"]


def test_rings_grow_separately(bus: Bus) -> None:
    """The ring of a group that lags grows, and no other; a group that comes later begins with what subscribers have."""
    with bus.publisher(GROWS, on_full="raise") as pub, bus.worker(GROWS, group="slow"):
        group = bus._session.document().consumers[0].id
        fill(pub)
        assert {(g, c) for g, c, state in rings(bus) if state == "active"} == {(0, 1 << 14), (group, 1 << 17)}
        bus.group(GROWS, "late")
        assert (1 << 14, "active") in [r[1:] for r in rings(bus)[-1:]]


def test_order_among_publishers_that_share_one(bus: Bus) -> None:
    """Threads that share a publisher write on while it grows: no event is lost or doubled, each thread's in order."""
    with bus.publisher(GROWS, timeout=PATIENT) as pub, bus.subscriber(GROWS) as sub, bus.worker(GROWS, group="g") as w:

        def publish(first: int) -> None:
            for number in range(first, first + 40):
                pub.publish(event(number))
            pub.publish_many(map(event, range(first + 40, first + 60)))

        threads = [threading.Thread(target=publish, args=(first,)) for first in (0, 1000)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENT)
        got = [m.sequence for _, m in zip(range(120), sub.messages(), strict=False)]
        assert got == list(range(1, 121))
        for found in (taken(w, 120),):
            assert [n for n in found if n < 1000] == list(range(60))
            assert [n for n in found if n >= 1000] == list(range(1000, 1060))


@pytest.mark.parametrize("raw", [True, False])
def test_an_event_that_is_too_large_for_the_ring(bus: Bus, raw: bool) -> None:
    """An event that takes more than a quarter of its ring has it grow; one that no ring can take is refused as ever."""
    topic: Any = shmbus.Topic("t", bytes if raw else list[int], capacity=4096, max_capacity=1 << 16)
    with bus.publisher(topic) as pub, bus.subscriber(topic) as sub, bus.worker(topic, group="g") as worker:
        large: Any = bytes(9000) if raw else [200] * 4500
        pub.publish(large)
        asyncio.run(pub.apublish(large))
        assert sub.receive(0) == sub.receive(0) == worker.receive(0) == worker.receive(0) == large
        assert {r[1] for r in rings(bus) if r[2] == "active"} == {1 << 16}
        with pytest.raises(shmbus.EventTooLargeError) as told:
            pub.publish(large * 4)
        assert told.value.maximum == (1 << 14) - 24
        pub.publish_many([large])
        with bus.publisher(shmbus.Topic("t", topic.type, capacity=4096)) as fixed:
            with pytest.raises(shmbus.EventTooLargeError):
                fixed.publish(large)


@pytest.mark.parametrize("on_full", ["block", "drop", "raise"])
@pytest.mark.parametrize("awaited", [False, True])
def test_whatever_is_done_when_full(bus: Bus, on_full: Any, awaited: bool) -> None:
    """A ring grows before its publisher waits, drops or raises."""
    with bus.publisher(GROWS, on_full=on_full, timeout=PATIENT) as pub, bus.subscriber(GROWS, name="s"):

        async def publish_all() -> None:
            for number in range(60):
                assert await pub.apublish(event(number)) == number + 1
            assert await pub.apublish_many(map(event, range(20))) == 20

        if awaited:
            asyncio.run(publish_all())
        else:
            assert [pub.publish(event(number)) for number in range(60)] == list(range(1, 61))
            assert pub.publish_many(map(event, range(20))) == 20
        assert books(bus, "s") == {"offered": 80, "depth": 80}


def test_no_room_to_grow(bus: Bus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Where /dev/shm has no room to spare a ring stays as it is, and the log says why; with room it grows again."""
    with bus.publisher(GROWS, on_full="raise") as pub, bus.subscriber(GROWS, name="s") as sub:
        monkeypatch.setattr(place, "free_bytes", lambda: 1 << 15)
        count = fill(pub)
        assert count < 20
        assert [r[1:] for r in rings(bus)] == [(1 << 14, "active")]
        [said] = [r.getMessage() for r in caplog.records if "cannot go on" in r.getMessage()]
        assert "no room in /dev/shm" in said
        with pytest.raises(shmbus.NoSpaceError):
            pub.publish(bytes(20_000))
        monkeypatch.undo()
        pub._not_before = 0.0
        assert fill(pub, count) > 2 * count
        assert taken(sub, count) == list(range(count))


def test_lossy_readers_and_taps(bus: Bus, bus_name: str) -> None:
    """A lossy subscriber and a tap go from one ring to the next without a gap, as far as those hold it."""
    with (
        bus.publisher(GROWS, on_full="raise") as pub,
        bus.subscriber(GROWS, name="s"),
        bus.subscriber(GROWS, name="l", mode="lossy") as lossy,
        inspect.Tail(bus_name, "grows") as tail,
    ):
        count = fill(pub)
        seen = taken(lossy, count - books(bus, "l").get("overrun", 0))
        assert seen[-1] == count - 1
        assert seen == sorted(set(seen))
        found = tail.read()
        assert [t.sequence for t in found if not t.gap][-1] == count
        with bus.subscriber(GROWS, start="oldest") as late:
            assert number_of(late.receive(0)) in range(count)


def test_what_is_given_back(bus: Bus) -> None:
    """What a worker gives back of a ring that the publisher has left comes first; what it holds there stays its own."""
    with bus.publisher(GROWS) as pub, bus.worker(GROWS, group="g") as worker:
        pub.publish_many(map(event, range(5)))
        messages = iter(worker.messages())
        first, second = next(messages), next(messages)
        pub.publish_many(map(event, range(5, 40)))
        assert len(rings(bus)) > 2
        first.nack()
        assert number_of(next(messages).event) == 0
        second.ack()
        assert [number_of(next(messages).event) for _ in range(38)] == list(range(2, 40))


def grows_and_dies(bus_name: str, point: str, visits: str) -> None:
    from test_growing import GROWS, event

    import shmbus
    from shmbus._shm import failpoint

    with shmbus.Bus(bus_name, supervise=False) as bus, bus.publisher(GROWS, name="mortal", on_full="raise") as pub:
        failpoint.arm(point, int(visits))
        for number in range(200):
            pub.publish(event(number))
            print(number, flush=True)


@pytest.mark.parametrize("visits", [1, 3])
@pytest.mark.parametrize("point", ["ring.created", "grow.ring", "commit.written", "commit.stored", "grow.committed"])
def test_killed_while_it_grows(bus: Bus, bus_name: str, processes: Processes, point: str, visits: int) -> None:
    """A publisher that dies at any step of growing has published what it was told it had, once and in order."""
    with bus.subscriber(GROWS, name="s") as sub, bus.worker(GROWS, group="g") as worker:
        child = processes.spawn(grows_and_dies, bus_name, point, visits)
        count = 0
        assert child.stdout is not None
        for text in child.stdout:
            count = int(text) + 1
        assert child.wait() == -9
        assert taken(sub, count) == taken(worker, count) == list(range(count))
        worker.ack()
        with bus._session.locked() as change:
            bus._session.reclaim_dead(change)
        assert sub.try_receive() is None
        assert worker.try_receive() is None
        for name in ("s", "g"):
            assert books(bus, name) == {"offered": count, "delivered": count}
        found = {r.id for r in bus._session.document().rings}
        assert {int(n.rpartition("-")[2]) for n in entries(bus_name) if ":ring-" in n} == found


def test_flush_waits_for_rings_that_it_grew_out_of(bus: Bus) -> None:
    """What lies in a ring that the publisher has left is waited for like the rest."""
    with bus.publisher(GROWS) as pub, bus.subscriber(GROWS, name="s") as sub:
        pub.publish_many(map(event, range(40)))
        for _ in range(40):
            with pytest.raises(shmbus.FlushTimeoutError):
                pub.flush(0)
            sub.receive(0)
        pub.flush(0)


@pytest.mark.parametrize("most", [0, 1000, 1 << 13, 3 << 14, "1 << 20", True])
def test_what_a_maximum_may_be(most: Any) -> None:
    """A maximum is a power of two that is no less than the capacity."""
    with pytest.raises(shmbus.ConfigError, match="max_capacity"):
        shmbus.Topic("t", bytes, capacity=1 << 14, max_capacity=most)
    topic = shmbus.Topic("t", bytes, capacity=1 << 14, max_capacity=1 << 16)
    assert eval(repr(topic), {"Topic": shmbus.Topic}) == topic != shmbus.Topic("t", bytes, capacity=1 << 14)
    assert shmbus.dead_letter_topic(topic).max_capacity == 1 << 17


def published_in_all(bus: Bus) -> int:
    """What the topic's publishers have published, those that are gone included."""
    stats = bus.stats()
    return sum(p.published + p.before for p in stats.publishers) + sum(d.published for d in stats.departed)


def test_counted_once_though_it_grew(bus: Bus) -> None:
    """What was published in a ring that its publisher grew out of is on the books once, until both are gone."""
    with bus.subscriber(GROWS, name="slow") as slow:
        with bus.publisher(GROWS, name="p", on_full="raise") as pub:
            count = fill(pub)
            assert [state for _, _, state in rings(bus)] == ["retired"] * (len(rings(bus)) - 1) + ["active"]
            assert published_in_all(bus) == count
        assert published_in_all(bus) == count
        for number in range(count):
            assert number_of(slow.receive(timeout=PATIENT)) == number
            if number % 16 == 0:
                assert published_in_all(bus) == count
        grown = {ring.id for ring in bus._session.document().rings}
        while grown & {ring.id for ring in bus._session.document().rings}:  # they are history, until others are
            with bus.publisher(GROWS, name="p") as pub:
                pub.publish(event(count))
                count += 1
                assert number_of(slow.receive(timeout=PATIENT)) == count - 1
            assert published_in_all(bus) == count
