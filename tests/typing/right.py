"""Right uses of the public API: both type checkers must accept every line, and infer what reveal_type says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, assert_type

import msgspec

import shmbus
from shmbus.futures import Executor


class OrderPaid(msgspec.Struct, frozen=True):
    order_id: int
    cents: int


class Opened(msgspec.Struct, tag=True):
    id: int


class Closed(msgspec.Struct, tag=True):
    id: int


@dataclass
class Point:
    x: float


class Vector:
    def __init__(self, x: float) -> None:
        self.x = x


def to_builtins(value: Any) -> Any:
    return [value.x] if isinstance(value, Vector) else value


def from_builtins(cls: type, value: Any) -> Any:
    return cls(*value)


ORDERS = shmbus.Topic("orders", OrderPaid, capacity=1 << 20)
MOVES = shmbus.Topic("moves", Opened | Closed, schema="evolve")
POINTS = shmbus.Topic("points", Point, codec="json")
RAW = shmbus.Topic("raw", bytes)
NUMBERS: shmbus.Topic[int] = shmbus.Topic[int]("numbers", int)

VECTORS = shmbus.Topic("camera/Vectors", Vector, enc_hook=to_builtins, dec_hook=from_builtins, validate=True)

assert_type(ORDERS, shmbus.Topic[OrderPaid])
assert_type(VECTORS, shmbus.Topic[Vector])
assert_type((VECTORS.name, VECTORS.capacity, VECTORS.validate), tuple[str, int, bool])
assert_type(POINTS, shmbus.Topic[Point])
assert_type(RAW, shmbus.Topic[bytes])
assert_type(shmbus.dead_letter_topic(ORDERS), shmbus.Topic[shmbus.DeadLetter])


def publish(bus: shmbus.Bus) -> None:
    with bus.publisher(ORDERS, name="till", on_full="drop", timeout=None) as pub:
        assert_type(pub, shmbus.Publisher[OrderPaid])
        assert_type(pub.publish(OrderPaid(1, 250)), int | None)
        assert_type(pub.publish(OrderPaid(1, 250), headers={"trace": "x"}), int | None)
        assert_type(pub.publish_many([OrderPaid(1, 250)]), int)
        assert_type(pub.publish_many(OrderPaid(n, 250) for n in range(3)), int)
        assert_type(pub.closed, bool)
    with bus.publisher(MOVES) as moves:
        moves.publish(Opened(1))
        moves.publish(Closed(1))
    with bus.publisher(RAW, on_full="raise") as raw:
        raw.publish(b"x")


def on_gap(gap: shmbus.Gap) -> None:
    assert_type(gap.publisher, str)
    assert_type((gap.first, gap.last, gap.count, gap.cause), tuple[int, int, int, str])


def subscribe(bus: shmbus.Bus) -> None:
    with bus.subscriber(ORDERS, name="audit", mode="lossy", start="oldest", on_gap=on_gap, idle="park") as sub:
        assert_type(sub, shmbus.Subscriber[OrderPaid])
        for event in sub:
            assert_type(event, OrderPaid)
            assert_type(event.cents, int)
        assert_type(next(sub), OrderPaid)
        assert_type(sub.receive(), OrderPaid)
        assert_type(sub.receive(timeout=1.0), OrderPaid)
        assert_type(sub.try_receive(), OrderPaid | None)
        assert_type(sub.receive_many(256, timeout=0.1), list[OrderPaid])
        assert_type(sub.messages(), shmbus.Messages[shmbus.Message[OrderPaid]])
        assert_type(next(sub.messages()), shmbus.Message[OrderPaid])
        for message in sub.messages():
            assert_type(message, shmbus.Message[OrderPaid])
            assert_type(message.event, OrderPaid)
            assert_type((message.sequence, message.publisher, message.time_ns), tuple[int, str, int])
            assert_type(message.headers, dict[str, Any])
    with bus.subscriber(ORDERS, on_gap="raise") as raising:
        raising.cancel()
    with bus.subscriber(MOVES) as moves:
        match moves.receive():
            case Opened(id=id) | Closed(id=id):
                assert_type(id, int)


def work(bus: shmbus.Bus) -> None:
    bus.group(ORDERS, "billing")
    with bus.worker(ORDERS, group="billing", max_deliver=5, prefetch=1) as worker:
        assert_type(worker, shmbus.Worker[OrderPaid])
        for event in worker:
            assert_type(event, OrderPaid)
        assert_type(worker.receive(timeout=1), OrderPaid)
        assert_type(worker.try_receive(), OrderPaid | None)
        assert_type(worker.receive_many(8), list[OrderPaid])
        assert_type(worker.messages(), shmbus.Messages[shmbus.ClaimedMessage[OrderPaid]])
        for message in worker.messages():
            assert_type(message.event, OrderPaid)
            assert_type(message.attempt, int)
            message.ack()
            message.nack()
            message.reject("reason")
        worker.ack()


async def wait(bus: shmbus.Bus) -> None:
    with bus.subscriber(ORDERS) as sub, bus.worker(ORDERS, group="g") as worker:
        assert_type(await sub.areceive(timeout=1.0), OrderPaid)
        assert_type(aiter(sub), AsyncIterator[OrderPaid])
        async for event in sub:
            assert_type(event, OrderPaid)
        async for event in worker:
            assert_type(event, OrderPaid)
        assert_type(await worker.areceive(), OrderPaid)
        async for message in sub.messages():
            assert_type(message, shmbus.Message[OrderPaid])
        async for claimed in worker.messages():
            assert_type(claimed, shmbus.ClaimedMessage[OrderPaid])
            assert_type(await claimed.aack(), None)
            await claimed.anack()
            await claimed.areject("reason")
        assert_type(await anext(worker.messages()), shmbus.ClaimedMessage[OrderPaid])
    with bus.publisher(ORDERS) as pub:
        assert_type(await pub.apublish(OrderPaid(1, 250), headers={"trace": "x"}), int | None)
        assert_type(await pub.apublish_many([OrderPaid(1, 250)]), int)


def look(bus: shmbus.Bus) -> None:
    stats = bus.stats()
    assert_type(stats, shmbus.BusStats)
    for consumer in stats.consumers:
        assert_type(consumer, shmbus.ConsumerStats)
        assert_type(consumer.offered - consumer.delivered - consumer.depth - consumer.dropped, int)
    for publisher in stats.publishers:
        assert_type(publisher.blocked_by, tuple[str, ...])
    assert_type(stats.supervisor.pid, int)
    assert_type(bus.losses(), list[shmbus.Loss])


def read_only(message: shmbus.Message[object]) -> None: ...


def covariant(message: shmbus.ClaimedMessage[OrderPaid]) -> None:
    read_only(message)


def errors(pub: shmbus.Publisher[int]) -> None:
    try:
        pub.publish(1)
    except shmbus.Full as error:
        assert_type(error.blocked_by, tuple[str, ...])
        assert_type(error.published, int)
    except shmbus.EventTypeError as error:
        assert_type((error.topic, error.path), tuple[str, str])
        assert_type(error.difference, tuple[str, ...])
    except shmbus.NameTakenError as error:
        assert_type((error.kind, error.name, error.topic, error.pid), tuple[str, str, str, int])


class Invoice(msgspec.Struct, frozen=True):
    cents: int


INVOICES = shmbus.Topic("invoices", Invoice)
ORDERS_PAID = shmbus.Topic("orders", OrderPaid)
router = shmbus.Router(middleware=[shmbus.middleware.Log(), shmbus.middleware.Correlate()])


@router.worker(ORDERS_PAID, group="a", to=INVOICES, middleware=[shmbus.middleware.Retry(most=3, delay=0.1, factor=2.0)])
def bill(order: OrderPaid) -> Invoice:
    return Invoice(order.cents)


@router.worker(ORDERS_PAID, group="b", to=INVOICES, max_deliver=3, prefetch=2, ack_within=1.0)
def bill_some(order: OrderPaid) -> Invoice | None:
    return Invoice(order.cents) if order.cents else None


@router.worker(ORDERS_PAID, group="c", to=INVOICES)
def bill_parts(message: shmbus.ClaimedMessage[OrderPaid]) -> Iterator[Invoice]:
    yield Invoice(message.event.cents)


@router.worker(ORDERS_PAID, group="d", to=INVOICES, concurrency=8)
async def bill_later(order: OrderPaid) -> Invoice:
    return Invoice(order.cents)


@router.worker(ORDERS_PAID, group="e", to=INVOICES)
async def bill_some_later(message: shmbus.Message[OrderPaid]) -> Invoice | None:
    return Invoice(message.event.cents) if message.event.cents else None


@router.worker(ORDERS_PAID, group="f", to=INVOICES)
async def bill_parts_later(order: OrderPaid) -> AsyncIterator[Invoice]:
    yield Invoice(order.cents)


@router.worker(ORDERS_PAID, group="g")
def audit(message: shmbus.ClaimedMessage[OrderPaid]) -> None:
    message.nack(1.0, counts=False)


@router.worker(ORDERS_PAID, group="h")
async def audit_later(order: OrderPaid) -> None:
    await router.apublish(INVOICES, Invoice(order.cents))


@router.subscriber(INVOICES, name="ledger", mode="reliable")
async def book(message: shmbus.Message[Invoice]) -> None:
    router.publish(ORDERS_PAID, OrderPaid(1, message.event.cents), headers=shmbus.middleware.outgoing())


@router.subscriber(INVOICES, mode="lossy", start="oldest")
def watch(invoice: Invoice) -> None: ...


assert_type(bill(OrderPaid(1, 250)), Invoice)
assert_type(bill_some(OrderPaid(1, 250)), Invoice | None)


def timed(delivery: shmbus.middleware.Delivery[Any]) -> shmbus.middleware.Steps:
    assert_type(delivery.attempt, int)
    yield shmbus.middleware.Sleep(0.1)
    return (yield)


around: list[shmbus.middleware.Middleware] = [timed, shmbus.middleware.Timeout(1.0)]
router.worker(ORDERS_PAID, group="i", middleware=around)(audit)
shmbus.testing.check_middleware(lambda: timed)


with shmbus.Bus("shop", idle="adaptive", supervise=True, stall_timeout=5.0) as shop:
    assert_type(shop, shmbus.Bus)
    asyncio.run(wait(shop))
    router.run(shop)
    router.cancel()
assert_type(shmbus.Bus.attach("shop"), shmbus.Bus)


class Quote(msgspec.Struct):
    symbol: str


class Price(msgspec.Struct):
    cents: int


PRICE = shmbus.Service("price", Quote, Price)
MOVED = shmbus.Service("moved", Quote, Opened | Closed)
assert_type(PRICE, shmbus.Service[Quote, Price])
assert_type(MOVED, shmbus.Service[Quote, Opened | Closed])


def serve(bus: shmbus.Bus) -> None:
    with bus.server(PRICE, max_deliver=3) as server:
        assert_type(server, shmbus.Server[Quote, Price])
        for call in server:
            assert_type(call, shmbus.Call[Quote, Price])
            assert_type(call.event, Quote)
            assert_type(call.attempt, int)
            assert_type(call.deadline, float | None)
            assert_type(call.headers, dict[str, Any])
            assert_type(call.reply(Price(1)), bool)
            call.fail("no such symbol")


async def ask(bus: shmbus.Bus) -> None:
    with bus.client(PRICE) as client:
        assert_type(client, shmbus.Client[Quote, Price])
        assert_type(client.call(Quote("X"), timeout=1.0), Price)
        assert_type(client.submit(Quote("X")), Future[Price])
        assert_type(await client.acall(Quote("X"), timeout=1.0), Price)
    async for call in bus.server(PRICE):
        await call.areply(Price(len(call.event.symbol)))


def run() -> None:
    with Executor(2, retries=1) as pool:
        assert_type(pool.submit(len, "x"), Future[int])
        assert_type(list(pool.map(len, ["x"], buffersize=2)), list[int])
        error = pool.submit(len, "x").exception()
        if isinstance(error, shmbus.WorkerDied):
            assert_type(error.exitcode, int | None)
