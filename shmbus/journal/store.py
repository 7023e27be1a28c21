"""What a journal keeps events in: the contract of a store, and the batches that every store moves.

Pure. A store is a plugin (entry-point group `shmbus.journals`); `shmbus.testing.journal_conformance` says whether one
keeps what follows.

Must stay true:
- `append` is all or nothing, and returns when the disk has it. What it raises as OSError may be tried again.
- A batch is written once and never changed; numbers grow and are never used twice.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from shmbus.errors import JournalError
from shmbus.raw import Form


class Entry(NamedTuple):
    """An event as a journal has it."""

    publisher: str
    origin: str
    """What names the publisher for ever, and with the stamp the event: see `shmbus.message.event_id`."""
    time_ns: int
    sequence: int
    headers: bytes
    payload: bytes


class Batch(NamedTuple):
    """Events of one topic that were written together, by time."""

    number: int
    bus: str
    first_ns: int
    last_ns: int
    entries: list[Entry]


class Store(Protocol):
    """Holds batches of events on disk. One process writes, any number read; any thread, one at a time."""

    @property
    def id(self) -> str:
        """A short random str that the file was made with: names the group that collects for it."""
        ...

    def forms(self) -> dict[str, Form]:
        """The topics that are in it."""
        ...

    def add(self, form: Form) -> None:
        """Make room for a topic; OSError where that fails."""
        ...

    def append(self, topic: str, bus: str, entries: Sequence[Entry]) -> None:
        """Write events as one batch, and return once the disk has them; OSError where that fails, and nothing is in."""
        ...

    def by_time(self, topic: str, since_ns: int, until_ns: int, below: int) -> Iterator[Batch]:
        """Batches numbered up to `below` with events of `[since_ns, until_ns)`, by their first event."""
        ...

    def around(self, topic: str, since_ns: int, until_ns: int) -> Iterator[Batch]:
        """Batches with events of `[since_ns, until_ns)`, in any order: for spans that are late."""
        ...

    def after(self, topic: str, number: int) -> Iterator[Batch]:
        """Batches numbered above `number`, in the order in which they were written."""
        ...

    def last(self) -> int:
        """The number of the newest batch of all topics, 0 for none."""
        ...

    def count(self, topic: str) -> int:
        """How many events of a topic are in it."""
        ...

    def prune(self, max_age: float | None, max_bytes: int | None) -> int:
        """Remove the oldest batches that are older than `max_age` seconds, or too much; returns the events gone."""
        ...

    def remove(self, number: int) -> None:
        """Remove a batch, which is elsewhere by now."""
        ...

    def close(self) -> None:
        """Let go of it. Idempotent."""
        ...


_Packed = tuple[list[tuple[str, str]], list[tuple[int, int, int, bytes, bytes]]]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Packed).decode


def pack(entries: Sequence[Entry]) -> bytes:
    """Entries as one payload: the names of their publishers, then the entries by time."""
    names: dict[tuple[str, str], int] = {}
    rows = [(names.setdefault(entry[:2], len(names)), *entry[2:]) for entry in entries]
    return _encode((list(names), rows))


def unpack(data: bytes, crc: int) -> list[Entry]:
    """What `pack` has made. Raises JournalError for anything else."""
    if zlib.crc32(data) != crc:
        raise JournalError("a batch does not match its checksum")
    try:
        names, rows = _decode(data)
        entries: list[Entry] = []
        for name, *rest in rows:
            entries.append(Entry._make((*names[name], *rest)))
        return entries
    except (msgspec.MsgspecError, IndexError, UnicodeDecodeError) as error:
        raise JournalError(f"a batch that cannot be read: {error}") from error


def open_store(kind: str, path: Any, *, write: bool) -> Store:
    """Open a store by the name of its plugin; `write` makes one that is missing, and takes its lock."""
    from shmbus import _plugins

    store: Store = _plugins.load("shmbus.journals", kind)(path, write=write)
    return store
