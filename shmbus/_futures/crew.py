"""The processes of an executor: who is hired, who leaves, who died, and of what.

May touch: its own children.

Must stay true:
- A death is seen when it happens (pidfd), and told once, after everything that the dead had published.
- Never more than the limit take tasks; who is about to leave is not counted.
"""

from __future__ import annotations

import os
import select
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from shmbus._futures import process
from shmbus._futures.wire import NUMBERS
from shmbus._shm import processes

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from multiprocessing.context import BaseContext
    from multiprocessing.process import BaseProcess

_NOTED: Final = 1.0  # seconds; between two lines of `multiprocessing`
_REAP: Final = 10.0  # seconds until a process whose pidfd says that it ended can be waited for; milliseconds, mostly


def _exit_code(process: BaseProcess) -> int | None:
    """What `multiprocessing` knows; the program's own threads that start processes wait for those that have ended."""
    deadline = time.monotonic() + _NOTED
    while process.exitcode is None and time.monotonic() < deadline:
        time.sleep(0.001)  # until that thread has written it down, which nobody tells
    return process.exitcode


class Hand:
    """One worker, as its executor sees it."""

    __slots__ = ("error", "leaving", "number", "process", "ready")

    def __init__(self, number: int, process: BaseProcess) -> None:
        self.number = number
        self.process = process
        self.ready = False
        self.error = ""
        """What its initializer raised."""
        self.leaving = False
        """It takes no more tasks, and its end is no death."""


class Crew:
    """The workers of one executor. `hire` by who has the lock `hiring`; `watch` has a thread of its own."""

    def __init__(
        self, context: BaseContext, told: Callable[[int, int | None], None], hiring: AbstractContextManager[Any]
    ) -> None:
        self._hiring = hiring
        self.hands: dict[int, Hand] = {}
        self._context: Any = context
        self._told = told
        self._count = 0
        self._poll = select.poll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll.register(self._wake, select.POLLIN)
        self._by_descriptor: dict[int, Hand] = {}
        self._over = False
        self._lock = threading.Lock()

    @property
    def taking(self) -> int:
        """Workers that take tasks, or will once they have started."""
        return sum(not hand.leaving for hand in list(self.hands.values()))

    def by_pid(self) -> dict[int, BaseProcess]:
        """Those by pid."""
        found = [hand.process for hand in list(self.hands.values()) if not hand.leaving]
        return {one.pid: one for one in found if one.pid is not None}

    def hire(self, arguments: Callable[[int], tuple[Any, ...]]) -> Hand:
        """Start a worker with `arguments(number)`. Raises what starting a process raises."""
        self._count += 1
        number = (self._count - 1) % (NUMBERS - 1) + 1
        started = self._context.Process(target=process.run, args=arguments(number), name=f"shmbus-worker-{number}")
        started.start()
        hand = Hand(number, started)
        self.hands[number] = hand
        try:
            descriptor = os.pidfd_open(started.pid)
        except OSError:  # it has ended, or there are no pidfds: what multiprocessing waits for does, if a little later
            descriptor = os.dup(started.sentinel)
        with self._lock:
            self._by_descriptor[descriptor] = hand
            self._poll.register(descriptor, select.POLLIN)
        os.eventfd_write(self._wake, 1)
        return hand

    def watch(self) -> None:
        """Tell of every end, until `dismiss`."""
        while not self._over or self._by_descriptor:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._wake:
                    with suppress(BlockingIOError):
                        os.eventfd_read(self._wake)
                    continue
                with self._lock:
                    hand = self._by_descriptor.pop(descriptor)
                    self._poll.unregister(descriptor)
                code = processes.exit_code_of(descriptor)  # before anybody waits for it, whoever that will be
                os.close(descriptor)
                hand.process.join(_REAP)
                if code is None:
                    code = self._code_of(hand.process)
                self._told(hand.number, code)
        os.close(self._wake)

    def _code_of(self, process: BaseProcess) -> int | None:
        with self._hiring:  # our own starts do too, and have written it down when they are over
            pass
        return _exit_code(process)

    def dismiss(self) -> None:
        """End `watch`; there is nobody left to watch."""
        self._over = True
        os.eventfd_write(self._wake, 1)
