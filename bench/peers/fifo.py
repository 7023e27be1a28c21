"""faster-fifo: its dumps and loads are replaced, so that nothing is pickled; a batch is one msgpack array.

That array is quicker than put_many and get_many, which pay for every event anew. To every receiver its own queue where
all see all; one for everybody elsewhere. A call waits ten seconds, then it fails.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from faster_fifo import Queue

from ..event import decode, decode_many
from . import loops

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..contract import Plan, Shape
    from ..event import Tick

DISTRIBUTION: Final = "faster-fifo"
SHAPES: Final[frozenset[Shape]] = frozenset({"one", "all", "shared", "merge", "echo"})
CONNECTED: Final = True


@contextmanager
def wire(plan: Plan) -> Iterator[list[Any]]:
    """The queues."""
    count = plan.receivers if plan.shape == "all" else 1
    yield [Queue(plan.capacity, dumps=bytes) for _ in range(count)]


class _Receiver:
    def __init__(self, queue: Any) -> None:
        self._queue = queue

    def events(self) -> Iterator[Tick]:
        self._queue.loads = decode
        return iter(self._queue.get, None)

    def batches(self, size: int) -> Iterator[list[Tick]]:
        self._queue.loads = decode_many
        return iter(self._queue.get, None)


@contextmanager
def sender(plan: Plan, wiring: list[Any], index: int) -> Iterator[loops.Sender]:
    """Puts into every queue."""
    yield loops.Sender([queue.put for queue in wiring])


@contextmanager
def receiver(plan: Plan, wiring: list[Any], index: int) -> Iterator[_Receiver]:
    """Gets from its own queue, or from the one that all share."""
    yield _Receiver(wiring[index % len(wiring)])
