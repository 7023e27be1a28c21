"""Event types and topics that the tests of the public API share, and short ways to look at a bus's books.

Children started through the fixture `processes` import it by name too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
from support import entries

import shmbus
from shmbus import inspect
from shmbus._ledger.document import Document
from shmbus.stats import Books


class Order(msgspec.Struct, frozen=True, order=True):
    id: int
    cents: int = 0


class Renamed(msgspec.Struct, frozen=True):
    number: int
    cents: int = 0


ORDERS = shmbus.Topic("orders", Order)
SMALL = shmbus.Topic("small", Order, capacity=4096)
"""Room for about a hundred events."""
RAW = shmbus.Topic("raw", bytes, capacity=4096)

PATIENT = 60.0
"""Seconds that a receive of the tests may take before something is wrong."""


@contextmanager
def opened(name: str, **options: Any) -> Iterator[shmbus.Bus]:
    """A bus without a supervisor, removed at the end even if a group is owed events."""
    with shmbus.Bus(name, **{"supervise": False, **options}) as bus:
        yield bus
    with suppress(shmbus.BusNotFoundError):
        inspect.remove(name, force=True)


def orders(count: int, first: int = 1) -> list[Order]:
    """`count` orders with consecutive ids."""
    return [Order(id) for id in range(first, first + count)]


def drain(receiver: shmbus.Subscriber[Any] | shmbus.Worker[Any]) -> list[Any]:
    """Everything that is there now; what a worker gets is acked."""
    found = list(iter(receiver.try_receive, None))
    if isinstance(receiver, shmbus.Worker):
        receiver.ack()
    return found


def take(receiver: shmbus.Subscriber[Any] | shmbus.Worker[Any], count: int) -> list[Any]:
    """The next `count` events, waiting for them."""
    return [receiver.receive(timeout=PATIENT) for _ in range(count)]


def fill(publisher: shmbus.Publisher[Order]) -> int:
    """Publish orders 1, 2, ... until an `on_full="raise"` publisher finds no room; returns how many got in."""
    count = 0
    try:
        while True:
            publisher.publish(Order(count + 1))
            count += 1
    except shmbus.Full:
        return count


def close_all(handles: list[Any]) -> None:
    """Close handles, and pass over what opened none."""
    for handle in handles:
        if handle is not None:
            handle.close()


def document(bus: shmbus.Bus) -> Document:
    """The registry document of a bus."""
    return bus._session.registry.read()


def schema_files(bus: shmbus.Bus) -> list[str]:
    """The names of the schema segments of a bus."""
    return [name for name in entries(bus.name) if ":schema-" in name]


def consumer(bus: shmbus.Bus, name: str) -> shmbus.ConsumerStats:
    """The books of the consumer of that name."""
    return next(c for c in bus.stats().consumers if c.name == name)


def publisher(bus: shmbus.Bus, name: str) -> shmbus.PublisherStats:
    """The statistics of the publisher of that name."""
    return next(p for p in bus.stats().publishers if p.name == name)


def books(bus: shmbus.Bus, name: str) -> dict[str, int]:
    """The terms of one consumer's books that are not 0, after a check that all books of the bus balance."""
    assert_balanced(bus.stats())
    found = consumer(bus, name)
    return {term: getattr(found, term) for term in Books.__struct_fields__ if getattr(found, term)}


def assert_balanced(stats: shmbus.BusStats) -> None:
    """The equation of the books, for every consumer as a whole and with each of its publishers."""
    for entry in stats.consumers:
        for part in (entry, *entry.publishers):
            assert part.offered == part.delivered + part.depth + part.dropped, part
            dropped = part.overrun + part.refused + part.abandoned + part.undecodable + part.rejected
            assert part.dropped == dropped, part


def losses(bus: shmbus.Bus, consumer: str) -> Iterator[tuple[str, str, int, int, int]]:
    """(publisher, cause, first, last, count) of each loss of a consumer, oldest first."""
    for loss in bus.losses():
        if loss.consumer == consumer:
            yield loss.publisher, loss.cause, loss.first, loss.last, loss.count
