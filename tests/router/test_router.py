"""Router: handlers of every kind, and what becomes of their events."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import pytest
from routes import (
    DEAD,
    GROUP,
    INVOICES,
    ORDERS,
    PATIENCE,
    Failure,
    Invoice,
    Order,
    consumer,
    depth,
    publish,
    running,
    take,
)
from support import eventually

import shmbus


def invoice(order: Order) -> Invoice:
    return Invoice(order.number)


async def invoice_later(order: Order) -> Invoice:
    await asyncio.sleep(0)
    return Invoice(order.number)


def parts(order: Order) -> Iterator[Invoice]:
    yield Invoice(order.number, 1)
    yield Invoice(order.number, 2)


async def parts_later(order: Order) -> AsyncIterator[Invoice]:
    yield Invoice(order.number, 1)
    await asyncio.sleep(0)
    yield Invoice(order.number, 2)


def iterator(order: Order) -> Iterator[Invoice]:
    return iter([Invoice(order.number, 1), Invoice(order.number, 2)])


def even(order: Order) -> Invoice | None:
    return Invoice(order.number) if order.number % 2 == 0 else None


class Method:
    def bill(self, message: shmbus.ClaimedMessage[Order]) -> Invoice:
        assert message.attempt == 1
        return Invoice(message.event.number)

    async def __call__(self, message: shmbus.Message[Order]) -> Invoice:
        return Invoice(message.event.number)


def scaled(order: Order, *, factor: int) -> Invoice:
    return Invoice(order.number * factor)


ONE = [Invoice(2), Invoice(4)]
TWO = [Invoice(2, 1), Invoice(2, 2), Invoice(4, 1), Invoice(4, 2)]


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (invoice, ONE),
        (invoice_later, ONE),
        (parts, TWO),
        (parts_later, TWO),
        (iterator, TWO),
        (even, ONE),
        (Method().bill, ONE),
        (Method(), ONE),
        (partial(scaled, factor=1), ONE),
        (lambda order: Invoice(order.number), ONE),
    ],
)
def test_results_are_published(bus_name: str, handler: Any, expected: list[Invoice]) -> None:
    """What a handler returns or yields is published in order, nothing for None, and its events are acked."""
    router = shmbus.Router()
    router.worker(ORDERS, group=GROUP, to=INVOICES)(handler)
    with shmbus.Bus(bus_name) as bus, bus.subscriber(INVOICES) as invoices:
        bus.group(ORDERS, GROUP)
        publish(bus, *((2, 4) if handler is not even else (1, 2, 3, 4)))
        with running(router, bus):
            assert take(invoices, len(expected)) == expected
            eventually(lambda: depth(bus) == 0)
        assert consumer(bus).rejected == 0


@pytest.mark.parametrize("asynchronous", [False, True])
def test_message_or_event(bus_name: str, asynchronous: bool) -> None:
    """A parameter annotated Message is the message of a subscriber, with headers; anything else is the event."""
    router = shmbus.Router()
    got: list[Any] = []

    def whole(message: shmbus.Message[Order]) -> None:
        got.append((type(message), message.event, message.headers))

    def event(order: Order) -> None:
        got.append(order)

    async def whole_later(message: shmbus.Message[Order]) -> None:
        whole(message)

    async def event_later(order: Order) -> None:
        event(order)

    if asynchronous:
        router.subscriber(ORDERS, name="whole")(whole_later)
        router.subscriber(ORDERS, name="event")(event_later)
    else:
        router.subscriber(ORDERS, name="whole")(whole)
        router.subscriber(ORDERS, name="event")(event)
    with shmbus.Bus(bus_name) as bus, running(router, bus), bus.publisher(ORDERS) as publisher:
        eventually(lambda: {"whole", "event"} <= {c.name for c in bus.stats().consumers})
        publisher.publish(Order(1), headers={"x": 1})
        eventually(lambda: len(got) == 2)
    assert (shmbus.Message, Order(1), {"x": 1}) in got
    assert Order(1) in got


def failing(fails: Callable[[], bool], done: list[int], *, asynchronous: bool) -> Any:
    def handle(order: Order) -> None:
        if fails():
            raise Failure(f"not {order.number}")
        done.append(order.number)

    async def handle_later(order: Order) -> None:
        handle(order)

    return handle_later if asynchronous else handle


@pytest.mark.parametrize("asynchronous", [False, True])
def test_failures_come_again(bus_name: str, asynchronous: bool) -> None:
    """What raises is delivered again; at its last delivery it is dead-lettered, and the letter says the error."""
    router = shmbus.Router()
    tries: list[int] = []
    done: list[int] = []

    def fails() -> bool:
        tries.append(1)
        return len(tries) <= 3

    router.worker(ORDERS, group=GROUP, max_deliver=2)(failing(fails, done, asynchronous=asynchronous))
    with shmbus.Bus(bus_name) as bus, bus.subscriber(DEAD) as dead:
        bus.group(ORDERS, GROUP)
        publish(bus, 1)
        with running(router, bus):
            letter = dead.receive(PATIENCE)
            publish(bus, 2)
            eventually(lambda: depth(bus) == 0)
    assert letter.reason.startswith("Failure: not 1 in ")
    assert (letter.attempts, done) == (2, [2])


@pytest.mark.parametrize("asynchronous", [False, True])
def test_exit_ends_the_run(bus_name: str, asynchronous: bool) -> None:
    """SystemExit in a handler ends the run, which raises it; the event is given back."""
    router = shmbus.Router()

    def leave(order: Order) -> None:
        raise SystemExit(7)

    async def leave_later(order: Order) -> None:
        raise SystemExit(7)

    router.worker(ORDERS, group=GROUP)(leave_later if asynchronous else leave)
    with shmbus.Bus(bus_name) as bus:
        bus.group(ORDERS, GROUP)
        publish(bus, 1)
        with pytest.raises(SystemExit, match="7"):
            router.run(bus)
        assert depth(bus) == 1
        with bus.worker(ORDERS, group=GROUP) as worker:
            assert next(worker.messages()).attempt == 2
            bus.remove_group(ORDERS, GROUP, force=True)


def test_handlers_use_the_bus(bus_name: str) -> None:
    """Inside a handler one may publish, subscribe, open and close handles, on the same bus, in threads and the loop."""
    router = shmbus.Router()
    topic = shmbus.Topic("inner", Order)
    got: list[int] = []
    with shmbus.Bus(bus_name) as bus, bus.subscriber(INVOICES) as invoices:

        def inside(order: Order) -> None:
            with bus.subscriber(topic) as inner, bus.publisher(topic) as publisher:
                publisher.publish(order)
                got.append(inner.receive(PATIENCE).number)
                router.publish(INVOICES, Invoice(order.number))

        async def inside_later(order: Order) -> None:
            with bus.subscriber(topic) as inner, bus.publisher(topic) as publisher:
                await publisher.apublish(order)
                got.append((await inner.areceive(PATIENCE)).number)
                await router.apublish(INVOICES, Invoice(order.number))

        router.worker(ORDERS, group="a")(inside)
        router.worker(ORDERS, group="b")(inside_later)
        bus.group(ORDERS, "a")
        bus.group(ORDERS, "b")
        publish(bus, 5)
        with running(router, bus):
            take(invoices, 2)
            eventually(lambda: depth(bus, "a") + depth(bus, "b") == 0)
    assert len(got) == 2


def test_concurrency(bus_name: str) -> None:
    """An async handler has up to `concurrency` events in hand at once, and no more; a sync one refuses it."""
    router = shmbus.Router()
    inside: list[int] = []
    most: list[int] = []
    let = threading.Event()

    @router.worker(ORDERS, group=GROUP, concurrency=3)
    async def wait(order: Order) -> None:
        inside.append(order.number)
        most.append(len(inside))
        await asyncio.to_thread(let.wait, PATIENCE)
        inside.remove(order.number)

    with pytest.raises(shmbus.ConfigError, match="one event in hand"):
        router.worker(ORDERS, group="other", concurrency=2)(lambda order: None)
    with shmbus.Bus(bus_name) as bus:
        bus.group(ORDERS, GROUP)
        publish(bus, *range(8))
        with running(router, bus):
            eventually(lambda: len(inside) == 3)
            let.set()
            eventually(lambda: depth(bus) == 0)
    assert max(most) == 3


class Number:
    """What msgspec leaves to the hooks."""

    def __init__(self, value: int) -> None:
        self.value = value


def encoded(number: Number) -> int:
    return number.value


def decoded(type: type, value: int) -> Number:
    if value == 13:
        raise ValueError("13 is no number")
    return Number(value)


NUMBERS = shmbus.Topic("numbers", Number, enc_hook=encoded, dec_hook=decoded)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_undecodable_events_end_nothing(bus_name: str, asynchronous: bool) -> None:
    """An event that does not decode is dead-lettered, or counted for a subscriber, and the handlers go on."""
    router = shmbus.Router()
    got: list[int] = []

    async def later(number: Number) -> None:
        got.append(number.value)

    handler = later if asynchronous else lambda number: got.append(number.value)
    router.worker(NUMBERS, group=GROUP)(handler)
    router.subscriber(NUMBERS, name="all")(handler)
    with shmbus.Bus(bus_name) as bus, bus.publisher(NUMBERS) as publisher, running(router, bus):
        eventually(lambda: {GROUP, "all"} <= {c.name for c in bus.stats().consumers})
        publisher.publish_many([Number(1), Number(13), Number(2)])
        eventually(lambda: len(got) == 4)
        eventually(lambda: depth(bus) == 0)
        assert [consumer(bus, name).undecodable for name in (GROUP, "all")] == [1, 1]
    assert sorted(got) == [1, 1, 2, 2]


def test_names_say_what_a_parameter_is() -> None:
    """An event class that is called Message is an event; ours is found through a string, a partial, a local name."""
    from shmbus.router._handlers import describe

    def ours(message: shmbus.Message[Unknown]) -> None: ...  # type: ignore[name-defined] # noqa: F821

    class Message:
        pass

    def theirs(message: Message) -> None: ...

    theirs.__annotations__["message"] = Message
    assert describe(ours).takes_message
    assert not describe(theirs).takes_message
    assert describe(partial(ours)).takes_message
    assert describe(Method().bill).takes_message
    assert describe(Method()).takes_message
    assert describe(Method()).asynchronous
    assert not describe(print).takes_message


@pytest.mark.parametrize(
    ("register", "words"),
    [
        (lambda r: r.worker("orders", group="g"), "expected a Topic"),
        (lambda r: r.worker(ORDERS, group=""), "group name"),
        (lambda r: r.worker(ORDERS, group="g", to="x"), "expected a Topic"),
        (lambda r: r.worker(ORDERS, group="g", max_deliver=0), "max_deliver"),
        (lambda r: r.worker(ORDERS, group="g", concurrency=0), "concurrency"),
        (lambda r: r.worker(ORDERS, group="g", ack_within=-1), "ack_within"),
        (lambda r: r.worker(ORDERS, group="g", middleware=[5]), "middleware is a callable"),
        (lambda r: r.worker(ORDERS, group="g", middleware=[shmbus.middleware.Log]), "an instance"),
        (lambda r: r.worker(ORDERS, group="g")(5), "a handler is a callable"),
        (lambda r: r.worker(ORDERS, group="g")(lambda: None), "takes one argument"),
        (lambda r: r.worker(ORDERS, group="g")(lambda a, b: None), "takes one argument"),
        (lambda r: [r.worker(ORDERS, group="g")(lambda a: None) for _ in range(2)], "has a handler already"),
        (lambda r: [r.subscriber(ORDERS, name="n")(lambda a: None) for _ in range(2)], "has a handler already"),
        (lambda r: r.subscriber(ORDERS, mode="fast"), "mode"),
        (lambda r: r.run(None), "without handlers"),
    ],
)
def test_what_cannot_be_is_refused(register: Callable[[shmbus.Router], Any], words: str) -> None:
    """Whatever cannot be registered, or run, is a ConfigError that says why."""
    with pytest.raises(shmbus.ConfigError, match=words):
        register(shmbus.Router())


def test_registering_returns_the_function() -> None:
    """A decorated function is the function that it was."""
    router = shmbus.Router()
    assert router.worker(ORDERS, group=GROUP, to=INVOICES)(invoice) is invoice
    assert router.subscriber(ORDERS)(print) is print
    with pytest.raises(shmbus.ClosedError, match="does not run"):
        router.publish(ORDERS, Order(1))
