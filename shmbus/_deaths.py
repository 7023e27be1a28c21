"""How a child process ended, in words. Pure."""

from __future__ import annotations

import signal
from contextlib import suppress


def cause(code: int) -> str:
    """Words for an exit code, negative for a signal as `Popen` has it: "killed by SIGSEGV", "exit code 3"."""
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"  # one that has no name, of the real-time ones
