"""What the objects of a bus are called in /dev/shm. Pure; no bus name contains a colon, so buses cannot be confused.

The user is part of every name: the same bus name under two users is two buses, neither in the other's way.
"""

from __future__ import annotations

import os
from typing import Final

PREFIX: Final = "shmbus-"


def segment_name(bus: str, uid: int | None = None) -> str:
    """The bus segment's: `shmbus-<bus>:<uid>`, by default that of this effective user."""
    return f"{PREFIX}{bus}:{os.geteuid() if uid is None else uid}"


def object_prefix(bus: str, uid: int | None = None) -> str:
    """What the names of a bus's other objects begin with."""
    return segment_name(bus, uid) + ":"


def parse(name: str) -> tuple[str, int, str] | None:
    """Bus, user and what it is ("" for the bus segment) of an object's name; None for a name that is none of ours."""
    if not name.startswith(PREFIX):
        return None
    bus, _, rest = name.removeprefix(PREFIX).partition(":")
    uid, _, what = rest.partition(":")
    return (bus, int(uid), what) if bus and uid.isdecimal() and uid.isascii() else None
