"""W6z: one to one, frames of 1 MiB whose memory is handed out and not written to, seen in place."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, Final

from ..contract import Received, Setup
from ..event import SequenceError

if TYPE_CHECKING:
    from ..contract import FrameReceiver, FrameSender, Plan

SETUP: Final = Setup("loans", size=1 << 20, capacity=8 << 20, trial=2000, variants=True, yardsticks=())


def produce(plan: Plan, sender: FrameSender, index: int) -> None:
    """Send every frame, with its number in its first eight bytes."""
    sender.loan(map(struct.Struct("<Q").pack, range(plan.events)))


def consume(plan: Plan, receiver: FrameReceiver) -> Received:
    """Look at the number of every frame."""
    number_of = struct.Struct("<Q").unpack_from
    for expected, frame in zip(range(plan.events), receiver.frames(), strict=False):
        (number,) = number_of(frame)
        if number != expected:
            raise SequenceError(f"another frame than the next one: number={number}, expected={expected}")
    return Received(plan.events, time.monotonic_ns())
