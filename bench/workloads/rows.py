"""W9: one to one, rows of 64 bytes in batches of 4,096."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from .. import rows
from ..contract import Received, Setup

if TYPE_CHECKING:
    from ..contract import FrameReceiver, FrameSender, Plan

SETUP: Final = Setup("rows", batch=4096, size=64, capacity=4 << 20, trial=409_600, yardsticks=("memcpy", "ceiling"))


def produce(plan: Plan, sender: FrameSender, index: int) -> None:
    """Send every batch."""
    sender.rows(rows.batches(plan.events, plan.batch, plan.size))


def consume(plan: Plan, receiver: FrameReceiver) -> Received:
    """Look at the ends of every batch."""
    rows.verify(receiver.rows(), plan.events, plan.batch)
    return Received(plan.events, time.monotonic_ns())
