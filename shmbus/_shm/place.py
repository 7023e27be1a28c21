"""/dev/shm itself: its names, its room, and what it refuses, in words that say what to do.

May touch: nothing; it looks at /dev/shm and at the limits of this process.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from shmbus._shm import descriptors
from shmbus._shm.names import parse
from shmbus.errors import (
    AccessError,
    ConfigError,
    NoSharedMemoryError,
    NoSpaceError,
    ResourceLimitError,
    ShmbusError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SHM_DIR: Final = "/dev/shm"

# EFBIG: beyond RLIMIT_FSIZE, or beyond what any file can hold.
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EFBIG})

_PIECE: Final = 4 << 20  # bytes; a millisecond of zeroing, less than what profilers leave between two signals
_users: Final[set[int]] = set()  # whom this process was when it mapped segments: it may have dropped privileges since


def path_of(name: str) -> str:
    """The path of a name of /dev/shm; names may come from a segment, so none leads out of the directory."""
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        raise ConfigError(f"not a name of {SHM_DIR}: name={name!r}")
    return f"{SHM_DIR}/{name}"


def free_bytes() -> int:
    """Bytes that /dev/shm can still take."""
    status = os.statvfs(SHM_DIR)
    return status.f_bavail * status.f_frsize


@contextmanager
def listing() -> Iterator[Iterator[os.DirEntry[str]]]:
    """What lies in /dev/shm. Raises NoSharedMemoryError, AccessError and ResourceLimitError."""
    try:
        entries = os.scandir(SHM_DIR)
    except OSError as error:
        require()
        raise refused(error, "", 0) from None
    with entries:
        yield entries


def require() -> None:
    """Raise NoSharedMemoryError where there is no /dev/shm at all."""
    if not os.path.isdir(SHM_DIR):
        advice = f"mount a tmpfs there: mount -t tmpfs -o size=1g shm {SHM_DIR}"
        raise NoSharedMemoryError(errno.ENOENT, f"{SHM_DIR} is not there, or no directory ({advice})")


def refused(error: OSError, name: str, size: int) -> OSError:
    """What the operating system says of making `name` (of `size` bytes), in our own words where it is one of ours."""
    if isinstance(error, (ShmbusError, FileExistsError)):
        return error
    if error.errno == errno.ENOENT:
        require()
    if error.errno in _NO_SPACE:
        return NoSpaceError(error.errno or 0, name, size, free_bytes())
    if error.errno == errno.EROFS:
        return NoSharedMemoryError(error.errno, f"{SHM_DIR} is mounted read-only (mount -o remount,rw {SHM_DIR})")
    if error.errno in (errno.EACCES, errno.EPERM):
        status = os.stat(SHM_DIR)
        advice = f"mode={stat.S_IMODE(status.st_mode):o}, owner uid={status.st_uid}, own uid={os.geteuid()}"
        return AccessError(error.errno, f"{SHM_DIR} lets this user make no file: {advice}; chmod 1777 {SHM_DIR}", name)
    return descriptors.explained(error)


def reserve(fd: int, size: int, holes: Sequence[tuple[int, int]] = ()) -> None:
    """Give a file its memory, in pieces: a signal makes the kernel undo the one that it is at, and begin it again.

    Beyond RLIMIT_FSIZE the kernel sends SIGXFSZ, which kills where Python does not ignore it: so that is never asked.
    """
    most, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if most != resource.RLIM_INFINITY and size > most:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    status = os.fstatvfs(fd)
    wanted = size - sum(end - start for start, end in holes)
    if status.f_blocks and wanted > status.f_bavail * status.f_frsize:  # not to take first from others what there is
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if holes:
        os.ftruncate(fd, size)
    edges = [0, *(edge for hole in holes for edge in hole), size]
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        for start in range(begin, end, _PIECE):
            os.posix_fallocate(fd, start, min(_PIECE, end - start))


def unmappable(error: OSError, name: str, size: int) -> OSError:
    """Which limit it is that keeps `size` bytes from being mapped."""
    for code, limit, number, option in (
        (errno.EAGAIN, "RLIMIT_MEMLOCK", resource.RLIMIT_MEMLOCK, "-l"),
        (errno.ENOMEM, "RLIMIT_AS", resource.RLIMIT_AS, "-v"),
    ):
        soft = resource.getrlimit(number)[0]
        if error.errno == code and soft != resource.RLIM_INFINITY:
            advice = f"{size} bytes of {name} cannot be mapped: ulimit {option}"
            return ResourceLimitError(code, limit, soft, advice)
    if error.errno != errno.ENOMEM:
        return error
    most = -2
    with suppress(OSError, ValueError), open("/proc/sys/vm/max_map_count", encoding="ascii") as file:
        most = int(file.read())
    advice = f"{size} bytes of {name} cannot be mapped: sysctl vm.max_map_count, or memory itself"
    return ResourceLimitError(errno.ENOMEM, "vm.max_map_count", most, advice)


def require_user(name: str) -> None:
    """Raise AccessError for an object of another user's bus: this process has dropped its privileges since."""
    found = parse(name.removeprefix("sem."))
    if found is not None and found[1] != os.geteuid():
        raise AccessError(errno.EACCES, _whose(found[1]), path_of(name))


def note_user() -> None:
    """This process has opened something as the user that it is now."""
    _users.add(os.geteuid())


def owner_of(path: str) -> str:
    """Whose file it is and who we are, in parentheses; '' if it is gone."""
    try:
        status = os.lstat(path)
    except OSError:
        return ""
    kind = "symlink, " if stat.S_ISLNK(status.st_mode) else ""
    return f" ({kind}{uids_of(status)})"


def uids_of(status: os.stat_result) -> str:
    """Whose file it is and who we are."""
    return _whose(status.st_uid)


def _whose(owner: int) -> str:
    own = os.geteuid()
    if owner != own and owner in _users:
        return f"opened as uid {owner}, now uid {own}: open the bus after dropping privileges"
    return f"owner uid={owner}, own uid={own}"
