"""Segments: files of /dev/shm, made, mapped, found and removed.

A segment is the same POSIX object that `multiprocessing.shared_memory` uses, so `SharedMemory(name)` attaches
to it. The standard class is not used because its resource tracker unlinks segments of live peers (before
Python 3.13), a failed attach unlinks the owner's segment, an attacher can see size 0, and a write past what
/dev/shm can hold is SIGBUS.

May touch: files of /dev/shm and their maps. Knows nothing of what a segment holds.

Must stay true:
- A name leads to a segment that is whole: created under a temporary name, its memory reserved, initialised, then
  linked into place in one step. A kill at any instant leaves either that, or a temporary file that nobody takes for
  anything; `remove_temporaries` removes those of the dead, who hold no lock on theirs.
- Nothing is mapped that is not a regular file of the user that its bus belongs to; no symlink is followed.

Outside the promise: a process of the same user (or root) that truncates a segment by hand; the next access to
the lost part is SIGBUS.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from shmbus import _core
from shmbus._shm import descriptors, place
from shmbus._shm.failpoint import reach
from shmbus.errors import AccessError, ClosedError, CorruptSegmentError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# What open() says of a symlink, a directory, a socket, another user's file.
_NOT_OURS: Final = frozenset({errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EACCES, errno.EPERM})

_TEMPORARY: Final = "tmp-"  # behind the colon that ends the name of a bus: neither a ring nor a channel


class Segment:
    """One mapped segment of `size` bytes; `inode` is its identity, whatever its name leads to later."""

    def __init__(self, name: str, fd: int, *, writable: bool) -> None:
        status = os.fstat(fd)
        self.name: Final = name
        self.size: Final = status.st_size
        self.inode: Final = status.st_ino
        self.writable: Final = writable
        self._map: _core.Mapping | None = None
        try:
            self._map = _core.Mapping(fd, self.size, writable)
        except OSError as error:
            raise place.unmappable(error, name, self.size) from None
        place.note_user()

    @classmethod
    def create(
        cls,
        name: str,
        size: int,
        initialise: Callable[[_core.Mapping], object],
        holes: Sequence[tuple[int, int]] = (),
    ) -> Segment:
        """Create a segment of `size` zero bytes, let `initialise` fill it, and give it its name.

        `holes`, from and to where, in order, get their memory by `reserve`, before they are written.

        Nobody sees it before `initialise` has returned; of many that create one name at once, one succeeds.
        Raises FileExistsError when the name is taken, NoSpaceError when /dev/shm cannot hold it, NoSharedMemoryError,
        AccessError and ResourceLimitError.
        """
        place.path_of(name)
        place.require_user(name)
        while True:
            try:
                segment = cls._make(name, size, initialise, holes)
            except OSError as error:
                raise place.refused(error, name, size) from None
            if segment is not None:
                return segment

    @classmethod
    def _make(
        cls,
        name: str,
        size: int,
        initialise: Callable[[_core.Mapping], object],
        holes: Sequence[tuple[int, int]],
    ) -> Segment | None:
        """None if the temporary file was removed meanwhile, by whoever removes all of the bus."""
        temporary = _temporary(name)
        fd = descriptors.open_file(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW)
        segment = None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # held as long as this process makes it: it is no dead one's
            reach("segment.begun")
            os.fchmod(fd, 0o600)  # whatever the umask
            place.reserve(fd, size, holes)
            segment = cls(name, fd, writable=True)
            initialise(segment.map)
            reach("segment.filled")
            if not _link(temporary, name):
                segment.close()
                return None
            reach("segment.linked")
            fcntl.flock(fd, fcntl.LOCK_UN)  # a child that was forked meanwhile shares the descriptor
            return segment
        except BaseException:
            if segment is not None:
                segment.close()
            raise
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            os.close(fd)

    @classmethod
    def attach(cls, name: str, *, writable: bool = True, owner: int | None = None) -> Segment:
        """Map an existing segment, all of it.

        Raises FileNotFoundError; AccessError for a symlink, another kind of file or another user's; CorruptSegmentError
        for an empty file, which `create` cannot have made; NoSharedMemoryError and ResourceLimitError.
        """
        fd = open_file(name, os.O_RDWR if writable else os.O_RDONLY, owner=owner)
        try:
            if os.fstat(fd).st_size == 0:
                raise CorruptSegmentError(f"segment {name} is empty: size=0")
            return cls(name, fd, writable=writable)
        finally:
            os.close(fd)

    @property
    def map(self) -> _core.Mapping:
        """The memory, as a buffer; raises ClosedError after `close`."""
        if self._map is None:
            raise ClosedError(f"segment {self.name} is closed")
        return self._map

    def close(self) -> None:
        """Unmap the memory, or leave that to the last buffer taken from it; the name stays. Idempotent."""
        mapped, self._map = self._map, None
        if mapped is not None:
            mapped.close()

    def allocated(self) -> int:
        """Bytes of memory that it takes; 0 once its name is gone."""
        try:
            return os.stat(place.path_of(self.name)).st_blocks * 512
        except FileNotFoundError:
            return 0

    def reserve(self, *spans: tuple[int, int]) -> None:
        """Give holes their memory: offset and length of each. Raises NoSpaceError."""
        fd = descriptor(self.name)
        try:
            for offset, length in spans:
                os.posix_fallocate(fd, offset, length)
        except OSError as error:
            raise place.refused(error, self.name, sum(length for _, length in spans)) from None
        finally:
            os.close(fd)

    def linked(self) -> bool:
        """Whether the name still leads to this very segment."""
        return _inode(self.name) == self.inode


def unlink(name: str) -> bool:
    """Remove a name of /dev/shm; False if it was gone. Who has the segment mapped keeps its memory."""
    try:
        os.unlink(place.path_of(name))
    except FileNotFoundError:
        return False
    return True


def exists(name: str) -> bool:
    """Whether something has this name."""
    return _inode(name) is not None


def names(prefix: str) -> list[str]:
    """The regular files of /dev/shm whose names begin with `prefix`, whoever owns them, sorted."""
    with place.listing() as entries:
        return sorted(
            entry.name for entry in entries if entry.name.startswith(prefix) and entry.is_file(follow_symlinks=False)
        )


def remove_temporaries(prefix: str) -> list[str]:
    """Remove the temporary files of the dead whose names begin with `prefix` (of a bus), and return their names.

    Whoever still makes a segment holds a lock on its file.
    """
    removed = []
    for name in names(prefix + _TEMPORARY):
        with suppress(FileNotFoundError, BlockingIOError, AccessError):
            fd = open_file(name, os.O_RDONLY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if unlink(name):
                    removed.append(name)
            finally:
                os.close(fd)
    return removed


def descriptor(name: str) -> int:
    """A descriptor of a segment, to free and reserve its memory by; the caller closes it. Raises as `attach` does."""
    return open_file(name, os.O_RDWR)


def _link(temporary: str, name: str) -> bool:
    """Give the file its name; False if it has lost the temporary one. Raises FileExistsError."""
    path = place.path_of(name)
    try:
        os.link(temporary, path, follow_symlinks=False)
    except FileExistsError:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from None
    except FileNotFoundError:
        return False
    return True


def _temporary(name: str) -> str:
    """A path for what is to be `name`: of its bus, so that whoever removes that finds it; no ring and no channel."""
    bus = ":".join(name.removeprefix("sem.").split(":")[:2])
    return place.path_of(f"{bus}:{_TEMPORARY}{os.urandom(8).hex()}")


def open_file(name: str, access: int, *, create: bool = False, owner: int | None = None) -> int:
    """Open a regular file of `owner`, by default this effective user, in /dev/shm.

    Raises FileNotFoundError, NoSpaceError, AccessError, NoSharedMemoryError and ResourceLimitError.
    """
    path = place.path_of(name)
    try:
        # Non-blocking, for a FIFO under this name would hold the caller up before it can be refused.
        fd = descriptors.open_file(path, access | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_CREAT if create else 0))
    except OSError as error:
        if error.errno in _NOT_OURS and os.path.lexists(path):
            raise AccessError(error.errno, f"{os.strerror(error.errno)}{place.owner_of(path)}", path) from None
        raise place.refused(error, name, 0) from None
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
        raise AccessError(errno.EACCES, f"another user's segment: {place.uids_of(status)}", path)


def _inode(name: str) -> int | None:
    try:
        return os.lstat(place.path_of(name)).st_ino
    except FileNotFoundError:
        return None
