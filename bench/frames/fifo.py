"""faster-fifo: its dumps and loads do nothing; `put` and `get` copy."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from faster_fifo import Queue

from ..rows import dtype_of
from . import views

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..contract import Frames, Plan, Shape

DISTRIBUTION: Final = "faster-fifo"
SHAPES: Final[frozenset[Shape]] = frozenset({"frames", "rows"})
CONNECTED: Final = True


@contextmanager
def wire(plan: Plan) -> Iterator[Any]:
    """The queue."""
    yield Queue(plan.capacity, dumps=bytes)


class _Sender:
    def __init__(self, queue: Any) -> None:
        self._put = queue.put

    def copy(self, frames: Frames) -> None:
        put = self._put
        for frame in frames:
            put(frame)  # through its dumps, `bytes`: it takes nothing else

    rows = copy


class _Receiver:
    def __init__(self, queue: Any, dtype: Any) -> None:
        queue.loads = partial(np.frombuffer, dtype=np.uint8)  # a view of its buffer, which the next call overwrites
        self._get, self._dtype = queue.get, dtype

    def frames(self) -> Iterator[Any]:
        return (self._get() for _ in repeat(None))

    def rows(self) -> Iterator[Any]:
        return views.rows(self.frames(), self._dtype)


@contextmanager
def sender(plan: Plan, wiring: Any, index: int) -> Iterator[_Sender]:
    """Puts."""
    yield _Sender(wiring)


@contextmanager
def receiver(plan: Plan, wiring: Any, index: int) -> Iterator[_Receiver]:
    """Gets."""
    yield _Receiver(wiring, dtype_of(plan.size))
