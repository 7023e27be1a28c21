"""The exit of a process: its buses are left in good order, so that nothing is on the books as a death.

Must stay true: it takes a second at most, whatever the threads do that outlive the interpreter; they hear nothing of
it. Where one of them is in a decoder, and does not come out, its bus is left to those who reclaim what the dead held.
"""

from __future__ import annotations

import atexit
import functools
import sys
import weakref
from contextlib import suppress
from typing import Final, Protocol

from shmbus import _core
from shmbus._handles.session import LEAVE_TIMEOUT, leaving_within
from shmbus.errors import ClosedError, CorruptSegmentError


class Leaves(Protocol):
    """What is left at exit: a Bus."""

    def close(self) -> None: ...


open_buses: Final[weakref.WeakSet[Leaves]] = weakref.WeakSet()


def close_all() -> None:
    """A second for all buses."""
    _core.exit_begins(LEAVE_TIMEOUT)
    with leaving_within(LEAVE_TIMEOUT):
        for bus in list(open_buses):
            with suppress(ClosedError, CorruptSegmentError):  # there is nobody left to tell
                bus.close()


@functools.lru_cache(maxsize=1)
def leave_at_exit(pid: int) -> None:
    """Once in each process. Forked children of multiprocessing run none of `atexit`, but their finalizers; those that
    were registered while the child's arguments were unpickled are thrown away, and after-fork hooks run next.
    """
    atexit.register(close_all)
    if "multiprocessing" in sys.modules:
        from multiprocessing import util

        util.register_after_fork(close_all, _finalize)
        _finalize(None)


def _finalize(_: object) -> None:
    from multiprocessing import util

    util.Finalize(None, close_all, exitpriority=-100)
