"""W1b: one to one, 64 events a call on both sides."""

from __future__ import annotations

import time
from itertools import chain
from typing import TYPE_CHECKING, Final

from ..contract import Received, Setup
from ..event import batches, verify

if TYPE_CHECKING:
    from ..contract import Plan, Receiver, Sender

SETUP: Final = Setup("one", batch=64)


def produce(plan: Plan, sender: Sender, index: int) -> None:
    """Send every event, in whole batches."""
    sender.send_batches(batches(plan.events, plan.batch))


def consume(plan: Plan, receiver: Receiver) -> Received:
    """Check every event."""
    verify(chain.from_iterable(receiver.batches(plan.batch)), plan.events)
    return Received(plan.events, time.monotonic_ns())
