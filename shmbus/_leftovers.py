"""What lies in /dev/shm and serves nobody: objects without their bus, buses without participants.

Reads /dev/shm and attaches to buses read-only; removes nothing. What must stay true: nothing is called a
leftover that a living process uses, as far as its bus can be read.
"""

from __future__ import annotations

import os
import time
from typing import Final, NamedTuple

from shmbus import inspect
from shmbus._shm import segment
from shmbus._shm.names import PREFIX, segment_name
from shmbus.errors import AccessError, BusNotFoundError, ShmbusError

DOCTOR: Final = f"{PREFIX}doctor-try"
"""What the names of objects begin with that `diagnostics` makes for a moment."""

_SEMAPHORE: Final = "sem."
_SETTLE: Final = 0.3  # seconds; creating or removing a bus takes less


class Leftover(NamedTuple):
    """One bus, or what is left of it."""

    what: str
    advice: str


def find() -> list[Leftover]:
    """Every leftover, by bus name. What is only there for a moment is not reported."""
    if not _look():
        return []
    time.sleep(_SETTLE)
    return list(_look().values())


def _look() -> dict[str, Leftover]:
    found = {bus: _judge(bus, entries) for bus, entries in sorted(_entries().items())}
    return {bus: leftover for bus, leftover in found.items() if leftover}


def _entries() -> dict[str, list[str]]:
    """The names in /dev/shm that belong to shmbus, of whatever kind, by bus."""
    entries: dict[str, list[str]] = {}
    for name in sorted(os.listdir(segment.SHM_DIR)):
        plain = name.removeprefix(_SEMAPHORE)
        if plain.startswith(PREFIX) and not plain.startswith(DOCTOR):
            bus = plain.removeprefix(PREFIX).split(":")[0]
            entries.setdefault(bus, []).append(name)
    return entries


def _judge(bus: str, entries: list[str]) -> Leftover | None:
    objects = f"{len(entries)} object{'s' if len(entries) > 1 else ''} in /dev/shm"
    if segment_name(bus) not in entries:
        return Leftover(f"{objects} of bus {bus!r}, which is gone", f"shmbus rm --force {bus}")
    try:
        stats = inspect.stats_of(bus)
    except BusNotFoundError:
        return None
    except AccessError as error:
        return Leftover(f"bus {bus!r} is not ours: {error}", "its owner removes it, from where it was made")
    except ShmbusError as error:
        return Leftover(f"bus {bus!r} cannot be used: {error}", f"shmbus rm --force {bus}")
    if stats.supervisor.pid or any(participant.state != "dead" for participant in stats.participants):
        return None
    owed = sum(consumer.depth for consumer in stats.consumers)
    if owed:
        advice = f"shmbus rm --force {bus}, which loses them; or attach a consumer"
        return Leftover(f"bus {bus!r} has no participant and owes {owed:,} events ({objects})", advice)
    return Leftover(f"bus {bus!r} has no participant ({objects})", f"shmbus rm {bus}")
