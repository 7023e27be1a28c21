"""multiprocessing.Queue: gets the encoded bytes and pickles them itself; a batch is one msgpack array.

To every receiver its own queue where all see all; one for everybody elsewhere.
"""

from __future__ import annotations

import multiprocessing
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from ..event import decode, decode_many, encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from multiprocessing.queues import Queue

    from ..contract import Plan, Shape
    from ..event import Tick

DISTRIBUTION: Final = None
SHAPES: Final[frozenset[Shape]] = frozenset({"one", "all", "shared", "merge", "echo"})
CONNECTED: Final = True


@contextmanager
def wire(plan: Plan) -> Iterator[list[Queue[bytes]]]:
    """The queues."""
    context = multiprocessing.get_context("spawn")
    most = max(1, plan.capacity // (plan.size * plan.batch))
    queues: list[Queue[bytes]] = [context.Queue(most) for _ in range(plan.receivers if plan.shape == "all" else 1)]
    try:
        yield queues
    finally:
        for queue in queues:
            queue.close()


class _Sender:
    def __init__(self, queues: list[Queue[bytes]]) -> None:
        self._queues = queues

    def send(self, events: Iterable[Tick]) -> None:
        first, *others = [queue.put for queue in self._queues]
        for event in events:
            payload = encode(event)
            first(payload)
            for put in others:
                put(payload)
        self._flush()

    def send_batches(self, batches: Iterable[list[Tick]]) -> None:
        put = self._queues[0].put
        for batch in batches:
            put(encode(batch))
        self._flush()

    def _flush(self) -> None:
        """Wait for the threads that write to the pipes."""
        for queue in self._queues:
            queue.close()
        for queue in self._queues:
            queue.join_thread()


class _Receiver:
    def __init__(self, queue: Queue[bytes]) -> None:
        self._queue = queue

    def events(self) -> Iterator[Tick]:
        return map(decode, iter(self._queue.get, None))

    def batches(self, size: int) -> Iterator[list[Tick]]:
        return map(decode_many, iter(self._queue.get, None))


@contextmanager
def sender(plan: Plan, wiring: list[Queue[bytes]], index: int) -> Iterator[_Sender]:
    """Puts into every queue."""
    yield _Sender(wiring)


@contextmanager
def receiver(plan: Plan, wiring: list[Queue[bytes]], index: int) -> Iterator[_Receiver]:
    """Gets from its own queue, or from the one that all share."""
    yield _Receiver(wiring[index % len(wiring)])
