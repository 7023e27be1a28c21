"""A worker's process: takes tasks, runs them, sends back what they return or raise.

May touch: the bus of its executor, and the words of the tasks that it claims.

Must stay true:
- What is claimed is begun by one worker (wire.py), and its word is stored before its ack.
- Whatever a task does but ending the process, its executor hears of it: an exception that does not pickle, too.
- It leaves when its executor is gone, at the latest a second later, or when the task in its hands is done.
"""

from __future__ import annotations

import os
import resource
import select
from concurrent.futures import _base
from concurrent.futures.process import _ExceptionWithTraceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from shmbus._futures.parcels import Parcel, Receiver, Sender, remove
from shmbus._futures.wire import GROUP, Done, Ready, Task, topics, word
from shmbus._shm.names import object_prefix
from shmbus.errors import BusNotFoundError, ClosedError, ConfigError, Empty, ReclaimedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmbus.publisher import Publisher
    from shmbus.worker import Worker

_LOOK: Final = 1.0  # seconds between two looks of an idle worker whether its executor lives
_MAX_DELIVER: Final = 4000  # the executor decides what is tried again: the group never gives up
_PAGE: Final = resource.getpagesize()


def parcel_prefix(bus: str, worker: int | None = None) -> str:
    """What the names of a worker's blocks begin with; worker 0 is the executor, None: all of them."""
    return f"{object_prefix(bus)}parcel-" + (f"{worker}-" if worker is not None else "")


class Parent:
    """Whether the executor's process lives."""

    def __init__(self, pid: int) -> None:
        self._poll = select.poll()
        self._pidfd = -1
        try:
            self._pidfd = os.pidfd_open(pid)
            self._poll.register(self._pidfd, select.POLLIN)
        except OSError:  # gone already, or no pidfds: then the looks at the bus have to do
            self.gone_at_start = not _exists(pid)
        else:
            self.gone_at_start = False

    def gone(self) -> bool:
        """True once it has ended."""
        return self.gone_at_start or bool(self._pidfd >= 0 and self._poll.poll(0))


def _exists(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def run(
    bus_name: str,
    number: int,
    words: Any,
    leave: Any,
    parent: int,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
    max_tasks: int | None,
    max_rss: int | None,
) -> None:
    """The whole life of a worker."""
    from shmbus.bus import Bus  # in a child that was forked it is there

    tasks, news = topics()
    try:
        bus = Bus.attach(bus_name)
    except BusNotFoundError:
        return  # the executor has ended meanwhile
    with bus, suppress(ClosedError, ConfigError):
        publisher = bus.publisher(news, name=f"worker-{number}")
        if initializer is not None:
            try:
                initializer(*initargs)
            except BaseException as error:
                _base.LOGGER.critical("Exception in initializer:", exc_info=True)
                publisher.publish(Ready(number, f"{type(error).__name__}: {error}"))
                return
        worker = bus.worker(tasks, group=GROUP, name=f"worker-{number}", max_deliver=_MAX_DELIVER)
        publisher.publish(Ready(number))
        executor = Parent(parent)
        try:
            Running(bus_name, number, words, leave, executor, max_tasks, max_rss).run(worker, publisher)
        except ReclaimedError:
            if not executor.gone():
                raise
        if executor.gone():  # what it left to do keeps the bus no longer
            remove(parcel_prefix(bus_name))
            bus.remove_group(tasks, GROUP, force=True)


class Running:
    """A worker that is ready."""

    def __init__(
        self,
        bus_name: str,
        number: int,
        words: Any,
        leave: Any,
        parent: Parent,
        max_tasks: int | None,
        max_rss: int | None,
    ) -> None:
        self._number = number
        self._words = words
        self._leave = leave
        self._parent = parent
        self._max_tasks = max_tasks
        self._max_rss = max_rss
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC) if max_rss is not None else -1
        self._receiver = Receiver()
        self._sender = Sender(parcel_prefix(bus_name, number))

    def run(self, worker: Worker[Task], publisher: Publisher[Any]) -> None:
        """Take tasks until there is a reason to leave."""
        left = self._max_tasks
        while not self._parent.gone() and not self._leave[self._number]:
            try:
                task = worker.receive(_LOOK)
            except Empty:
                continue
            if task.id == 0:
                worker.ack()
                return
            if self._words[task.slot] != word(task.id, 0):  # somebody began it, and died before the ack
                worker.ack()
                continue
            self._words[task.slot] = word(task.id, self._number)
            worker.ack()
            if left is not None:
                left -= 1
            raised, parcel = self._carry_out(task.parcel)
            free = self._receiver.released(task.parcel)
            done = Done(self._number, task.id, raised, parcel, free, left == 0, self._heavy())
            publisher.publish(done)
            del task, parcel, done
            if left == 0:
                return

    def _carry_out(self, parcel: Parcel) -> tuple[bool, Parcel]:
        """Whether the call raised, and the parcel of what it returned or raised."""
        try:
            function, args, kwargs = self._receiver.load(parcel, last=False)
            result = function(*args, **kwargs)
            del function, args, kwargs
            return False, self._sender.pack(result, again=False)[0]
        except BaseException as error:
            return True, self._raised(error)

    def _raised(self, error: BaseException) -> Parcel:
        try:
            return self._wrapped(error, error)
        except BaseException as why:
            shown = f"{type(error).__name__}, which does not pickle ({why}): {error}"
            return self._wrapped(RuntimeError(shown), error)

    def _wrapped(self, error: BaseException, origin: BaseException) -> Parcel:
        trace: Any = origin.__traceback__
        return self._sender.pack(_ExceptionWithTraceback(error, trace), again=False)[0]

    def _heavy(self) -> bool:
        if self._max_rss is None:
            return False
        resident = int(os.pread(self._statm, 256, 0).split()[1]) * _PAGE
        return resident > self._max_rss
