"""The bus segment's part of tools/fuzz_fields.py: its header, its lines, and the registry document, part by part."""

from __future__ import annotations

import contextlib
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from fuzz_fields import HUGE, LINE, PAGE, Field, Memory, absurd, damage_bytes, word

from shmbus._ledger import slots

TOPICS = PAGE
GROUPS = TOPICS + 1024 * LINE
CONSUMERS = GROUPS + 1024 * LINE
LATENCIES = CONSUMERS + 4096 * LINE
LATENCY_BYTES, LATENCY_BUCKETS = 16 * LINE, 120
DOCUMENTS = LATENCIES + 4096 * LATENCY_BYTES
DOCUMENT_BYTES = 1 << 22
DOCUMENT_MEMORY = 1 << 20
VERSION = 64
PART = struct.Struct("<3I")
"""Place, length and checksum of a part of the document: the head, then a section for each topic."""
COUNT = 8
"""Bytes before the directory: how many entries it has."""

BUS_WORDS = {
    "magic": 0,
    "layout_version": 8,
    "boot_id[0]": 16,
    "boot_id[1]": 24,
    "created_ns": 32,
    "supervisor_spawned": 40,
    "lives_inode": 48,
    "identity": 56,
    "version": 64,
    "holder": 72,
    "supervisor_pid": 80,
    "supervisor_life": 88,
    "supervisor_beat": 96,
    "supervisor_namespace": 104,
    "removed": 112,
    "processes": 120,
}
TOPIC_WORDS = {"epoch": 0, "parked": 8, "awaiting": 16, "reserved": 24}
GROUP_WORDS = {f"{name}[{i}]": at + 8 * i for name, at in (("parked", 0), ("awaiting", 32)) for i in range(4)}
LATENCY_WORDS = {"since_ns": 0, "max_ns": 8, "reserved": 16}


def bus_fields(memory: Memory, document: dict[str, Any]) -> Iterator[Field]:
    """Every field of the bus segment, of the lines that are in use, and one that is not."""
    intact[memory] = _body(_read_parts(memory))
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
        yield Field("document slot", "document.bytes", damage_bytes(memory, base + 16, 2000))
        yield Field("document slot", "document.noise", _damage_document(memory, _noise))
    for slot in (0, 1):
        at = DOCUMENTS + slot * DOCUMENT_BYTES + 16
        yield Field("document slot", "document.directory", damage_bytes(memory, at, COUNT + PART.size * 3))
    for path in sorted(set(_paths(document))):
        yield Field("document", f"document.{path}", _damage_document(memory, _changer(path)))
    for kind in ("delete", "duplicate", "swap", "shuffle"):
        for table in ("participants", "losses", "deaths", "publishers", "consumers", "workers", "rings", "closed"):
            yield Field("document", f"document.{table}: {kind}", _damage_document(memory, _rearranger(table, kind)))
    for kind in ("delete", "duplicate", "swap"):
        yield Field("document", f"document.topics: {kind}", _damage_document(memory, _rearrange_parts(kind)))


def _damage_weight(memory: Memory, base: int) -> Callable[[random.Random], str]:
    def damage(chance: random.Random) -> str:
        place = base + 8 * chance.randrange(LATENCY_BUCKETS)
        old = memory.load(place)
        new = absurd(chance, old, lambda: memory.load(base + 8 * chance.randrange(LATENCY_BUCKETS)))
        memory.store(place, new)
        return f"of {(place - base) // 8}: {old:#x} -> {new:#x}"

    return damage


def read_document(memory: Memory) -> dict[str, Any] | None:
    """The document as plain data, all topics in one; None where it cannot be read."""
    try:
        parts = _read_parts(memory)
        document = dict(parts.pop(0))
        for section in parts.values():
            document.setdefault("topics", []).append(section["topic"])
            for table in ("publishers", "consumers", "workers", "rings", "closed"):
                document.setdefault(table, []).extend(section[table])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error):
        return None
    return document


Parts = dict[int, Any]


def _read_parts(memory: Memory) -> Parts:
    base = DOCUMENTS + (memory.load(VERSION) & 1) * DOCUMENT_BYTES
    length = memory.load(base)
    if length > DOCUMENT_BYTES - 16:
        raise ValueError("no document")
    return _parts(memory.map[base + 16 : base + 16 + length])


def _parts(body: bytes) -> Parts:
    """What the parts of a document say, by number."""
    found = {}
    for number in range(int.from_bytes(body[:COUNT], "little")):
        place, length, _ = PART.unpack_from(body, COUNT + number * PART.size)
        if length:
            found[number] = msgspec.msgpack.decode(body[place : place + length], strict=False)
    return found


def _body(parts: Parts) -> bytes:
    """A document of these parts, whatever they say, with checksums that fit."""
    count = 1 + max(parts, default=0)
    place = COUNT + count * PART.size
    directory, chunks = bytearray(place), []
    directory[:COUNT] = count.to_bytes(COUNT, "little")
    for number, part in parts.items():
        chunk = msgspec.msgpack.encode(part)
        PART.pack_into(directory, COUNT + number * PART.size, place, len(chunk), zlib.crc32(chunk))
        chunks.append(chunk)
        place += len(chunk)
    return bytes(directory) + b"".join(chunks)


intact: dict[Memory, bytes] = {}
"""The last document of a bus that could be one."""


def _damage_document(memory: Memory, change: Callable[[random.Random, Parts], tuple[str, bytes]]) -> Any:
    """Write a changed document, with a checksum that fits, into the valid slot or both.

    What is changed is the document as it is, or, where that is beyond repair, the last one that was not.
    """

    def damage(chance: random.Random) -> str:
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError, struct.error):
            body = _body(_read_parts(memory))
            slots.decode(body)
            intact[memory] = body
        told, body = change(chance, _parts(intact[memory]))
        if len(body) > DOCUMENT_MEMORY - 16:
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


def _noise(chance: random.Random, parts: Parts) -> tuple[str, bytes]:
    number = chance.choice(list(parts))
    noise = bytearray(msgspec.msgpack.encode(parts[number]))
    kind = chance.choice(("cut", "flip", "random", "nested", "other type", "whole"))
    if kind == "cut":
        noise = noise[: chance.randrange(len(noise))]
    elif kind == "flip":
        noise[chance.randrange(len(noise))] ^= 1 << chance.randrange(8)
    elif kind == "random":
        noise = bytearray(chance.randbytes(chance.randrange(200)))
    elif kind == "nested":
        noise = bytearray(b"\x81\xa5extra" + b"\x91" * chance.choice((100, 100_000)))
    elif kind == "other type":
        noise = bytearray(msgspec.msgpack.encode(chance.choice((None, 1, [], "x", {"rings": 3}, {"rings": [1]}))))
    else:
        whole = _body(parts)
        return kind, whole[: chance.randrange(len(whole))]
    return f"{kind} of part {number}", _body(parts | {number: msgspec.Raw(bytes(noise))})


def _paths(document: dict[str, Any]) -> Iterator[str]:
    """`table.field` of every field that the document has, `field` of its own."""
    for key, value in document.items():
        yield "topic" if key == "topics" else key
        if isinstance(value, list):
            for entry in value:
                yield from (f"{'topic' if key == 'topics' else key}.{field}" for field in entry)
                yield from (f"{key}.totals.{field}" for field in entry.get("totals", {}))


def _changer(path: str) -> Callable[[random.Random, Parts], tuple[str, bytes]]:
    keys = path.split(".")

    def change(chance: random.Random, parts: Parts) -> tuple[str, bytes]:
        target = chance.choice([part for part in parts.values() if keys[0] in part] or [{}])
        for key in keys[:-1]:
            target = target.get(key)
            if isinstance(target, list) and target:
                target = chance.choice(target)
            if not isinstance(target, dict):
                return "(nothing there)", _body(parts)
        old = target.get(keys[-1])
        target[keys[-1]] = _replacement(chance, old, parts)
        return f"{old!r:.40} -> {target[keys[-1]]!r:.60}", _body(parts)

    return change


def _replacement(chance: random.Random, old: Any, parts: Parts) -> Any:
    """Mostly of the same type, so that it gets past the types."""
    if chance.random() < 0.1:
        return chance.choice((None, -1, 1.5, "x", b"\xff", [], {}, True, [None] * 100, {"a": 1}))
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        tables = [table for part in parts.values() for table in part.values() if isinstance(table, list)]
        entries = [entry for table in tables for entry in table if isinstance(entry, dict)]
        others = [value for entry in entries for value in entry.values() if type(value) is int]
        return absurd(chance, old, lambda: chance.choice(others or [7]))
    if isinstance(old, str):
        states = ("active", "retired", "reclaiming", "joining", "leaving", "closed", "subscriber", "group", "lossy")
        return chance.choice(("", "../x", "a\0b", "\n\x1b[31m", "x" * 5000, "\u202e\ud7ff", chance.choice(states), old))
    if isinstance(old, bytes):
        return chance.choice((b"", b"{", b"[" * 5000, chance.randbytes(50), old[:-1], old.replace(b"kind", b"kinb")))
    if isinstance(old, dict) and chance.random() < 0.7:
        return {chance.choice(HUGE[:4]): chance.choice(HUGE), 0: 2**63, 255: 65535}
    return chance.choice(([], {}, [{}], old))


def _rearranger(table: str, kind: str) -> Callable[[random.Random, Parts], tuple[str, bytes]]:
    def change(chance: random.Random, parts: Parts) -> tuple[str, bytes]:
        entries = chance.choice([part[table] for part in parts.values() if part.get(table)] or [None])
        if not entries or not isinstance(entries, list):
            return "(empty)", _body(parts)
        at, other = chance.randrange(len(entries)), chance.randrange(len(entries))
        if kind == "delete":
            del entries[at]
        elif kind == "duplicate":
            entries.extend([entries[at]] * chance.choice((1, 1, 600)))
        elif kind == "swap":
            one, two = entries[at], entries[other]
            if not (one and isinstance(one, dict) and isinstance(two, dict)):
                return "(nothing to swap)", _body(parts)
            key = chance.choice(list(one))
            one[key], two[key] = two.get(key), one[key]
        else:
            chance.shuffle(entries)
        return f"entries {at}, {other}", _body(parts)

    return change


def _rearrange_parts(kind: str) -> Callable[[random.Random, Parts], tuple[str, bytes]]:
    def change(chance: random.Random, parts: Parts) -> tuple[str, bytes]:
        at, other = chance.choice(list(parts)), chance.randrange(129)
        if kind == "delete":
            del parts[at]
        elif kind == "duplicate":
            parts[other] = parts[at]
        else:
            parts[at], parts[other] = parts.get(other, msgspec.Raw(b"\xc0")), parts[at]
        return f"parts {at}, {other}", _body(parts)

    return change
