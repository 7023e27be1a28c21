"""Segments: attachment, refusal of what is not ours, names. How they are made: test_making.py."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import SHM, Processes, line

from shmbus._shm import segment as _segment
from shmbus._shm.segment import Segment
from shmbus.errors import (
    AccessError,
    ClosedError,
    ConfigError,
    CorruptSegmentError,
)

PATIENT = 60.0
SIZE = 1 << 14


def fill(memory: object) -> None:
    memoryview(memory)[:5] = b"whole"  # type: ignore[arg-type]


@pytest.fixture
def name(bus_name: str) -> Iterator[str]:
    """The name of a segment; whatever begins with it is removed in the end."""
    own = f"shmbus-{bus_name}"
    yield own
    for left in _segment.names(own):
        _segment.unlink(left)


@pytest.fixture
def file(name: str) -> str:
    """The name of a segment that exists."""
    Segment.create(name, SIZE, fill).close()
    return name


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_created_segment_is_attached_whole(name: str) -> None:
    """Another attachment sees the size, the identity and the initialised memory, and shares every write."""
    made = Segment.create(name, SIZE, fill)
    found = Segment.attach(name)
    assert (found.name, found.size, found.inode) == (name, SIZE, made.inode)
    assert found.map[:6] == b"whole\0"
    found.map[SIZE - 1] = 7
    assert made.map[SIZE - 1] == 7
    assert (SHM / name).stat().st_mode & 0o777 == 0o600
    made.close()
    found.close()


def attach_by_stdlib(name: str) -> None:
    import sys
    from multiprocessing import resource_tracker, shared_memory

    if sys.version_info >= (3, 13):
        memory = shared_memory.SharedMemory(name, track=False)
    else:  # registered, it would be removed when this process ends
        memory = shared_memory.SharedMemory(name)
        resource_tracker.unregister(f"/{name}", "shared_memory")
    assert memory.buf is not None
    print(memory.size, bytes(memory.buf[:5]).decode())
    memory.buf[0] = ord("W")
    memory.close()


def test_standard_library_attaches(name: str, processes: Processes) -> None:
    """`multiprocessing.shared_memory` attaches to a segment by its name, and the segment outlives that."""
    segment = Segment.create(name, SIZE, fill)
    child = processes.spawn(attach_by_stdlib, name)
    assert line(child) == f"{SIZE} whole"
    assert child.wait(PATIENT) == 0
    assert segment.map[:5] == b"Whole"
    assert segment.linked()
    segment.close()


def test_attach_refuses_other_kinds_of_file(file: str) -> None:
    """A symlink, a FIFO and a directory are AccessError, also where the symlink leads to a segment."""
    other = SHM / f"{file}-other"
    kinds: list[tuple[Callable[[], None], Callable[[], None]]] = [
        (lambda: other.symlink_to(SHM / file), other.unlink),
        (lambda: os.mkfifo(other), other.unlink),
        (other.mkdir, other.rmdir),
    ]
    for make, remove in kinds:
        make()
        try:
            for writable in (True, False):
                with pytest.raises(AccessError, match=other.name):
                    Segment.attach(other.name, writable=writable)
        finally:
            remove()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_attach_refuses_another_users_segment(file: str) -> None:
    """A segment of another user is AccessError that names both uids, even to root."""
    os.chown(SHM / file, 4242, -1)
    with pytest.raises(AccessError, match=r"owner uid=4242, own uid=0"):
        Segment.attach(file)


def test_attach_refuses_an_empty_file(name: str) -> None:
    """An empty file, which no creator makes, is CorruptSegmentError."""
    (SHM / name).touch(0o600)
    with pytest.raises(CorruptSegmentError, match="size=0"):
        Segment.attach(name)


def test_attach_to_nothing(name: str) -> None:
    """A name that does not exist is FileNotFoundError."""
    with pytest.raises(FileNotFoundError):
        Segment.attach(name)


@pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "../etc/passwd", "a\0b"])
def test_names_stay_in_the_directory(bad: str) -> None:
    """A name that is no plain file name is ConfigError everywhere."""
    for use in (Segment.attach, _segment.unlink, lambda name: Segment.create(name, 1, fill)):
        with pytest.raises(ConfigError):
            use(bad)


def test_read_only_map(file: str) -> None:
    """A read-only attachment reads, and cannot be written through."""
    segment = Segment.attach(file, writable=False)
    assert segment.map[:5] == b"whole"
    with pytest.raises(TypeError):
        segment.map[0] = 1
    assert memoryview(segment.map).readonly
    segment.close()


def test_close_leaves_exported_buffers_alone(file: str) -> None:
    """Closing twice is no error, a buffer taken before stays readable, and the map is gone."""
    segment = Segment.attach(file)
    view = memoryview(segment.map)
    segment.close()
    segment.close()
    assert bytes(view[:5]) == b"whole"
    with pytest.raises(ClosedError):
        _ = segment.map


def test_segments_keep_no_descriptors(name: str) -> None:
    """An open segment costs no descriptor, however many there are."""
    before = open_files()
    segments = [Segment.create(name, SIZE, fill), Segment.attach(name)]
    assert open_files() == before
    for segment in segments:
        segment.close()


def test_linked_follows_the_inode(name: str) -> None:
    """A segment knows that its name was removed, also when another segment has the name by now."""
    old = Segment.create(name, SIZE, fill)
    assert old.linked()
    assert _segment.unlink(name)
    assert not _segment.unlink(name)
    assert not old.linked()
    new = Segment.create(name, SIZE, fill)
    assert new.linked()
    assert not old.linked()
    old.close()
    new.close()


def test_names_are_those_of_files(name: str) -> None:
    """The listing is sorted and holds regular files of the prefix only."""
    for suffix in ("-b", "-a"):
        Segment.create(name + suffix, SIZE, fill).close()
    other = Path(f"{SHM / name}-c")
    os.mkfifo(other)
    try:
        assert _segment.names(name) == [f"{name}-a", f"{name}-b"]
    finally:
        other.unlink()
