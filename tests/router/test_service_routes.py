"""Handlers that answer calls: sync and async, with middleware, and what their callers get when they fail."""

from __future__ import annotations

from typing import Any

import pytest
from routes import PATIENCE, Failure, Invoice, Order, running

import shmbus
from shmbus import middleware

PRICE = shmbus.Service("price", Order, Invoice)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_calls_are_answered(bus_name: str, asynchronous: bool) -> None:
    """What a handler returns is the reply, what it raises is CallFailed, a fallback stands in, a wrong type is told."""
    router = shmbus.Router(middleware=[middleware.Log()])

    def price(order: Order) -> Invoice:
        if order.number == 0:
            raise Failure("no such order")
        if order.number == 1:
            return "wrong"  # type: ignore[return-value]
        if order.number == 2:
            raise middleware.Reject("not for sale")
        return Invoice(order.number)

    async def price_later(call: shmbus.Call[Order, Invoice]) -> Invoice:
        assert call.attempt == 1
        return price(call.event)

    if asynchronous:
        router.service(PRICE, concurrency=4)(price_later)
    else:
        router.service(PRICE)(price)
    with shmbus.Bus(bus_name) as bus, bus.client(PRICE) as client, running(router, bus):
        assert client.call(Order(5), timeout=PATIENCE) == Invoice(5)
        for number, words in ((0, "Failure: no such order"), (1, "EventTypeError"), (2, "not for sale")):
            with pytest.raises(shmbus.CallFailed, match=words):
                client.call(Order(number), timeout=PATIENCE)
        futures = [client.submit(Order(n)) for n in range(10, 40)]
        assert [f.result(PATIENCE).number for f in futures] == list(range(10, 40))


def test_a_fallback_answers(bus_name: str) -> None:
    """Recover answers a call whose handler failed."""
    router = shmbus.Router()

    def fails(order: Order) -> Invoice:
        raise Failure

    def fallback(delivery: middleware.Delivery[Any], error: BaseException) -> Invoice:
        return Invoice(-delivery.event.number)

    router.service(PRICE, middleware=[middleware.Recover(fallback)])(fails)
    with shmbus.Bus(bus_name) as bus, bus.client(PRICE) as client, running(router, bus):
        assert client.call(Order(5), timeout=PATIENCE) == Invoice(-5)
    with pytest.raises(shmbus.ConfigError, match="has a handler already"):
        router.service(PRICE)(fails)
