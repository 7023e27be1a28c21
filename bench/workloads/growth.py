"""W8: how the costs of shmbus grow: with publishers, subscribers, workers, the ring, the event.

All ends are handles in this one process and take turns: a run of events is published, then everybody receives it, each
part timed for itself. So nobody is parked, nobody waits for a turn on a core, and what is measured is the path alone.
All places on a curve exist side by side on one bus and take turns too.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections import deque
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import shmbus
import shmbus.inspect

from ..event import Tick, ticks
from ..results import Growth, Point

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

_EVENTS: Final = 2048  # of one run, unless the ring is smaller
_FRAME: Final = 64  # bytes that an event takes in a ring beside its payload, at most
_USUAL: Final = 1 << 20  # capacity
_GROUP: Final = "workers"

Costs = dict[str, float]
"""Nanoseconds an event, by the name of the curve."""


@dataclass(frozen=True)
class Place:
    """A place on the curves of one axis."""

    at: int
    run: Callable[[], Costs]
    warm: int
    """Runs until every page of its rings has been touched."""


def measure(rounds: int, progress: Callable[[str], None]) -> list[Growth]:
    """Every curve, each place the median of `rounds` runs."""
    return [axis("w8", name, unit, places, rounds, progress) for name, unit, places in _AXES]


def axis(
    workload: str,
    name: str,
    unit: str,
    places_on: Callable[[shmbus.Bus, ExitStack], list[Place]],
    rounds: int,
    progress: Callable[[str], None],
) -> Growth:
    """The curves over one axis; its places are made on a bus of their own."""
    costs: dict[str, dict[int, list[float]]] = {}
    with on_a_bus() as bus, ExitStack() as stack, _no_collector():
        places = places_on(bus, stack)
        progress(f"{workload} {name}: touching every page")
        for place in places:
            deque((place.run() for _ in range(place.warm)), maxlen=0)
        for round in range(rounds):
            progress(f"{workload} {name}: round {round + 1} of {rounds}")
            first = round % len(places)
            for place in places[first:] + places[:first]:
                for curve, ns in place.run().items():
                    costs.setdefault(curve, {}).setdefault(place.at, []).append(ns)
    return Growth(
        workload=workload, axis=name, unit=unit, curves={curve: _points(found) for curve, found in costs.items()}
    )


def _points(found: dict[int, list[float]]) -> list[Point]:
    return [Point(at=at, ns=statistics.median(all), ns_least=min(all)) for at, all in sorted(found.items())]


# -- the axes


def _subscribers(bus: shmbus.Bus, stack: ExitStack) -> list[Place]:
    def place(count: int) -> Place:
        topic = shmbus.Topic(f"subscribers-{count}", Tick, capacity=_USUAL)
        readers = [stack.enter_context(bus.subscriber(topic)) for _ in range(count)]
        publish = stack.enter_context(bus.publisher(topic, on_full="raise")).publish

        def drain() -> None:
            for reader in readers:
                take(reader, _EVENTS)

        def run() -> Costs:
            sent = timed(lambda: _each(publish, ticks(_EVENTS)))
            got = timed(drain)
            return {"publish": sent / _EVENTS, "receive": got / _EVENTS / count}

        return Place(count, run, _laps(_USUAL, _EVENTS * 256))

    return [place(count) for count in (1, 2, 4, 8, 16, 32, 64)]


def _publishers(bus: shmbus.Bus, stack: ExitStack) -> list[Place]:
    def place(count: int) -> Place:
        topic = shmbus.Topic(f"publishers-{count}", Tick, capacity=_USUAL)
        reader = stack.enter_context(bus.subscriber(topic))
        all_publish = [stack.enter_context(bus.publisher(topic, on_full="raise")).publish for _ in range(count)]

        def receive(active: Sequence[Callable[[Tick], Any]]) -> float:
            for publish in active:
                _each(publish, ticks(_EVENTS // len(active)))
            return timed(lambda: take(reader, _EVENTS)) / _EVENTS

        def run() -> Costs:
            return {"receive, all active": receive(all_publish), "receive, one active": receive(all_publish[:1])}

        return Place(count, run, _laps(_USUAL, _EVENTS // count * 256))

    return [place(count) for count in (1, 2, 4, 8, 16, 32)]


def _workers(bus: shmbus.Bus, stack: ExitStack) -> list[Place]:
    def place(count: int) -> Place:
        topic = shmbus.Topic(f"workers-{count}", Tick, capacity=_USUAL)
        workers = [stack.enter_context(bus.worker(topic, group=_GROUP)) for _ in range(count)]
        publish = stack.enter_context(bus.publisher(topic, on_full="raise")).publish

        def work() -> None:
            for worker in workers:
                take(worker, _EVENTS // count)
                worker.ack()

        def run() -> Costs:
            _each(publish, ticks(_EVENTS))
            return {"claim and ack": timed(work) / _EVENTS}

        return Place(count, run, _laps(_USUAL, _EVENTS * 256))

    return [place(count) for count in (1, 2, 4, 8, 16, 32)]


def _capacity(bus: shmbus.Bus, stack: ExitStack) -> list[Place]:
    few = (1 << 16) // 2 // (256 + _FRAME)  # what half of the smallest ring holds, in every ring

    def place(capacity: int) -> Place:
        topic = shmbus.Topic(f"capacity-{capacity}", Tick, capacity=capacity)
        return _one_to_one(bus, stack, topic, capacity, lambda: ticks(few), few, _EVENTS // few, 256)

    return [place(1 << bits) for bits in range(16, 27, 2)]


def _size(bus: shmbus.Bus, stack: ExitStack) -> list[Place]:
    def place(size: int) -> Place:
        topic = shmbus.Topic(f"size-{size}", bytes, capacity=_USUAL)
        few = min(_EVENTS, _USUAL // 2 // (size + _FRAME))
        events = [b"n" * size] * few
        return _one_to_one(bus, stack, topic, size, lambda: events, few, -(-_EVENTS // few // 4), size)

    return [place(1 << bits) for bits in range(4, 17, 2)]


_AXES: Final[tuple[tuple[str, str, Callable[[shmbus.Bus, ExitStack], list[Place]]], ...]] = (
    ("subscribers", "", _subscribers),
    ("publishers", "", _publishers),
    ("workers", "", _workers),
    ("ring", "bytes", _capacity),
    ("raw event", "bytes", _size),
)
"""Name, unit, and what makes the places."""


def _one_to_one(
    bus: shmbus.Bus,
    stack: ExitStack,
    topic: shmbus.Topic[Any],
    at: int,
    events: Callable[[], Iterable[Any]],
    few: int,
    times: int,
    size: int,
) -> Place:
    """`few` events there and received, and so on, `times` times a run."""
    reader = stack.enter_context(bus.subscriber(topic))
    publish = stack.enter_context(bus.publisher(topic, on_full="raise")).publish

    def run() -> Costs:
        sent = got = 0
        for _ in range(times):
            sent += timed(lambda: _each(publish, events()))
            got += timed(lambda: take(reader, few))
        return {"publish": sent / few / times, "receive": got / few / times}

    return Place(at, run, _laps(topic.capacity, few * times * size))


# -- the means


def _each(publish: Callable[[Any], Any], events: Iterable[Any]) -> None:
    for event in events:
        publish(event)


def take(source: Iterable[Any], count: int) -> None:
    """Receive so many, and let go of them."""
    deque(islice(source, count), maxlen=0)


def timed(work: Callable[[], object]) -> int:
    """Nanoseconds."""
    start = time.perf_counter_ns()
    work()
    return time.perf_counter_ns() - start


def _laps(capacity: int, run: int) -> int:
    """Runs that write more than the ring holds."""
    return capacity // run + 1


@contextmanager
def on_a_bus() -> Iterator[shmbus.Bus]:
    """A bus of its own, which is gone afterwards whatever happens."""
    name = f"bench-{os.getpid()}-growth"
    try:
        with shmbus.Bus(name) as bus:
            yield bus
    finally:
        with suppress(shmbus.BusNotFoundError):  # as it should be: the last to leave has removed it
            shmbus.inspect.remove(name, force=True)


@contextmanager
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
