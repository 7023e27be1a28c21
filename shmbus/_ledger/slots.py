"""How the registry document lies in the bus segment: twice, each time as a head and a section for each topic.

Layout of the bytes of a slot: a count, as many entries of a directory, then the parts. Part 0 is the head, part 1 + i
the section of the topic at index i, both msgpack; the directory says of each its place, its length (0: no such topic)
and its checksum. So a handle reads what its own topic weighs, whatever the rest of the bus does.

May touch: the document slots of a bus segment.

Must stay true:
- Slot `version & 1` is valid. It is written again only after `version` has moved on, so whoever finds `version` as it
  was before the copy has copied a whole document, or whole parts of one (SYNC document, `_ledger/registry.py`).
- Nothing is believed: places and lengths are checked against the slot, checksums against the bytes, entries against
  each other.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from shmbus import _core
from shmbus._ledger.document import SAMPLED, Document, Head, Membership, Section, check_document, check_membership

if TYPE_CHECKING:
    from shmbus._shm.segment import Segment

M = TypeVar("M", Membership, Section)

ROOM: Final = _core.DOCUMENT_BYTES - _core.DOCUMENT_BODY
MAX_LOSSES: Final = 256
"""Entries of the loss table; past it the oldest make room, and only their details are forgotten."""
MAX_GIVEN_UP: Final = 8
"""Rings of which a lossy subscriber is told one by one that it will not get them; of those before, how many events."""
MAX_DEATHS: Final = 64
"""Processes of which it is known that they died with events in their hands; the oldest are forgotten first."""
MAX_HELD: Final = 8
"""Runs of events that are known of each."""

_PART: Final = struct.Struct("<3I")  # place, length, crc32
_COUNT: Final = struct.Struct(
    "<Q"
)  # of entries, up to the last topic that there is: indices are the lowest that are free
_LOSS: Final = 448  # bytes of a loss entry at most: three names of 64, a trace, six numbers of nine, names of fields
_GIVEN_UP: Final = 112  # bytes of what is told of one ring at most: a name of 64, four numbers of nine
_DEATH: Final = 140 + MAX_HELD * 28  # bytes of a death at most: four numbers, `how`, and three numbers a run
_TOTALS: Final = 7 * 8  # bytes by which seven numbers can grow
_SAMPLED: Final = SAMPLED * 10  # bytes of what was sampled, which enters the document when a consumer leaves
_IDLE: Final = 8  # bytes by which a group grows when its last worker leaves, a subscriber that is put in quarantine,
# and a count of a publisher
_STATE: Final = 8  # bytes by which a state, or a name that becomes `(departed)`, can grow

_encode: Final = msgspec.msgpack.Encoder().encode
_head_decoder: Final = msgspec.msgpack.Decoder(Head)
_section_decoder: Final = msgspec.msgpack.Decoder(Section)
_membership_decoder: Final = msgspec.msgpack.Decoder(Membership)


def reserve(document: Document) -> int:
    """Bytes that it takes at most until everybody has left: entering leaves them free, so leaving needs no room."""
    growing = len(document.consumers) + len(document.closed)
    changing = len(document.participants) + len(document.publishers) + len(document.rings) + growing
    told = MAX_GIVEN_UP * sum(not c.gates for c in document.consumers)
    counting = 3 * sum(p.state == "active" for p in document.publishers)
    sampled = len(document.consumers) * _SAMPLED
    fixed = MAX_LOSSES * _LOSS + MAX_DEATHS * _DEATH
    idle = (len(document.consumers) + counting) * _IDLE
    return fixed + told * _GIVEN_UP + growing * _TOTALS + changing * _STATE + idle + sampled


def encode(document: Document) -> bytes:
    """A document as the bytes of a slot."""
    sections: dict[int, Section] = {t.index: Section(topic=t) for t in document.topics}
    groups: dict[int, int] = {}
    for consumer in document.consumers:
        sections[consumer.topic].consumers.append(consumer)
        groups[consumer.id] = consumer.topic
    for publisher in document.publishers:
        sections[publisher.topic].publishers.append(publisher)
    for ring in document.rings:
        sections[ring.topic].rings.append(ring)
    for worker in document.workers:
        sections[groups[worker.group]].workers.append(worker)
    for closed in document.closed:
        sections[closed.topic].closed.append(closed)
    for index, departed in document.departed.items():
        sections[index].departed = departed
    head = Head(**{name: getattr(document, name) for name in Head.__struct_fields__})
    parts = {0: _encode(head)} | {1 + index: _encode(section) for index, section in sections.items()}
    count = 1 + max(parts)
    place = _COUNT.size + count * _PART.size
    directory = bytearray(place)
    _COUNT.pack_into(directory, 0, count)
    for number, part in parts.items():
        _PART.pack_into(directory, _COUNT.size + number * _PART.size, place, len(part), zlib.crc32(part))
        place += len(part)
    return b"".join((directory, *parts.values()))


def decode(body: bytes, known: dict[int, tuple[bytes, Section]] | None = None) -> Document:
    """The document that lies in the bytes of a slot. Raises ValueError, as msgspec.DecodeError is.

    `known` keeps sections, and those that did not change are taken from there; the document is not to be changed then.
    Several threads may use one at once.
    """
    raw_head = _part(body, 0)
    if raw_head is None:
        raise ValueError("it has no head")
    head = _head_decoder.decode(raw_head)
    document = Document(**{name: getattr(head, name) for name in Head.__struct_fields__})
    count = _count(body)
    if known is not None:
        for index in [index for index in tuple(known) if 1 + index >= count]:
            known.pop(index, None)
    for index in range(count - 1):
        raw = _part(body, 1 + index)
        if raw is None:
            if known is not None:
                known.pop(index, None)
            continue
        before = known.get(index) if known is not None else None
        section = before[1] if before is not None and before[0] == raw else _checked(_section_decoder, raw, index)
        if known is not None:
            known[index] = (raw, section)
        document.topics.append(section.topic)
        document.publishers += section.publishers
        document.consumers += section.consumers
        document.workers += section.workers
        document.rings += section.rings
        document.closed += section.closed
        if section.departed:
            document.departed[index] = section.departed
    check_document(document)
    return document


def decode_membership(raw: bytes, index: int) -> Membership:
    """A section, as far as handles need it. Raises ValueError."""
    return _checked(_membership_decoder, raw, index)


def _checked(decoder: msgspec.msgpack.Decoder[M], raw: bytes, index: int) -> M:
    found = decoder.decode(raw)
    check_membership(found, index)
    return found


def _count(body: bytes | memoryview) -> int:
    """Entries of the directory. Raises ValueError for one that cannot be."""
    count: int = _COUNT.unpack_from(body)[0] if len(body) >= _COUNT.size else 0
    if not 1 <= count <= 1 + _core.MAX_TOPICS or len(body) < _COUNT.size + count * _PART.size:
        raise ValueError(f"it is shorter than its directory: {count} entries in {len(body)} bytes")
    return count


def _part(body: bytes | memoryview, number: int) -> bytes | None:
    """The bytes of a part, None where there is no such part. Raises ValueError for one that cannot be."""
    if number >= _count(body):
        return None
    place, length, checksum = _PART.unpack_from(body, _COUNT.size + number * _PART.size)
    if length == 0:
        return None
    raw = bytes(body[place : place + length])
    if len(raw) != length or zlib.crc32(raw) != checksum:
        raise ValueError(f"part {number} fails its checksum: {length} bytes at {place} of {len(body)}")
    return raw


# -- memory

_STEP: Final = 1 << 18  # bytes by which the memory of documents grows
HOLES: Final = (
    (_core.LATENCY_LINES + _core.FIRST_CONSUMERS * _core.LATENCY_BYTES, _core.DOCUMENTS),
    (_core.DOCUMENTS + _core.FIRST_DOCUMENT_BYTES, _core.DOCUMENTS + _core.DOCUMENT_BYTES),
    (_core.DOCUMENTS + _core.DOCUMENT_BYTES + _core.FIRST_DOCUMENT_BYTES, _core.BUS_BYTES),
)
"""From and to where a bus segment has no memory at first: what only many participants need."""


def give_line(segment: Segment, line: int) -> None:
    """Under the lock: memory for the latencies of a consumer. Raises NoSpaceError."""
    if line >= _core.FIRST_CONSUMERS:
        segment.reserve((_core.LATENCY_LINES + line * _core.LATENCY_BYTES, _core.LATENCY_BYTES))


def give_memory(segment: Segment, length: int) -> None:
    """Under the lock: memory for documents of that length, in both slots. Raises NoSpaceError.

    Whoever enters asks for as much as it may take until everybody has left, so nobody else has to.
    """
    if length <= _core.FIRST_DOCUMENT_BYTES - _core.DOCUMENT_BODY:
        return
    more = min(-(-length // _STEP) * _STEP, ROOM)
    segment.reserve(*((_slot_at(version) + _core.DOCUMENT_BODY, more) for version in (0, 1)))


# -- the two slots


def read(memory: _core.Mapping, version: int) -> bytes | None:
    """The bytes of the document of a version; None if they fail the checksum, as those that are overwritten do."""
    at = _slot_at(version)
    length = _core.load(memory, at + _core.DOCUMENT_LENGTH)
    if length > ROOM:
        return None
    body = memory[at + _core.DOCUMENT_BODY : at + _core.DOCUMENT_BODY + length]
    return body if zlib.crc32(body) == _core.load(memory, at + _core.DOCUMENT_CHECKSUM) else None


def read_section(memory: _core.Mapping, version: int, index: int) -> bytes | None:
    """The bytes of a topic's section alone, None where there is none. Raises ValueError as `decode` does."""
    at = _slot_at(version) + _core.DOCUMENT_BODY
    with memoryview(memory) as whole, whole[at : at + ROOM] as body:
        return _part(body, 1 + index)


def write(memory: _core.Mapping, version: int, body: bytes) -> None:
    """Put a document where that of a version lies, which is not the valid one yet."""
    at = _slot_at(version)
    memory[at + _core.DOCUMENT_BODY : at + _core.DOCUMENT_BODY + len(body)] = body
    _core.store(memory, at + _core.DOCUMENT_LENGTH, len(body))
    _core.store(memory, at + _core.DOCUMENT_CHECKSUM, zlib.crc32(body))


def _slot_at(version: int) -> int:
    return _core.DOCUMENTS + (version & 1) * _core.DOCUMENT_BYTES
