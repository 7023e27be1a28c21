"""W1: one to one, an event a call on both sides."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from bench.contract import Received
from bench.event import ticks, verify

if TYPE_CHECKING:
    from bench.contract import Plan, Receiver, Sender, Shape

SHAPE: Final[Shape] = "one"
RECEIVERS: Final = 1
BATCH: Final = 1
PACED: Final = False
CEILING: Final = True


def produce(plan: Plan, sender: Sender) -> None:
    """Send every event."""
    sender.send(ticks(plan.events))


def consume(plan: Plan, receiver: Receiver) -> Received:
    """Check every event."""
    verify(receiver.events(), plan.events)
    return Received(plan.events, time.monotonic_ns())
