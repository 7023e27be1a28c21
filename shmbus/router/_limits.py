"""Limits of a worker process: when it is to be replaced. Looks after each event, so that nothing has to poll.

May touch: /proc/self/statm. Must stay true: `soon` is asked for before the limit, so that the replacement is there when
it is reached; at the limit the process takes no more, whether it is there or not.
"""

from __future__ import annotations

import itertools
import os
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_EARLY: Final = 0.8
"""Part of --max-tasks at which a replacement is asked for."""
_BEYOND: Final = 1.2
"""Part of --max-rss at which no more is taken, replacement or not."""
_INTERVAL: Final = 0.02
"""Seconds between two looks at the memory, which take 10 us."""
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def resident() -> int:
    """Bytes of this process that are in memory now."""
    with open("/proc/self/statm", "rb", buffering=0) as file:
        return int(file.read().split()[1]) * _PAGE


class Limits:
    """Called after each event, by whatever thread handled it."""

    def __init__(
        self, tasks: int | None, rss: int | None, soon: Callable[[str], None], now: Callable[[], None]
    ) -> None:
        self._tasks = tasks
        self._rss = rss
        self._soon = soon
        self._now = now
        self._counted = itertools.count(1)
        self._next = 0.0

    def handled(self) -> None:
        """An event was handled."""
        count = next(self._counted)
        if self._tasks is not None:
            if count >= self._tasks:
                self._soon(f"{self._tasks} tasks")
                self._now()
            elif count >= self._tasks * _EARLY:
                self._soon(f"{self._tasks} tasks")
        if self._rss is not None and time.monotonic() >= self._next:
            self._next = time.monotonic() + _INTERVAL
            used = resident()
            if used >= self._rss:
                self._soon(f"{used >> 20} MiB of {self._rss >> 20} in memory")
            if used >= self._rss * _BEYOND:
                self._now()
