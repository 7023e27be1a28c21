"""Segments: files of /dev/shm, made, mapped, found and removed.

A segment is the same POSIX object that `multiprocessing.shared_memory` uses, so `SharedMemory(name)` attaches
to it. The standard class is not used because its resource tracker unlinks segments of live peers (before
Python 3.13), a failed attach unlinks the owner's segment, an attacher can see size 0, and a write past what
/dev/shm can hold is SIGBUS.

May touch: files of /dev/shm and their maps. Knows nothing of what a segment holds.

Must stay true:
- A name leads to a segment that is whole: created nameless, its memory reserved, initialised, then linked
  into place in one step. A kill at any instant leaves either that or nothing.
- Nothing is mapped that is not a regular file of the user that its bus belongs to; no symlink is followed.

Outside the promise: a process of the same user (or root) that truncates a segment by hand; the next access to
the lost part is SIGBUS.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from shmbus.errors import (
    AccessError,
    ClosedError,
    ConfigError,
    CorruptSegmentError,
    NoSpaceError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SHM_DIR: Final = "/dev/shm"

# EFBIG: beyond RLIMIT_FSIZE, or beyond what any file can hold.
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EFBIG})
# What open() says of a symlink, a directory, a socket, another user's file.
_NOT_OURS: Final = frozenset({errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EACCES, errno.EPERM})


class Segment:
    """One mapped segment of `size` bytes; `inode` is its identity, whatever its name leads to later."""

    def __init__(self, name: str, fd: int, *, writable: bool) -> None:
        status = os.fstat(fd)
        self.name: Final = name
        self.size: Final = status.st_size
        self.inode: Final = status.st_ino
        self.writable: Final = writable
        self._map: mmap.mmap | None = _map(fd, self.size, writable=writable)

    @classmethod
    def create(cls, name: str, size: int, initialise: Callable[[mmap.mmap], None]) -> Segment:
        """Create a segment of `size` zero bytes, let `initialise` fill it, and give it its name.

        Nobody sees it before `initialise` has returned; of many that create one name at once, one succeeds.
        Raises FileExistsError when the name is taken and NoSpaceError when /dev/shm cannot hold it.
        """
        path = _path(name)
        try:
            fd = os.open(SHM_DIR, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                return cls._fill_and_link(fd, name, size, initialise)
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise NoSpaceError(error.errno, name, size, free_bytes()) from None
            if error.errno == errno.EEXIST:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from None
            raise

    @classmethod
    def _fill_and_link(cls, fd: int, name: str, size: int, initialise: Callable[[mmap.mmap], None]) -> Segment:
        os.posix_fallocate(fd, 0, size)
        segment = cls(name, fd, writable=True)
        directory = os.open(SHM_DIR, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            initialise(segment.map)
            # CPython calls linkat(AT_SYMLINK_FOLLOW), which a nameless file needs, only if a directory is
            # given.
            os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=directory, follow_symlinks=True)
        except BaseException:
            segment.close()
            raise
        finally:
            os.close(directory)
        return segment

    @classmethod
    def attach(cls, name: str, *, writable: bool = True, owner: int | None = None) -> Segment:
        """Map an existing segment, all of it.

        Raises FileNotFoundError; AccessError for a symlink, another kind of file or another user's; and
        CorruptSegmentError for an empty file, which `create` cannot have made.
        """
        fd = open_file(name, os.O_RDWR if writable else os.O_RDONLY, owner=owner)
        try:
            if os.fstat(fd).st_size == 0:
                raise CorruptSegmentError(f"segment {name} is empty: size=0")
            return cls(name, fd, writable=writable)
        finally:
            os.close(fd)

    @property
    def map(self) -> mmap.mmap:
        """The memory, as a buffer; raises ClosedError after `close`."""
        if self._map is None:
            raise ClosedError(f"segment {self.name} is closed")
        return self._map

    def close(self) -> None:
        """Unmap the memory, or leave that to the last buffer taken from it; the name stays. Idempotent."""
        mapped, self._map = self._map, None
        if mapped is None:
            return
        with suppress(BufferError):  # somebody still looks into it: unmapped when the last of them lets go
            mapped.close()

    def linked(self) -> bool:
        """Whether the name still leads to this very segment."""
        return _inode(self.name) == self.inode


def unlink(name: str) -> bool:
    """Remove a name of /dev/shm; False if it was gone. Who has the segment mapped keeps its memory."""
    try:
        os.unlink(_path(name))
    except FileNotFoundError:
        return False
    return True


def exists(name: str) -> bool:
    """Whether something has this name."""
    return _inode(name) is not None


def names(prefix: str) -> list[str]:
    """The regular files of /dev/shm whose names begin with `prefix`, whoever owns them, sorted."""
    with os.scandir(SHM_DIR) as entries:
        return sorted(
            entry.name for entry in entries if entry.name.startswith(prefix) and entry.is_file(follow_symlinks=False)
        )


def free_bytes() -> int:
    """Bytes that /dev/shm can still take."""
    status = os.statvfs(SHM_DIR)
    return status.f_bavail * status.f_frsize


def _map(fd: int, size: int, *, writable: bool) -> mmap.mmap:
    prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    if sys.version_info >= (3, 13):
        return mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=prot, trackfd=False)
    return mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=prot)  # keeps a duplicate of fd until it is closed


def _path(name: str) -> str:
    """The path of a name of /dev/shm; names may come from a segment, so none leads out of the directory."""
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        raise ConfigError(f"not a name of {SHM_DIR}: name={name!r}")
    return f"{SHM_DIR}/{name}"


def open_file(name: str, access: int, *, create: bool = False, owner: int | None = None) -> int:
    """Open a regular file of `owner`, by default this effective user, in /dev/shm.

    Raises FileNotFoundError, NoSpaceError and AccessError.
    """
    path = _path(name)
    flags = access | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_CREAT if create else 0)
    try:
        # Non-blocking, for a FIFO under this name would hold the caller up before it can be refused.
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno in _NOT_OURS:
            raise AccessError(error.errno, f"{os.strerror(error.errno)}{_owner(path)}", path) from None
        if error.errno in _NO_SPACE:
            raise NoSpaceError(error.errno, name, 0, free_bytes()) from None
        raise
    try:
        _require_ours(os.fstat(fd), path, owner)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _require_ours(status: os.stat_result, path: str, owner: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise AccessError(errno.EACCES, f"not a regular file: mode={status.st_mode:o}", path)
    if status.st_uid != (os.geteuid() if owner is None else owner):
        raise AccessError(
            errno.EACCES, f"another user's segment: owner uid={status.st_uid}, own uid={os.geteuid()}", path
        )


def _owner(path: str) -> str:
    try:
        status = os.lstat(path)
    except OSError:
        return ""
    kind = "symlink, " if stat.S_ISLNK(status.st_mode) else ""
    return f" ({kind}owner uid={status.st_uid}, own uid={os.geteuid()})"


def _inode(name: str) -> int | None:
    try:
        return os.lstat(_path(name)).st_ino
    except FileNotFoundError:
        return None
