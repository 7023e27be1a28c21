"""What takes too long: events that a worker holds for longer than its `ack_within`, groups that expire.

Whoever looks after a bus looks here about once a second, and remembers what it saw: no claim carries a time. So a claim
is taken back when it has stood unchanged for `ack_within` seconds of looks, up to two looks later than that.

May touch: claim words of workers that said how long they may take, through `_core`, under the bus lock: whoever finds
that its predecessor died inside repairs what a death between word and hint leaves. Groups that have expired.

Must stay true:
- A claim is taken back only as the word that was seen: one that was acked, or made anew since, is left alone.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from shmbus import _core
from shmbus._ledger import deaths, departures, groups
from shmbus._ledger.retired import unless_unreadable
from shmbus._log import logger
from shmbus._shm.failpoint import reach

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmbus._ledger.document import Document, RingEntry, WorkerEntry
    from shmbus._ledger.registry import Change
    from shmbus._shm.rings import Rings

_log = logger("shmbus.overdue")


class Claim(NamedTuple):
    """A claim as it was seen: another one of the same event has another word."""

    ring: int
    sequence: int
    word: int


Seen: TypeAlias = dict[Claim, int]
"""CLOCK_MONOTONIC in ns when each was first seen."""


def look(document: Document, rings: Rings, seen: Seen) -> bool:
    """Note what is held now, without the lock; True if there is something for `act`."""
    now, before = time.monotonic_ns(), dict(seen)
    seen.clear()
    late = False
    for worker, _, claim in _held(document, rings):
        seen[claim] = before.get(claim, now)
        late = late or now - seen[claim] >= worker.ack_within_ns
    return late or bool(groups.expired(document, _core.host_ns()))


def act(change: Change, rings: Rings, seen: Seen) -> bool:
    """Under the lock: take back what has been held for too long, remove groups that expired; True: wake everybody."""
    document, now = change.document, time.monotonic_ns()
    taken = 0
    for worker, entry, claim in list(_held(document, rings)):
        if now - seen.get(claim, now) < worker.ack_within_ns:
            continue
        group = document.consumer(worker.group)
        lanes = departures.lanes_of(rings, group) if group is not None else None
        if not rings.work(entry).take_back(claim.sequence, claim.word, lanes):
            continue
        reach("overdue.taken")
        taken += 1
        deaths.note_slow(document, worker, claim.ring, claim.sequence)
        _log.warning(
            "worker %s holds event %d for more than %g s: it goes to another one",
            worker.name,
            claim.sequence,
            worker.ack_within_ns / 1e9,
            extra={"bus": change.bus, "worker": worker.name, "sequence": claim.sequence},
        )
    if taken:
        change.commit()
    return groups.expire(change, rings) + taken > 0


def _held(document: Document, rings: Rings) -> Iterator[tuple[WorkerEntry, RingEntry, Claim]]:
    for worker in document.workers:
        group = document.consumer(worker.group) if worker.ack_within_ns else None
        for entry in document.rings_of(group) if group is not None else ():
            with unless_unreadable(entry):
                for sequence, word in rings.work(entry).claims(worker.slot, worker.generation):
                    yield worker, entry, Claim(entry.id, sequence, word)
