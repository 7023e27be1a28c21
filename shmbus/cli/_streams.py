"""What the standard streams carry, whatever their encoding: text as well as it goes, JSON in ASCII.

May touch: the standard streams of this process. What must stay true: nothing that a bus holds ends a command with an
encoding error; a row of a table is as wide in every encoding.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import re
import select
import sys
from typing import Any, Final

import msgspec

_PLAIN: Final = {"µ": "u", "·": "-", "…": "~", "–": "-", "×": "x", "─": "-", "━": "-", "│": "|", "┃": "|"}
"""One sign for one, so that columns stay in line."""
_FOREIGN: Final = re.compile(r"[^\x20-\x7e]")


def prepare() -> None:
    """Make the streams take every text: to be called first, for some may be closed, and most are strict."""
    codecs.register_error("shmbus", _plain)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # `>&-`: the shell closed it
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # stderr writes escapes as it is
        sys.stdout.reconfigure(errors="shmbus")


def finish() -> None:
    """Write out what is buffered; what nobody reads, or has no room, is dropped before the interpreter complains."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def abandoned() -> bool:
    """Whether whoever read stdout has gone, which a write would tell too late: there may be nothing to write."""
    poll = select.poll()
    try:
        poll.register(sys.stdout, 0)  # errors and hang-ups are always reported
        return bool(poll.poll(0))
    except (OSError, ValueError):  # no descriptor
        return False


def ascii_json(value: Any, *, enc_hook: Any = None) -> str:
    """A value as JSON on one line of ASCII."""
    text = msgspec.json.encode(value, enc_hook=enc_hook).decode()
    return _FOREIGN.sub(lambda found: json.dumps(found[0])[1:-1], text)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Stand-ins for what an encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(sign, "?") for sign in error.object[error.start : error.end]), error.end
