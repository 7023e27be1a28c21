"""`multiprocessing.shared_memory` by hand: slots in one segment, and two semaphores that count them.

What one writes who needs it in an afternoon: one sender, one receiver, a view until the next is asked for, and nobody
survives a killed process.
"""

from __future__ import annotations

import multiprocessing
import os
from contextlib import contextmanager
from itertools import count, cycle
from multiprocessing.shared_memory import SharedMemory
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..rows import dtype_of
from . import views

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..contract import Frames, Plan, Shape

DISTRIBUTION: Final = None
SHAPES: Final[frozenset[Shape]] = frozenset({"frames", "loans", "rows"})
CONNECTED: Final = True
_numbers = count(1)


@contextmanager
def wire(plan: Plan) -> Iterator[Any]:
    """The segment's name and the semaphores."""
    context, slots = multiprocessing.get_context("spawn"), views.slots(plan)
    memory = SharedMemory(f"bench-{os.getpid()}-hand-{next(_numbers)}", create=True, size=slots * views.length(plan))
    try:
        yield memory.name, slots, context.Semaphore(slots), context.Semaphore(0)
    finally:
        memory.close()
        memory.unlink()


class _Sender:
    def __init__(self, slots: list[Any], free: Any, full: Any) -> None:
        self._slots = slots
        self._acquire, self._release = free.acquire, full.release

    def copy(self, frames: Frames) -> None:
        acquire, release = self._acquire, self._release
        for slot, frame in zip(cycle(self._slots), frames, strict=False):
            acquire()
            slot[:] = frame
            release()

    def rows(self, arrays: Frames) -> None:
        self.copy(rows.view(np.uint8) for rows in arrays)

    def loan(self, marks: Iterable[bytes]) -> None:
        acquire, release = self._acquire, self._release
        for slot, mark in zip(cycle([memoryview(slot) for slot in self._slots]), marks, strict=False):
            acquire()
            slot[:8] = mark
            release()


class _Receiver:
    def __init__(self, slots: list[Any], free: Any, full: Any, dtype: Any) -> None:
        self._slots, self._dtype = slots, dtype
        self._acquire, self._release = full.acquire, free.release

    def frames(self) -> Iterator[Any]:
        acquire, release = self._acquire, self._release
        for slot in cycle(self._slots):
            acquire()
            yield slot
            release()

    def rows(self) -> Iterator[Any]:
        return views.rows(self.frames(), self._dtype)


@contextmanager
def sender(plan: Plan, wiring: Any, index: int) -> Iterator[_Sender]:
    """The side that writes."""
    with _slots(plan, wiring) as slots:
        yield _Sender(slots, wiring[2], wiring[3])


@contextmanager
def receiver(plan: Plan, wiring: Any, index: int) -> Iterator[_Receiver]:
    """The side that reads."""
    with _slots(plan, wiring) as slots:
        yield _Receiver(slots, wiring[2], wiring[3], dtype_of(plan.size))


@contextmanager
def _slots(plan: Plan, wiring: Any) -> Iterator[list[Any]]:
    memory, size = SharedMemory(wiring[0]), views.length(plan)
    buffer: Any = memory.buf
    found = [np.frombuffer(buffer, np.uint8, size, number * size) for number in range(wiring[1])]
    memory.close = lambda: None  # type: ignore[method-assign] # it goes with the process: views of it are about
    yield found
