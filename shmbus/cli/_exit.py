"""Exit codes, and how an error is told: one line on stderr."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Final

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
INTERRUPTED: Final = 130


def complain(error: object, code: int = FAILED) -> int:
    """Print an error as one line on stderr and return `code`."""
    text = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
    shown = "".join(char if char.isprintable() else "?" for char in text)
    with suppress(OSError):
        sys.stdout.flush()  # what was printed before stands before it
    with suppress(OSError):  # nobody reads it
        print(f"shmbus: {shown or type(error).__name__}", file=sys.stderr, flush=True)
    return code
