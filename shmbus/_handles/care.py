"""Care for a bus: what its participants do for it while they wait, so that no supervisor is needed.

May touch: the start of an automatic supervisor; through the session, what a supervisor may touch.

Must stay true:
- While a supervisor is at work, a participant reads a few words once a second and makes no change.
- Where none is, be it stopped, dead or not to be had, whoever waits reclaims the dead: nobody waits for them for long.
- Nothing here waits for the bus lock, but for the start.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn

from shmbus import _core
from shmbus._ledger import departures, overdue, policies, pools, reclaim, retired
from shmbus._ledger.registry import mark_removed
from shmbus._log import logger
from shmbus._shm import cores, spawn
from shmbus.errors import (
    ClosedError,
    CorruptSegmentError,
    LockTimeoutError,
    ReclaimedError,
    ResourceLimitError,
    ShmbusError,
)

if TYPE_CHECKING:
    from shmbus._handles.session import Session
    from shmbus._ledger.document import Document

BOUND: Final = 1.0
"""Seconds of the longest sleep: what a wake-up that got lost with its sender costs."""
_SPAWN_AGAIN: Final = 30.0  # seconds until a supervisor that could not be started is tried again
_STARTS: Final = 2  # in vain, in a row: one may have been killed, or be slow

_log = logger("shmbus.bus")


class Care:
    """What one session does."""

    def __init__(self, session: Session) -> None:
        self._session: Final = session
        self._next_look = time.monotonic() + BOUND
        self._next_spawn = 0.0
        self._processes = -1
        self._crowded = False
        self._told = False
        self._missed = self._missing = 0  # of those that were started: when the last one was, how many did not come
        self._seen: overdue.Seen = {}
        self._stalls: Final = policies.Stalls()

    def crowded(self) -> bool:
        """More processes on this bus than cores: a spin would only keep somebody from running."""
        processes = _core.load(self._session.map, _core.BUS_PROCESSES)
        if processes != self._processes:
            self._processes, self._crowded = processes, processes > cores.usable()
        return self._crowded

    def look(self) -> None:
        """About once a second, look after the bus. Raises ClosedError and ReclaimedError."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + BOUND
        spawn.reap()
        if self._session.registry.removed:
            raise ClosedError(f"bus {self._session.bus!r} was removed")
        if self._session.registry.lives.lost():
            problem = self._session.registry.lives.why_lost()
            _log.critical("bus %s: %s; what this process holds is given to others", self._session.bus, problem)
            raise ReclaimedError(problem)
        if self.heard():
            return
        if not self._session.registry.linked():
            self._vanished()
        self._stand_in()

    def _vanished(self) -> NoReturn:
        """Somebody removed the files: nobody who is still here will meet anybody new. Tell all."""
        mark_removed(self._session.map)
        with suppress(CorruptSegmentError):
            self._session.wake_everybody(self._session.registry.read())
        raise ClosedError(f"bus {self._session.bus!r} was removed: its files in /dev/shm are gone")

    def heard(self) -> bool:
        """True if a supervisor was at work a moment ago, who looks after all of this."""
        if _core.load(self._session.map, _core.BUS_SUPERVISOR_LIFE) == 0:
            return False
        return abs(time.time_ns() - _core.load(self._session.map, _core.BUS_SUPERVISOR_BEAT)) < _core.BEAT_FRESH_NS

    def heard_by(self, document: Document) -> bool:
        """The same, and somebody else who takes part lives: the last one cannot know that this supervisor still does.

        One look tells where somebody lives.
        """
        alive = self._session.registry.lives.alive
        return self.heard() and any(alive(p.life) for p in document.participants)

    def _stand_in(self) -> None:
        """No supervisor is at work: start one unless one is there, and do its most urgent work meanwhile."""
        try:  # whoever waits, maybe in an event loop, waits for an event and not for a lock
            if not self.supervised():
                self.ensure_supervisor(timeout=0)
            document = self._session.registry.read()
            dead = reclaim.dead_participants(document, self._session.registry.lives)
            found = retired.leftovers(document, self._session.rings, retired.PATIENCE)
            late = overdue.look(document, self._session.rings, self._seen)
            if dead or late or found.gone or found.loose or pools.idle(document, self._session.rings):
                with self._session.locked(timeout=0) as change:
                    self._session.reclaim_dead(change)
                    departures.sweep(change, self._session.rings)
                    if late and overdue.act(change, self._session.rings, self._seen):
                        self._session.wake_everybody(change.document)
            if document.policy != "report":
                self._see_to_the_stalled(document)
        except (LockTimeoutError, FileNotFoundError):
            pass  # at the next look
        except ResourceLimitError as error:  # whoever waits has what it needs
            if not self._told:
                _log.warning("bus %s: this process cannot look after it: %s", self._session.bus, error)
            self._told = True

    def _see_to_the_stalled(self, document: Document) -> None:
        """What the policy says of them, since this process looked first."""
        from shmbus._ledger import books  # whoever only takes part does without

        session = self._session
        for idle in self._stalls.note(document, books.progress(session.registry, session.rings)):
            if policies.due(document, idle):
                wake = session.wake_publishers
                policies.act(session.registry, session.rings, idle.entry, idle.ns, wake=wake, timeout=0)

    def supervised(self) -> bool:
        """True if a supervisor lives, be it at work or not."""
        life = _core.load(self._session.map, _core.BUS_SUPERVISOR_LIFE)
        return life != 0 and self._session.registry.lives.alive(life)

    def ensure_supervisor(self, timeout: float) -> None:
        """Start an automatic supervisor unless one runs, or was started a moment ago.

        Where it cannot be started that is said, once, and the participants do without.
        """
        if not self._session.supervise or self._on_its_way() or time.monotonic() < self._next_spawn:
            return
        if self._in_vain():
            return
        with self._session.locked(timeout):
            if self._on_its_way():
                return
            _core.store(self._session.map, _core.BUS_SUPERVISOR_SPAWNED, time.time_ns())
        try:
            reason = spawn.can_spawn()
            if reason is not None:
                raise ShmbusError(reason)
            spawn.spawn_supervisor(self._session.bus)
        except (OSError, ShmbusError) as error:
            if self._next_spawn == 0.0:
                _log.warning("bus %s has no supervisor, its participants stand in: %s", self._session.bus, error)
            self._next_spawn = time.monotonic() + _SPAWN_AGAIN

    def _in_vain(self) -> bool:
        """The last two that were started have not come into office: another one is not started for a while."""
        started = _core.load(self._session.map, _core.BUS_SUPERVISOR_SPAWNED)
        if _core.load(self._session.map, _core.BUS_SUPERVISOR_BEAT) >= started:
            self._missing = 0
        elif started != self._missed:
            self._missed, self._missing = started, self._missing + 1
            if self._missing == _STARTS:
                _log.warning(
                    "bus %s has no supervisor, its participants stand in: what was started ended before it was"
                    " in office (`shmbus supervise %s` shows why), or one is stopped on its way there",
                    self._session.bus,
                    self._session.bus,
                )
        return self._missing >= _STARTS and 0 <= time.time_ns() - started < _SPAWN_AGAIN * 1e9

    def _on_its_way(self) -> bool:
        """A supervisor is there, or was started a moment ago."""
        since = time.time_ns() - _core.load(self._session.map, _core.BUS_SUPERVISOR_SPAWNED)
        return 0 <= since < spawn.START_NS or self.supervised()
