"""SIGTERM as an exception, so that a command which holds a terminal or processes puts them in order."""

from __future__ import annotations

import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_EXIT_CODE: Final = 128 + signal.SIGTERM  # what a shell reports of a command that the signal killed


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit within the block; for the main thread."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(_EXIT_CODE))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
