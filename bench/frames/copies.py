"""One memcpy: the sender copies every frame into the same memory, a batch of rows into memory as large as the ring.

What it takes is what nothing that copies once can take less than. The receiver looks at frames that nobody sent.
"""

from __future__ import annotations

import struct
from contextlib import contextmanager, nullcontext
from itertools import count, cycle
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..rows import batches
from . import views

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from ..contract import Frames, Plan, Shape

DISTRIBUTION: Final = "numpy"
SHAPES: Final[frozenset[Shape]] = frozenset({"frames", "rows"})
CONNECTED: Final = False


def wire(plan: Plan) -> AbstractContextManager[None]:
    """Nothing: the two ends never meet."""
    return nullcontext()


class _Sender:
    def __init__(self, plan: Plan) -> None:
        laps = views.slots(plan) if plan.shape == "rows" else 1
        self._slots = [np.ones(views.length(plan), np.uint8) for _ in range(laps)]

    def copy(self, frames: Frames) -> None:
        for slot, frame in zip(cycle(self._slots), frames, strict=False):
            slot[:] = frame

    def rows(self, arrays: Frames) -> None:
        self.copy(rows.view(np.uint8) for rows in arrays)


class _Receiver:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def frames(self) -> Iterator[Any]:
        frame = bytearray(self._plan.size)
        for number in count():
            struct.pack_into("<Q", frame, 0, number)
            frame[-1] = number & 0xFF
            yield frame

    def rows(self) -> Iterator[Any]:
        return batches(self._plan.events, self._plan.batch, self._plan.size)


@contextmanager
def sender(plan: Plan, wiring: None, index: int) -> Iterator[_Sender]:
    """One that only copies."""
    yield _Sender(plan)


@contextmanager
def receiver(plan: Plan, wiring: None, index: int) -> Iterator[_Receiver]:
    """One that only looks."""
    yield _Receiver(plan)
