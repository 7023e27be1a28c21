"""Signals held off while something is half-done, and let in again while this thread only waits.

May touch: the signal mask of the calling thread.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from shmbus import _core

if TYPE_CHECKING:
    from collections.abc import Iterator

_masks: Final = threading.local()


@contextmanager
def held_off() -> Iterator[None]:
    """No signal handler of this thread runs, and raises, in between; it runs at the end.

    Python runs handlers in the main thread, wherever that is. With several threads another one may take the signal,
    and the handler comes all the same: what is half-done must be repairable too.
    """
    outer = getattr(_masks, "before", None)
    before = _core.signal_mask()  # first: a handler may raise where the next call returns
    try:
        _core.hold_signals()
        _masks.before = before
        yield
    finally:
        _masks.before = outer
        _core.set_signal_mask(before)


@contextmanager
def let_in() -> Iterator[None]:
    """Inside `held_off`, while nothing is half-done: handlers run, and may raise. Elsewhere it does nothing."""
    before = getattr(_masks, "before", None)
    if before is None:
        yield
        return
    held = _core.signal_mask()
    try:
        _core.set_signal_mask(before)
        yield
    finally:
        _core.set_signal_mask(held)
