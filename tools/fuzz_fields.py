"""What tools/fuzz_segments.py can damage: every field of every segment of a bus, by name, and the values it gets.

Knows the layout by itself (layout.h is ABI) and maps the segments by itself, so that no check of the library stands
between it and the damage. A field is a name and a function that writes; a document is damaged in its structure, with a
checksum that fits, or in its bytes.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from shmbus._ledger import document as _document

SHM = "/dev/shm"
PAGE, LINE = 4096, 64
TOPICS = PAGE
GROUPS = TOPICS + 128 * LINE
CONSUMERS = GROUPS + 64 * LINE
LATENCIES = CONSUMERS + 512 * LINE
LATENCY_BYTES, LATENCY_BUCKETS = 16 * LINE, 120
DOCUMENTS = LATENCIES + 512 * LATENCY_BYTES
DOCUMENT_BYTES = 1 << 20
VERSION = 64

BUS_WORDS = {
    "magic": 0,
    "layout_version": 8,
    "boot_id[0]": 16,
    "boot_id[1]": 24,
    "created_ns": 32,
    "supervisor_spawned": 40,
    "reserved": 48,
    "version": 64,
    "holder": 72,
    "supervisor_pid": 80,
    "supervisor_life": 88,
    "supervisor_beat": 96,
    "supervisor_namespace": 104,
    "removed": 112,
}
TOPIC_WORDS = {"epoch": 0, "parked": 8, "awaiting": 16, "reserved": 24}
GROUP_WORDS = {f"{name}[{i}]": at + 8 * i for name, at in (("parked", 0), ("awaiting", 32)) for i in range(4)}
LATENCY_WORDS = {"since_ns": 0, "max_ns": 8, "reserved": 16}
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
    "gate": 320,
} | {
    f"{cause}.{name}": at + 8 * i
    for cause, at in (("rejected", 384), ("undecodable", 424))
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


# -- the bus segment


def bus_fields(memory: Memory, document: dict[str, Any]) -> Iterator[Field]:
    """Every field of the bus segment, of the lines that are in use, and one that is not."""
    intact[memory] = msgspec.msgpack.encode(document)
    yield from word("bus header", "bus", memory, 0, BUS_WORDS)
    for topic in range(len(document["topics"]) + 1):
        yield from word("lines", "topic line", memory, TOPICS + topic * LINE, TOPIC_WORDS)
    for group in range(2):
        yield from word("lines", "group line", memory, GROUPS + group * LINE, GROUP_WORDS)
    for line in range(len(document["consumers"]) + 1):
        yield from word("lines", "consumer line", memory, CONSUMERS + line * LINE, {"stalled_since_ns": 0})
        base = LATENCIES + line * LATENCY_BYTES
        yield from word("latency lines", "latency line", memory, base, LATENCY_WORDS)
        yield Field("latency lines", "latency line.weights", _damage_weight(memory, base + LINE))
    for slot in (0, 1):
        base = DOCUMENTS + slot * DOCUMENT_BYTES
        yield from word("document slot", "document", memory, base, {"length": 0, "checksum": 8})
        yield Field("document slot", "document.bytes", _damage_bytes(memory, base + 16, 2000))
        yield Field("document slot", "document.noise", _damage_document(memory, _noise))
    for path in sorted(set(_paths(document))):
        yield Field("document", f"document.{path}", _damage_document(memory, _changer(path)))
    for kind in ("delete", "duplicate", "swap", "shuffle"):
        for table in ("participants", "topics", "publishers", "consumers", "workers", "rings"):
            yield Field("document", f"document.{table}: {kind}", _damage_document(memory, _rearranger(table, kind)))


def _damage_weight(memory: Memory, base: int) -> Callable[[random.Random], str]:
    def damage(chance: random.Random) -> str:
        place = base + 8 * chance.randrange(LATENCY_BUCKETS)
        old = memory.load(place)
        new = absurd(chance, old, lambda: memory.load(base + 8 * chance.randrange(LATENCY_BUCKETS)))
        memory.store(place, new)
        return f"of {(place - base) // 8}: {old:#x} -> {new:#x}"

    return damage


def read_document(memory: Memory) -> dict[str, Any] | None:
    """The document as plain data, None where it cannot be read."""
    base = DOCUMENTS + (memory.load(VERSION) & 1) * DOCUMENT_BYTES
    length = memory.load(base)
    if length > DOCUMENT_BYTES - 16:
        return None
    try:
        return msgspec.msgpack.decode(memory.map[base + 16 : base + 16 + length], type=dict[str, Any])
    except (ValueError, RecursionError):
        return None


def _damage_bytes(memory: Memory, at: int, span: int) -> Callable[[random.Random], str]:
    def damage(chance: random.Random) -> str:
        offset, data = chance.randrange(span), chance.randbytes(chance.choice((1, 4, 32)))
        memory.map[at + offset : at + offset + len(data)] = data
        return f"{data.hex()} at {offset}"

    return damage


intact: dict[Memory, bytes] = {}
"""The last document of a bus that could be one."""


def _damage_document(memory: Memory, change: Callable[[random.Random, Any], tuple[str, bytes]]) -> Any:
    """Write a changed document, with a checksum that fits, into the valid slot or both.

    What is changed is the document as it is, or, where that is beyond repair, the last one that was not.
    """

    def damage(chance: random.Random) -> str:
        now = read_document(memory)
        with contextlib.suppress(ValueError, TypeError):
            body = msgspec.msgpack.encode(now)
            _document.decode(body)
            intact[memory] = body
        told, body = change(chance, msgspec.msgpack.decode(intact[memory], strict=False))
        if len(body) > DOCUMENT_BYTES - 16:
            return "(too large)"
        version = memory.load(VERSION)
        for slot in {version & 1, chance.choice((version & 1, ~version & 1))}:
            base = DOCUMENTS + slot * DOCUMENT_BYTES
            memory.map[base + 16 : base + 16 + len(body)] = body
            memory.store(base, len(body))
            memory.store(base + 8, zlib.crc32(body))
        memory.store(VERSION, version + chance.choice((0, 2)))  # 2: so that readers with a cached one look
        for topic in (0, 1):
            memory.store(TOPICS + topic * LINE, memory.load(TOPICS + topic * LINE) + 1)
        return told

    return damage


def _noise(chance: random.Random, document: Any) -> tuple[str, bytes]:
    body = bytearray(msgspec.msgpack.encode(document))
    kind = chance.choice(("cut", "flip", "random", "nested", "other type"))
    if kind == "cut":
        body = body[: chance.randrange(len(body))]
    elif kind == "flip":
        body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
    elif kind == "random":
        body = bytearray(chance.randbytes(chance.randrange(200)))
    elif kind == "nested":
        body = bytearray(b"\x81\xa5extra" + b"\x91" * chance.choice((100, 100_000)))
    else:
        body = bytearray(msgspec.msgpack.encode(chance.choice((None, 1, [], "x", {"participants": 3}, {"rings": [1]}))))
    return kind, bytes(body)


def _paths(document: dict[str, Any]) -> Iterator[str]:
    """`table.field` of every field that the document has, `field` of its own."""
    for key, value in document.items():
        yield key
        if isinstance(value, list):
            for entry in value:
                yield from (f"{key}.{field}" for field in entry)
                yield from (f"{key}.totals.{field}" for field in entry.get("totals", {}))


def _changer(path: str) -> Callable[[random.Random, Any], tuple[str, bytes]]:
    keys = path.split(".")

    def change(chance: random.Random, document: Any) -> tuple[str, bytes]:
        target = document
        for key in keys[:-1]:
            target = target.get(key)
            if isinstance(target, list) and target:
                target = chance.choice(target)
            if not isinstance(target, dict):
                return "(nothing there)", msgspec.msgpack.encode(document)
        old = target.get(keys[-1])
        target[keys[-1]] = _replacement(chance, old, document)
        return f"{old!r:.40} -> {target[keys[-1]]!r:.60}", msgspec.msgpack.encode(document)

    return change


def _replacement(chance: random.Random, old: Any, document: Any) -> Any:
    """Mostly of the same type, so that it gets past the types."""
    if chance.random() < 0.1:
        return chance.choice((None, -1, 1.5, "x", b"\xff", [], {}, True, [None] * 100, {"a": 1}))
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        others = [v for t in document.values() if isinstance(t, list) for e in t for v in e.values() if type(v) is int]
        return absurd(chance, old, lambda: chance.choice(others or [7]))
    if isinstance(old, str):
        states = ("active", "retired", "reclaiming", "joining", "leaving", "closed", "subscriber", "group", "lossy")
        return chance.choice(("", "../x", "a\0b", "\n\x1b[31m", "x" * 5000, "\u202e\ud7ff", chance.choice(states), old))
    if isinstance(old, bytes):
        return chance.choice((b"", b"{", b"[" * 5000, chance.randbytes(50), old[:-1], old.replace(b"kind", b"kinb")))
    if isinstance(old, dict) and chance.random() < 0.7:
        return {chance.choice(HUGE[:4]): chance.choice(HUGE), 0: 2**63, 255: 65535}
    return chance.choice(([], {}, [{}], old))


def _rearranger(table: str, kind: str) -> Callable[[random.Random, Any], tuple[str, bytes]]:
    def change(chance: random.Random, document: Any) -> tuple[str, bytes]:
        entries = document.get(table)
        if not entries or not isinstance(entries, list):
            return "(empty)", msgspec.msgpack.encode(document)
        at, other = chance.randrange(len(entries)), chance.randrange(len(entries))
        if kind == "delete":
            del entries[at]
        elif kind == "duplicate":
            entries.extend([entries[at]] * chance.choice((1, 1, 600)))
        elif kind == "swap":
            key = chance.choice(list(entries[at]))
            entries[at][key], entries[other][key] = entries[other].get(key), entries[at][key]
        else:
            chance.shuffle(entries)
        return f"entries {at}, {other}", msgspec.msgpack.encode(document)

    return change


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
        data = (PAGE + slots * 16 + PAGE - 1) // PAGE * PAGE
    else:
        for slot in (*used, 63):
            yield from word("cursors", "cursor", memory, CURSORS + slot * CURSOR_BYTES, CURSOR_WORDS)
        data = CURSORS + SLOTS * CURSOR_BYTES
    for name, at in RECORD_WORDS.items():
        yield Field(f"{kind} records", f"{kind} record.{name}", _damage_record(memory, data, capacity, at))
    yield Field(f"{kind} records", f"{kind} record.noise", _damage_bytes(memory, data, capacity - 32))


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
