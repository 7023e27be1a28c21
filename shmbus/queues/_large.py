"""Pickles that no ring takes: a file of their own each, and a note of it in the ring.

May touch: files `shmbus-<bus>:<uid>:large-<random>` of one queue.

Must stay true:
- A file is under a lock until its note is in the ring; from then on it is the note's. Whoever acks the note unlinks it.
- So a file that nobody has locked, in a queue that owes nothing, is what a dead process left: `sweep` removes it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from shmbus._shm import descriptors, place, segment
from shmbus._shm.failpoint import reach

if TYPE_CHECKING:
    from collections.abc import Iterator

MARK: Final = 0
"""First byte of a note; a pickle begins with another one."""


@contextmanager
def written(prefix: str, payload: bytes | memoryview) -> Iterator[bytes]:
    """Write a pickle; gives the note, which is to be put within the block. Raises NoSpaceError."""
    name = f"{prefix}large-{os.urandom(8).hex()}"
    path, size = place.path_of(name), len(payload)
    kept = False
    try:
        fd = descriptors.open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW)
    except OSError as error:
        raise place.refused(error, name, size) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        reach("large.begun")
        try:
            place.reserve(fd, size)
        except OSError as error:
            raise place.refused(error, name, size) from None
        with mmap.mmap(fd, size) as memory:
            memory[:] = payload
        reach("large.written")
        yield bytes([MARK]) + name.encode()
        kept = True
        reach("large.put")
    finally:
        if not kept:
            segment.unlink(name)
        os.close(fd)


class Large:
    """The file of a note that was got: open, so that it can be read though it has lost its name."""

    def __init__(self, note: bytes) -> None:
        """Raises FileNotFoundError where whoever had the note before has died with it."""
        self._name = note[1:].decode()
        self._fd = segment.open_file(self._name, os.O_RDONLY)

    def forget(self) -> None:
        """Take its name: the note is acked, or about to be."""
        segment.unlink(self._name)

    def loads(self, loads: Any) -> Any:
        """The object."""
        try:
            with mmap.mmap(self._fd, 0, prot=mmap.PROT_READ) as memory, memoryview(memory) as view:
                return loads(view)
        finally:
            os.close(self._fd)


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
