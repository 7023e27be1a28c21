"""Middleware that says when, on a bus: Retry, Timeout, Throttle, CircuitBreaker, Delay; sync and async."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time

import pytest
from routes import (
    DEAD,
    GROUP,
    INVOICES,
    ORDERS,
    PATIENCE,
    Handler,
    Invoice,
    Order,
    consumer,
    depth,
    publish,
    raises,
    running,
    take,
)
from support import eventually

import shmbus
from shmbus import middleware
from shmbus.middleware import Middleware, Redeliver, Reject

BOTH = pytest.mark.parametrize("asynchronous", [False, True])


@BOTH
def test_retry(bus_name: str, asynchronous: bool) -> None:
    """What fails is delivered again `most` times, later each time; then it is a letter."""
    handler = Handler(lambda number: raises(number) if number == 1 else Invoice(number))
    router = handler.routed(asynchronous, middleware.Retry(most=6, delay=0.05, factor=1.5, jitter=0.0))
    assert router.routes[0].max_deliver == 7  # type: ignore[union-attr]
    with shmbus.Bus(bus_name) as bus, bus.subscriber(DEAD) as dead, bus.subscriber(INVOICES) as invoices:
        bus.group(ORDERS, GROUP)
        publish(bus, 1, 2, 3)
        with running(router, bus):
            assert take(invoices, 2) == [Invoice(2), Invoice(3)]
            letter = dead.receive(PATIENCE)
    assert letter.attempts == handler.calls.count(1) == 7
    assert letter.reason.startswith("Failure: not 1 in ")
    times = [at for number, at in zip(handler.calls, handler.times, strict=True) if number == 1]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert all(gap >= 0.05 * 1.5**n for n, gap in enumerate(gaps)), gaps


@BOTH
def test_others_are_handled_meanwhile(bus_name: str, asynchronous: bool) -> None:
    """Nobody waits for the time at which a failure comes again."""
    handler = Handler(lambda number: raises(number) if number == 1 else Invoice(number))
    router = handler.routed(asynchronous, middleware.Retry(delay=PATIENCE * 10))
    with shmbus.Bus(bus_name) as bus, bus.subscriber(INVOICES) as invoices:
        bus.group(ORDERS, GROUP)
        publish(bus, 1, 2, 3)
        with running(router, bus):
            assert take(invoices, 2) == [Invoice(2), Invoice(3)]
        assert (handler.calls, depth(bus)) == ([1, 2, 3], 1)
        bus.remove_group(ORDERS, GROUP, force=True)


def test_retry_grows_with_jitter() -> None:
    """Delays grow by the factor up to the longest, less a part at random."""
    plain = middleware.Retry(delay=1.0, factor=3.0, longest=10.0, jitter=0.0)
    assert [plain.after(n) for n in (1, 2, 3, 4, 5000)] == [1.0, 3.0, 9.0, 10.0, 10.0]
    spread = middleware.Retry(delay=1.0, jitter=0.5)
    found = {spread.after(1) for _ in range(100)}
    assert len(found) > 50
    assert 0.5 <= min(found) <= max(found) <= 1.0


def test_handlers_ask_for_it_themselves(bus_name: str) -> None:
    """Redeliver and Reject of a handler are orders: Retry lets them pass, and no attempt is counted where none was."""

    def act(number: int) -> None:
        if number == 1:
            raise Reject("no such order")
        if len(handler.calls) < 20:
            raise Redeliver(0.001, counts=False)

    handler = Handler(act)
    with shmbus.Bus(bus_name) as bus, bus.subscriber(DEAD) as dead:
        bus.group(ORDERS, GROUP)
        with running(handler.routed(False, middleware.Retry(most=1)), bus):
            publish(bus, 1)
            assert dead.receive(PATIENCE).reason == "no such order"
            publish(bus, 2)
            eventually(lambda: depth(bus) == 0)
    assert (handler.calls.count(1), handler.calls.count(2), handler.calls.count(2) > 5) == (1, 19, True)


@BOTH
def test_timeout(bus_name: str, asynchronous: bool) -> None:
    """A handler that takes too long fails with TimeoutError; what a sync one publishes afterwards is refused."""
    let, late = threading.Event(), []
    router = shmbus.Router()

    def slow(order: Order) -> None:
        let.wait(PATIENCE)
        try:
            router.publish(INVOICES, Invoice(order.number))
        except shmbus.ClosedError as error:
            late.append(str(error))

    async def slow_later(order: Order) -> None:
        try:
            await asyncio.sleep(PATIENCE)  # not a wait: it is cancelled
        except asyncio.CancelledError:
            late.append("cancelled")
            raise

    around = [middleware.Timeout(0.05)]
    router.worker(ORDERS, group=GROUP, max_deliver=1, middleware=around)(slow_later if asynchronous else slow)
    with shmbus.Bus(bus_name) as bus, bus.subscriber(DEAD) as dead:
        bus.group(ORDERS, GROUP)
        publish(bus, 1)
        with running(router, bus):
            assert "TimeoutError" in dead.receive(PATIENCE).reason
            let.set()
            eventually(lambda: late)
    assert late == ["cancelled"] if asynchronous else "time" in late[0]


@BOTH
def test_throttle(bus_name: str, asynchronous: bool) -> None:
    """Events are handled no faster than the rate, a burst at first; a cancelled router gives back what waits."""
    begun: list[float] = []

    def begins(delivery: middleware.Delivery[Order]) -> middleware.Steps:
        begun.append(time.monotonic())  # before its turn is given out: what is late makes the time longer
        return (yield)

    handler = Handler()
    router = handler.routed(asynchronous, begins, middleware.Throttle(50, burst=3))
    with shmbus.Bus(bus_name) as bus:
        bus.group(ORDERS, GROUP)
        publish(bus, *range(8))
        with running(router, bus):
            eventually(lambda: depth(bus) == 0)
    assert handler.times[7] - begun[0] >= 5 / 50 - 0.001
    slow = Handler()
    router = slow.routed(asynchronous, middleware.Throttle(1, per=PATIENCE * 10))
    with shmbus.Bus(bus_name) as bus:
        bus.group(ORDERS, GROUP)
        publish(bus, 1, 2)
        with running(router, bus):
            eventually(lambda: slow.calls == [1] and consumer(bus).claimed == 1)
        assert (slow.calls, depth(bus)) == ([1], 1)
        bus.remove_group(ORDERS, GROUP)


@BOTH
def test_circuit_breaker(bus_name: str, asynchronous: bool) -> None:
    """After so many failures nothing is tried until the reset, at no attempt of what waits; then one event decides."""
    down = threading.Event()
    down.set()
    handler = Handler(lambda number: raises(number) if down.is_set() else None)
    breaker = middleware.CircuitBreaker(2, reset=0.2)
    router = handler.routed(asynchronous, breaker, middleware.Retry(most=1000, delay=0.001, factor=1.0))
    with shmbus.Bus(bus_name) as bus, bus.subscriber(DEAD) as dead:
        bus.group(ORDERS, GROUP)
        publish(bus, *range(10))
        with running(router, bus):
            eventually(lambda: len(handler.calls) >= 3)  # two, and a trial after each reset
            assert breaker.is_open
            down.clear()
            eventually(lambda: depth(bus) == 0)
        assert not breaker.is_open
        assert dead.try_receive() is None
    assert handler.times[2] - handler.times[1] >= 0.2
    assert set(handler.calls) == set(range(10))


@BOTH
def test_delay(bus_name: str, asynchronous: bool) -> None:
    """No event is handled before its age, and waiting costs no attempt."""
    seen: list[tuple[int, float]] = []

    def handle(message: shmbus.ClaimedMessage[Order]) -> None:
        seen.append((message.attempt, time.time() - message.time_ns / 1e9))

    async def later(message: shmbus.ClaimedMessage[Order]) -> None:
        handle(message)

    router = shmbus.Router(middleware=[middleware.Delay(0.1)])
    router.worker(ORDERS, group=GROUP, max_deliver=1)(later if asynchronous else handle)
    with shmbus.Bus(bus_name) as bus, bus.publisher(ORDERS) as publisher:
        bus.group(ORDERS, GROUP)
        publisher.publish_many([Order(1), Order(2)])
        with running(router, bus):
            eventually(lambda: depth(bus) == 0)
    assert [attempt for attempt, _ in seen] == [1, 1]
    assert all(age >= 0.1 for _, age in seen)


@BOTH
@pytest.mark.parametrize("around", [(), (middleware.Timeout(PATIENCE),)])
def test_timeouts_of_their_own(bus_name: str, asynchronous: bool, around: tuple[Middleware, ...]) -> None:
    """A TimeoutError that a handler raises by itself is a failure like any other, within a Timeout too."""

    def act(number: int) -> None:
        raise TimeoutError("of its own")

    handler = Handler(act)
    with shmbus.Bus(bus_name) as bus, bus.subscriber(DEAD) as dead:
        bus.group(ORDERS, GROUP)
        publish(bus, 1)
        with running(handler.routed(asynchronous, *around, max_deliver=2), bus):
            assert dead.receive(PATIENCE).reason.startswith("TimeoutError: of its own")
    assert handler.calls == [1, 1]
