"""Late departures: what could not leave at once, for want of the bus lock or of descriptors.

May touch: the bus lock, through the session; one thread of its own.

Must stay true:
- What is put here leaves, however long that takes: where its process lives on, nobody would ever reclaim it.
- A thread that cannot be started (a limit of processes) is started later, by whoever looks after the bus.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from shmbus import _core
from shmbus._ledger.registry import LOCK_TIMEOUT
from shmbus._log import logger
from shmbus.errors import ClosedError, ForkedError, LockTimeoutError, ReclaimedError, ResourceLimitError, ShmbusError

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmbus._handles.session import Session
    from shmbus._ledger.registry import Change

NOT_NOW: Final = (LockTimeoutError, ResourceLimitError)
"""What passes, be it in hours: somebody who is stopped goes on, a descriptor is closed."""
_PATIENCE = LOCK_TIMEOUT  # seconds of one try
_RESPITE = 1.0  # seconds between two that fail

_log = logger("shmbus.bus")


class Late:
    """The departures of one session that are still to be made."""

    def __init__(self, session: Session) -> None:
        self._session: Final = session
        self._waiting: Final[deque[Callable[[Change], None]]] = deque()
        self._busy = False

    def add(self, leave: Callable[[Change], None]) -> None:
        """Have something leave as soon as that can be done."""
        self._waiting.append(leave)
        self.go_on()

    def go_on(self) -> None:
        """To be called now and then."""
        if self._waiting and not self._busy and not self._session.closed:
            self._busy = _start(self._leave)

    def _leave(self) -> None:
        try:
            while self._waiting and not self._session.closed:
                self._leave_once()
        except (ClosedError, ForkedError, ReclaimedError):
            self._waiting.clear()  # with the bus, or our part in it, all of this is gone
        finally:
            self._busy = False

    def _leave_once(self) -> None:
        try:
            with self._session.locked(_PATIENCE) as change:
                while self._waiting:
                    self._waiting[0](change)
                    self._waiting.popleft()
        except NOT_NOW as error:
            _log.warning("bus %s: handles cannot leave yet: %s", self._session.bus, error)
            time.sleep(_RESPITE)

    def close(self) -> bool:
        """Have the session itself leave; False where that is left to its byte, which tells that it is gone.

        It tells nothing where another Bus of this process stands on the same byte.
        """
        if not self._session.registry.lives.shared:
            return False
        if not _start(self._close):
            if _core.exiting():
                return False
            self._session.registry.lives.defer(self.close_now)  # by whoever of this process has the lock next
        return True

    def close_now(self) -> None:
        """The session leaves, in this thread, which has let go of the lock: it waits as long as any that leaves."""
        if self._close_once(self._session.patience()) or not _start(self._close):
            self._session.let_go()

    def _close(self) -> None:
        while not self._close_once(_PATIENCE):
            time.sleep(_RESPITE)
        self._session.let_go()

    def _close_once(self, patience: float) -> bool:
        """False: not yet."""
        try:
            with self._session.registry.locked(patience) as change:
                self._session.leave(change)
        except (ShmbusError, OSError) as error:
            later = isinstance(error, NOT_NOW) and self._session.registry.lives.shared
            how = "cannot be left yet" if later else "left without taking leave"
            _log.warning("bus %s: %s: %s", self._session.bus, how, error)
            return not later
        return True


def _start(work: Callable[[], None]) -> bool:
    try:
        threading.Thread(target=work, name="shmbus-departure", daemon=True).start()
    except RuntimeError:  # no thread is to be had, or the interpreter ends: our byte will tell that we are gone
        return False
    return True
