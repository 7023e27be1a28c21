"""Wrong uses of the public API: both type checkers must reject every line marked `# wrong`, and no other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

import msgspec

import shmbus
from shmbus.futures import Executor


class OrderPaid(msgspec.Struct, frozen=True):
    order_id: int
    cents: int


class Refund(msgspec.Struct, frozen=True):
    order_id: int


ORDERS = shmbus.Topic("orders", OrderPaid)
RAW = shmbus.Topic("raw", bytes)
REFUNDS = shmbus.Topic("refunds", Refund)


def topics() -> None:
    shmbus.Topic("orders")  # wrong
    shmbus.Topic(5, OrderPaid)  # wrong
    shmbus.Topic("orders", OrderPaid, capacity="1 MiB")  # wrong
    shmbus.Topic("orders", OrderPaid, schema="loose")  # wrong
    shmbus.Topic("orders", OrderPaid, codec="yaml")  # wrong
    other: shmbus.Topic[Refund] = ORDERS  # wrong
    ORDERS.capacity = 4096  # wrong
    ORDERS.validate = True  # wrong
    shmbus.Topic("orders", OrderPaid, enc_hook=5)  # wrong
    shmbus.Topic("orders", OrderPaid, dec_hook=lambda value: value)  # wrong
    shmbus.Topic("orders", OrderPaid, validate="yes")  # wrong
    shmbus.Topics  # wrong


def buses() -> None:
    shmbus.Bus()  # wrong
    shmbus.Bus(5)  # wrong
    shmbus.Bus("shop", idle="busy")  # wrong
    shmbus.Bus("shop", stall_timeout="5 s")  # wrong
    shmbus.Bus("shop", True)  # wrong
    shmbus.Bus.attach("shop", stall_timeout=5)  # wrong


def publish(bus: shmbus.Bus, raw: shmbus.Publisher[bytes]) -> None:
    bus.publisher("orders")  # wrong
    bus.publisher(ORDERS, "till")  # wrong
    bus.publisher(ORDERS, on_full="wait")  # wrong
    bus.publisher(ORDERS, timeout="1")  # wrong
    pub = bus.publisher(ORDERS)
    pub.publish(Refund(1))  # wrong
    pub.publish({"order_id": 1, "cents": 2})  # wrong
    pub.publish(b"")  # wrong
    pub.publish()  # wrong
    pub.publish(OrderPaid(1, 2), headers="trace")  # wrong
    pub.publish_many([Refund(1)])  # wrong
    pub.publish_many(OrderPaid(1, 2))  # wrong
    sequence: int = pub.publish(OrderPaid(1, 2))  # wrong
    pub.apublish(Refund(1))  # wrong
    pub.apublish_many([Refund(1)])  # wrong
    raw.publish("text")  # wrong
    pub.receive()  # wrong
    other: shmbus.Publisher[Refund] = pub  # wrong


def subscribe(bus: shmbus.Bus) -> None:
    bus.subscriber(OrderPaid)  # wrong
    bus.subscriber(ORDERS, mode="fast")  # wrong
    bus.subscriber(ORDERS, start="newest")  # wrong
    bus.subscriber(ORDERS, on_gap="ignore")  # wrong
    bus.subscriber(ORDERS, on_gap=5)  # wrong
    bus.subscriber(ORDERS, group="billing")  # wrong
    sub = bus.subscriber(ORDERS)
    refund: Refund = sub.receive()  # wrong
    event: OrderPaid = sub.try_receive()  # wrong
    sub.receive().price  # wrong
    sub.receive(timeout="1")  # wrong
    sub.receive_many()  # wrong
    sub.receive_many("all")  # wrong
    sub.publish(OrderPaid(1, 2))  # wrong
    for order in sub:
        order.price  # wrong
    for message in sub.messages():
        message.order_id  # wrong
        message.event.price  # wrong
        message.ack()  # wrong
        message.headers.trace  # wrong
    other: shmbus.Subscriber[Refund] = sub  # wrong


def work(bus: shmbus.Bus) -> None:
    bus.group(ORDERS)  # wrong
    bus.group("orders", "billing")  # wrong
    bus.worker(ORDERS)  # wrong
    bus.worker(ORDERS, "billing")  # wrong
    bus.worker(ORDERS, group="billing", max_deliver="5")  # wrong
    bus.worker(ORDERS, group="billing", mode="lossy")  # wrong
    worker = bus.worker(ORDERS, group="billing")
    refund: Refund = worker.receive()  # wrong
    worker.ack(5)  # wrong
    for order in worker:
        order.price  # wrong
    for message in worker.messages():
        message.event.price  # wrong
        message.reject(5)  # wrong
        message.attempt.upper()  # wrong


def none(order: OrderPaid) -> None: ...
def other(order: Refund) -> None: ...
def other_message(message: shmbus.Message[Refund]) -> None: ...
def claimed(message: shmbus.ClaimedMessage[OrderPaid]) -> None: ...
def two(order: OrderPaid, more: int) -> None: ...
async def other_later(order: Refund) -> None: ...


def routes(
    router: shmbus.Router,
    refund: Callable[[OrderPaid], Refund],
    refunds: Callable[[OrderPaid], Iterator[Refund]],
    other_refund: Callable[[Refund], Refund],
    paid: Callable[[OrderPaid], OrderPaid],
    paid_maybe: Callable[[OrderPaid], OrderPaid | None],
    all_paid: Callable[[OrderPaid], Iterator[OrderPaid]],
    later: Callable[[OrderPaid], Coroutine[None, None, OrderPaid]],
    all_later: Callable[[OrderPaid], AsyncIterator[OrderPaid]],
) -> None:
    router.worker(ORDERS, group="g")(other)  # wrong
    router.worker(ORDERS, group="g")(other_message)  # wrong
    router.worker(ORDERS, group="g")(other_later)  # wrong
    router.worker(ORDERS, group="g")(refund)  # wrong
    router.worker(ORDERS, group="g")(refunds)  # wrong
    router.worker(ORDERS, group="g")(two)  # wrong
    router.worker(ORDERS, group="g", to=REFUNDS)(paid)  # wrong
    router.worker(ORDERS, group="g", to=REFUNDS)(paid_maybe)  # wrong
    router.worker(ORDERS, group="g", to=REFUNDS)(all_paid)  # wrong
    router.worker(ORDERS, group="g", to=REFUNDS)(later)  # wrong
    router.worker(ORDERS, group="g", to=REFUNDS)(all_later)  # wrong
    router.worker(ORDERS, group="g", to=REFUNDS)(other_refund)  # wrong
    router.worker(ORDERS, group="g", to="refunds")(refund)  # wrong
    router.worker(ORDERS)(none)  # wrong
    router.worker(ORDERS, group="g", middleware=[5])(none)  # wrong
    router.worker(ORDERS, group="g", middleware=[shmbus.middleware.Retry("3")])(none)  # wrong
    router.worker(ORDERS, group="g", mode="lossy")(none)  # wrong
    router.subscriber(ORDERS, name="n")(other)  # wrong
    router.subscriber(ORDERS, name="n")(claimed)  # wrong
    router.subscriber(ORDERS, name="n")(refund)  # wrong
    router.subscriber(ORDERS, group="g")(none)  # wrong
    router.publish(ORDERS, Refund(1))  # wrong
    router.run("shop")  # wrong


async def wait(sub: shmbus.Subscriber[OrderPaid], worker: shmbus.Worker[OrderPaid]) -> None:
    refund: Refund = await sub.areceive()  # wrong
    sub.areceive().cents  # wrong
    async for order in sub:
        order.price  # wrong
    async for order in worker:
        order.price  # wrong


def look(bus: shmbus.Bus, stats: shmbus.BusStats, error: shmbus.Full) -> None:
    bus.stats().consumer  # wrong
    stats.consumers[0].depth = 5  # wrong
    stats.consumers[0].lost  # wrong
    bus.losses()[0].cause.name  # wrong
    error.blocked_by.append("x")  # wrong
    bus.name = "other"  # wrong


class Quote(msgspec.Struct):
    symbol: str


class Price(msgspec.Struct):
    cents: int


PRICE = shmbus.Service("price", Quote, Price)
UNTYPED = shmbus.Service("price", Quote)  # wrong


def serve(bus: shmbus.Bus) -> None:
    bus.server(ORDERS)  # wrong
    bus.server(PRICE, group="x")  # wrong
    for call in bus.server(PRICE):
        call.event.cents  # wrong
        call.reply(Quote("X"))  # wrong
        call.reply("cheap")  # wrong
        call.fail(5)  # wrong
        call.attempt.upper()  # wrong
        call.deadline + 1  # wrong


async def ask(bus: shmbus.Bus) -> None:
    client = bus.client(PRICE)
    client.call(Price(1))  # wrong
    client.call("X")  # wrong
    client.call(Quote("X"), 1.0)  # wrong
    quote: Quote = client.call(Quote("X"))  # wrong
    client.submit(Quote("X")).result().symbol  # wrong
    (await client.acall(Quote("X"))).symbol  # wrong
    client.acall(Quote("X")).cents  # wrong


def run(pool: Executor) -> None:
    pool.submit(len, 5)  # wrong
    pool.submit(len, "x").result().upper()  # wrong
    Executor(max_workers="2")  # wrong
    Executor(retries="2")  # wrong
    pool.map(len, ["x"], buffersize="2")  # wrong
