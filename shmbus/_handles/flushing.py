"""Flushing: a publisher waits until what it has published is received.

May touch: the rings of one publisher, read-only but for their `waiting`.

Must stay true:
- Who is waited for is in the document now: whoever has left, died or was removed is waited for no longer.
- The flag goes up before the look (SYNC room): who receives the last event after it posts. A sleep is bounded besides.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from shmbus import _core
from shmbus._handles.awaiting import interpreter_ends
from shmbus._log import logger
from shmbus.errors import ClosedError, ConfigError, FlushTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shmbus._handles.awaiting import Awaiting
    from shmbus._handles.session import Session
    from shmbus._ledger.document import ConsumerEntry, TopicEntry
    from shmbus._shm.waker import Sleeper

_log = logger("shmbus.bus")
NAP: Final = 0.02
"""Seconds that a publisher sleeps at a time: what a wake-up costs that is lost with a dead consumer."""


class Flushing:
    """That half of a publisher."""

    _session: Session
    _entry: TopicEntry
    _id: int
    _sleeper: Sleeper
    _tasks: Awaiting
    _told = (0, 0.0)
    """The wait that was told of last, and when it is to be told of again."""

    if TYPE_CHECKING:  # of the C type, and of Publisher

        @property
        def closed(self) -> bool: ...
        def _block(self, task: bool, /) -> None: ...
        def _unblock(self, task: bool, /) -> None: ...
        def _flushing(self, more: int, /) -> int: ...
        def _within(self, callable: Callable[..., Any], /, *arguments: Any) -> Any: ...

        name: str

    def flush(self, timeout: float | None = None) -> None:
        """Return once every reliable subscriber has received, and every group has acked, what was published so far.

        That is, by this handle, in whichever thread. Lossy subscribers, and those in quarantine, are not waited for,
        nor is a consumer that leaves, dies or is removed meanwhile; what was dropped is owed to nobody. `timeout` in
        seconds; None: for ever, 0: a look. Raises FlushTimeoutError, which names who is missing, ClosedError,
        ForkedError.
        """
        self._within(self._flush, _checked(timeout))

    async def aflush(self, timeout: float | None = None) -> None:
        """`flush` without blocking the event loop."""
        if self.closed and _core.exiting():
            await interpreter_ends()
        _checked(timeout)
        owed = self._within(self._owed)
        missing: list[str] = self._missing(owed, 0)
        if not missing:
            return
        since, again = time.monotonic_ns(), False
        self._block(True)
        self._flushing(1)
        try:
            while missing := self._missing(owed, self._flushing(0)):
                left = self._nap(since, timeout, missing)

                def received() -> bool:
                    return self.closed or not self._missing(owed, self._flushing(0))

                await self._tasks.wait(received, lambda left=left: left, again=again)  # type: ignore[misc]
                again = True
                if self.closed and _core.exiting():
                    await interpreter_ends()
        finally:
            self._flushing(-1)
            self._unblock(True)
            self._tasks.pass_on(lambda: True)

    def _flush(self, timeout: float | None) -> None:
        owed = self._owed()
        if not self._missing(owed, 0):
            return
        since = time.monotonic_ns()
        self._block(False)
        self._flushing(1)
        try:
            while missing := self._missing(owed, self._flushing(0)):
                self._sleeper.sleep(self._nap(since, timeout, missing))
        finally:
            self._flushing(-1)
            self._unblock(False)

    def _nap(self, since: int, timeout: float | None, missing: list[str]) -> float:
        """Seconds to sleep; raises FlushTimeoutError once there are none."""
        self._session.care()  # whoever only looks must not be held up by the dead either
        left = NAP if timeout is None else min(NAP, since / 1e9 + timeout - time.monotonic())
        if left <= 0:
            raise FlushTimeoutError(self._entry.name, missing)
        self._tell(since, "its events to be received", lambda: missing)
        return left

    def _owed(self) -> dict[int, tuple[_core.BroadcastRing | _core.WorkRing, int]]:
        """By ring: up to where it is to be received. Those that it has grown out of are among them."""
        found: dict[int, tuple[_core.BroadcastRing | _core.WorkRing, int]] = {}
        for entry in self._session.membership(self._entry.index).rings:
            if entry.publisher != self._id:
                continue
            try:
                ring = self._session.rings.either(entry)
            except FileNotFoundError:
                continue  # removed since: it had nothing left for anybody
            found[entry.id] = ring, ring.info()["tail"] if isinstance(ring, _core.BroadcastRing) else ring.bounds()[1]
        return found

    def _missing(self, owed: dict[int, tuple[_core.BroadcastRing | _core.WorkRing, int]], waiting: int) -> list[str]:
        """Who has not received all that is owed; `waiting` is raised in the rings first, if it says something."""
        if self.closed:
            raise ClosedError("the publisher is closed")
        document = self._session.membership(self._entry.index)
        active = [c for c in document.consumers if c.state == "active"]
        missing: dict[str, None] = {}
        for entry in document.rings:
            ring, end = owed.get(entry.id, (None, 0))
            if ring is None:
                continue
            if waiting:
                ring.listen(waiting)
            if isinstance(ring, _core.BroadcastRing):
                behind = ring.behind(end)
                late = [c for c in active if c.kind == "subscriber" and _waited_for(c) and behind >> c.slot & 1]
            else:
                late = [c for c in active if c.id == entry.group and ring.bounds()[0] < end]
            missing.update((c.name, None) for c in late)
        return list(missing)

    def _tell(self, since: int, what: str, names: Callable[[], Iterable[str]]) -> None:
        """Say who holds us up, once that has taken as long as makes a consumer stalled, and whenever it has doubled."""
        waited = (time.monotonic_ns() - since) / 1e9
        told_since, due = self._told
        if since != told_since:
            due = self._session.document().stall_ns / 1e9
        if waited >= due:
            _log.warning(
                "publisher %s of topic %s has waited %.0f s for %s, held up by %s",
                self.name,
                self._entry.name,
                waited,
                what,
                self._described(names()),
            )
            due = 2 * waited
        self._told = since, due

    def _described(self, consumers: Iterable[str]) -> str:
        """Consumers by name, with the process of each."""
        document = self._session.document()
        found = []
        for name in consumers:
            entry = next((c for c in document.consumers if c.topic == self._entry.index and c.name == name), None)
            process = document.participant(entry.participant) if entry else None
            found.append(f"{name} (process {process.pid}, {process.command})" if process else name)
        return ", ".join(found) or "nobody who can be named"


def _waited_for(subscriber: ConsumerEntry) -> bool:
    return subscriber.gates


def _checked(timeout: object) -> float | None:
    if timeout is None or (isinstance(timeout, int | float) and timeout >= 0):
        return timeout
    raise ConfigError(f"a timeout is a number of seconds, or None: timeout={timeout!r}")
