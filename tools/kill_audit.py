"""What each life of a campaign of kills wrote down, and whether the books agree with it."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from shmbus.stats import BusStats

SEEN = struct.Struct("<II")


class Notes:
    """What one life saw, written with one system call an event, so that a kill loses none of it."""

    def __init__(self, folder: str, role: str, life: int) -> None:
        self.fd = os.open(f"{folder}/{role}-{life}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.opened = Path(folder, f"up-{life}")
        """Made once this life's handle is open."""

    def add(self, life: int, count: int) -> None:
        os.write(self.fd, SEEN.pack(life, count))


def read_notes(folder: str, role: str) -> dict[int, list[tuple[int, int]]]:
    """What each life of a role saw: (publisher's life, count), in order."""
    found: dict[int, list[tuple[int, int]]] = {}
    for path in Path(folder).glob(f"{role}-*"):
        data = path.read_bytes()
        found[int(path.name.rpartition("-")[2])] = list(SEEN.iter_unpack(data[: len(data) // SEEN.size * SEEN.size]))
    return found


def audit(folder: str, stats: BusStats) -> int:
    """Compare the books with what every life wrote down; returns the number of events.

    The auditor saw all that any publisher committed. What a publisher had not returned from when it was killed may have
    reached the subscribers and not yet the group.
    """
    consumers = {c.name: c for c in stats.consumers}
    (seen,) = read_notes(folder, "auditor").values()
    check_order("auditor", seen, holes=False)
    committed = dict(seen)
    published = {life: notes[-1][1] for life, notes in read_notes(folder, "publisher").items() if notes}
    for life, count in published.items():
        if count > committed.get(life, 0):
            raise AssertionError(f"publisher {life} published {count}, the auditor saw {committed.get(life)}")
    for role in ("subscriber", "lossy"):
        for life, notes in read_notes(folder, role).items():
            check_order(f"{role} {life}", notes, holes=role == "lossy")
    total = sum(committed.values())
    books = consumers["auditor"]
    if (books.offered, books.delivered) != (total, total):
        raise AssertionError(f"the auditor received {total}: {books}")
    processed = {event for notes in read_notes(folder, "worker").values() for event in notes}
    last = {life: published.get(life, 0) for life in committed}
    for life, count in processed:
        last[life] = max(last.get(life, 0), count)
    missing = upto(last) - processed
    if missing or not processed <= upto(committed):
        raise AssertionError(f"group: never processed {missing}, unknown {processed - upto(committed)}")
    pool = consumers["pool"]
    if (pool.offered, pool.delivered, pool.depth) != (len(processed), len(processed), 0):
        raise AssertionError(f"the group was offered {len(processed)}: {pool}")
    return total


def upto(last: dict[int, int]) -> set[tuple[int, int]]:
    """All events of each life up to its last."""
    return {(life, count) for life, end in last.items() for count in range(1, end + 1)}


def check_order(who: str, seen: list[tuple[int, int]], *, holes: bool) -> None:
    last: dict[int, int] = {}
    for life, count in seen:
        before = last.get(life)
        if before is None and who == "auditor" and count != 1:
            raise AssertionError(f"the auditor missed the beginning of publisher {life}: {count}")
        if before is not None and (count <= before if holes else count != before + 1):
            raise AssertionError(f"{who} saw event {count} of publisher {life} after {before}")
        last[life] = count
