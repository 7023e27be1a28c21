"""Mappings: what a buffer of shared memory offers, how long it lasts, and what it costs."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmbus import _core
from shmbus.errors import ClosedError

SIZE = 1 << 14


@pytest.fixture
def file() -> Iterator[int]:
    """The descriptor of a file of SIZE bytes."""
    fd = os.memfd_create("mapping")
    os.ftruncate(fd, SIZE)
    yield fd
    os.close(fd)


def mapped(inode: int) -> int:
    """How many maps of that file this process has."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    return sum(line.split()[4] == str(inode) for line in maps)


def test_reads_and_writes(file: int) -> None:
    """Numbers at indices, copies for slices, packed structures and words go through to the file."""
    mapping = _core.Mapping(file, SIZE, True)
    mapping[0] = 7
    mapping[1:4] = b"abc"
    struct.pack_into("<Q", mapping, 8, 2**63)
    _core.store(mapping, 16, 5)
    assert (len(mapping), mapping[0], mapping[1:4], mapping[-1]) == (SIZE, 7, b"abc", 0)
    assert struct.unpack_from("<2Q", mapping, 8) == (2**63, 5)
    assert os.pread(file, 4, 0) == b"\7abc"
    copy = mapping[0:4]
    mapping[0:4] = b"DCBA"
    assert copy == b"\7abc"


def test_bounds(file: int) -> None:
    """Nothing lies outside, and a slice is replaced by as many bytes."""
    mapping = _core.Mapping(file, SIZE, True)
    for index in (SIZE, -SIZE - 1):
        with pytest.raises(IndexError):
            _ = mapping[index]
    with pytest.raises(ValueError, match="different"):
        mapping[0:2] = b"abc"
    with pytest.raises(TypeError):
        del mapping[0]  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="size=0"):
        _core.Mapping(file, 0, True)
    with pytest.raises(OSError, match="descriptor"):
        _core.Mapping(-1, SIZE, True)


def test_read_only(file: int) -> None:
    """A read-only mapping gives no writable buffer."""
    mapping = _core.Mapping(file, SIZE, False)
    assert memoryview(mapping).readonly
    with pytest.raises(TypeError):
        mapping[0] = 1
    with pytest.raises(BufferError):
        _core.store(mapping, 0, 1)
    assert _core.load(mapping, 0) == 0


def test_lasts_as_long_as_its_buffers(file: int) -> None:
    """It is unmapped by close() or when it is collected, but never before the last buffer has been released."""
    inode = os.fstat(file).st_ino
    mapping = _core.Mapping(file, SIZE, True)
    view = memoryview(mapping)
    assert mapped(inode) == 1
    mapping.close()
    mapping.close()
    assert mapped(inode) == 1
    view[0] = 9
    with pytest.raises(ClosedError):
        memoryview(mapping)
    view.release()
    assert mapped(inode) == 0
    held = memoryview(_core.Mapping(file, SIZE, True))[:1]
    assert (held[0], mapped(inode)) == (9, 1)
    del held
    assert mapped(inode) == 0


def test_keeps_no_descriptor(file: int) -> None:
    """A thousand mappings take no descriptor, and outlive the one that they were made from."""
    before = len(os.listdir("/proc/self/fd"))
    own = os.dup(file)
    mappings = [_core.Mapping(own, mmap.PAGESIZE, True) for _ in range(1000)]
    os.close(own)
    assert len(os.listdir("/proc/self/fd")) == before
    mappings[0][0] = 1
    assert mappings[-1][0] == 1


def test_is_shared_with_a_fork(file: int) -> None:
    """A forked child writes to the same memory, and what it unmaps stays mapped here."""
    mapping = _core.Mapping(file, SIZE, True)
    child = os.fork()
    if child == 0:
        mapping[0] = 1
        mapping.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert mapping[0] == 1
