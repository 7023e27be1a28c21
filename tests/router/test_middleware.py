"""Middleware at work, on a bus: what each does, around sync and async handlers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import pytest
from routes import (
    DEAD,
    GROUP,
    INVOICES,
    ORDERS,
    PATIENCE,
    Failure,
    Handler,
    Invoice,
    Order,
    depth,
    publish,
    raises,
    running,
    take,
)
from support import eventually

import shmbus
from shmbus import middleware
from shmbus.middleware import Middleware
from shmbus.middleware.once import Window

BOTH = pytest.mark.parametrize("asynchronous", [False, True])


@BOTH
def test_deduplicate(bus_name: str, asynchronous: bool) -> None:
    """An event whose key was handled is done; one whose handler failed is not, and comes again."""
    failed: list[int] = []

    def act(number: int) -> Invoice:
        if number == 2 and not failed:
            failed.append(number)
            raise Failure
        return Invoice(number)

    handler = Handler(act)
    router = handler.routed(asynchronous, middleware.Deduplicate(key=lambda order: order.number))
    with shmbus.Bus(bus_name) as bus, bus.subscriber(INVOICES) as invoices:
        bus.group(ORDERS, GROUP)
        publish(bus, 1, 2, 1, 2, 1, 3)
        with running(router, bus):
            eventually(lambda: depth(bus) == 0)
        assert sorted(i.number for i in take(invoices, 3)) == [1, 2, 3]
        assert invoices.try_receive() is None


def test_deduplicate_by_id(bus_name: str) -> None:
    """Without a key it is the event's id: equal events are two, a redelivered one that was handled is one."""
    handler = Handler(lambda number: None)
    late = middleware.Fail(times=1, after=True)
    router = handler.routed(False, late, middleware.Deduplicate())
    with shmbus.Bus(bus_name) as bus:
        bus.group(ORDERS, GROUP)
        publish(bus, 1, 1)
        with running(router, bus):
            eventually(lambda: depth(bus) == 0)
    assert handler.calls == [1, 1]


def test_window_forgets() -> None:
    """A window keeps what it was given for its time, and no more than its number."""
    small, short = Window(1000.0, 2), Window(0.01, 100)
    for key in "abc":
        small.add(key)
        short.add(key)
    assert [key in small for key in "abc"] == [False, True, True]
    eventually(lambda: "c" not in short)


@BOTH
def test_correlate(bus_name: str, asynchronous: bool) -> None:
    """Two stages on, an event has the id of the first as correlation, and that of its cause as causation."""
    router = shmbus.Router(middleware=[middleware.Correlate()])
    ends: list[dict[str, Any]] = []
    ids: dict[str, str] = {}

    def first(message: shmbus.ClaimedMessage[Order]) -> Invoice:
        ids["first"] = message.id
        return Invoice(message.event.number)

    def second(message: shmbus.ClaimedMessage[Invoice]) -> None:
        ids["second"] = message.id
        assert middleware.outgoing()["causation-id"] == ids["second"]
        router.publish(END, message.event)

    async def first_later(message: shmbus.ClaimedMessage[Order]) -> Invoice:
        return first(message)

    async def second_later(message: shmbus.ClaimedMessage[Invoice]) -> None:
        await asyncio.to_thread(second, message)

    router.worker(ORDERS, group=GROUP, to=INVOICES)(first_later if asynchronous else first)
    router.worker(INVOICES, group=GROUP)(second_later if asynchronous else second)
    with shmbus.Bus(bus_name) as bus, bus.subscriber(END) as end:
        bus.group(ORDERS, GROUP)
        bus.group(INVOICES, GROUP)
        publish(bus, 1)
        with running(router, bus):
            ends.append(next(end.messages()).headers)
    assert ends == [{"correlation-id": ids["first"], "causation-id": ids["second"]}]
    assert middleware.outgoing() == {}


END = shmbus.Topic("end", Invoice)


@BOTH
@pytest.mark.parametrize("whole", [False, True])
def test_poison(bus_name: str, asynchronous: bool, whole: bool) -> None:
    """What fails for good is published with reason, handler, traceback and count, and is done."""
    topic: shmbus.Topic[Any] = shmbus.Topic("poison", middleware.Poisoned if whole else Order)
    handler = Handler(raises)
    router = handler.routed(asynchronous, middleware.Poison(topic), middleware.Retry(most=2, delay=0.001))
    with shmbus.Bus(bus_name) as bus, bus.subscriber(topic) as poisoned, bus.subscriber(DEAD) as dead:
        bus.group(ORDERS, GROUP)
        publish(bus, 7)
        with running(router, bus):
            message = next(poisoned.messages())
            eventually(lambda: depth(bus) == 0)
        assert dead.try_receive() is None
    if whole:
        event = message.event
        told = (event.reason, event.handler, event.traceback, event.attempts, event.topic)
        assert msgspec.msgpack.decode(event.payload, type=Order) == Order(7)
    else:
        names = ("reason", "handler", "traceback", "attempts", "topic")
        told = tuple(message.headers[f"poison-{name}"] for name in names)
        assert message.event == Order(7)
    reason, name, trace, attempts, of = told
    assert (reason, attempts, of) == ("Failure: not 7", 3, "orders")
    assert name.endswith("Handler.later" if asynchronous else "Handler.sync")
    assert "in raises" in trace


@BOTH
def test_recover_and_ignore(bus_name: str, asynchronous: bool) -> None:
    """SystemExit is a failure like any other within Recover, a fallback is published, what is ignored is done."""

    def act(number: int) -> None:
        if number == 1:
            raise SystemExit("no")
        raise Failure

    def fallback(delivery: middleware.Delivery[Any], error: BaseException) -> Invoice:
        assert isinstance(error, SystemExit)
        return Invoice(-1)

    handler = Handler(act)
    router = handler.routed(asynchronous, middleware.Ignore(Failure), middleware.Recover())
    with shmbus.Bus(bus_name) as bus, bus.subscriber(DEAD) as dead, bus.subscriber(INVOICES) as invoices:
        bus.group(ORDERS, GROUP)
        publish(bus, 1, 2)
        with running(router, bus):
            assert "RecoveredError" in dead.receive(PATIENCE).reason
            eventually(lambda: depth(bus) == 0)
        assert handler.calls.count(2) == 1
        publish(bus, 1)
        with running(handler.routed(asynchronous, middleware.Recover(fallback)), bus):
            assert take(invoices, 1) == [Invoice(-1)]
            eventually(lambda: depth(bus) == 0)


class Narrow(msgspec.Struct):
    number: Annotated[int, msgspec.Meta(ge=10)]


def test_validate(bus_name: str) -> None:
    """What breaks a constraint is a letter at once, with the path."""
    topic = shmbus.Topic("narrow", Narrow, codec="pickle")
    router = shmbus.Router(middleware=[middleware.Validate()])
    got: list[int] = []
    router.worker(topic, group=GROUP)(lambda event: got.append(event.number))
    with shmbus.Bus(bus_name) as bus, bus.subscriber(shmbus.dead_letter_topic(topic)) as dead:
        with running(router, bus), bus.publisher(topic) as publisher:
            eventually(lambda: any(c.workers for c in bus.stats().consumers))
            publisher.publish_many([Narrow(10), Narrow(9)])
            letter = dead.receive(PATIENCE)
            eventually(lambda: depth(bus) == 0)
    assert letter.reason == "invalid: Expected `int` >= 10 - at `$.number`"
    assert got == [10]


@BOTH
def test_log(bus_name: str, asynchronous: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Each delivery has a line with handler, attempt and outcome, failures at warning, and fields for machines."""
    failed: list[int] = []

    def act(number: int) -> None:
        if not failed:
            failed.append(number)
            raise Failure("once")

    router = Handler(act).routed(asynchronous, middleware.Log("mine"), middleware.Retry(delay=0.001))
    with shmbus.Bus(bus_name) as bus, caplog.at_level(logging.INFO, "mine"):
        bus.group(ORDERS, GROUP)
        publish(bus, 1)
        with running(router, bus):
            eventually(lambda: depth(bus) == 0)
    records: list[Any] = [record for record in caplog.records if record.name == "mine"]
    assert [(r.levelname, r.attempt, r.outcome.split(" ")[0]) for r in records] == [
        ("WARNING", 1, "again"),
        ("INFO", 2, "done"),
    ]
    assert "Failure: once" in records[0].message


@BOTH
def test_duplicate_and_fail(bus_name: str, asynchronous: bool) -> None:
    """Duplicate handles, and publishes, twice; Fail fails as often as it is told, before or after."""
    handler = Handler(Invoice)
    router = handler.routed(
        asynchronous, middleware.Fail(times=1), middleware.Fail(times=1, after=True), middleware.Duplicate()
    )
    with shmbus.Bus(bus_name) as bus, bus.subscriber(INVOICES) as invoices:
        bus.group(ORDERS, GROUP)
        publish(bus, 1)
        with running(router, bus):
            eventually(lambda: depth(bus) == 0)
        assert len(take(invoices, 4)) == len(handler.calls) == 4


def test_order_of_a_list(bus_name: str) -> None:
    """The first of a list is the outermost, and a router's are outside of a handler's own."""
    order: list[str] = []

    def named(name: str) -> Middleware:
        def around(delivery: middleware.Delivery[Any]) -> middleware.Steps:
            order.append(f"{name} in")
            result = yield
            order.append(f"{name} out")
            return result

        return around

    router = shmbus.Router(middleware=[named("a"), named("b")])
    router.worker(ORDERS, group=GROUP, middleware=[named("c")])(lambda event: order.append("handler"))
    with shmbus.Bus(bus_name) as bus:
        bus.group(ORDERS, GROUP)
        publish(bus, 1)
        with running(router, bus):
            eventually(lambda: depth(bus) == 0)
    assert order == ["a in", "b in", "c in", "handler", "c out", "b out", "a out"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: middleware.Retry(most=0),
        lambda: middleware.Retry(delay=-1),
        lambda: middleware.Retry(jitter=2),
        lambda: middleware.Timeout(0),
        lambda: middleware.Throttle(0),
        lambda: middleware.CircuitBreaker(0),
        lambda: middleware.Delay(1e9),
        lambda: middleware.Deduplicate(key=5),  # type: ignore[arg-type]
        lambda: middleware.Deduplicate(window=0),
        middleware.Ignore,
        lambda: middleware.Ignore(KeyboardInterrupt),  # type: ignore[arg-type]
        lambda: middleware.Recover(fallback=5),  # type: ignore[arg-type]
        lambda: middleware.Duplicate(1),
        lambda: middleware.Fail(2.0),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object]) -> None:
    """An option that cannot be is a ConfigError."""
    with pytest.raises(shmbus.ConfigError):
        make()
