"""Bare POSIX semaphores, of which one is posted for an event: no payload, no codec. What a wake-up costs each way.

The receiver makes up the events by itself, in sequence, and finds their stamps in memory that both ends share.
"""

from __future__ import annotations

import mmap
import os
from contextlib import contextmanager
from itertools import count, cycle
from typing import TYPE_CHECKING, Final

import posix_ipc

from ..event import LAP, ticks
from . import loops

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..contract import Plan, Shape
    from ..event import Tick

DISTRIBUTION: Final = "posix-ipc"
SHAPES: Final[frozenset[Shape]] = frozenset({"one", "echo"})
CONNECTED: Final = True

_numbers = count(1)


@contextmanager
def wire(plan: Plan) -> Iterator[tuple[str, str]]:
    """The name of a semaphore, and the file of the stamps."""
    name = f"/bench-{os.getpid()}-{next(_numbers)}-semaphore"
    semaphore = posix_ipc.Semaphore(name, posix_ipc.O_CREX)
    try:
        with loops.folder() as folder:
            (folder / "stamps").write_bytes(bytes(8 * LAP))
            yield name, str(folder / "stamps")
    finally:
        semaphore.unlink()
        semaphore.close()


class _End:
    def __init__(self, semaphore: posix_ipc.Semaphore, stamps: memoryview, plan: Plan) -> None:
        self._semaphore = semaphore
        self._stamps = stamps
        self._plan = plan

    def send(self, events: Iterable[Tick]) -> None:
        release, stamps = self._semaphore.release, self._stamps
        for place, event in zip(cycle(range(LAP)), events, strict=False):
            stamps[place] = event.ts
            release()

    def send_batches(self, batches: Iterable[list[Tick]]) -> None:
        raise NotImplementedError("a semaphore has no batches")

    def events(self) -> Iterator[Tick]:
        acquire, stamps = self._semaphore.acquire, self._stamps
        for place, event in zip(cycle(range(LAP)), ticks(self._plan.events, self._plan.size), strict=False):
            acquire()
            event.ts = stamps[place]
            yield event

    def batches(self, size: int) -> Iterator[list[Tick]]:
        raise NotImplementedError("a semaphore has no batches")


@contextmanager
def sender(plan: Plan, wiring: tuple[str, str], index: int) -> Iterator[_End]:
    """Posts."""
    with _opened(plan, *wiring) as end:
        yield end


@contextmanager
def receiver(plan: Plan, wiring: tuple[str, str], index: int) -> Iterator[_End]:
    """Waits."""
    with _opened(plan, *wiring) as end:
        yield end


@contextmanager
def _opened(plan: Plan, name: str, path: str) -> Iterator[_End]:
    semaphore = posix_ipc.Semaphore(name)
    try:
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory, memoryview(memory).cast("q") as stamps:
            yield _End(semaphore, stamps, plan)
    finally:
        semaphore.close()
