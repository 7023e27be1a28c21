"""One process's part in one bus: what its publishers, subscribers and workers share.

May touch: the registry, the rings, the wake-up channels of others, and the start of an automatic supervisor.

Must stay true:
- A wake-up is owed by whoever clears a parked bit, and by nobody else (SYNC park).
- Nothing here waits, but for the bus lock.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar

from shmbus import _core
from shmbus._handles.care import Care
from shmbus._handles.late import NOT_NOW, Late
from shmbus._ledger import members, pools, reclaim, room
from shmbus._ledger.registry import LOCK_TIMEOUT, Registry
from shmbus._log import logger
from shmbus._shm import processes, spawn
from shmbus._shm.failpoint import reach
from shmbus._shm.lives import LockHeldError
from shmbus._shm.rings import Rings
from shmbus._shm.waker import Posts
from shmbus.errors import ClosedError, ForkedError, LockTimeoutError, ReclaimedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shmbus._ledger.document import Document, Membership, Participant
    from shmbus._ledger.registry import Change

R = TypeVar("R")

LEAVE_TIMEOUT: Final = 1.0
"""Seconds that leaving waits for the bus lock, whatever is left; what was not done then is done later."""
_ALL: Final = 2**64 - 1
_OPEN_TIMEOUT: Final = 30.0  # seconds for a removal that is under way; it takes milliseconds

_deadlines: Final[list[float]] = []
_log = logger("shmbus.bus")


@contextmanager
def leaving_within(seconds: float) -> Iterator[None]:
    """However many sessions leave in a `with` block, they wait for no longer than this, in all."""
    _deadlines.append(time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadlines.pop()


class Session:
    """An entered participant."""

    def __init__(self, registry: Registry, participant: int, *, supervise: bool) -> None:
        self.bus: Final = registry.bus
        self.registry: Final = registry
        self.map: Final = registry.map
        self.prefix: Final = registry.prefix
        self.rings: Final = Rings(registry.prefix)
        self.posts: Final = Posts()
        self.participant: Final = participant
        self.supervise: Final = supervise
        self.pid: Final = os.getpid()
        self.closed = False
        self._care: Final = Care(self)
        self._late: Final = Late(self)
        self._ending: Final = threading.Lock()

    @classmethod
    def open(cls, bus: str, *, create: bool, supervise: bool, stall_ns: int | None) -> Session:
        """Attach to the bus, or create it, and enter this process."""
        identity = (os.getpid(), processes.pid_namespace(), processes.own_description())
        deadline = time.monotonic() + _OPEN_TIMEOUT
        while True:
            registry = Registry.open(bus, create=create, stall_ns=stall_ns)
            try:
                with registry.locked() as change:
                    if not registry.removed:
                        return cls._enter(registry, change, identity, supervise=supervise)
                    reclaim.unlink_all(bus, registry.uid)  # its remover died on the way
            except ClosedError:
                if time.monotonic() > deadline:
                    raise
            except BaseException:
                registry.close()
                raise
            registry.close()

    @classmethod
    def _enter(cls, registry: Registry, change: Change, identity: tuple[int, int, str], *, supervise: bool) -> Session:
        lives = registry.lives
        begun = not lives.life
        nobody = cls(registry, 0, supervise=False)  # to reclaim the dead, for want of room
        nobody._repair(change)

        def attempt(change: Change) -> Participant:
            if begun:
                while not lives.begin(change.document.new_id()):
                    pass  # whoever has that number is of a bus whose segment somebody took away
                reach("life.begun")
            try:
                return members.attach(change, lives.life, *identity)
            except BaseException:
                if begun:  # its number is not on the books: it will be another one's
                    lives.end()
                raise

        me = room.enter(change, nobody.rings, nobody.reclaim_dead, attempt)
        session = cls(registry, me.id, supervise=supervise)
        if not session._care.heard():
            session.reclaim_dead(change)
        return session

    # -- the registry

    def document(self) -> Document:
        """The registry document. Raises ClosedError once the bus is removed."""
        if self.registry.removed:
            raise ClosedError(f"bus {self.bus!r} was removed")
        return self.registry.read()

    def require_files(self) -> None:
        """Raise ClosedError if the bus was removed, by whatever means."""
        if self.registry.removed or not self.registry.linked():
            raise ClosedError(f"bus {self.bus!r} was removed")

    @contextmanager
    def locked(self, timeout: float = LOCK_TIMEOUT) -> Iterator[Change]:
        """The bus lock, in a process that is still entered. Raises ReclaimedError, ClosedError, LockTimeoutError."""
        self.check()
        try:
            with self.registry.locked(timeout, lambda: self.closed) as change:
                if self.closed:  # by another thread, while we waited
                    self.raise_closed()
                if self.registry.removed:
                    raise ClosedError(f"bus {self.bus!r} was removed")
                self._repair(change)
                me = change.document.participant(self.participant)
                if me is None or me.state == "reclaiming":
                    raise ReclaimedError(self.why_reclaimed(f"process {self.pid}"))
                with self.rings.pinned():
                    yield change
        except LockTimeoutError:
            if self.closed:  # by a signal handler, or by another thread
                self.raise_closed()
            raise

    def why_reclaimed(self, who: str) -> str:
        """The message of a ReclaimedError of this process."""
        if self.registry.lives.lost():
            return f"{who} was taken for dead: {self.registry.lives.why_lost()}"
        return f"{who} was taken for dead on bus {self.bus!r}"

    def membership(self, topic: int) -> Membership:
        """Who publishes and consumes a topic. Raises ClosedError once the bus is removed, ReclaimedError where whoever
        asks cannot be among them any more, for the topic is forgotten.
        """
        if self.registry.removed:
            raise ClosedError(f"bus {self.bus!r} was removed")
        found = self.registry.membership(topic)
        if found is None:
            raise ReclaimedError(self.why_reclaimed(f"process {self.pid}"))
        return found

    def enter(self, attempt: Callable[[Change], R], topic: str, timeout: float = LOCK_TIMEOUT) -> R:
        """Under the bus lock, what `attempt` returns, which enters somebody into a topic (`room.enter`)."""
        with self.locked(timeout) as change:
            return room.enter(change, self.rings, self.reclaim_dead, attempt, topic)

    @property
    def usable(self) -> bool:
        """True in the process that opened it, until it is closed."""
        return not self.closed and self.pid == os.getpid()

    def check(self) -> None:
        """Raise ForkedError or ClosedError if this session cannot be used here."""
        if self.inherited:
            raise ForkedError(
                f"bus {self.bus!r} was opened by process {self.pid} before fork(): open Bus({self.bus!r}) here"
            )
        if self.closed:
            self.raise_closed()

    def raise_closed(self) -> NoReturn:
        """ClosedError; at the interpreter's exit what ends a thread that outlives it, without a word."""
        raise SystemExit if _core.exiting() else ClosedError(f"bus {self.bus!r} is closed")

    @property
    def inherited(self) -> bool:
        """True in a forked child: what is here belongs to the parent, and closing it only lets go."""
        return os.getpid() != self.pid

    def _repair(self, change: Change) -> None:
        if change.died_inside:
            reclaim.repair(change, self.rings)

    def reclaim_dead(self, change: Change) -> int:
        """Reclaim every participant that is proven dead; returns how many."""
        dead = [p for p in reclaim.dead_participants(change.document, self.registry.lives) if p.id != self.participant]
        for participant in dead:
            reclaim.reclaim(change, self.rings, participant.id, dead=True)
        views = pools.forget_dead(change, self.rings)  # of who had left the bus before it died, too
        if dead or views:
            self.wake_everybody(change.document)
        return len(dead)

    # -- waking others

    def wake_workers(self, group: int, count: int) -> int:
        """Post up to `count` parked workers of a group line; returns how many."""
        woken = 0
        line = _core.GROUP_LINES + group * _core.LINE
        for index in range(_core.MAX_WORKERS // 64):
            at = line + _core.GROUP_PARKED + index * 8
            parked = _core.load(self.map, at)
            while parked and woken < count:
                bit = parked & -parked
                parked ^= bit
                if not _core.fetch_and(self.map, at, _ALL ^ bit) & bit:
                    continue  # another publisher was faster: try the next worker
                self.post_worker(group, index * 64 + bit.bit_length() - 1)
                woken += 1
        return woken

    def post_subscriber(self, topic: int, slot: int) -> Callable[[], object] | None:
        """Post a subscriber whose parked bit the caller has cleared; returns what posts its semaphore again, if any."""
        awaiting = _core.load(self.map, _core.TOPIC_LINES + topic * _core.LINE + _core.TOPIC_AWAITING)
        return self._post(f"{self.prefix}sub-{topic}-{slot}", awaiting >> slot & 1 != 0)

    def post_worker(self, group: int, slot: int) -> Callable[[], object] | None:
        """The same for a worker of a group line."""
        at = _core.GROUP_LINES + group * _core.LINE + _core.GROUP_AWAITING + slot // 64 * 8
        return self._post(f"{self.prefix}work-{group}-{slot}", _core.load(self.map, at) >> slot % 64 & 1 != 0)

    def wake_publisher(self, topic: int, ring_id: int) -> Callable[[], object] | None:
        """Post the publisher of a ring, whose waiting flag the caller has cleared; returns what posts it again."""
        members = self.registry.membership(topic)
        ring = members.ring(ring_id) if members else None
        publisher = members.publisher(ring.publisher) if members and ring else None
        return None if publisher is None else self.posts.post(f"{self.prefix}pub-{publisher.slot}")

    def call_publisher(self, topic: int, ring_id: int) -> None:
        """The same for its tasks, which await its FIFO."""
        members = self.registry.membership(topic)
        ring = members.ring(ring_id) if members else None
        publisher = members.publisher(ring.publisher) if members and ring else None
        if publisher is not None:
            self.posts.post_fifo(f"{self.prefix}pub-{publisher.slot}")

    def wake_publishers(self, topic: int) -> None:
        """A consumer of the topic is gone: whoever waited for it looks again."""
        for publisher in self.registry.read().publishers:
            if publisher.topic == topic and publisher.state == "active":
                self.wake_slot(publisher.slot)

    def wake_slot(self, slot: int) -> None:
        """Let a publisher look again, in threads and tasks, whatever its flags say."""
        self.posts.post(f"{self.prefix}pub-{slot}")
        self.posts.post_fifo(f"{self.prefix}pub-{slot}")

    def wake_everybody(self, document: Document) -> None:
        """After a death: whoever it had woken, or should have, looks again.

        Whatever the bits say: the dead may have cleared one and not yet posted.
        """
        lines = {consumer.id: consumer.slot for consumer in document.consumers}
        for consumer in document.consumers:
            if consumer.kind == "subscriber" and consumer.state == "active":
                self.post_subscriber(consumer.topic, consumer.slot)
        for worker in document.workers:
            if worker.group in lines:
                self.post_worker(lines[worker.group], worker.slot)
        for publisher in document.publishers:
            if publisher.state == "active":
                self.wake_slot(publisher.slot)

    def _post(self, channel: str, awaiting: bool) -> Callable[[], object] | None:
        if not awaiting:
            return self.posts.post(channel)
        self.posts.post_fifo(channel)
        return None

    # -- care

    def crowded(self) -> bool:
        """More processes on this bus than cores: a spin would only keep somebody from running."""
        return self._care.crowded()

    def care(self) -> None:
        """To be called from every wait: about once a second, look after the bus.

        Raises ClosedError when it is gone, and ReclaimedError when this process has lost its life.
        """
        self.check()
        self._late.go_on()
        self._care.look()

    def supervised(self) -> bool:
        """True if a supervisor lives, be it at work or not."""
        return self._care.supervised()

    def ensure_supervisor(self) -> None:
        """Start an automatic supervisor unless one is there; without one the participants do its work."""
        self._care.ensure_supervisor(LOCK_TIMEOUT)

    def tell_supervisor(self) -> None:
        """Let the supervisor look at the document now."""
        self.posts.post_fifo(f"{self.prefix}supervisor")

    # -- leaving

    def depart(self, leave: Callable[[Change], None]) -> None:
        """Take something of ours off the document: now, or as soon as the lock is to be had, and descriptors.

        A thread that holds the lock itself (a signal handler or finaliser came in between) does it when it lets go.
        Otherwise it is waited for a second, once however many leave, and then done by a thread of its own.
        """
        try:
            with self.locked(self.patience()) as change:
                leave(change)
        except LockHeldError:
            self.registry.lives.defer(lambda: self.depart(leave))
        except NOT_NOW:
            self._late.add(leave)
        except (ClosedError, ForkedError, ReclaimedError):
            pass  # the bus, or our part in it, is gone, and with it what there was to leave
        except SystemExit:
            if not _core.exiting():  # by a signal handler, while we waited for the lock
                raise

    def patience(self) -> float:
        """Seconds that whoever leaves now waits for the bus lock."""
        if self.registry.lives.held_up:
            return 0.0
        return min([LEAVE_TIMEOUT, *(max(0.0, end - time.monotonic()) for end in _deadlines)])

    def close(self) -> None:
        """Leave the bus, with all that is still open; the last one to leave removes it, unless a group is owed events.

        Waits a second at most, and not at all where somebody of this process has just waited for that long: what was
        not done then is reclaimed, as of the dead, or done later, where this process takes part by another Bus too.
        """
        if self.closed or self.inherited or not self._ending.acquire(blocking=False):  # one thread of many does it
            self.closed = True
            return
        self.closed = True
        later = False
        self.tell_supervisor()  # now too: once the bus is removed, its channel has no name to be opened by
        try:
            with self.registry.locked(self.patience()) as change:
                self.leave(change)
        except LockHeldError:
            self.registry.lives.defer(self._late.close_now)
            later = True
        except NOT_NOW:
            later = self._late.close()
        except ClosedError:  # removed under us: nothing is left to leave
            with suppress(ClosedError, LockTimeoutError):
                reclaim.clear_away(self.registry)
        finally:
            if not later:
                self.let_go()

    def leave(self, change: Change) -> None:
        """Take all of ours off the document, and remove the bus if that was all of it."""
        if not self.registry.removed:
            self._repair(change)
            mine = [c for c in change.document.consumers if c.participant == self.participant]
            with self.rings.pinned():
                reclaim.reclaim(change, self.rings, self.participant, dead=False)
                if not self._care.heard_by(change.document):
                    self.reclaim_dead(change)
                for topic in {consumer.topic for consumer in mine}:
                    self.wake_publishers(topic)
                reclaim.remove_if_unused(change, self.rings)

    def let_go(self) -> None:
        """Close what is this session's own; the last one of a process gives up its life."""
        self.tell_supervisor()
        spawn.reap(self.bus if self.registry.removed else "")
        self.posts.close()  # the bus segment stays mapped until the last handle, maybe in a wait, has let go
        self.registry.lives.close()
