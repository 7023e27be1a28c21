"""W1: one to one, an event a call on both sides."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from ..contract import Received, Setup
from ..event import ticks, verify

if TYPE_CHECKING:
    from ..contract import Plan, Receiver, Sender

SETUP: Final = Setup("one")


def produce(plan: Plan, sender: Sender, index: int) -> None:
    """Send every event."""
    sender.send(ticks(plan.events, plan.size))


def consume(plan: Plan, receiver: Receiver) -> Received:
    """Check every event."""
    verify(receiver.events(), plan.events)
    return Received(plan.events, time.monotonic_ns())
