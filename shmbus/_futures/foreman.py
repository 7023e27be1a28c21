"""The foreman of an executor: hands out tasks, takes the news of them, and heals the crew. Knows nothing of the
Executor, so that one which is forgotten can be collected, and its work come to an end.

Threads: whoever submits hands out what fits; `news` takes results and hands out more; the crew's tells of ends.

May touch: a bus of its own, the futures of its tasks.

Must stay true:
- Every future comes to an end: by its result, its exception, `WorkerDied`, or with the executor.
- A task is begun by one worker an attempt, and a death costs the task in hand alone (wire.py).
- No lock is held while an object is pickled or unpickled, a callback of a future runs, or a process starts.
- Who takes the news never waits for room among the tasks: what has none waits for the next news.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections import deque
from concurrent.futures import InvalidStateError
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal

from shmbus._futures.backlog import Backlog
from shmbus._futures.crew import Crew
from shmbus._futures.errors import WorkerDied
from shmbus._futures.parcels import Parcel, Receiver, Sender, remove
from shmbus._futures.process import parcel_prefix
from shmbus._futures.wire import GROUP, NUMBERS, SLOTS, Done, Ended, Look, Ready, Task, topics, word
from shmbus._log import logger
from shmbus.bus import Bus
from shmbus.errors import ClosedError, Full, ReclaimedError, ShmbusError

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import BaseContext

    from shmbus._futures.backlog import Item
    from shmbus._futures.crew import Hand

_FALSE_STARTS: Final = 3
"""Workers in a row that died before they were ready, after which none is expected to be."""
_BATCH: Final = 256
_ORPHANED: Final = 600.0
"""Seconds without a worker after which the bus of a process that was killed with all its workers is removed."""

_log = logger("shmbus.futures")


class Foreman:
    """What an Executor has its work done by. It begins with the first task."""

    def __init__(
        self,
        limit: int,
        context: BaseContext,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        max_tasks: int | None,
        max_rss: int | None,
        retries: int,
    ) -> None:
        self.limit: Final = limit
        self.pid: Final = os.getpid()
        self.broken: str | None = None
        self.over = False
        """No more tasks are taken."""
        self._context: Final = context
        self._forks: Final = context.get_start_method() == "fork"
        self._begin: Final = (initializer, initargs)
        self._max_tasks: Final = max_tasks
        self._max_rss: Final = max_rss
        self._retries: Final = retries
        self._killed = self._begun = False
        self._stopped = False
        self._backlog: Final = Backlog(limit)
        self._hiring: Final = threading.RLock()
        self._stuck: deque[Task] = deque()
        self._false_starts = 0
        self._heavy: deque[int] = deque()
        self._relief: tuple[int, int] | None = None  # who comes, and who leaves once it is ready
        self.threads: list[threading.Thread] = []
        self.crew: Crew | None = None

    # -- the beginning

    def start(self) -> None:
        """Open the bus, start the threads, and, where workers are forked, all of them before."""
        self._bus = Bus(f"futures-{os.getpid()}-{secrets.token_hex(4)}")
        self._words = self._context.RawArray("Q", SLOTS)
        self._leave = self._context.RawArray("B", NUMBERS)
        tasks, news = topics()
        self._news = self._bus.subscriber(news, name="executor")
        self._bus.group(tasks, GROUP, expires=_ORPHANED)
        self._tasks = self._bus.publisher(tasks, name="executor")
        self._own = self._bus.publisher(news, name="executor")
        self._sender, self._receiver = Sender(parcel_prefix(self._bus.name, 0)), Receiver()
        crew = Crew(self._context, lambda number, code: self._tell(Ended(number, code)), self._hiring)
        threads = [
            threading.Thread(target=run, name=f"shmbus-{self._bus.name}") for run in (crew.watch, self._take_news)
        ]
        try:
            if self._forks:  # before there is a thread that could hold a lock
                for _ in range(self.limit):
                    crew.hire(self._arguments)
            self.crew = crew
            for thread in threads:
                thread.start()
        except BaseException as error:  # no process or thread to be had, or the interpreter ends
            self.broken = f"the executor cannot start: {error}"
            self._undo(crew, threads)
            raise BrokenProcessPool(self.broken) from error
        self.threads = threads

    def _undo(self, crew: Crew, threads: list[threading.Thread]) -> None:
        for hand in crew.hands.values():
            hand.process.kill()
        crew.dismiss()
        for hand in crew.hands.values():
            hand.process.join()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        self._leave_bus()

    def _arguments(self, number: int) -> tuple[Any, ...]:
        most = self._max_tasks
        if most is not None and number <= self.limit:  # the first ones do not leave all at once
            most = max(1, most - (number - 1) * most // self.limit)
        return (self._bus.name, number, self._words, self._leave, os.getpid(), *self._begin, most, self._max_rss)

    def _hire(self, more: int = 0) -> None:
        """As many workers as there is work for, or `more` than there are, and not more than there may be."""
        crew = self.crew
        with self._hiring:
            if crew is None or self.broken or self._killed:
                return
            wanted = max(self._backlog.outstanding, crew.taking + more)
            while crew.taking < min(self.limit, wanted):
                try:
                    crew.hire(self._arguments)
                except Exception as error:  # no memory, no process, the end of the interpreter
                    if crew.taking == 0:
                        self._break(f"no worker can be started: {error}")
                    else:
                        _log.warning("an executor has %d of %d workers: %s", crew.taking, self.limit, error)
                    return

    # -- tasks

    def submit(self, item: Item) -> None:
        """Take a task, and hand out what fits. Raises BrokenProcessPool, and RuntimeError at the end."""
        self._backlog.add(item, self._refuse)
        self._hand_out()
        if self.crew is not None and self.crew.taking < self.limit:
            self._hire(0 if self._begun else 1)

    def _refuse(self) -> None:
        if self.broken is not None:
            raise BrokenProcessPool(self.broken)
        if self.over:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def _hand_out(self) -> None:
        """Publish tasks while there are fewer with the workers than shall be."""
        while not self._stuck and (found := self._backlog.next()):
            self._send(*found)
            del found

    def _send(self, id: int, item: Item) -> None:
        try:
            if not item.running and not item.future.set_running_or_notify_cancel():
                self._backlog.take_off(id)
                return
            item.running = True
            item.attempt += 1
            parcel, item.block = self._sender.pack((item.function, item.args, item.kwargs), again=True)
        except BaseException as error:  # what pickling raised
            self._backlog.take_off(id)
            with suppress(InvalidStateError):  # another thread saw the executor break meanwhile
                item.future.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return
        if item.attempt > self._retries:
            item.function = item.args = item.kwargs = None
        self._words[item.slot] = word(id, 0)
        self._publish(Task(id, item.slot, parcel))

    def _publish(self, task: Task) -> None:
        try:
            self._tasks.publish_now(task)
        except Full:
            self._stuck.append(task)
        except (ClosedError, ReclaimedError) as error:
            self._break(str(error))

    # -- news

    def _tell(self, news: Ended | Look) -> None:
        with suppress(ClosedError, ReclaimedError):
            self._own.publish(news)

    def look(self) -> None:
        """Have the thread that takes the news look whether there is something to do."""
        self._tell(Look())

    def _take_news(self) -> None:
        try:
            while not self._finished():
                ended = self._handle(self._news.receive_many(_BATCH))
                while ended:
                    one = ended.pop(0)
                    while rest := list(iter(self._news.try_receive, None)):  # first what it had still published
                        ended += self._handle(rest)
                    self._end_of(one)
                while self._stuck and self._backlog.with_workers:
                    count = len(self._stuck)
                    self._publish(self._stuck.popleft())
                    if len(self._stuck) == count:
                        self._stuck.rotate(1)
                        break
                self._hand_out()
        except BaseException as error:
            self._break(f"the executor came to an end: {type(error).__name__}: {error}")
            if isinstance(error, Exception) and not isinstance(error, ClosedError):
                _log.exception("an executor came to an end")
        finally:
            self._close()

    def _handle(self, batch: list[Any]) -> list[Ended]:
        ended = []
        batch.reverse()
        while batch:  # so that nothing refers to a result that its future has
            one = batch.pop()
            if isinstance(one, Done):
                self._done(one)
            elif isinstance(one, Ready):
                self._ready(one)
            elif isinstance(one, Ended):
                ended.append(one)
            del one
        return ended

    def _done(self, done: Done) -> None:
        item = self._backlog.take_off(done.id)
        if done.last and self.crew is not None and done.worker in self.crew.hands:
            self.crew.hands[done.worker].leaving = True
            self._hire()
        if done.heavy:
            self._relieve(done.worker)
        if item is None:
            return
        self._backlog.keep_pace()
        if item.block is not None:
            self._sender.give_back(item.block, free=done.free)
        try:
            result = self._receiver.load(done.parcel, last=True)
        except BaseException as error:  # what unpickling raised
            item.future.set_exception(error)
            return
        if done.raised:
            item.future.set_exception(result)
        else:
            item.future.set_result(result)

    def _ready(self, ready: Ready) -> None:
        hand = self.crew.hands.get(ready.worker) if self.crew is not None else None
        if hand is None:
            return
        if ready.error:
            hand.error = ready.error  # told when it has ended, and all that it logs is out
            return
        self._false_starts, self._begun, hand.ready = 0, True, True
        if self._relief is not None and self._relief[0] == ready.worker:
            self._leave[self._relief[1]] = 1

    # -- ends

    def _end_of(self, ended: Ended) -> None:
        """A worker has ended, and all that it had published is handled."""
        hand = self.crew.hands.pop(ended.worker, None) if self.crew is not None else None
        if hand is None:
            return
        remove(parcel_prefix(self._bus.name, ended.worker))
        if self._relief is not None and ended.worker in self._relief:
            self._relief = None
            self._relieve(None)
        number = hand.number
        for item in self._backlog.take_off_if(lambda id, item: self._words[item.slot] == word(id, number)):
            self._died(item, hand, ended.code)
        if hand.error:
            self._break(f"a process initializer failed: {hand.error}")
        elif not hand.ready and not hand.leaving and not self._stopped:
            self._false_starts += 1
            if self._false_starts >= _FALSE_STARTS:
                how = WorkerDied("its start", self._false_starts, hand.process.pid or 0, ended.code).cause
                self._break(f"workers die before they are ready: {how}")
        self._hire()

    def _died(self, item: Item, hand: Hand, code: int | None) -> None:
        if item.block is not None:
            self._sender.give_back(item.block, free=True)
        if item.attempt <= self._retries and not self._killed:
            self._backlog.again(item)
            return
        item.future.set_exception(WorkerDied(item.name, item.attempt, hand.process.pid or 0, code))

    def _relieve(self, worker: int | None) -> None:
        """A worker is too heavy: once all before it were relieved, and another is ready, it leaves."""
        crew = self.crew
        if worker is not None and worker not in self._heavy and (not self._relief or worker != self._relief[1]):
            self._heavy.append(worker)
        while crew is not None and self._heavy and self._relief is None and not (self.over or self.broken):
            number = self._heavy.popleft()
            hand = crew.hands.get(number)
            if hand is None or hand.leaving:
                continue
            hand.leaving = True  # so that its successor is within the limit
            try:
                with self._hiring:
                    self._relief = crew.hire(self._arguments).number, number
            except Exception as error:
                hand.leaving = False
                _log.warning("a worker of an executor that is too large stays: %s", error)

    # -- the end

    def _break(self, why: str) -> None:
        """No worker can carry out anything any more."""
        if self.broken is None:
            self.broken = why
        self._fail_all(lambda item: BrokenProcessPool(why))
        for hand in list(self.crew.hands.values()) if self.crew is not None else ():
            hand.leaving = True
            if hand.ready:
                hand.process.terminate()

    def _fail_all(self, error: Callable[[Item], Exception]) -> None:
        self._stuck.clear()
        for item in self._backlog.take_all():
            if item.running or item.future.set_running_or_notify_cancel():
                with suppress(InvalidStateError):
                    item.future.set_exception(error(item))

    def shut(self, *, cancel: bool, kill: bool = False) -> None:
        """Take no more tasks; `cancel` those that are with no worker yet."""
        if os.getpid() != self.pid:
            return  # forgotten in a forked child
        self.over = True
        self._killed = self._killed or kill
        if cancel:
            for item in self._backlog.take_waiting():
                item.future.cancel()
                item.future.set_running_or_notify_cancel()
        if self.crew is not None:
            self.look()

    def signal(self, how: Literal["terminate", "kill"]) -> None:
        """Send all workers a signal, those included that are just being started."""
        with self._hiring:
            for hand in list(self.crew.hands.values()) if self.crew is not None else ():
                if hand.process.is_alive():
                    getattr(hand.process, how)()

    def _finished(self) -> bool:
        """Whether there is nothing left to take news of; tells the workers once there is no more work."""
        crew = self.crew
        if crew is None:
            return False
        if self._killed and not crew.hands:
            self._fail_all(lambda item: BrokenProcessPool(f"the workers were killed before task {item.name} was done"))
        if self.broken is None and not self._backlog.closed(lambda: self.over):
            return False
        told, self._stopped = self._stopped, True
        if not told:
            for hand in crew.hands.values():
                hand.leaving = True
            for _ in crew.hands:
                self._publish(Task(0, 0, Parcel(b"")))
        return not crew.hands

    def _close(self) -> None:
        if self.crew is not None:
            self.crew.dismiss()
        self._leave_bus()

    def _leave_bus(self) -> None:
        with suppress(ShmbusError):  # what nobody took keeps the bus no longer
            self._bus.remove_group(self._tasks.topic, GROUP, force=True)
        self._bus.close()
        remove(parcel_prefix(self._bus.name))  # where /dev/shm had no room they are in another folder
