"""One process's part in one bus: what its publishers, subscribers and workers share.

May touch: the registry, the rings, the wake-up channels of others, and the start of an automatic supervisor.

Must stay true:
- A wake-up is owed by whoever clears a parked bit, and by nobody else (SYNC park).
- Nothing here waits, but for the bus lock.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from shmbus import _core
from shmbus._ledger import members, reclaim
from shmbus._ledger.registry import LOCK_TIMEOUT, Registry
from shmbus._shm import lives, spawn
from shmbus._shm.names import object_prefix
from shmbus._shm.rings import Rings
from shmbus._shm.waker import Posts
from shmbus.errors import ClosedError, ForkedError, LockTimeoutError, ReclaimedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shmbus._ledger.document import Document
    from shmbus._ledger.registry import Change

BOUND: Final = 1.0
"""Seconds of the longest sleep: what a wake-up that got lost with its sender costs."""
COLLECTED_TIMEOUT: Final = 1.0
"""Seconds for the bus lock when a handle is closed by the garbage collector, which may run under that very lock."""
_ALL: Final = 2**64 - 1
_FRESH_NS: Final = 1_500_000_000  # ns; a supervisor beats once a second
_OPEN_TIMEOUT: Final = 30.0  # seconds for a removal that is under way; it takes milliseconds

_log = logging.getLogger("shmbus.bus")


class Session:
    """An entered participant."""

    def __init__(self, registry: Registry, participant: int, *, supervise: bool) -> None:
        self.bus: Final = registry.bus
        self.registry: Final = registry
        self.map: Final = registry.map
        self.prefix: Final = object_prefix(registry.bus)
        self.rings: Final = Rings(registry.bus)
        self.posts: Final = Posts()
        self.participant: Final = participant
        self.supervise: Final = supervise
        self.pid: Final = os.getpid()
        self.closed = False
        self._next_care = time.monotonic() + BOUND
        self._crowd_version = -1
        self._crowded = False

    @classmethod
    def open(cls, bus: str, *, create: bool, supervise: bool, stall_ns: int | None) -> Session:
        """Attach to the bus, or create it, and enter this process."""
        deadline = time.monotonic() + _OPEN_TIMEOUT
        while True:
            registry = Registry.open(bus, create=create, stall_ns=stall_ns)
            try:
                with registry.locked() as change:
                    if not registry.removed:
                        return cls._enter(registry, change, supervise=supervise)
                    reclaim.unlink_all(bus)  # its remover died on the way
            except ClosedError:
                if time.monotonic() > deadline:
                    raise
            except BaseException:
                registry.close()
                raise
            registry.close()

    @classmethod
    def _enter(cls, registry: Registry, change: Change, *, supervise: bool) -> Session:
        pid = os.getpid()
        me = members.attach(change, pid, lives.own_start_time(), lives.describe(pid))
        session = cls(registry, me.id, supervise=supervise)
        session._repair(change)
        if not session.supervised():
            session.reclaim_dead(change)
        return session

    # -- the registry

    def document(self) -> Document:
        """The registry document. Raises ClosedError once the bus is removed."""
        if self.registry.removed:
            raise ClosedError(f"bus {self.bus!r} was removed")
        return self.registry.read()

    @contextmanager
    def locked(self, timeout: float = LOCK_TIMEOUT) -> Iterator[Change]:
        """The bus lock, in a process that is still entered. Raises ReclaimedError, ClosedError, LockTimeoutError."""
        self.check()
        with self.registry.locked(timeout) as change:
            if self.registry.removed:
                raise ClosedError(f"bus {self.bus!r} was removed")
            self._repair(change)
            me = change.document.participant(self.participant)
            if me is None or me.state == "reclaiming":
                raise ReclaimedError(f"process {self.pid} was taken for dead on bus {self.bus!r}")
            yield change

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
            raise ClosedError(f"bus {self.bus!r} is closed")

    @property
    def inherited(self) -> bool:
        """True in a forked child: what is here belongs to the parent, and closing it only lets go."""
        return os.getpid() != self.pid

    def _repair(self, change: Change) -> None:
        if change.died_inside:
            reclaim.repair(change, self.rings)

    def reclaim_dead(self, change: Change) -> int:
        """Reclaim every participant that is proven dead; returns how many."""
        dead = [p for p in reclaim.dead_participants(change.document) if p.id != self.participant]
        for participant in dead:
            reclaim.reclaim(change, self.rings, participant.id, dead=True)
        if dead:
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

    def wake_publisher(self, ring_id: int) -> Callable[[], object] | None:
        """Post the publisher of a ring, whose waiting flag the caller has cleared; returns what posts it again."""
        document = self.registry.read()
        ring = document.ring(ring_id)
        publisher = document.publisher(ring.publisher) if ring else None
        return None if publisher is None else self.posts.post(f"{self.prefix}pub-{publisher.slot}")

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
                self.posts.post(f"{self.prefix}pub-{publisher.slot}")

    def _post(self, channel: str, awaiting: bool) -> Callable[[], object] | None:
        if not awaiting:
            return self.posts.post(channel)
        self.posts.post_fifo(channel)
        return None

    # -- care

    def crowded(self) -> bool:
        """More processes on this bus than cores: a spin would only keep somebody from running."""
        version = _core.load(self.map, _core.BUS_VERSION)
        if version != self._crowd_version:
            pids = {p.pid for p in self.registry.read().participants}
            self._crowded = len(pids) > len(os.sched_getaffinity(0))
            self._crowd_version = version
        return self._crowded

    def care(self) -> None:
        """To be called from every wait: about once a second, look after the bus. Raises ClosedError when it is gone."""
        self.check()
        now = time.monotonic()
        if now < self._next_care:
            return
        self._next_care = now + BOUND
        if self.registry.removed:
            raise ClosedError(f"bus {self.bus!r} was removed")
        if not (self._heard() or self.supervised()):
            self._stand_in()

    def _heard(self) -> bool:
        """True if a supervisor was alive a moment ago. A look at /proc takes far longer, and events wait for it."""
        if _core.load(self.map, _core.BUS_SUPERVISOR_PID) == 0:
            return False
        return 0 <= time.monotonic_ns() - _core.load(self.map, _core.BUS_SUPERVISOR_BEAT) < _FRESH_NS

    def _stand_in(self) -> None:
        """No supervisor runs: start one, or, where there is to be none, do its most urgent work."""
        try:  # whoever waits, maybe in an event loop, waits for an event and not for a lock
            if self.supervise:
                self.ensure_supervisor(timeout=0)
            elif reclaim.dead_participants(self.registry.read()):
                with self.locked(timeout=0) as change:
                    self.reclaim_dead(change)
        except LockTimeoutError:
            pass  # at the next look
        except OSError as error:
            _log.warning("bus %s has no supervisor: %s", self.bus, error)

    def supervised(self) -> bool:
        """True if a supervisor is alive."""
        pid = _core.load(self.map, _core.BUS_SUPERVISOR_PID)
        return pid != 0 and lives.alive(pid, _core.load(self.map, _core.BUS_SUPERVISOR_START))

    def ensure_supervisor(self, timeout: float = LOCK_TIMEOUT) -> None:
        """Start an automatic supervisor unless one runs, or was started a moment ago."""
        if not self.supervise or self.supervised() or not sys.executable:
            return
        with self.locked(timeout):
            now = time.monotonic_ns()
            if now - _core.load(self.map, _core.BUS_SUPERVISOR_SPAWNED) < spawn.START_NS or self.supervised():
                return
            _core.store(self.map, _core.BUS_SUPERVISOR_SPAWNED, now)
        spawn.spawn_supervisor(self.bus)

    def tell_supervisor(self) -> None:
        """Let the supervisor look at the document now."""
        self.posts.post_fifo(f"{self.prefix}supervisor")

    def close(self, timeout: float = LOCK_TIMEOUT) -> None:
        """Leave the bus; the last one to leave removes it, unless a group is owed events."""
        if self.closed or self.inherited:
            self.closed = True
            return
        try:
            with self.registry.locked(timeout) as change:
                if not self.registry.removed:
                    reclaim.reclaim(change, self.rings, self.participant, dead=False)
                    reclaim.remove_if_unused(change, self.rings)
        except ClosedError:
            pass  # removed under us: nothing is left to leave
        self.closed = True
        self.tell_supervisor()
        self.posts.close()
        self.rings.clear()  # the bus segment stays mapped until the last handle, maybe in a wait, has let go
