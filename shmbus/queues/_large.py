"""Pickles that no ring takes: a file of their own each, and a note of it in the ring. Large buffers (PEP 574: NumPy
arrays) lie there as they are, and are handed out in place: two copies less than within the pickle.

May touch: files `shmbus-<bus>:<uid>:large-<random>` of one queue.

Must stay true:
- A file is under a lock until its note is in the ring; from then on it is the note's. Whoever acks the note unlinks it.
- So a file that nobody has locked, in a queue that owes nothing, is what a dead process left: `sweep` removes it.
"""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from shmbus import _core
from shmbus._shm import descriptors, place, segment
from shmbus._shm.failpoint import reach
from shmbus.errors import CorruptSegmentError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmbus.queues._pickling import Apart

_ALIGN: Final = 64  # a cache line, for who computes on what lies there
MARK: Final = 0
"""First byte of a note; a pickle begins with another one."""


@contextmanager
def written(prefix: str, payload: bytes | Apart) -> Iterator[bytes]:
    """Write a pickle; gives the note, which is to be put within the block. Raises NoSpaceError."""
    name = f"{prefix}large-{os.urandom(8).hex()}"
    parts = _laid_out(payload)
    kept = False
    try:
        fd = descriptors.open_file(place.path_of(name), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW)
    except OSError as error:
        raise place.refused(error, name, _size(parts)) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        reach("large.begun")
        try:
            _write(fd, parts)
        except OSError as error:
            raise place.refused(error, name, _size(parts)) from None
        reach("large.written")
        count = b"" if isinstance(payload, bytes) else b"\0%d" % (1 + len(payload.buffers))
        yield bytes([MARK]) + name.encode() + count
        kept = True
        reach("large.put")
    finally:
        if not kept:
            segment.unlink(name)
        os.close(fd)


def _laid_out(payload: bytes | Apart) -> list[bytes | memoryview]:
    """Body and buffers, each at a multiple of _ALIGN, and where each begins and how long it is, at the end."""
    if isinstance(payload, bytes):
        return [payload]
    parts: list[bytes | memoryview] = []
    cuts: list[int] = []
    at = 0
    for part in (memoryview(payload.body), *payload.buffers):
        cuts += (at, part.nbytes)
        gap = -part.nbytes % _ALIGN
        parts += (part, bytes(gap))
        at += part.nbytes + gap
    return [*parts, struct.pack(f"<{len(cuts)}Q", *cuts)]


def _size(parts: list[bytes | memoryview]) -> int:
    return sum(memoryview(part).nbytes for part in parts)


def _write(fd: int, parts: list[bytes | memoryview]) -> None:
    """By calls: a page that is written whole need not be cleared first, and where no room is left no signal comes."""
    for part in parts:
        rest = memoryview(part).cast("B") if part else memoryview(b"")
        while rest:
            rest = rest[os.write(fd, rest) :]


class Large:
    """The file of a note that was got: open, so that it can be read though it has lost its name."""

    def __init__(self, note: bytes) -> None:
        """Raises FileNotFoundError where whoever had the note before has died with it."""
        name, _, count = note[1:].decode().partition("\0")
        self._name = name
        self._count = int(count or 0)
        self._fd = segment.open_file(name, os.O_RDWR)
        self.comes_again = False
        """What is got now may have to be got once more: nobody may write into it."""

    def forget(self) -> None:
        """Take its name: the note is acked, or about to be."""
        segment.unlink(self._name)

    def loads(self, loads: Any) -> Any:
        """The object. Its large buffers are the file's memory, which lives as long as anything refers to it."""
        try:
            size = os.fstat(self._fd).st_size
            memory = memoryview(_core.Mapping(self._fd, size, True))
        finally:
            os.close(self._fd)
        if not self._count:
            return loads(memory.toreadonly())
        start = size - 16 * self._count
        cuts = struct.unpack_from(f"<{2 * self._count}Q", memory, start) if start >= 0 else ()
        parts = [memory[at : at + length] for at, length in zip(cuts[::2], cuts[1::2], strict=True)]
        if not parts or any(at + length > start for at, length in zip(cuts[::2], cuts[1::2], strict=True)):
            raise CorruptSegmentError(f"{self._name} is not what its note says: {size} bytes, {self._count} parts")
        body, *buffers = parts
        return loads(body, buffers=[bytearray(buffer) for buffer in buffers] if self.comes_again else buffers)


def sweep(prefix: str, owed: Any) -> None:
    """Remove what the dead left, if `owed()` says afterwards that the queue owes nothing."""
    loose = []
    for name in segment.names(f"{prefix}large-"):
        with suppress(OSError):
            fd = segment.open_file(name, os.O_RDONLY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                loose.append(name)
            finally:
                os.close(fd)
    if loose and not owed():
        for name in loose:
            segment.unlink(name)
