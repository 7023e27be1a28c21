"""Schema segments: the description of a topic's type, which may weigh more than all else that a bus says of the topic.

Layout: magic, id of the topic, crc32 of the description, the description up to the end of the segment.

May touch: segments named `shmbus-<bus>:<uid>:schema-<topic id>`; `prefix` is what comes before `schema-`.

Must stay true:
- An id is never used twice. A segment is made before the document names its topic, and unlinked after the document has
  forgotten it; what a death in between leaves belongs to nobody, and whoever holds the bus lock may unlink it.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Final

from shmbus import _core
from shmbus._shm import segment
from shmbus._shm.failpoint import reach
from shmbus._shm.segment import Segment
from shmbus.errors import CorruptSegmentError

if TYPE_CHECKING:
    from collections.abc import Container

_MAGIC: Final = 0x316D656863736D68  # "hmschem1" in memory
_HEADER: Final = struct.Struct("<3Q")


def create(prefix: str, topic: int, description: bytes) -> None:
    """Make the segment of a topic that the document does not have yet. Raises NoSpaceError."""

    def fill(memory: _core.Mapping) -> None:
        memory[: _HEADER.size] = _HEADER.pack(_MAGIC, topic, zlib.crc32(description))
        memory[_HEADER.size :] = description

    name = _name(prefix, topic)
    while True:
        try:
            Segment.create(name, _HEADER.size + len(description), fill).close()
            reach("schema.created")
            return
        except FileExistsError:  # of a creator that died before its commit
            segment.unlink(name)


def read(prefix: str, topic: int, owner: int | None = None) -> bytes:
    """The description of a topic. Raises FileNotFoundError once it is removed, AccessError, CorruptSegmentError."""
    found = Segment.attach(_name(prefix, topic), writable=False, owner=owner)
    try:
        if found.size < _HEADER.size:
            raise CorruptSegmentError(f"{found.name} is no schema: {found.size} bytes")
        magic, id, checksum = _HEADER.unpack_from(found.map)
        description = found.map[_HEADER.size :]
        if magic != _MAGIC or id != topic or zlib.crc32(description) != checksum:
            raise CorruptSegmentError(f"{found.name} fails its checksum: magic={magic:#x}, topic={id}")
        return description
    finally:
        found.close()


def remove(prefix: str, topic: int) -> None:
    """Unlink the schema of a topic that the document does not have, or no longer."""
    segment.unlink(_name(prefix, topic))


def remove_orphans(prefix: str, topics: Container[int]) -> list[str]:
    """Under the lock: unlink the schemas of topics that are not among `topics`, which a dead process left behind."""
    schemas = _name(prefix, "")
    orphans = [name for name in segment.names(schemas) if _id_of(name, schemas) not in topics]
    for name in orphans:
        segment.unlink(name)
    return orphans


def _name(prefix: str, topic: int | str) -> str:
    return f"{prefix}schema-{topic}"


def _id_of(name: str, prefix: str) -> int:
    rest = name.removeprefix(prefix)
    return int(rest) if rest.isdecimal() else -1
