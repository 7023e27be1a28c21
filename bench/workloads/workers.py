"""W5: one to four competing workers, an event a call."""

from __future__ import annotations

import time
from itertools import chain
from typing import TYPE_CHECKING, Final

from ..contract import Received, Setup
from ..event import STOP, stops, ticks

if TYPE_CHECKING:
    from ..contract import Plan, Receiver, Sender

SETUP: Final = Setup("shared", receivers=4)


def produce(plan: Plan, sender: Sender, index: int) -> None:
    """Send every event, then an end for each worker."""
    sender.send(chain(ticks(plan.events, plan.size), stops(plan.receivers)))


def consume(plan: Plan, receiver: Receiver) -> Received:
    """Take events until the end, and add up their sequences: over all workers the sum must be right."""
    count = total = 0
    for event in receiver.events():
        if event.seq == STOP:
            break
        count += 1
        total += event.seq
    return Received(count, time.monotonic_ns(), checksum=total)
