"""Rings of publishers that followed each other in time are read in the order in which they were written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from events import books, opened, take
from support import Processes, line

import shmbus
from shmbus import Bus
from shmbus._ledger import departures

NUMBERS = shmbus.Topic("numbers", int)


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    with opened(bus_name) as bus:
        yield bus


def one_shot(bus: Bus, numbers: range) -> None:
    for number in numbers:
        with bus.publisher(NUMBERS) as publisher:
            publisher.publish(number)


def publish_on_demand(name: str) -> None:
    import sys

    import shmbus

    topic = shmbus.Topic("numbers", int)
    with shmbus.Bus(name, supervise=False) as bus:
        print("ready")
        for text in sys.stdin:
            with bus.publisher(topic) as publisher:
                publisher.publish(int(text))
            print("done")


def opening(bus: Bus, kind: str) -> Any:
    if kind == "worker":
        return bus.worker(NUMBERS, group="g")
    return bus.subscriber(NUMBERS, mode="lossy" if kind == "lossy" else "reliable")


@pytest.mark.parametrize("kind", ["reliable", "lossy", "worker"])
def test_order_across_publishers(bus: Bus, kind: str, processes: Processes) -> None:
    """Publishers of several processes that follow each other are read in that order, however far a consumer lags."""
    children = [processes.spawn(publish_on_demand, bus.name) for _ in range(3)]
    assert [line(child) for child in children] == ["ready"] * 3
    count, got = 60, []
    with opening(bus, kind) as consumer:
        for number in range(count):
            child = children[number % 3]
            assert child.stdin is not None
            child.stdin.write(f"{number}\n")
            child.stdin.flush()
            assert line(child) == "done"
            if number % 20 == 5:
                got += take(consumer, 4)
        got += take(consumer, count - len(got))
        assert got == list(range(count))
        assert consumer.try_receive() is None
    for child in children:
        child.communicate()


def test_order_among_workers(bus: Bus) -> None:
    """Workers of a group claim the events of publishers that followed each other in that order."""
    with bus.worker(NUMBERS, group="g") as one, bus.worker(NUMBERS, group="g") as two:
        one_shot(bus, range(100))
        got = []
        for _ in range(50):
            got += [one.receive(timeout=0), two.receive(timeout=0)]
        assert got == list(range(100))


@pytest.mark.parametrize("kind", ["reliable", "lossy", "worker"])
def test_what_is_retired_goes_first(bus: Bus, kind: str) -> None:
    """A ring that was read in part while its publisher lived is read to its end before that of the next one."""
    with opening(bus, kind) as consumer:
        with bus.publisher(NUMBERS) as first:
            first.publish_many(range(100))
            got = take(consumer, 10)
        with bus.publisher(NUMBERS) as second, bus.publisher(NUMBERS) as third:
            second.publish_many(range(100, 200))
            got += take(consumer, 150)
            assert got[:100] == list(range(100))
            second.close()
            third.publish(200)
            got += take(consumer, 41)
        assert got == list(range(201))


def test_given_back_goes_first(bus: Bus) -> None:
    """What a worker gives back to a ring without a publisher is the next that is claimed."""
    with bus.worker(NUMBERS, group="g") as worker:
        one_shot(bus, range(3))
        messages = worker.messages()
        first, second = next(messages), next(messages)
        second.ack()
        first.nack()
        assert [message.event for message in (next(messages), next(messages))] == [0, 2]


def test_held_rings_stay(bus: Bus) -> None:
    """A worker settles what it holds of many rings without publishers, in whatever order."""
    with bus.worker(NUMBERS, group="g") as worker:
        one_shot(bus, range(50))
        held = [next(iter(worker.messages())) for _ in range(50)]
        with bus._session.locked() as change:
            departures.sweep(change, bus._session.rings, None)
        for message in held[1::2] + held[::2]:
            message.ack()
        assert [message.event for message in held] == list(range(50))
        assert books(bus, "g") == {"offered": 50, "delivered": 50}
