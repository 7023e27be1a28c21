"""What lies in /dev/shm and serves nobody: objects without their bus, buses without participants.

Reads /dev/shm and attaches to buses read-only; removes nothing. What must stay true: nothing is called a
leftover that a living process uses, as far as its bus can be read.
"""

from __future__ import annotations

import os
import time
from typing import Final, NamedTuple

from shmbus import inspect
from shmbus._shm import place
from shmbus._shm.names import PREFIX, parse, segment_name
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


def _look() -> dict[tuple[str, int], Leftover]:
    found = {key: _judge(*key, entries) for key, entries in sorted(_entries().items())}
    return {key: leftover for key, leftover in found.items() if leftover}


def _entries() -> dict[tuple[str, int], list[str]]:
    """The names in /dev/shm that belong to shmbus, of whatever kind, by bus and user."""
    entries: dict[tuple[str, int], list[str]] = {}
    for name in sorted(os.listdir(place.SHM_DIR)):
        plain = name.removeprefix(_SEMAPHORE)
        if plain.startswith(PREFIX) and not plain.startswith(DOCTOR):
            bus, uid, _ = parse(plain) or (plain.removeprefix(PREFIX).split(":")[0], -1, "")
            entries.setdefault((bus, uid), []).append(name)
    return entries


def _judge(bus: str, uid: int, entries: list[str]) -> Leftover | None:
    objects = f"{len(entries)} object{'s' if len(entries) > 1 else ''} in /dev/shm"
    if uid < 0:
        return Leftover(f"{objects} of bus {bus!r} of another version of shmbus", "remove them by hand")
    if os.geteuid() not in (0, uid):
        return None
    whose = bus if uid == os.geteuid() else f"{bus} (uid {uid})"
    if segment_name(bus, uid) not in entries:
        return Leftover(f"{objects} of bus {whose!r}, which is gone", f"shmbus rm --force {bus}")
    try:
        stats = inspect.stats_of(bus, uid=uid)
    except BusNotFoundError:
        return None
    except AccessError as error:
        return Leftover(f"bus {whose!r} is not ours: {error}", "its owner removes it, from where it was made")
    except ShmbusError as error:
        return Leftover(f"bus {whose!r} cannot be used: {error}", f"shmbus rm --force {bus}")
    if stats.supervisor.pid or any(participant.state != "dead" for participant in stats.participants):
        return None
    owed = sum(consumer.depth for consumer in stats.consumers)
    if owed:
        advice = f"shmbus rm --force {bus}, which loses them; or attach a consumer"
        return Leftover(f"bus {whose!r} has no participant and owes {owed:,} events ({objects})", advice)
    return Leftover(f"bus {whose!r} has no participant ({objects})", f"shmbus rm {bus}")
