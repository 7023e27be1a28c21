"""Awaiting: the tasks of event loops that wait at one handle.

May touch: the FIFO of the handle's own channel.

Must stay true:
- One is woken at a time, whoever has waited longest; and whoever has looked and waits no more wakes the next one if
  there is more. So a post, which wakes one sleeper, is enough for any number of tasks.
- Whoever stops waiting, woken, cancelled or at its timeout, calls `pass_on`, or waits again: both arm the channel for
  those who still wait, and look again.
- A descriptor that a loop watches is ours alone: its number is not another's when close() overtakes the loop.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    import asyncio  # where it is used at run time it is loaded already, and takes 30 ms where it is not
    from collections.abc import Callable

    from shmbus._shm.waker import Sleeper

_READ: Final = 65536
"""Bytes: the whole of a pipe."""


class Awaiting:
    """The tasks that wait at one handle, in any number of loops."""

    def __init__(self, sleeper: Sleeper, arm: Callable[[], object], disarm: Callable[[], object]) -> None:
        """`arm` tells the wakers that somebody awaits the FIFO, `disarm` that nobody does."""
        self._sleeper = sleeper
        self._arm = arm
        self._disarm = disarm
        self._waiting: OrderedDict[asyncio.Future[bool], asyncio.AbstractEventLoop] = OrderedDict()
        self._readers: dict[asyncio.AbstractEventLoop, list[int]] = {}
        """By loop: the descriptor that it watches, and for how many."""

    async def wait(self, ready: Callable[[], bool], seconds: Callable[[], float], *, again: bool) -> bool:
        """Sleep until woken, unless `ready` already, but at most `seconds()`: False then.

        That is asked once the channel is armed: whoever delays an event wakes those that sleep (SYNC due). `again`: the
        caller was woken, found nothing, and keeps its place.
        """
        import asyncio

        loop = asyncio.get_running_loop()
        woken: asyncio.Future[bool] = loop.create_future()
        self._watch(loop)
        self._waiting[woken] = loop
        if again:
            self._waiting.move_to_end(woken, last=False)
        timer: asyncio.TimerHandle | None = None
        try:
            self._arm()
            if ready():
                return True
            timer = loop.call_later(seconds(), _wake, woken, False)
            return await woken
        finally:
            if timer is not None:
                timer.cancel()
            del self._waiting[woken]
            self._unwatch(loop)

    def pass_on(self, ready: Callable[[], bool]) -> None:
        """The caller has looked, and waits no more."""
        if self._waiting:
            self._arm()
            if ready():
                self._wake_next()

    def _wake_next(self) -> None:
        import asyncio

        for woken, loop in list(self._waiting.items()):
            if woken.done():
                return  # on its way, and will pass it on
            with suppress(RuntimeError):  # its loop was closed under it
                if loop is asyncio._get_running_loop():
                    _wake(woken, True)
                else:
                    loop.call_soon_threadsafe(_wake, woken, True)
                return

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        reader = self._readers.get(loop)
        if reader is not None:
            reader[1] += 1
            return
        descriptor = self._sleeper.duplicate_fifo()
        try:
            if not self._waiting:
                _drain(descriptor)
            loop.add_reader(descriptor, self._readable, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._readers[loop] = [descriptor, 1]

    def _unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        reader = self._readers[loop]
        reader[1] -= 1
        if reader[1] == 0:
            del self._readers[loop]
            loop.remove_reader(reader[0])
            os.close(reader[0])
        if not self._waiting:
            self._disarm()

    def _readable(self, descriptor: int) -> None:
        _drain(descriptor)
        self._wake_next()


def _wake(woken: asyncio.Future[bool], result: bool) -> None:
    if not woken.done():
        woken.set_result(result)


def _drain(descriptor: int) -> None:
    with suppress(BlockingIOError):
        while os.read(descriptor, _READ):
            pass


async def interpreter_ends() -> NoReturn:
    """At the interpreter's exit a task in another thread's loop hears nothing more: it ends with the process."""
    import asyncio

    while True:
        await asyncio.get_running_loop().create_future()
