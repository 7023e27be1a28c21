"""The broadcast ring in executable Python: the specification that `_core` is tested against (`model_work`:
the work ring). Imports nothing of the project.

One thread, no memory, no clock: records are tuples in a list, positions and sequences plain integers. What
the C core does with words, caches and orders is here the plain rule, and both must agree on every result and
on all books.

    B1  every record between `oldest` and `tail` is whole
    B2  no reliable cursor is more than `capacity` behind `tail`
    B3  nothing between `oldest` and `tail` is half written
    B4  a reader sees one sequence after the other
    F   a boundary knows the sequence of the record that begins there
"""

from __future__ import annotations

import queue
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

RECORD_HEADER, ALIGN = 24, 8
RECORD_LIMIT = 0xFFFFFFF8
Loss = tuple[int, int, int]
"""(count, first sequence, last sequence), zeros where nothing was lost."""


class Message(NamedTuple):
    sequence: int
    headers: bytes
    payload: bytes


class Gap(NamedTuple):
    """A lossy reader lost `first` to `last`, and stands on the oldest whole record."""

    first: int
    last: int


class Undecodable(NamedTuple):
    sequence: int


Read = Message | Gap | Undecodable | None


class Record(NamedTuple):
    start: int
    end: int
    message: Message


def decodes(payload: bytes) -> bool:
    """The decoder of these tests: everything but what begins with an exclamation mark."""
    return not payload.startswith(b"!")


def round_up(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def body(headers: bytes, payload: bytes) -> int:
    """Bytes behind the record's header: headers, rounded up, and payload."""
    return round_up(len(headers)) + len(payload)


def span(length: int) -> int:
    """Bytes that a record with a body of `length` takes in the ring."""
    return round_up(RECORD_HEADER + length)


def padding(capacity: int, head: int, size: int) -> int:
    """Bytes between `head` and the end of the ring that a record of `size` bytes skips, since it never
    wraps."""
    room = capacity - head % capacity
    return room if room < size else 0


def maximum(capacity: int) -> int:
    """The largest body: with padding it takes at most half of the ring, so it fits into an empty one wherever
    it is; and its length has 32 bits in the record's header."""
    return min(capacity // 4 - RECORD_HEADER, RECORD_LIMIT)


def check_size(capacity: int, headers: bytes, payload: bytes) -> None:
    if body(headers, payload) > maximum(capacity):
        raise ValueError((body(headers, payload), maximum(capacity)))


def add_loss(loss: Loss, first: int, last: int | None = None) -> Loss:
    count, before, _ = loss
    last = first if last is None else last
    return count + last - first + 1, before if count else first, last


@dataclass
class Slot:
    """One subscriber: where it stands, and what it lost since it joined."""

    lossy: bool
    position: int
    sequence: int
    joined: int
    refused_before: int
    overrun: Loss = (0, 0, 0)
    undecodable: Loss = (0, 0, 0)


@dataclass
class ModelBroadcastRing:
    """One publisher, any number of subscribers, each of which sees every event."""

    capacity: int
    sequence: int = 1
    position: int = 0
    records: list[Record] = field(default_factory=list)
    slots: dict[int, Slot] = field(default_factory=dict)
    refused: Loss = (0, 0, 0)
    unrouted: int = 0

    def __post_init__(self) -> None:
        self.oldest = self.tail = self.position
        self.intent = self.tail + ALIGN  # F: the word at tail holds the sequence of the next record

    # ---- membership ----

    def join(self, slot: int, lossy: bool = False, oldest: bool = False) -> None:
        """A joiner stands on a boundary, and its books begin with the sequence of that boundary."""
        position = self.oldest if oldest else self.tail
        sequence = self.sequence_at(position)
        self.slots[slot] = Slot(lossy, position, sequence, sequence, self.refused[0])

    def leave(self, slot: int) -> None:
        del self.slots[slot]

    def sequence_at(self, position: int) -> int:
        """F. A boundary may lie on padding: it has the sequence of the record that follows."""
        return next((r.message.sequence for r in self.records if r.start >= position), self.sequence)

    # ---- without a publisher ----

    def trim(self) -> None:
        """R1: gives up what every subscriber has read, and nothing that one has not."""
        least = min((s.position for s in self.slots.values()), default=self.tail)
        self.oldest = max(self.oldest, least)
        self.intent = max(self.intent, self.oldest + self.capacity)
        self.records = [r for r in self.records if r.start >= self.oldest]

    # ---- the publisher ----

    def gate(self) -> int:
        return min((s.position for s in self.slots.values() if not s.lossy), default=self.tail)

    def need(self, headers: bytes, payload: bytes) -> int:
        """Bytes behind tail: padding, the record, and the sequence of the next one."""
        size = span(body(headers, payload))
        return padding(self.capacity, self.tail, size) + size + ALIGN

    def reserve(self, need: int) -> bool:
        """Announce an intent that covers the record, up to the next multiple of a sixteenth of the ring where it may;
        retire every record that positions below the intent will overwrite. B2: never past the gate."""
        end = self.tail + need
        if end <= self.intent:
            return True
        limit = self.gate() + self.capacity
        if end > limit:
            return False
        chunk = self.capacity // 16
        self.intent = min((end + chunk) // chunk * chunk, limit)
        while self.oldest + self.capacity < self.intent:
            self.oldest = self.after(self.oldest)
        self.records = [r for r in self.records if r.start >= self.oldest]
        return True

    def after(self, position: int) -> int:
        """The boundary behind one: padding is a step of its own."""
        record = next(r for r in self.records if r.start >= position)
        return record.end if record.start == position else record.start

    def publish(self, payload: bytes, headers: bytes = b"", drop: bool = False) -> int | None:
        """The event's sequence. Without room: queue.Full and nothing happened, or None and a refusal on the
        books of every subscriber. ValueError for an event that no empty ring could hold."""
        check_size(self.capacity, headers, payload)
        need, sequence = self.need(headers, payload), self.sequence
        if not self.reserve(need):
            if not drop:
                raise queue.Full
            self.refused = add_loss(self.refused, sequence)
        else:
            self.append(Message(sequence, headers, payload), need)
        if not self.slots:
            self.unrouted += 1
        return sequence if self.sequence > sequence else None

    def append(self, message: Message, need: int) -> None:
        """B1, B3: the record is there and then, in one step, part of [oldest, tail)."""
        end = self.tail + need - ALIGN
        self.records.append(Record(end - span(body(message.headers, message.payload)), end, message))
        self.tail = end
        self.sequence += 1

    def publish_many(self, payloads: Iterable[bytes], drop: bool = False) -> int:
        """How many got in. All sizes are checked before the first is written; queue.Full leaves those that
        fitted."""
        batch = list(payloads)
        for payload in batch:
            check_size(self.capacity, b"", payload)
        return sum(self.publish(payload, drop=drop) is not None for payload in batch)

    # ---- subscribers ----

    def read(self, slot: int) -> Read:
        """B4: the next event, or what happened instead of it; None when there is nothing."""
        s = self.slots[slot]
        if s.lossy and self.intent > s.position + self.capacity and s.position != self.tail:
            first, s.position, s.sequence = s.sequence, self.oldest, self.sequence_at(self.oldest)
            if s.sequence > first:  # else only padding went
                s.overrun = add_loss(s.overrun, first, s.sequence - 1)
                return Gap(first, s.sequence - 1)
        record = next((r for r in self.records if r.start >= s.position), None)
        if record is None:
            return None
        s.position, s.sequence = record.end, record.message.sequence + 1
        if decodes(record.message.payload):
            return record.message
        s.undecodable = add_loss(s.undecodable, record.message.sequence)
        return Undecodable(record.message.sequence)

    # ---- books ----

    def terms(self, slot: int) -> dict[str, int]:
        """offered = delivered + depth + overrun + refused + undecodable. What a lossy subscriber will find
        overwritten counts as overrun before it looks."""
        s = self.slots[slot]
        lost_already = max(0, self.sequence_at(self.oldest) - s.sequence) if s.lossy else 0
        overrun, undecodable, refused = s.overrun[0] + lost_already, s.undecodable[0], self.refused[0]
        depth = self.sequence - s.sequence - lost_already
        return {
            "offered": self.sequence - s.joined + refused - s.refused_before,
            "delivered": self.sequence - s.joined - depth - overrun - undecodable,
            "depth": depth,
            "overrun": overrun,
            "refused": refused - s.refused_before,
            "undecodable": undecodable,
            "pending_first": s.sequence if lost_already else 0,
            "pending_last": s.sequence + lost_already - 1 if lost_already else 0,
            "next": s.sequence + lost_already,
        }

    def losses(self, slot: int) -> dict[str, Loss]:
        s = self.slots[slot]
        return {"overrun": s.overrun, "undecodable": s.undecodable, "refused": self.refused}

    def blocking(self, need: int) -> int:
        """Bitmap of the reliable slots that keep `need` bytes from being written."""
        behind = self.tail + need - self.capacity
        return sum(1 << n for n, s in self.slots.items() if not s.lossy and s.position < behind)

    def info(self) -> dict[str, int]:
        return {
            "tail": self.tail,
            "sequence": self.sequence,
            "oldest": self.oldest,
            "intent": self.intent,
            "members": sum(1 << n for n in self.slots),
            "reliable": sum(1 << n for n, s in self.slots.items() if not s.lossy),
            "refused": self.refused[0],
            "unrouted": self.unrouted,
            "room": self.capacity - (self.tail - self.gate()),
        }
