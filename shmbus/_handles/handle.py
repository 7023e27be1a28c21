"""Handle: how publishers, subscribers and workers end.

May touch: the bus lock, through the session.

Must stay true: what a handle entered in the document is taken out once; a close() that was cut short by a signal can be
called again.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

from shmbus._closing import Closing
from shmbus.errors import CorruptSegmentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shmbus._handles.session import Session
    from shmbus._ledger.registry import Change


class Handle(Closing):
    """What the three handles have in common; each brings `_interrupt`, `_let_go` and `_depart`, and a guard in C."""

    _session: Session
    _forget: Callable[[Any], None]
    opened_at = ""
    """Where this package was called to make it, as file:line."""
    _left = True  # until __init__ has come to its end
    _put_off = False
    """A call of this handle runs that close() cannot wait for: the departure follows it."""

    if TYPE_CHECKING:  # of the C type, and of each handle

        def _shut(self) -> None: ...
        def _quiet(self) -> bool: ...
        def _interrupt(self) -> None:
            """End what sleeps in this handle."""

    def _let_go(self) -> None:
        """Release memory and channels; no event passes any more. Called again after a close() that was cut short."""
        raise NotImplementedError

    def _depart(self, change: Change) -> None:
        """Leave, under the bus lock."""
        raise NotImplementedError

    def _departed(self) -> None:
        """What is to be done once the lock is free again."""

    def close(self) -> None:
        """Leave the topic. Idempotent, callable from any thread; in a forked child it only lets go.

        Ends the calls that wait, and waits for those that run; called from within one, by a decoder or a signal
        handler, it is carried out when that ends. A publisher's events stay for their consumers; what a subscriber
        had not received is counted as abandoned; what a worker had not settled goes back to its group. Waits for the
        bus lock a second at most: where that is not to be had by then, the departure is made as soon as it is.
        """
        if self._left or not self._ended():
            return
        self._let_go()
        if not self._session.inherited:
            self._session.depart(self._depart)
            self._departed()
            self._forget(self)
        self._left = True

    def end(self) -> None:
        """Let go, and leave the departure to the session, which leaves with all that it has."""
        if self._left or not self._ended():
            return
        self._let_go()
        self._left = True
        self._forget(self)

    def _ended(self) -> bool:
        """Let no call begin, and wait until none runs; False: one runs that cannot be waited for."""
        self._shut()
        self._interrupt()
        self._put_off = not self._quiet()
        return not self._put_off

    def _close_late(self) -> None:
        """The calls that could not be waited for have ended."""
        self.close()

    def __del__(self) -> None:
        if not self._left and self._session.usable:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)
            with suppress(CorruptSegmentError):
                self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} belongs to its process: pickle the Bus instead")


@contextmanager
def or_undone(undo: Callable[[], object]) -> Iterator[None]:
    """What is entered without a handle to close it, for want of descriptors say, is undone."""
    try:
        yield
    except BaseException:
        undo()
        raise
