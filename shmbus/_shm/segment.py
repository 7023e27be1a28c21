"""Segments and the lock beside them: files of /dev/shm, made, mapped, found and removed.

A segment is the same POSIX object that `multiprocessing.shared_memory` uses, so `SharedMemory(name)` attaches
to it. The standard class is not used because its resource tracker unlinks segments of live peers (before
Python 3.13), a failed attach unlinks the owner's segment, an attacher can see size 0, and a write past what
/dev/shm can hold is SIGBUS.

May touch: files of /dev/shm and their maps. Knows nothing of what a segment holds.

Must stay true:
- A name leads to a segment that is whole: created nameless, its memory reserved, initialised, then linked
  into place in one step. A kill at any instant leaves either that or nothing.
- Nothing is mapped that is not a regular file of this effective user; no symlink is followed.
- No process but the one that acquired a `FileLock` can keep it, neither a dead one nor a forked child.

Outside the promise: a process of the same user (or root) that truncates a segment by hand; the next access to
the lost part is SIGBUS.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import signal
import stat
import sys
import threading
import time
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from shmbus.errors import (
    AccessError,
    ClosedError,
    ConfigError,
    CorruptSegmentError,
    LockTimeoutError,
    NoSpaceError,
)

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterator

SHM_DIR: Final = "/dev/shm"

# EFBIG: beyond RLIMIT_FSIZE, or beyond what any file can hold.
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EFBIG})
# What open() says of a symlink, a directory, a socket, another user's file.
_NOT_OURS: Final = frozenset({errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EACCES, errno.EPERM})

_FIRST_PAUSE: Final = 50e-6  # seconds; the order of what a change of the bus segment takes
_LONGEST_PAUSE: Final = 5e-3  # seconds; late enough to be cheap, early enough to go unnoticed


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
    def attach(cls, name: str, *, writable: bool = True) -> Segment:
        """Map an existing segment, all of it.

        Raises FileNotFoundError; AccessError for a symlink, another kind of file or another user's; and
        CorruptSegmentError for an empty file, which `create` cannot have made.
        """
        fd = _open(name, os.O_RDWR if writable else os.O_RDONLY)
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


class FileLock:
    """An exclusive lock on a file of /dev/shm, between threads and processes; the kernel frees it at a death.

    The file must exist; its name must still lead to it once it is locked, so the lock of a removed file is
    never taken for the lock of its successor. Not re-entrant. Threads that share an instance queue on it. In
    a forked child the lock is not held, even when `fork` was called under it.
    """

    def __init__(self, name: str) -> None:
        _path(name)
        self.name: Final = name
        self._reset()
        _locks.add(self)

    def _reset(self) -> None:
        self._turn = threading.Lock()
        self._file: io.FileIO | None = None

    def acquire(self, timeout: float, holder: Callable[[], str]) -> None:
        """Take the lock within `timeout` seconds, trying at least once.

        Raises LockTimeoutError, whose message ends in what `holder` returns (it is called for that alone),
        and FileNotFoundError when the file is gone.
        """
        deadline = time.monotonic() + timeout
        if self._turn.acquire(timeout=min(max(timeout, 0.0), threading.TIMEOUT_MAX)):
            try:
                if self._wait_until(deadline):
                    return
                self._let_go()
            except BaseException:
                self._let_go()
                raise
        raise LockTimeoutError(f"lock of {self.name} not free within {timeout:g} s, held by {holder()}")

    def try_acquire(self) -> bool:
        """Take the lock if it is free now; raises FileNotFoundError when the file is gone."""
        if not self._turn.acquire(blocking=False):
            return False
        try:
            taken = self._try_once()
        except BaseException:
            self._let_go()
            raise
        if not taken:
            self._let_go()
        return taken

    def release(self) -> None:
        """Free the lock; nothing happens where it is not held, as in a child forked under it."""
        file = self._file
        if file is None:
            return
        try:
            # Unlocked, not merely closed: a child that has not yet run its fork hook shares the descriptor.
            fcntl.flock(file, fcntl.LOCK_UN)
        finally:
            self._let_go()

    @contextmanager
    def held(self, timeout: float, holder: Callable[[], str]) -> Iterator[None]:
        """Hold the lock for the length of a `with` block; raises as `acquire` does."""
        self.acquire(timeout, holder)
        try:
            yield
        finally:
            self.release()

    def _wait_until(self, deadline: float) -> bool:
        pause = _FIRST_PAUSE
        while not self._try_once():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            _pause(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE)
        return True

    def _try_once(self) -> bool:
        """Lock through a new descriptor: one that is shared excludes nobody who shares it."""
        while True:
            with _no_fork:
                self._close()
                self._file = file = open(_path(self.name), "rb", buffering=0, opener=_opener)  # noqa: SIM115
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            inode = _inode(self.name)
            if inode == os.fstat(file.fileno()).st_ino:
                return True
            # Removed, perhaps created anew, since it was opened. If it is gone, opening says so.

    def _let_go(self) -> None:
        try:
            self._close()
        finally:
            self._turn.release()

    def _close(self) -> None:
        with _no_fork:
            file, self._file = self._file, None
            if file is not None:
                file.close()

    def _drop_in_child(self) -> None:
        """Give up what the parent holds: close, never unlock, as the open file is the parent's too."""
        self._close()
        self._reset()


_masks: Final = threading.local()


@contextmanager
def signals_held_off() -> Iterator[None]:
    """No signal handler of this thread runs, and raises, in between; it runs at the end.

    Python runs handlers in the main thread, wherever that is. With several threads another one may take the signal,
    and the handler comes all the same: what is half-done must be repairable too.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        _masks.before = before
        yield
    finally:
        _masks.before = None
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _pause(seconds: float) -> None:
    """Sleep, and let signals in if they are held off: nothing is half-done while a lock is waited for."""
    before = getattr(_masks, "before", None)
    if before is None:
        time.sleep(seconds)
        return
    held = signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        time.sleep(seconds)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


_locks: Final[weakref.WeakSet[FileLock]] = weakref.WeakSet()
# Held by fork(), and while a lock's file is opened or closed and that is noted, so that a child finds them
# all. Re-entrant: a signal handler may fork in between.
_no_fork: Final = threading.RLock()


def _after_fork_in_child() -> None:
    for lock in list(_locks):
        lock._drop_in_child()
    _no_fork.release()


os.register_at_fork(before=_no_fork.acquire, after_in_parent=_no_fork.release, after_in_child=_after_fork_in_child)


def unlink(name: str) -> bool:
    """Remove a name of /dev/shm; False if it was gone. Who has the segment mapped keeps its memory."""
    try:
        os.unlink(_path(name))
    except FileNotFoundError:
        return False
    return True


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


def _open(name: str, access: int) -> int:
    """Open a regular file of this user's in /dev/shm; raises FileNotFoundError and AccessError."""
    path = _path(name)
    try:
        # Non-blocking, for a FIFO under this name would hold the caller up before it can be refused.
        fd = os.open(path, access | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in _NOT_OURS:
            raise AccessError(error.errno, f"{os.strerror(error.errno)}{_owner(path)}", path) from None
        raise
    try:
        _require_ours(os.fstat(fd), path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _opener(path: str, _flags: int) -> int:
    return _open(os.path.basename(path), os.O_RDONLY)


def _require_ours(status: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise AccessError(errno.EACCES, f"not a regular file: mode={status.st_mode:o}", path)
    if status.st_uid != os.geteuid():
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
