"""What the objects of a bus are called in /dev/shm. Pure; no bus name contains a colon, so buses cannot be confused."""

from __future__ import annotations

from typing import Final

PREFIX: Final = "shmbus-"


def segment_name(bus: str) -> str:
    """The bus segment's."""
    return PREFIX + bus


def object_prefix(bus: str) -> str:
    """What the names of a bus's rings, semaphores and FIFOs begin with."""
    return f"{PREFIX}{bus}:"
