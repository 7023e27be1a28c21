"""What tools/fuzz_segments.py can damage: every field of every segment of a bus, by name, and the values it gets.

Knows the layout by itself (layout.h is ABI) and maps the segments by itself, so that no check of the library stands
between it and the damage. A field is a name and a function that writes; a document is damaged in its structure, with a
checksum that fits, or in its bytes (tools/fuzz_document.py).
"""

from __future__ import annotations

import mmap
import os
import random
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

SHM = "/dev/shm"
PAGE, LINE = 4096, 64
SCHEMA_WORDS = {"magic": 0, "topic": 8, "checksum": 16}
LOSS = ("count", "first", "last", "first_ns", "last_ns")
RING_WORDS = {
    "magic": 0,
    "layout_version+kind": 8,
    "capacity": 16,
    "slots": 24,
    "ring_id": 32,
    "tail": 64,
    "intent": 72,
    "oldest": 80,
    "position": 88,
    "gate_version": 128,
    "waiting": 136,
    "need": 144,
    "members": 152,
    "reliable": 160,
    "refused": 192,
    "refused_first": 200,
    "refused_last": 208,
    "refused_first_ns": 216,
    "refused_last_ns": 224,
    "unrouted": 232,
    "next": 256,
    "due": 264,
    "gate": 320,
} | {
    f"{cause}.{name}": at + 8 * i
    for cause, at in (("rejected", 384), ("undecodable", 424), ("abandoned", 464))
    for i, name in enumerate(LOSS)
}
CURSOR_WORDS = {
    "cursor": 0,
    "position": 8,
    "join_position": 64,
    "join_sequence": 72,
    "refused_base": 80,
    "lossy": 88,
    "flip": 288,
} | {
    f"losses[{pair}].{cause}.{name}": 128 + 80 * pair + 40 * which + 8 * i
    for pair in (0, 1)
    for which, cause in enumerate(("overrun", "undecodable"))
    for i, name in enumerate(LOSS)
}
CURSORS, CURSOR_BYTES, SLOTS = PAGE, 320, 64
RECORD_WORDS = {"sequence": 0, "length+kind+headers": 8, "time_ns": 16, "body": 24}

HUGE = (2**16, 2**31, 2**32, 2**40, 2**48, 2**62, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 2)
_WORD = struct.Struct("<Q")


class Field(NamedTuple):
    """One thing to damage; `damage` says in words what it did."""

    area: str
    name: str
    damage: Callable[[random.Random], str]


class Memory:
    """One segment, mapped."""

    def __init__(self, name: str) -> None:
        descriptor = os.open(f"{SHM}/{name}", os.O_RDWR | os.O_CLOEXEC)
        try:
            self.map = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)

    def load(self, at: int) -> int:
        return int(_WORD.unpack_from(self.map, at)[0])

    def store(self, at: int, value: int) -> None:
        _WORD.pack_into(self.map, at, value & (2**64 - 1))


def absurd(chance: random.Random, old: int, others: Callable[[], int]) -> int:
    """A value that a field should not have, or hardly ever has."""
    choices: tuple[Callable[[], int], ...] = (
        lambda: 0,
        lambda: 1,
        lambda: 2**64 - 1,
        lambda: old + chance.choice((-1, 1)),
        lambda: old + chance.choice((-64, -8, 8, 64, 4096, -4096)),
        lambda: old ^ 1 << chance.randrange(64),
        others,
        lambda: chance.choice(HUGE),
        lambda: chance.randrange(2**64),
        lambda: chance.randrange(200),
    )
    return chance.choice(choices)() & (2**64 - 1)


def word(area: str, prefix: str, memory: Memory, base: int, words: dict[str, int]) -> Iterator[Field]:
    """A field for each word of a table."""
    for name, at in words.items():
        yield Field(area, f"{prefix}.{name}", _damage_word(memory, base, at, words))


def _damage_word(memory: Memory, base: int, at: int, words: dict[str, int]) -> Callable[[random.Random], str]:
    def damage(chance: random.Random) -> str:
        old = memory.load(base + at)
        new = absurd(chance, old, lambda: memory.load(base + chance.choice(list(words.values()))))
        memory.store(base + at, new)
        return f"{old:#x} -> {new:#x}"

    return damage


def damage_bytes(memory: Memory, at: int, span: int) -> Callable[[random.Random], str]:
    def damage(chance: random.Random) -> str:
        offset, data = chance.randrange(span), chance.randbytes(chance.choice((1, 4, 32)))
        memory.map[at + offset : at + offset + len(data)] = data
        return f"{data.hex()} at {offset}"

    return damage


def schema_fields(memory: Memory) -> Iterator[Field]:
    """Every field of a topic's schema."""
    yield from word("schema", "schema", memory, 0, SCHEMA_WORDS)
    yield Field("schema", "schema.description", damage_bytes(memory, 24, max(1, len(memory.map) - 24 - 32)))


# -- ring segments


def ring_fields(memory: Memory, work: bool, used: list[int]) -> Iterator[Field]:
    """Every field of one ring; `used` are the cursor slots that somebody has."""
    kind = "work" if work else "broadcast"
    yield from word(f"{kind} header", kind, memory, 0, RING_WORDS)
    capacity = memory.load(16)
    if work:
        slots = capacity // 64
        for name, at in (("position", 0), ("claim", 8)):
            yield Field("descriptors", f"descriptor.{name}", _damage_descriptor(memory, at, slots))
        for name, at in (("spared", 0), ("due", 8)):
            yield Field("notes", f"note.{name}", _damage_note(memory, at, slots))
        data = (PAGE + slots * 32 + PAGE - 1) // PAGE * PAGE
    else:
        for slot in (*used, 63):
            yield from word("cursors", "cursor", memory, CURSORS + slot * CURSOR_BYTES, CURSOR_WORDS)
        data = CURSORS + SLOTS * CURSOR_BYTES
    for name, at in RECORD_WORDS.items():
        yield Field(f"{kind} records", f"{kind} record.{name}", _damage_record(memory, data, capacity, at))
    yield Field(f"{kind} records", f"{kind} record.noise", damage_bytes(memory, data, capacity - 32))


def _damage_descriptor(memory: Memory, at: int, slots: int) -> Callable[[random.Random], str]:
    def damage(chance: random.Random) -> str:
        around = (memory.load(320), memory.load(64), memory.load(256), chance.randrange(slots))
        sequence = chance.choice(around) + chance.choice((-1, 0, 0, 1))
        place = PAGE + 16 * (sequence % slots) + at
        old = memory.load(place)
        state = old & ~(7 << 36) | chance.randrange(8) << 36  # the word as it is, in another state
        lap = old + (chance.choice((-1, 1)) << 39)
        other = chance.choice((state, state, lap, memory.load(PAGE + 16 * chance.randrange(slots) + at)))
        new = chance.choice((other, absurd(chance, old, lambda: other)))
        memory.store(place, new)
        return f"of {sequence % slots}: {old:#x} -> {new:#x}"

    return damage


def _damage_note(memory: Memory, at: int, slots: int) -> Callable[[random.Random], str]:
    def damage(chance: random.Random) -> str:
        sequence = chance.choice((memory.load(320), memory.load(64), chance.randrange(slots)))
        place = PAGE + 16 * slots + 16 * (sequence % slots) + at
        old = memory.load(place)
        attempt = old & (2**52 - 1) | chance.randrange(4) << 52  # a due time as it is, of another attempt
        new = chance.choice((attempt, absurd(chance, old, lambda: sequence // slots << 12 | chance.randrange(5000))))
        memory.store(place, new)
        return f"of {sequence % slots}: {old:#x} -> {new:#x}"

    return damage


def _damage_record(memory: Memory, data: int, capacity: int, at: int) -> Callable[[random.Random], str]:
    def damage(chance: random.Random) -> str:
        offset = chance.choice(_records(memory, data, capacity) or [0])
        place = data + min(offset + at, capacity - 8)
        old = memory.load(place)
        length, kind, headers = (
            chance.choice((0, 8, old & 0xFFFF, 2**32 - 1)),
            chance.randrange(4),
            chance.choice((0, 8, 0xFFFF)),
        )
        new = chance.choice((absurd(chance, old, lambda: length | kind << 32 | headers << 48), chance.randrange(2**64)))
        memory.store(place, new)
        return f"at {offset}: {old:#x} -> {new:#x}"

    return damage


def _records(memory: Memory, data: int, capacity: int) -> list[int]:
    """Offsets at which records seem to begin, from those at the ring's start on."""
    found: list[int] = []
    offset = 0
    while offset <= capacity - 24 and len(found) < 1000:
        found.append(offset)
        offset += (24 + (memory.load(data + offset + 8) & 0xFFFFFFFF) + 7) // 8 * 8
    return found
