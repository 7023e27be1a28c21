"""The tasks of an executor that are not done: those that wait, and those that its workers have. Any number of threads.

May touch: nothing but itself; what is done with a task is the foreman's.

Must stay true: a task is in one place at a time; its id is never used twice, its slot by one task at a time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

from shmbus._futures.wire import SLOTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmbus._futures.parcels import Block

_AHEAD_NS: Final = 2_000_000
"""Work that lies ready for each worker, if tasks take as long as the last ones did: more than a wake-up takes."""
_LEAST_AHEAD: Final = 2
_MOST_AHEAD: Final = 64
"""Tasks for each worker: those with the workers cannot be cancelled any more."""


class Item:
    """A task that was submitted."""

    __slots__ = ("args", "attempt", "block", "function", "future", "kwargs", "name", "running", "slot")

    def __init__(self, function: Callable[..., Any], args: Any, kwargs: Any, name: str) -> None:
        self.future: Future[Any] = Future()
        self.function: Callable[..., Any] | None = function
        self.args = args
        self.kwargs = kwargs
        self.name = name
        self.attempt = 0
        """Workers that had it, or are to have it."""
        self.slot = -1
        self.block: Block | None = None
        """Where its arguments lie."""
        self.running = False
        """It cannot be cancelled any more."""


class Backlog:
    """All tasks that are not done."""

    def __init__(self, limit: int) -> None:
        self._limit: Final = limit
        self._lock: Final = threading.Lock()
        self._waiting: deque[Item] = deque()
        self._with_workers: dict[int, Item] = {}
        self._slots = list(range(SLOTS - 1, -1, -1))
        self._ids = 0
        self._ahead = _LEAST_AHEAD
        self._pace = (time.monotonic_ns(), 0)

    @property
    def outstanding(self) -> int:
        """How many there are."""
        return len(self._with_workers) + len(self._waiting)

    @property
    def with_workers(self) -> int:
        """How many of them are with the workers."""
        return len(self._with_workers)

    def add(self, item: Item, refuse: Callable[[], None]) -> None:
        """Take one, unless `refuse` raises."""
        with self._lock:
            refuse()
            self._waiting.append(item)

    def again(self, item: Item) -> None:
        """Take one that was with a worker before all others."""
        with self._lock:
            self._waiting.appendleft(item)

    def closed(self, over: Callable[[], bool]) -> bool:
        """Whether there is nothing left while `over` is true, after which `add` refuses."""
        with self._lock:
            return over() and not self.outstanding

    def next(self) -> tuple[int, Item] | None:
        """The next one for the workers, with its id, if they have fewer than they shall have."""
        with self._lock:
            if not self._waiting or not self._slots or len(self._with_workers) >= self._ahead * self._limit:
                return None
            item = self._waiting.popleft()
            item.slot = self._slots.pop()
            self._ids += 1
            self._with_workers[self._ids] = item
            return self._ids, item

    def take_off(self, id: int) -> Item | None:
        """One that is with the workers no more; None if it was taken off before."""
        with self._lock:
            item = self._with_workers.pop(id, None)
            if item is not None:
                self._slots.append(item.slot)
        return item

    def take_off_if(self, wanted: Callable[[int, Item], bool]) -> list[Item]:
        """Those with the workers for which `wanted(id, item)`."""
        with self._lock:
            found = [id for id, item in self._with_workers.items() if wanted(id, item)]
            items = [self._with_workers.pop(id) for id in found]
            self._slots += (item.slot for item in items)
        return items

    def take_waiting(self) -> list[Item]:
        """Those that no worker has had."""
        with self._lock:
            items = [item for item in self._waiting if not item.running]
            self._waiting = deque(item for item in self._waiting if item.running)
        return items

    def take_all(self) -> list[Item]:
        """All of them."""
        with self._lock:
            items = [*self._with_workers.values(), *self._waiting]
            self._slots += (item.slot for item in self._with_workers.values())
            self._with_workers.clear()
            self._waiting.clear()
        return items

    def keep_pace(self) -> None:
        """One is done: hand out as far ahead as makes up for the way there, as long as tasks are as short as these."""
        since, count = self._pace
        count += 1
        if count < self._ahead * self._limit:
            self._pace = since, count
            return
        now = time.monotonic_ns()
        fits = _AHEAD_NS * self._ahead // max(1, now - since)
        self._ahead = min(max(_LEAST_AHEAD, fits), 2 * self._ahead, _MOST_AHEAD)
        self._pace = now, 0
