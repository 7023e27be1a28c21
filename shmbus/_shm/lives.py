"""Who lives: processes by pid and start time, and a watch over many that wakes at a death.

A participant is (pid, start time): the kernel gives a pid out again, but never the two together. Start times
are in clock ticks since boot, as /proc counts them; they mean nothing in another boot or PID namespace.

May touch: /proc, and pidfds that it opens itself. It signals nobody.

Must stay true:
- Dead is said only of the proven dead. A process that cannot be looked at for now (no descriptor left, say)
  lives.
- A zombie is dead: it runs no more code. It is one only when its last thread has ended.
"""

from __future__ import annotations

import functools
import os
import select
import time
import uuid
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

_POLL_INTERVAL: Final = 0.2  # seconds between two looks at a process that has no pidfd
_LONGEST_POLL: Final = 3600.0  # seconds; poll(2) counts milliseconds in an int
_DESCRIPTION: Final = 60  # characters


class _Stat(NamedTuple):
    state: bytes
    threads: int
    start: int


def _read_stat(pid: int) -> _Stat | None:
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # Field 2, the name, is in parentheses and may hold spaces and parentheses itself; fields count from 3
    # after it.
    fields = text.rpartition(b")")[2].split()
    return _Stat(state=fields[0], threads=int(fields[17]), start=int(fields[19]))


def start_time(pid: int) -> int | None:
    """When the process began, in clock ticks since boot; None when there is none of that pid."""
    status = _read_stat(pid)
    return status.start if status else None


def health(pid: int, start: int) -> Literal["ok", "stopped", "dead"]:
    """How the process that began at `start` is: stopped is one that SIGSTOP or a debugger holds.

    When it cannot be told whether it still runs, it does: only proof is proof.
    """
    try:
        status = _read_stat(pid)
    except OSError:
        return "ok"
    if status is None or status.start != start:
        return "dead"
    # A main thread that ended before the others is shown as a zombie while they run on.
    if status.state in b"ZXx" and status.threads <= 1:
        return "dead"
    return "stopped" if status.state in b"Tt" else "ok"


def alive(pid: int, start: int) -> bool:
    """Whether the process that began at `start` still runs, as far as can be told."""
    return health(pid, start) != "dead"


def own_start_time() -> int:
    """The start time of this process, right also in a forked child."""
    return _start_of_own(os.getpid())


@functools.lru_cache(maxsize=1)
def _start_of_own(pid: int) -> int:
    start = start_time(pid)
    if start is None:
        raise RuntimeError(f"/proc does not show this process: pid={pid}")
    return start


@functools.cache
def boot_id() -> bytes:
    """16 bytes that are new at every boot of the host."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return uuid.UUID(file.read().strip()).bytes


def pid_namespace() -> int:
    """The inode of this process's PID namespace: pids agree between processes that agree on it."""
    return os.stat("/proc/self/ns/pid").st_ino


def describe(pid: int) -> str:
    """A short command line for messages, as "python worker.py", at most 60 characters; '' when dead."""
    import psutil  # here, for it takes longer to import than most of this package

    try:
        process = psutil.Process(pid)
        words = process.cmdline() or [process.name()]  # a process can wipe the former
    except psutil.Error:
        return ""
    text = " ".join(os.path.basename(word) if word.startswith("/") else word for word in words)
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return text if len(text) <= _DESCRIPTION else text[: _DESCRIPTION - 1] + "…"


class Watch:
    """Waits for the death of any of many processes, by pidfd where one can be had and by looking where not.

    For one thread at a time. Every death is reported once, then forgotten.
    """

    def __init__(self) -> None:
        self._pidfds: dict[tuple[int, int], int | None] = {}
        self._watched: dict[int, tuple[int, int]] = {}
        self._poll = select.poll()

    def add(self, pid: int, start: int) -> bool:
        """Watch the process that began at `start`; False if it is dead or its pid another's by now."""
        if (pid, start) in self._pidfds:
            return True
        pidfd = _open_pidfd(pid)
        # Only now: the pid may have changed hands before the pidfd was opened, not after.
        if not alive(pid, start):
            if pidfd is not None:
                os.close(pidfd)
            return False
        self._pidfds[pid, start] = pidfd
        if pidfd is not None:
            self._watched[pidfd] = (pid, start)
            self._poll.register(pidfd, select.POLLIN)
        return True

    def remove(self, pid: int, start: int) -> None:
        """Watch it no longer; nothing happens if it was not watched."""
        pidfd = self._pidfds.pop((pid, start), None)
        if pidfd is not None:
            del self._watched[pidfd]
            self._poll.unregister(pidfd)
            os.close(pidfd)

    def poll(self, timeout: float | None, fds: Sequence[int] = ()) -> tuple[list[tuple[int, int]], list[int]]:
        """Wait up to `timeout` seconds (None: for ever) for a death or for one of `fds` to become readable.

        Returns the dead as (pid, start) and the readable descriptors, among them those that are closed or
        broken.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        for fd in fds:
            self._poll.register(fd, select.POLLIN)
        try:
            while True:
                left = _LONGEST_POLL if deadline is None else max(deadline - time.monotonic(), 0.0)
                dead, ready = self._poll_once(left)
                if dead or ready or (deadline is not None and time.monotonic() >= deadline):
                    return dead, ready
        finally:
            for fd in fds:
                self._poll.unregister(fd)

    def _poll_once(self, seconds: float) -> tuple[list[tuple[int, int]], list[int]]:
        unseen = [key for key, pidfd in self._pidfds.items() if pidfd is None]
        dead = [key for key in unseen if not alive(*key)]
        longest = 0.0 if dead else _POLL_INTERVAL if unseen else _LONGEST_POLL
        ready = []
        for fd, _ in self._poll.poll(min(seconds, longest) * 1000):
            if fd in self._watched:
                dead.append(self._watched[fd])
            else:
                ready.append(fd)
        for key in dead:
            self.remove(*key)
        return dead, ready

    def close(self) -> None:
        """Watch nobody any longer. Idempotent."""
        for key in list(self._pidfds):
            self.remove(*key)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open_pidfd(pid: int) -> int | None:
    """A pidfd, or None where the process is gone, the kernel has none to give, or a sandbox forbids it."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None
