"""Middleware: what stands around the handlers of a Router. See `shmbus.middleware.protocol` for how to write one.

    router = shmbus.Router(middleware=[middleware.Log(), middleware.Correlate()])

    @router.worker(ORDERS, group="billing", middleware=[middleware.Retry(most=3, delay=0.1)])
    def bill(order: OrderPaid) -> None: ...

The first of a list is the outermost, and a router's are outside of a handler's own. Each works for sync and async
handlers, holds its state in the process that it was made in, and shares it among the handlers that name it.
"""

from __future__ import annotations

from shmbus.middleware.failures import Ignore, Poison, Poisoned, Recover
from shmbus.middleware.faults import Duplicate, Fail
from shmbus.middleware.flow import CircuitBreaker, Delay, Retry, Throttle, Timeout
from shmbus.middleware.once import Deduplicate, Seen
from shmbus.middleware.protocol import (
    Delivery,
    Middleware,
    Publish,
    Redeliver,
    Reject,
    Result,
    Sleep,
    Step,
    Steps,
    Within,
    outgoing,
)
from shmbus.middleware.watch import Correlate, Log, Validate

__all__ = [
    "CircuitBreaker",
    "Correlate",
    "Deduplicate",
    "Delay",
    "Delivery",
    "Duplicate",
    "Fail",
    "Ignore",
    "Log",
    "Middleware",
    "Poison",
    "Poisoned",
    "Publish",
    "Recover",
    "Redeliver",
    "Reject",
    "Result",
    "Retry",
    "Seen",
    "Sleep",
    "Step",
    "Steps",
    "Throttle",
    "Timeout",
    "Validate",
    "Within",
    "outgoing",
]
