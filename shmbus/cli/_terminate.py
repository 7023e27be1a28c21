"""SIGTERM and SIGHUP as an exception, so that a command which holds a terminal or processes puts them in order."""

from __future__ import annotations

import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Let these signals raise SystemExit within the block, unless they are ignored (`nohup`); for the main thread."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    taken = [number for number in _SIGNALS if before[number] != signal.SIG_IGN]
    for number in taken:
        signal.signal(number, _exit)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)  # what a shell reports of a command that the signal killed
