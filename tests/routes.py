"""What the tests of the router share: events, topics, a router in a thread, and what came of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

import shmbus
from shmbus.middleware import Middleware


class Order(msgspec.Struct, frozen=True):
    number: int


class Invoice(msgspec.Struct, frozen=True):
    number: int
    part: int = 0


ORDERS = shmbus.Topic("orders", Order)
INVOICES = shmbus.Topic("invoices", Invoice)
DEAD = shmbus.dead_letter_topic(ORDERS)
GROUP = "billing"
PATIENCE = 60.0


class Failure(Exception):
    """What the handlers of the tests raise."""


@contextmanager
def running(router: shmbus.Router, bus: shmbus.Bus) -> Iterator[threading.Thread]:
    """A router in a thread; cancelled at the end, and what `run` raised is raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            router.run(bus)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="router")
    thread.start()
    try:
        yield thread
    finally:
        while thread.is_alive():  # it may not have come to its first line yet
            router.cancel()
            thread.join(0.01)
    if raised:
        raise raised[0]


def publish(bus: shmbus.Bus, *numbers: int) -> None:
    with bus.publisher(ORDERS) as publisher:
        publisher.publish_many(Order(n) for n in numbers)


def take(subscriber: shmbus.Subscriber[Any], count: int) -> list[Any]:
    return [subscriber.receive(PATIENCE) for _ in range(count)]


def rest(subscriber: shmbus.Subscriber[Any]) -> list[Any]:
    with suppress(shmbus.Empty):
        return subscriber.receive_many(10_000, 0)
    return []


def consumer(bus: shmbus.Bus, name: str = GROUP) -> shmbus.ConsumerStats:
    return next(c for c in bus.stats().consumers if c.name == name)


def depth(bus: shmbus.Bus, name: str = GROUP) -> int:
    return consumer(bus, name).depth


class Handler:
    """Does what `act` does with a number, and keeps the calls."""

    def __init__(self, act: Callable[[int], Any] = lambda number: None) -> None:
        self.calls: list[int] = []
        self.times: list[float] = []
        self._act = act

    def sync(self, order: Order) -> Any:
        self.calls.append(order.number)
        self.times.append(time.monotonic())
        return self._act(order.number)

    async def later(self, order: Order) -> Any:
        return self.sync(order)

    def routed(self, asynchronous: bool, *around: Middleware, **options: Any) -> shmbus.Router:
        router = shmbus.Router()
        router.worker(ORDERS, group=GROUP, to=INVOICES, middleware=around, **options)(
            self.later if asynchronous else self.sync
        )
        return router


def raises(number: int) -> None:
    raise Failure(f"not {number}")
