"""A watch over many lives, which wakes at a death: by pidfd where one can be had, by looking where not.

May touch: pidfds that it opens itself. It signals nobody.

Must stay true: dead is said only of a life whose byte is free (`lives.py`). A pidfd only says when to look.
"""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING, Final

from shmbus._closing import Closing
from shmbus._shm import descriptors, processes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shmbus._shm.lives import Lives

_INTERVAL: Final = 0.5  # seconds between two looks at lives that have no pidfd; each costs a microsecond
_LONGEST: Final = 3600.0  # seconds; poll(2) counts milliseconds in an int


class Watch(Closing):
    """For one thread at a time. Every death is reported once, then forgotten."""

    def __init__(self, lives: Lives) -> None:
        self._lives: Final = lives
        self._pidfds: dict[int, int | None] = {}
        self._watched: dict[int, int] = {}
        self._poll = select.poll()
        self.codes: dict[int, int] = {}
        """By life: how its process ended, where the kernel told; for who watches to take out."""

    def __contains__(self, life: int) -> bool:
        return life in self._pidfds

    def watch(self, lives: set[int]) -> list[int]:
        """Watch these and no others; returns those of them that are dead."""
        for life in self._pidfds.keys() - lives:
            self._remove(life)
        return [life for life in lives - self._pidfds.keys() if not self._add(life)]

    def _add(self, life: int) -> bool:
        pid = self._lives.holder(life)
        if pid is None:
            return False
        pidfd = _open_pidfd(pid) if pid else None
        # The pid may have changed hands before the pidfd was opened; who holds the life had its pid all the time.
        if pidfd is not None and self._lives.holder(life) != pid:
            os.close(pidfd)
            return False
        self._pidfds[life] = pidfd
        if pidfd is not None:
            self._watched[pidfd] = life
            self._poll.register(pidfd, select.POLLIN)
        return True

    def _remove(self, life: int) -> None:
        pidfd = self._pidfds.pop(life, None)
        if pidfd is not None:
            del self._watched[pidfd]
            self._poll.unregister(pidfd)
            os.close(pidfd)

    def poll(self, timeout: float, also: Sequence[int] = ()) -> tuple[list[int], list[int]]:
        """Wait up to `timeout` seconds for a death, or for one of the descriptors `also` to become readable.

        Returns the dead and the readable descriptors.
        """
        for fd in also:
            self._poll.register(fd, select.POLLIN)
        deadline = time.monotonic() + timeout
        try:
            while True:
                left = min(max(0.0, deadline - time.monotonic()), _LONGEST)
                blind = any(pidfd is None for pidfd in self._pidfds.values())
                events = self._poll.poll((min(left, _INTERVAL) if blind else left) * 1000)
                dead = self._dead({fd for fd, _ in events})
                ready = [fd for fd, _ in events if fd not in self._watched and fd in also]
                for life in dead:
                    self._remove(life)
                if dead or ready or time.monotonic() >= deadline:
                    return dead, ready
        finally:
            for fd in also:
                self._poll.unregister(fd)

    def _dead(self, woken: set[int]) -> list[int]:
        dead = []
        for life, pidfd in list(self._pidfds.items()):
            if pidfd is None or pidfd in woken:
                if not self._lives.alive(life):
                    dead.append(life)
                    code = processes.exit_code_of(pidfd) if pidfd is not None else None
                    if code is not None:
                        self.codes[life] = code
                elif pidfd is not None:  # no proof: that process is gone, and its life is not
                    self._remove(life)
                    self._pidfds[life] = None
        return dead

    def check(self) -> None:
        """Look at every life, pidfd or none: one that is free is told at the next `watch`."""
        for life in [life for life in self._pidfds if not self._lives.alive(life)]:
            self._remove(life)

    def close(self) -> None:
        """Watch nobody any longer. Idempotent."""
        for life in list(self._pidfds):
            self._remove(life)


def _open_pidfd(pid: int) -> int | None:
    """A pidfd, or None where the process is gone, the kernel has none to give, or a sandbox forbids it."""
    try:
        return descriptors.pidfd(pid)
    except (AttributeError, OSError):
        return None
