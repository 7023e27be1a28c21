"""Latencies: the buckets, what is sampled and what is not, whose line it is, and lines that cannot be."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import hypothesis.strategies as st
import pytest
from events import ORDERS, Order, consumer, drain, opened, orders, take
from hypothesis import given
from rings import Consumer, CoreBroadcastRing, anonymous
from support import eventually

import shmbus
from shmbus import Bus, _core, inspect
from shmbus.stats import Latency

LAST = _core.LATENCY_BUCKETS - 1
NANOSECONDS = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 64).map(lambda n: 2**n - 1), st.integers(0, 10**10))


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    with opened(bus_name) as bus:
        yield bus


def chosen(first: int, last: int) -> int:
    """How many of these sequences are sampled wherever they stand."""
    golden = 0x9E3779B97F4A7C15
    return sum(1 for sequence in range(first, last + 1) if sequence * golden % 2**64 >> 58 == 0)


def latency(bus: Bus, name: str) -> Latency | None:
    found = consumer(bus, name).latency
    assert found is None or 0 <= found.p50_ns <= found.p99_ns <= found.max_ns
    return found


def count(bus: Bus, name: str) -> int:
    found = latency(bus, name)
    return 0 if found is None else found.count


# ---- buckets ----


@given(NANOSECONDS, NANOSECONDS)
def test_buckets_are_ordered(one: int, other: int) -> None:
    """A longer latency falls into the same bucket or a later one."""
    assert (one <= other) <= (_core.latency_bucket(one) <= _core.latency_bucket(other))
    assert 0 <= _core.latency_bucket(one) <= LAST


@given(NANOSECONDS)
def test_bounds_are_close(ns: int) -> None:
    """A bucket's bound is not below what falls into it, and between 128 ns and 97 s at most 19% above."""
    bucket = _core.latency_bucket(ns)
    bound = _core.latency_bound(bucket)
    assert ns <= bound
    assert _core.latency_bucket(bound) == bucket
    if 0 < bucket < LAST:
        assert bound <= ns * 1.19


def test_bounds() -> None:
    """The first bucket ends below 128 ns, four make an octave, and the last has no end."""
    bounds = [_core.latency_bound(bucket) for bucket in range(LAST + 1)]
    assert bounds == sorted(set(bounds))
    assert [bounds[octave] for octave in range(0, 118, 4)] == [2**power - 1 for power in range(7, 37)]
    assert bounds[-2:] == [97_184_015_999, 2**64 - 1]
    with pytest.raises(IndexError):
        _core.latency_bound(LAST + 1)


@given(st.lists(st.tuples(st.integers(0, 10**11), st.sampled_from([1, _core.LATENCY_WEIGHT])), min_size=1))
def test_quantiles(samples: list[tuple[int, int]]) -> None:
    """Count and maximum are exact, and a quantile is the bound of the bucket of the sample at that rank, or less."""
    for ns, weight in samples:
        _core.latency_record(SEGMENT, 1, ns, weight)
    try:
        found = _core.latency_terms(SEGMENT, 1)
    finally:
        clear(1)
    assert found is not None
    everything = sorted(ns for ns, weight in samples for _ in range(weight))
    assert (found["count"], found["max_ns"]) == (len(everything), everything[-1])
    for percent, seen in ((50, found["p50_ns"]), (99, found["p99_ns"])):
        exact = everything[-(-len(everything) * percent // 100) - 1]
        assert seen == min(_core.latency_bound(_core.latency_bucket(exact)), everything[-1])
    assert _core.latency_terms(SEGMENT, 0) is _core.latency_terms(SEGMENT, 2) is None


SEGMENT = anonymous(_core.BUS_BYTES)


def clear(line: int) -> None:
    at = _core.LATENCY_LINES + line * _core.LATENCY_BYTES
    SEGMENT[at : at + _core.LATENCY_BYTES] = bytes(_core.LATENCY_BYTES)


@given(st.lists(st.tuples(st.integers(0, _core.LATENCY_BYTES // 8 - 1), st.integers(0, 2**64 - 1)), max_size=5))
def test_lines_that_cannot_be(words: list[tuple[int, int]]) -> None:
    """Whatever a line holds, its terms are ordered and below 2**63, or there are none."""
    for word, value in words:
        _core.store(SEGMENT, _core.LATENCY_LINES + 3 * _core.LATENCY_BYTES + 8 * word, value)
    try:
        found = _core.latency_terms(SEGMENT, 3)
    finally:
        clear(3)
    if found is not None:
        assert 0 < found["count"] < 2**63
        assert 0 <= found["p50_ns"] <= found["p99_ns"] <= found["max_ns"] < 2**63


def test_bounds_of_the_table() -> None:
    """There is no line outside of the table, and none in a segment that is too small or read-only."""
    with pytest.raises(IndexError):
        _core.latency_terms(SEGMENT, _core.MAX_CONSUMERS)
    with pytest.raises(IndexError):
        Consumer(SEGMENT, 0, None)._sample_into(_core.MAX_CONSUMERS)
    with pytest.raises(OverflowError):
        _core.latency_record(SEGMENT, -1, 1, 1)
    with pytest.raises(shmbus.CorruptSegmentError):
        _core.latency_terms(bytes(4096), 0)
    with pytest.raises((BufferError, TypeError)):
        _core.latency_record(memoryview(SEGMENT).toreadonly(), 0, 1, 1)
    assert _core.latency_terms(memoryview(SEGMENT).toreadonly(), _core.MAX_CONSUMERS - 1) is None


# ---- what is sampled ----


def polls(receiver: Any) -> None:
    assert receiver.try_receive() is None


def receives(receiver: Any) -> None:
    with suppress(shmbus.Empty):
        receiver.receive(timeout=0)


def receives_many(receiver: Any) -> None:
    with suppress(shmbus.Empty):
        receiver.receive_many(10, timeout=0)


def awaits(receiver: Any) -> None:
    with suppress(shmbus.Empty):
        asyncio.run(receiver.areceive(timeout=0))


@pytest.mark.parametrize("look", [polls, receives, receives_many, awaits])
@pytest.mark.parametrize("kind", ["subscriber", "worker"])
def test_every_event_after_a_wait(bus: Bus, kind: str, look: Callable[[Any], None]) -> None:
    """What follows a look in vain is sampled whole, so the count is exact."""
    with bus.publisher(ORDERS) as pub, (
        bus.subscriber(ORDERS, name="c") if kind == "subscriber" else bus.worker(ORDERS, group="c")
    ) as receiver:  # fmt: skip
        assert latency(bus, "c") is None
        began = time.time_ns()
        for order in orders(150):
            look(receiver)
            pub.publish(order)
            assert receiver.try_receive() == order
        found = latency(bus, "c")
        assert found is not None
        assert found.count == 150
        assert found.max_ns <= time.time_ns() - began
        drain(receiver)


def test_after_sleep(bus: Bus) -> None:
    """A subscriber that sleeps before each event has them all in its latencies, and none twice."""
    with bus.publisher(ORDERS) as pub, bus.subscriber(ORDERS, name="s", idle="park") as sub:
        got: list[Order] = []
        thread = threading.Thread(target=lambda: got.extend(sub))
        thread.start()
        line = _core.TOPIC_LINES + _core.TOPIC_PARKED
        for number, order in enumerate(orders(80), 1):
            eventually(lambda: _core.load(bus._session.map, line), "it sleeps")
            pub.publish(order)
            eventually(lambda n=number: len(got) == n, "it has the event")  # type: ignore[misc]
        eventually(lambda: _core.load(bus._session.map, line), "it sleeps")
        assert count(bus, "s") == 80
        sub.cancel()
        thread.join()


@pytest.mark.parametrize("way", ["receive", "iterate", "messages", "many"])
@pytest.mark.parametrize("kind", ["subscriber", "lossy", "worker"])
def test_one_in_64_of_the_others(bus: Bus, kind: str, way: str) -> None:
    """Of events that nobody waited for one in 64 is sampled, by its sequence, and stands for 64."""
    total = 2000
    with bus.publisher(ORDERS) as pub, (
        bus.worker(ORDERS, group="c", prefetch=7)
        if kind == "worker"
        else bus.subscriber(ORDERS, name="c", mode="lossy" if kind == "lossy" else "reliable")
    ) as receiver:  # fmt: skip
        pub.publish_many(orders(total))
        if way == "receive":
            take(receiver, total)
        elif way == "many":
            assert sum(len(receiver.receive_many(min(64, total - at))) for at in range(0, total, 64)) == total
        elif way == "iterate":
            for order in receiver:
                if order.id == total:
                    break
        else:
            for message in receiver.messages():
                if isinstance(message, shmbus.ClaimedMessage):
                    message.ack()
                if message.event.id == total:
                    break
        expected = chosen(1, total) * _core.LATENCY_WEIGHT
        assert count(bus, "c") == expected
        assert abs(expected - total) < 0.05 * total
        drain(receiver)


def test_wait_then_run(bus: Bus) -> None:
    """The first event of a burst after a wait stands for itself, those behind it for 64 if they are chosen."""
    with bus.publisher(ORDERS) as pub, bus.subscriber(ORDERS, name="s") as sub:
        polls(sub)
        pub.publish_many(orders(1000))
        take(sub, 1000)
        assert count(bus, "s") == 1 + _core.LATENCY_WEIGHT * chosen(2, 1000)


def test_workers_share_a_line(bus: Bus) -> None:
    """All workers of a group add to its one histogram."""
    with (
        bus.publisher(ORDERS) as pub,
        bus.worker(ORDERS, group="g") as one,
        bus.worker(ORDERS, group="g") as other,
    ):
        for order in orders(100):
            for worker in (one, other):
                polls(worker)
            pub.publish(order)
            assert (one if order.id % 3 else other).try_receive() == order
        assert count(bus, "g") == 100
        drain(one)
        drain(other)


def test_history_is_not_sampled(bus: Bus) -> None:
    """What was on the ring before a subscriber joined is no latency of its own; what comes later is."""
    with bus.publisher(ORDERS) as pub:
        pub.publish_many(orders(500))
        with bus.subscriber(ORDERS, name="s", start="oldest") as sub:
            assert len(drain(sub)) == 500
            assert latency(bus, "s") is None
            pub.publish(Order(501))
            assert sub.receive() == Order(501)
            assert count(bus, "s") == 1


def test_what_a_group_collected_is_sampled(bus: Bus) -> None:
    """Events that waited for a group's first worker have waited."""
    bus.group(ORDERS, "g")
    with bus.publisher(ORDERS) as pub:
        pub.publish_many(orders(500))
        with bus.worker(ORDERS, group="g") as worker:
            drain(worker)
            assert count(bus, "g") == _core.LATENCY_WEIGHT * chosen(1, 500)


@pytest.mark.parametrize("way", ["nack", "close"])
def test_redelivery_is_not_sampled(bus: Bus, way: str) -> None:
    """An event is sampled when it is handed out for the first time only."""
    with bus.publisher(ORDERS) as pub:
        with bus.worker(ORDERS, group="g") as worker:
            polls(worker)
            pub.publish(Order(1))
            if way == "nack":
                next(worker.messages()).nack()
            else:
                assert worker.try_receive() == Order(1)
        assert count(bus, "g") == 1
        with bus.worker(ORDERS, group="g") as worker:
            assert worker.receive() == Order(1)
            assert count(bus, "g") == 1
            drain(worker)


# ---- whose line it is ----


def test_lines_outlive_their_consumer(bus: Bus) -> None:
    """What was sampled of a subscriber stays on the books when it has left; when it comes back it begins anew."""
    with bus.publisher(ORDERS) as pub:
        with bus.subscriber(ORDERS, name="s") as sub:
            polls(sub)
            pub.publish(Order(1))
            take(sub, 1)
            before = latency(bus, "s")
        assert before is not None
        assert (consumer(bus, "s").state, latency(bus, "s")) == ("closed", before)
        assert inspect.stats_of(bus.name).consumers[0].latency == before
        with bus.subscriber(ORDERS, name="s"):
            assert latency(bus, "s") is None


def test_lines_are_reused_empty(bus: Bus) -> None:
    """A consumer that gets the line of one that is gone begins with nothing sampled."""
    lines = set()
    with bus.publisher(ORDERS) as pub:
        for number in range(40):
            with bus.subscriber(ORDERS, name=f"s{number}") as sub:
                assert latency(bus, f"s{number}") is None
                polls(sub)
                pub.publish(Order(number))
                take(sub, 1)
                assert count(bus, f"s{number}") == 1
                lines |= {c.line for c in bus._session.document().consumers}
    assert lines == {0}


# ---- clocks ----


@pytest.mark.parametrize(("stamp", "least", "most"), [(2**64 - 1, 0, 0), (0, 10**18, 2**63)])
def test_clock_steps(stamp: int, least: int, most: int) -> None:
    """An event from the future took no time, one from long ago is in the last bucket: both are counted."""
    ring = CoreBroadcastRing(4096)
    reader = Consumer(ring.bus, 0, None)
    ring.join(0)
    reader._add_source(ring.ring, 0, "p")
    reader._sample_into(5)
    assert reader.try_receive() is None
    ring.publish(b"x")
    _core.store(ring.segment, 4096 + 64 * 320 + 16, stamp)
    assert reader.try_receive() == b"x"
    found = _core.latency_terms(ring.bus, 5)
    assert found is not None
    assert found["count"] == 1
    assert least <= found["p50_ns"] == found["p99_ns"] == found["max_ns"] <= most


def test_handles_without_a_line() -> None:
    """A handle that was given no line samples nothing, and one that is closed cannot be given one."""
    ring = CoreBroadcastRing(4096)
    reader = Consumer(ring.bus, 0, None)
    ring.join(0)
    reader._add_source(ring.ring, 0, "p")
    assert reader.try_receive() is None
    ring.publish(b"x")
    assert reader.try_receive() == b"x"
    assert not any(_core.latency_terms(ring.bus, line) for line in range(_core.MAX_CONSUMERS))
    reader._release()
    with pytest.raises(shmbus.ClosedError):
        reader._sample_into(0)
