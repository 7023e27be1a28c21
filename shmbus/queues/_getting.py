"""Getting: the half of a link that has the worker, and the tasks that this process got and has not done.

May touch: the worker of its bus, the word of this process in the queue's words, files of large pickles.

Must stay true:
- An event is acked before it is handed out, or, with `redeliver`, by `task_done`; before that a death gives it back.
- Join: what is got is among the open tasks before it is acked, and a look at those follows the one at the depth.
"""

from __future__ import annotations

import pickle
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from shmbus import _core
from shmbus._shm.failpoint import reach
from shmbus.bus import MAX_DELIVER
from shmbus.errors import Empty, ReclaimedError, ShutDown
from shmbus.queues import _words
from shmbus.queues._ground import BOUND, GROUP, LOOK, SHUT
from shmbus.queues._large import MARK, Large
from shmbus.queues._pickling import loads

if TYPE_CHECKING:
    from shmbus.message import ClaimedMessage
    from shmbus.queues._ground import Ground
    from shmbus.worker import Worker

_ROOM_AWAITED: Final = _words.ROOM_AWAITED // 8


class Getting:
    """Gets, from any thread of this process."""

    def __init__(self, ground: Ground) -> None:
        self._ground: Final = ground
        self._worker: Worker[Any] | None = None
        self.opening: Final = threading.RLock()
        self._lock: Final = threading.Lock()
        self._tasks: Final[deque[tuple[int, ClaimedMessage[Any] | None, Large | None]]] = deque()
        self._settling: Final = threading.Lock()
        self._quick: Final = ground.quick
        self._pickles: Final = ground.kind.pickles
        self._end: Final = _core.Getter(
            ground.words.map,
            _words.SHUT,
            _words.ROOM_AWAITED,
            claim=self._get_later,
            beside=self._get_beside,
            unfold=_unfold,
            misses=(Empty, ReclaimedError),
            loads=pickle.loads if self._pickles else None,
            take=self._lock.acquire,
            give=self._lock.release,
            room=lambda: ground.words.tell(_words.ROOM),
            last=ground.end_if_empty,
            bound=BOUND,
        )
        self.get: Final = self._end.get
        """Get one. Raises Empty, ShutDown, and what the decoder raises."""

    def _get_beside(self, note: Any, block: bool, timeout: float | None) -> tuple[Any, Large | None]:
        """Ack a note; or, where who had it before died with its file, get what comes next."""
        worker = self._worker or self._open_worker()
        deadline = None if timeout is None else time.monotonic() + timeout
        return self._take(worker, note) or self._claim(block, deadline)

    def _get_later(self, block: bool, timeout: float | None, since: float | None) -> Any:
        """Get what was not there at once, asked for at `since`; and what is held, or counted, until it is done."""
        deadline = None
        if block and timeout is not None and since is not None:
            deadline = since + timeout
        if not self._lock.acquire(False):
            self._queue_up(block, deadline)
        try:
            event, large = self._claim(block, deadline)
        finally:
            self._lock.release()
        if self._quick[_ROOM_AWAITED]:
            self._ground.words.tell(_words.ROOM)
        if self._quick[SHUT]:
            self._ground.end_if_empty()
        if large is not None:
            return _unfold(event, large)
        return loads(event) if self._pickles else event

    def _queue_up(self, block: bool, deadline: float | None) -> None:
        """Another thread of this process gets: one that waits holds up nobody, for there is nothing."""
        while True:
            left = BOUND if deadline is None else deadline - time.monotonic()
            if self._lock.acquire(timeout=max(0.0, min(left, BOUND)) if block else 0.001):
                return
            if (not block and not self._ground.gauge.read().ready) or (block and left <= 0):
                raise Empty("another thread waits for the queue, and there is nothing")
            self._ground.require_open()

    def _claim(self, block: bool, deadline: float | None) -> tuple[Any, Large | None]:
        """An event that is acked, or held until its task is done."""
        while True:
            shut = self._quick[SHUT]
            if shut & (_words.DISCARDED | _words.ENDING) and not self._ground.gauge.read().ready:
                self._over()
            seconds = BOUND
            if not block or shut:
                seconds = 0.0
            elif deadline is not None:
                seconds = min(seconds, deadline - time.monotonic())
            worker = self._worker or self._open_worker()
            try:
                if self._ground.kind.tasks == _words.CLAIMED:
                    found = self._hold(worker.receive_message(seconds))
                else:
                    found = self._take(worker, worker.receive(seconds))
                if found is not None:
                    return found
            except Empty:
                if shut and not self._ground.gauge.read().ready:
                    self._ground.end_if_empty()
                    self._over()
                if not block or (deadline is not None and time.monotonic() >= deadline):
                    raise Empty("the queue is empty") from None
            except ReclaimedError:
                if not self._quick[SHUT]:
                    raise
                self._over()

    def _over(self) -> None:
        raise ShutDown("the queue was shut down, and nothing is left in it")

    def _take(self, worker: Worker[Any], event: Any) -> tuple[Any, Large | None] | None:
        large = None
        if self._pickles and event[0] == MARK:
            with suppress(FileNotFoundError):
                large = Large(event)
            if large is None:  # gone with the one that had it in its hands
                worker.ack()
                return None
        if self._ground.kind.tasks == _words.COUNTED:
            self._count(worker)
        else:
            worker.ack()
        reach("queue.acked")
        if large is not None:
            large.forget()
        return event, large

    def _count(self, worker: Worker[Any]) -> None:
        """Ack, and have it among the open tasks before."""
        task = (threading.get_ident(), None, None)
        with self._settling:
            self._tasks.append(task)
            self._ground.words.set_open(len(self._tasks))
        reach("queue.counted")
        try:
            worker.ack()
        except BaseException:
            with self._settling:
                self._tasks.remove(task)
                self._ground.words.set_open(len(self._tasks))
            raise

    def _hold(self, message: ClaimedMessage[Any]) -> tuple[Any, Large | None] | None:
        event, large = message.event, None
        if self._pickles and event[0] == MARK:
            with suppress(FileNotFoundError):
                large = Large(event)
            if large is None:
                message.ack()
                return None
            large.comes_again = True
        with self._settling:
            self._tasks.append((threading.get_ident(), message, large))
        return event, large

    def _open_worker(self) -> Worker[Any]:
        with self.opening:
            self._ground.require_open()
            if self._worker is None:
                worker = self._ground.bus.worker(
                    self._ground.topic, group=GROUP, max_deliver=self._ground.kind.max_deliver or MAX_DELIVER
                )
                worker.oldest_first()
                self._worker = worker
                if self._ground.kind.tasks == _words.NONE:
                    self._end.goes_by(worker.receive, worker.ack)
            return self._worker

    # -- tasks

    def task_done(self) -> None:
        """The oldest task that this thread got, or else this process, is done. Raises ValueError when there is none."""
        with self._settling:
            own = threading.get_ident()
            task = next((t for t in self._tasks if t[0] == own), self._tasks[0] if self._tasks else None)
            if task is None:
                raise ValueError("task_done() called too many times")
            _, message, large = task
            if message is not None:
                with suppress(ReclaimedError):  # the queue was shut down at once
                    message.ack()
                if large is not None:
                    large.forget()
            self._tasks.remove(task)
            if message is None:
                self._ground.words.set_open(len(self._tasks))
        self._ground.words.tell(_words.ENDS)
        if self._quick[SHUT]:
            self._ground.end_if_empty()

    def unfinished(self) -> int:
        """Tasks that are not done, those of the dead until `join` has looked."""
        return self._ground.gauge.look()[0] + self._ground.words.open_tasks()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until every task is done; False if `timeout` seconds were not enough."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            seen = self._ground.words.awaiting(_words.ENDS)
            if not self.unfinished():
                return True
            left = LOOK if deadline is None else min(LOOK, deadline - time.monotonic())
            if left <= 0:
                return False
            self._ground.words.wait(_words.ENDS, seen, left)
            self._ground.words.bury()
            self._ground.require_open()


def _unfold(note: Any, large: Large) -> Any:
    """The object that a note is of."""
    return large.loads(pickle.loads)
