"""W5: one to four competing workers, an event a call."""

from __future__ import annotations

import time
from itertools import chain
from typing import TYPE_CHECKING, Final

from bench.contract import Received
from bench.event import STOP, stops, ticks

if TYPE_CHECKING:
    from bench.contract import Plan, Receiver, Sender, Shape

SHAPE: Final[Shape] = "shared"
RECEIVERS: Final = 4
BATCH: Final = 1
PACED: Final = False
CEILING: Final = True


def produce(plan: Plan, sender: Sender) -> None:
    """Send every event, then an end for each worker."""
    sender.send(chain(ticks(plan.events), stops(plan.receivers)))


def consume(plan: Plan, receiver: Receiver) -> Received:
    """Take events until the end, and add up their sequences: over all workers the sum must be right."""
    count = total = 0
    for event in receiver.events():
        if event.seq == STOP:
            break
        count += 1
        total += event.seq
    return Received(count, time.monotonic_ns(), checksum=total)
