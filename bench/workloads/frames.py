"""W6: one to one, frames of 1 MiB: copied in, seen in place."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, Any, Final

from ..contract import Received, Setup
from ..event import SequenceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..contract import FrameReceiver, FrameSender, Plan

SETUP: Final = Setup("frames", size=1 << 20, capacity=8 << 20, trial=200, variants=True, yardsticks=("memcpy",))


def produce(plan: Plan, sender: FrameSender, index: int) -> None:
    """Send every frame: always the same array, which carries its number at both ends."""
    sender.copy(frames(plan))


def consume(plan: Plan, receiver: FrameReceiver) -> Received:
    """Look at both ends of every frame."""
    number_of = struct.Struct("<Q").unpack_from
    for expected, frame in zip(range(plan.events), receiver.frames(), strict=False):
        (number,) = number_of(frame)
        if number != expected or frame[-1] != number & 0xFF:
            raise SequenceError(f"another frame than the next one: number={number}, {frame[-1]}, expected={expected}")
    return Received(plan.events, time.monotonic_ns())


def frames(plan: Plan) -> Iterator[Any]:
    """As many frames as the plan has."""
    import numpy as np

    frame: Any = np.zeros(plan.size, np.uint8)
    head, put = memoryview(frame), struct.Struct("<Q").pack_into
    for number in range(plan.events):
        put(head, 0, number)
        head[-1] = number & 0xFF
        yield frame
