"""W4: four to one, an event a call; the order of each sender is checked."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from ..contract import Received, Setup
from ..event import ticks, verify_merged

if TYPE_CHECKING:
    from ..contract import Plan, Receiver, Sender

SETUP: Final = Setup("merge", senders=4)


def produce(plan: Plan, sender: Sender, index: int) -> None:
    """Send this sender's share, each event marked as its own."""
    sender.send(ticks(plan.events // plan.senders, plan.size, index))


def consume(plan: Plan, receiver: Receiver) -> Received:
    """Check every event."""
    verify_merged(receiver.events(), plan.events, plan.senders)
    return Received(plan.events, time.monotonic_ns())
