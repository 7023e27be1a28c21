"""momentumx: buffers of a stream that are handed out, in its synchronous mode, which drops nothing.

A consumer cannot come before its producer, so it connects in a thread.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import momentumx
import numpy as np

from ..peers import loops
from ..rows import dtype_of
from . import views

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..contract import Frames, Plan, Shape

DISTRIBUTION: Final = "momentumx"
SHAPES: Final[frozenset[Shape]] = frozenset({"frames", "loans", "rows"})
CONNECTED: Final = True
_PATIENCE: Final = 30.0
_STREAM: Final = "frames"
_READY: Final = "ready"
_POLL: Final = 1e-5  # seconds; 0.01 by itself


@contextmanager
def wire(plan: Plan) -> Iterator[str]:
    """The folder of the stream."""
    with loops.folder() as folder:
        yield str(folder)


class _Sender:
    def __init__(self, producer: Any, size: int) -> None:
        self._next, self._size = producer.next_to_send, size

    def copy(self, frames: Frames) -> None:
        ask, size = self._next, self._size
        for frame in frames:
            buffer = ask()
            np.frombuffer(buffer, np.uint8)[:size] = frame
            buffer.send(size)

    def rows(self, arrays: Frames) -> None:
        self.copy(rows.view(np.uint8) for rows in arrays)

    def loan(self, marks: Iterable[bytes]) -> None:
        ask, size = self._next, self._size
        for mark in marks:
            buffer = ask()
            memoryview(buffer)[:8] = mark
            buffer.send(size)


class _Receiver:
    def __init__(self, connecting: Future[Any], size: int, dtype: Any) -> None:
        self._connecting, self._size, self._dtype = connecting, size, dtype

    def frames(self) -> Iterator[Any]:
        size = self._size
        return (memoryview(buffer)[:size] for buffer in iter(self._connecting.result().receive, None))

    def rows(self) -> Iterator[Any]:
        return views.rows(self.frames(), self._dtype)


@contextmanager
def sender(plan: Plan, wiring: str, index: int) -> Iterator[_Sender]:
    """The producer, once its consumer is there."""
    size = views.length(plan)
    producer = momentumx.Producer(
        _STREAM, buffer_size=size, buffer_count=views.slots(plan), sync=True, polling_interval=_POLL, context=wiring
    )
    Path(wiring, _READY).touch()  # a consumer that is too early prints an error
    deadline = time.monotonic() + _PATIENCE
    while producer.subscriber_count < plan.receivers and time.monotonic() < deadline:
        time.sleep(0.001)
    yield _Sender(producer, size)


@contextmanager
def receiver(plan: Plan, wiring: str, index: int) -> Iterator[_Receiver]:
    """A consumer."""
    with ThreadPoolExecutor(1) as pool:
        yield _Receiver(pool.submit(_connect, wiring), views.length(plan), dtype_of(plan.size))


def _connect(folder: str) -> Any:
    deadline = time.monotonic() + _PATIENCE
    while not Path(folder, _READY).exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    return momentumx.Consumer(_STREAM, polling_interval=_POLL, context=folder)
