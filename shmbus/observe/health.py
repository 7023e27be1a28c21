"""Health: what is wrong with a bus, in words, and since when nothing moves.

Pure: it is given looks at a bus, and touches none. A problem is critical where events wait that nobody takes, or a
publisher that nobody lets go on: `/readyz` is 503 then. All else is a warning.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmbus.stats import BusStats, ConsumerStats, PublisherStats

STUCK: Final = 1.0
"""Seconds without an event after which a publisher that waits is blocked, and not just throttled."""


Kind: TypeAlias = Literal[
    "unreadable", "blocked", "stalled", "stopped", "dead", "idle", "supervisor", "lost rings", "away", "failing"
]
"""What is wrong; "away" and "failing" are said by bridges and journals of themselves."""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is wrong with a bus."""

    bus: str
    severity: Literal["critical", "warning"]
    kind: Kind
    topic: str = ""
    who: str = ""
    """A publisher, consumer or process; "" where it is the bus."""
    why: str
    """One sentence, for people."""


class Patience:
    """Since when each publisher of one bus has waited without an event: fed with every look."""

    def __init__(self) -> None:
        self._waits: dict[int, tuple[int, float]] = {}
        """By publisher: what it had published, and since when it has waited."""

    def look(self, stats: BusStats, now: float) -> dict[int, float]:
        """Seconds that each publisher has waited so far and published nothing; `now` is a monotonic clock's."""
        waits: dict[int, tuple[int, float]] = {}
        for publisher in stats.publishers:
            if publisher.waiting and publisher.blocked_by and publisher.state == "ok":
                published, since = self._waits.get(publisher.id, (-1, now))
                waits[publisher.id] = publisher.published, since if published == publisher.published else now
        self._waits = waits
        return {id: now - since for id, (_, since) in waits.items()}


def problems(stats: BusStats, waited: dict[int, float]) -> list[Problem]:
    """What is wrong, the worst first; `waited` comes from `Patience.look`."""
    found = [*_publishers(stats, waited), *_consumers(stats), *_notes(stats), *_bus(stats)]
    return sorted(found, key=lambda problem: problem.severity == "warning")


def _publishers(stats: BusStats, waited: dict[int, float]) -> Iterator[Problem]:
    for p in stats.publishers:
        seconds = waited.get(p.id, 0.0)
        if seconds >= STUCK:
            who = ", ".join(p.blocked_by)
            why = f"{p.name} has waited for {who} for {seconds:.0f} s: {p.used:,} of {p.capacity:,} bytes unread"
            yield _of(stats, p, "critical", "blocked", why)
        if p.state == "stopped":
            yield _of(stats, p, "warning", "stopped", f"publisher {p.name} (pid {p.pid}) is stopped by a signal")


def _consumers(stats: BusStats) -> Iterator[Problem]:
    for c in stats.consumers:
        waiting = f"{c.depth:,} events wait" if c.depth != 1 else "1 event waits"
        who = f"{c.kind} {c.name}" + (f" (pid {c.pid})" if c.pid else "")
        holds: Literal["critical", "warning"] = "critical" if c.depth and not c.quarantined_ns else "warning"
        if c.quarantined_ns:
            waiting += "; in quarantine, it holds up nobody"
        if c.state == "stalled":
            yield _of(stats, c, holds, "stalled", f"{who} makes no progress: {waiting}")
        elif c.state == "stopped":
            yield _of(stats, c, holds, "stopped", f"{who} is stopped by a signal: {waiting}")
        elif c.state == "dead" and c.depth:
            yield _of(stats, c, "critical", "dead", f"{who} is dead and not reclaimed yet: {waiting}")
        elif c.state == "idle" and c.depth:
            yield _of(stats, c, "warning", "idle", f"{who} has no worker: {waiting}")
        for worker in c.workers:
            if worker.state in ("stopped", "dead"):
                kind: Literal["stopped", "dead"] = "stopped" if worker.state == "stopped" else "dead"
                why = f"worker {worker.name} (pid {worker.pid}) of {c.name} is {kind} and holds {worker.held:,} events"
                yield _of(stats, c, "critical" if worker.held else "warning", kind, why)


def _notes(stats: BusStats) -> Iterator[Problem]:
    """What bridges and journals that live say of themselves."""
    for participant in stats.participants:
        for note in participant.notes if participant.state != "dead" else ():
            if note.state == "ok":
                continue
            since = time.strftime("%H:%M:%S", time.gmtime(note.since_ns / 1e9))
            why = f"{note.who} (pid {participant.pid}): {note.text}, since {since} UTC, {note.waiting:,} waiting"
            yield Problem(bus=stats.bus, severity="critical", kind=note.state, who=note.who, why=why)


def _bus(stats: BusStats) -> Iterator[Problem]:
    if stats.supervisor.state != "ok" and stats.participants:
        state = "has no supervisor" if stats.supervisor.state == "none" else "has a supervisor that is not at work"
        why = f"bus {stats.bus} {state}: participants do its work while they wait"
        yield Problem(bus=stats.bus, severity="warning", kind="supervisor", why=why)
    if stats.lost_rings:
        why = f"the files of {stats.lost_rings} rings were removed by hand: what was in them is on nobody's books"
        yield Problem(bus=stats.bus, severity="warning", kind="lost rings", why=why)


def _of(
    stats: BusStats,
    entry: PublisherStats | ConsumerStats,
    severity: Literal["critical", "warning"],
    kind: Literal["blocked", "stalled", "stopped", "dead", "idle"],
    why: str,
) -> Problem:
    return Problem(bus=stats.bus, severity=severity, kind=kind, topic=entry.topic, who=entry.name, why=why)
