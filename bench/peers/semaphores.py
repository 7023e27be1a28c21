"""Bare POSIX semaphores, of which one is posted for an event: no payload, no codec. What a wake-up costs each way.

The receiver makes up the events by itself, in sequence.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Final

import posix_ipc

from ..event import ticks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..contract import Plan, Shape
    from ..event import Tick

DISTRIBUTION: Final = "posix-ipc"
SHAPES: Final[frozenset[Shape]] = frozenset({"echo"})
CONNECTED: Final = True

_numbers = count(1)


@contextmanager
def wire(plan: Plan) -> Iterator[str]:
    """The name of a semaphore."""
    name = f"/bench-{os.getpid()}-{next(_numbers)}-semaphore"
    semaphore = posix_ipc.Semaphore(name, posix_ipc.O_CREX)
    try:
        yield name
    finally:
        semaphore.unlink()
        semaphore.close()


class _End:
    def __init__(self, semaphore: posix_ipc.Semaphore, plan: Plan) -> None:
        self._semaphore = semaphore
        self._plan = plan

    def send(self, events: Iterable[Tick]) -> None:
        release = self._semaphore.release
        for _ in events:
            release()

    def send_batches(self, batches: Iterable[list[Tick]]) -> None:
        raise NotImplementedError("a semaphore has no batches")

    def events(self) -> Iterator[Tick]:
        acquire = self._semaphore.acquire
        for event in ticks(self._plan.events, self._plan.size):
            acquire()
            yield event

    def batches(self, size: int) -> Iterator[list[Tick]]:
        raise NotImplementedError("a semaphore has no batches")


@contextmanager
def sender(plan: Plan, wiring: str, index: int) -> Iterator[_End]:
    """Posts."""
    with _opened(plan, wiring) as end:
        yield end


@contextmanager
def receiver(plan: Plan, wiring: str, index: int) -> Iterator[_End]:
    """Waits."""
    with _opened(plan, wiring) as end:
        yield end


@contextmanager
def _opened(plan: Plan, name: str) -> Iterator[_End]:
    semaphore = posix_ipc.Semaphore(name)
    try:
        yield _End(semaphore, plan)
    finally:
        semaphore.close()
