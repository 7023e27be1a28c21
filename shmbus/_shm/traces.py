"""Trace files: which span sent each of a publisher's last events. Written where events are traced, and only there.

A ring overwrites what a lossy subscriber has not received, and with it the header that says who sent it. So a traced
publisher notes in a file beside its rings, by sequence, the span of each of the last `WINDOW` events; whoever finds out
that events are gone looks there. What the first of a loss was stays in a table of its own, for a loss is told of for
as long as the bus lives.

Layout: `KEPT` entries, then `WINDOW`, as layout.h has a `trace_note`: ring (0: the broadcast rings of the publisher,
which count on), sequence, trace id, span id, and all of that folded into one word. A sequence has one place in each.

The publisher notes an event before that is committed, and the first refusal of a ring before that is counted (notes.c):
whoever can know that an event is gone finds who sent it, wherever its publisher is stopped or dies.

May touch: files `shmbus-<bus>:trace-<publisher>`.

Must stay true:
- An entry is known by ring and sequence, and its words by their fold: one that is torn, or another's, is none.
- It is written by system calls, never mapped: a full /dev/shm costs a trace, and nothing else.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from shmbus import _core
from shmbus._shm import place, segment
from shmbus.errors import AccessError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

WINDOW: Final = _core.TRACE_WINDOW
"""Events of a publisher; 6 MiB of them, taken as they come."""
KEPT: Final = _core.TRACE_KEPT
BROADCAST: Final = 0
REFUSED: Final = 1 << 63
"""Set in `ring`: the event that this ring refused, before the one of that sequence."""

_ENTRY: Final = struct.Struct("<6Q")
_SENDER: Final = struct.Struct("<4Q")
_BUCKET: Final = _core.TRACE_BUCKET  # places of one hash among those that are kept
_SAMPLED: Final = 63  # the bit of the sequence that says so
_AT_ONCE: Final = 1 << 12
"""Entries that are read in one go."""


class Sender(NamedTuple):
    """The span that sent an event, as OpenTelemetry has its ids."""

    trace_id: int
    span_id: int
    sampled: bool = True

    def __str__(self) -> str:
        """As a header `traceparent` has it."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.sampled:02x}"

    def packed(self) -> bytes:
        """As a `sender` of the C type."""
        return _SENDER.pack(*divmod(self.trace_id, 1 << 64), self.span_id, self.sampled)


class TraceFile:
    """The senders of one publisher's events."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @property
    def descriptor(self) -> int:
        """Of the file, -1 once it is closed or released."""
        return self._descriptor

    def keep(self, ring: int, sequence: int, sender: Sender) -> None:
        """The first of a loss: not forgotten when the window has passed. Whoever says so first is right."""
        at = _bucket(ring, sequence)
        raw = self._read(at, _BUCKET)
        free = [index for index in range(_BUCKET) if not _whole(raw, index)]
        if all(_sender(raw, index, ring, sequence) is None for index in range(_BUCKET)):
            self._write(at + (free[0] if free else sequence % _BUCKET), ring, sequence, sender)

    def find(self, ring: int, sequence: int) -> Sender | None:
        """Who sent an event, None if that is not known."""
        if ring == BROADCAST:
            found = _sender(self._read(KEPT + sequence % WINDOW, 1), 0, ring, sequence)
            if found is not None:
                return found
        raw = self._read(_bucket(ring, sequence), _BUCKET)
        kept = (_sender(raw, index, ring, sequence) for index in range(_BUCKET))
        return next((one for one in kept if one is not None), None)

    def senders(self, first: int, last: int) -> Iterator[tuple[int, Sender]]:
        """Of the events of the broadcast ring from `first` to `last` those whose senders are known, with sequences."""
        sequence = first
        while sequence <= last:
            at = sequence % WINDOW
            count = min(last - sequence + 1, WINDOW - at, _AT_ONCE)
            raw = self._read(KEPT + at, count)
            for index in range(count):
                found = _sender(raw, index, BROADCAST, sequence + index)
                if found is not None:
                    yield sequence + index, found
            sequence += count

    def release(self) -> int:
        """Its descriptor, which is the caller's to close from now on."""
        descriptor, self._descriptor = self._descriptor, -1
        return descriptor

    def close(self) -> None:
        """Let go of it. Idempotent."""
        descriptor = self.release()
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, at: int, ring: int, sequence: int, sender: Sender) -> None:
        first, second = divmod(sender.trace_id, 1 << 64)
        words = ring, sequence | sender.sampled << _SAMPLED, first, second, sender.span_id
        with suppress(OSError):  # no memory, say: an event without a sender
            os.pwrite(self._descriptor, _ENTRY.pack(*words, _fold(words)), at * _ENTRY.size)

    def _read(self, at: int, count: int) -> bytes:
        try:
            return os.pread(self._descriptor, count * _ENTRY.size, at * _ENTRY.size)
        except OSError:  # closed by another thread
            return b""


def _bucket(ring: int, sequence: int) -> int:
    """The first of the places where it may be kept."""
    return (ring * 31 + sequence) % (KEPT // _BUCKET) * _BUCKET


def _fold(words: tuple[int, ...]) -> int:
    """Never 0: what was never written has no sender."""
    folded = 0
    for word in words:
        folded = (folded << 7 & (1 << 64) - 1 | folded >> 57) ^ word
    return folded or 1


def _whole(raw: bytes, index: int) -> tuple[int, ...] | None:
    """The words of an entry, None for one that was not written, or is torn."""
    if len(raw) < (index + 1) * _ENTRY.size:
        return None
    *words, fold = _ENTRY.unpack_from(raw, index * _ENTRY.size)
    return tuple(words) if fold == _fold(tuple(words)) else None


def _sender(raw: bytes, index: int, ring: int, sequence: int) -> Sender | None:
    words = _whole(raw, index)
    if words is None:
        return None
    sampled = words[1] >> _SAMPLED
    if (words[0], words[1] ^ sampled << _SAMPLED) != (ring, sequence):
        return None
    return Sender(words[2] << 64 | words[3], words[4], sampled != 0)


class Traces:
    """The trace files of one bus."""

    def __init__(self, prefix: str, owner: int | None = None) -> None:
        self.prefix: Final = prefix + "trace-"
        self._owner = owner

    def make(self, publisher: int) -> TraceFile | None:
        """That of a publisher, to be written; None where it cannot be had."""
        with suppress(OSError):
            return TraceFile(segment.open_file(f"{self.prefix}{publisher}", os.O_RDWR, create=True, owner=self._owner))
        return None

    def open(self, publisher: int, *, writable: bool = False) -> TraceFile | None:
        """That of a publisher, if it traces what it sends."""
        name = f"{self.prefix}{publisher}"
        if not os.path.lexists(place.path_of(name)):  # as a rule
            return None
        with suppress(OSError, AccessError):
            return TraceFile(segment.open_file(name, os.O_RDWR if writable else os.O_RDONLY, owner=self._owner))
        return None

    def find(self, publisher: int, ring: int, sequence: int) -> str:
        """Who sent an event, as a header `traceparent` has it; "" if that is not known."""
        file = self.open(publisher)
        if file is None:
            return ""
        with file:
            found = file.find(ring, sequence)
        return "" if found is None else str(found)

    def remove_orphans(self, publishers: Iterable[int]) -> list[str]:
        """Under the bus lock: those of publishers that the document does not have any more; returns their names."""
        known = {f"{self.prefix}{id}" for id in publishers}
        gone = [name for name in segment.names(self.prefix) if name not in known]
        for name in gone:
            segment.unlink(name)
        return gone

    def remove(self, publisher: int) -> None:
        """Under the bus lock: a publisher is gone, and its rings are."""
        segment.unlink(f"{self.prefix}{publisher}")
