"""Wake-up channels between processes: one sleeps on a named semaphore or FIFO, any other posts it.

A channel has a name such as `shmbus-shop:sub-3-12`. Its semaphore is the POSIX semaphore "/" + name, that is,
the file /dev/shm/sem.<name>; its FIFO, for a sleeper that awaits in an event loop, is /dev/shm/<name>.fifo.

posix_ipc posts. The sleeping end goes to the C library instead (glibc 2.30 or later; `_native/semaphores.c`), because
posix_ipc.Semaphore
- waits by the wall clock, so a clock set back prolongs a sleep;
- drops what a signal handler raises during a wait unless it is KeyboardInterrupt: `sys.exit` in a SIGTERM
  handler would be lost;
- unmaps the semaphore on close() under a thread that waits on it;
- creates by sem_open(), and a process killed inside that leaves /dev/shm/sem.XXXXXX, a file nobody can
  attribute.

May touch: semaphores and FIFOs of /dev/shm. Who is to be woken, and when, is not decided here.

Must stay true:
- A post is never lost while its sleeper lives; a superfluous one only ends a sleep early.
- Posting never blocks and never fails the caller: a wake-up that cannot be delivered is a sleep that runs its
  time.
- Names live as long as their bus. A name removed and made anew would leave a cached semaphore that wakes
  nobody.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar, cast

import posix_ipc

from shmbus import _core
from shmbus._log import logger
from shmbus._shm import descriptors, place
from shmbus._shm import segment as _segment
from shmbus.errors import AccessError, ClosedError, CorruptSegmentError, ForkedError

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logger("shmbus.bus")

_SEMAPHORE_PREFIX: Final = "sem."  # where sem_open() looks
_FIFO_SUFFIX: Final = ".fifo"
_MAX_SEMAPHORES: Final = 1024  # a page of memory each
_MAX_FIFOS: Final = 128  # a descriptor each, of the 1,024 that a process has by default
# Both ends open for reading too: the sleeper's FIFO never reports an end of file, and a write to the FIFO of
# a dead sleeper is no SIGPIPE, which kills a process that has set it to its default action.
_FIFO_FLAGS: Final = os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW

_T = TypeVar("_T")


class _Semaphore(Protocol):
    """What is used of posix_ipc.Semaphore."""

    def release(self) -> None: ...
    def close(self) -> None: ...


class Sleeper:
    """The sleeping end of a channel; the first of a name creates its semaphore, and any finds it at zero.

    One thread sleeps; any thread may `post` or `close`. In a forked child sleeping raises ForkedError, for it
    would swallow the wake-ups of the parent. Raises NoSpaceError and AccessError.
    """

    def __init__(self, name: str) -> None:
        self.name: Final = name
        self._pid = os.getpid()
        self._segment = _open_or_create(_SEMAPHORE_PREFIX + name)
        # Keeps the memory mapped for as long as anybody holds it, so that close() cannot pull it from under a
        # sleep.
        self._cell: memoryview | None = memoryview(self._segment.map)
        self._fifo: int | None = None
        self._lock = threading.RLock()  # a signal handler may close what this thread is opening
        self.drain()

    def sleep(self, seconds: float) -> bool:
        """Sleep until posted, but at most `seconds`: True when posted, False otherwise.

        A signal ends the sleep early, so that its handler runs and what it raises goes up. Raises ClosedError
        and ForkedError.
        """
        return _core.semaphore_wait(self._open_cell(), seconds)

    @property
    def memory(self) -> _core.Mapping:
        """The semaphore, for whoever sleeps on it by other means; raises ClosedError."""
        return self._segment.map

    def drain(self) -> int:
        """Take every post that has come in, and return how many; never waits."""
        return _core.semaphore_drain(self._open_cell())

    def post(self) -> None:
        """Wake this sleeper from within its own process."""
        _core.semaphore_post(self._open_cell())

    def fifo(self) -> int:
        """The descriptor that becomes readable when the FIFO is posted; made, and drained, at first use.

        It belongs to this object. Raises AccessError when something else has the name.
        """
        with self._lock:
            self._open_cell()
            found = self._fifo
            if found is None:
                found = _open_or_create_fifo(self.name + _FIFO_SUFFIX)
                _drain_fifo(found)
                self._fifo = found
            return found

    def duplicate_fifo(self) -> int:
        """A descriptor of the same that belongs to the caller: close() of another thread does not make its number
        another file's. Raises as `fifo` does, and ResourceLimitError.
        """
        with self._lock:
            try:
                return descriptors.duplicate(self.fifo())
            except OSError:
                self._open_cell()  # raises, if a signal handler has closed us in between
                raise

    def drain_fifo(self) -> None:
        """Make the FIFO unreadable until the next post; nothing happens where `fifo` was never called."""
        with self._lock:
            if self._fifo is not None:
                _drain_fifo(self._fifo)

    def close(self) -> None:
        """Close both ends and end a sleep in progress; the names stay. Idempotent."""
        cell, self._cell = self._cell, None
        if cell is None:
            return
        if os.getpid() != self._pid:
            self._lock = threading.RLock()  # another thread of the parent may have held it
        else:
            _core.semaphore_post(cell)
        del cell
        with self._lock:
            self._segment.close()
            if self._fifo is not None:
                os.close(self._fifo)
                self._fifo = None

    def _open_cell(self) -> memoryview:
        if os.getpid() != self._pid:
            raise ForkedError(f"{self.name} was opened by process {self._pid}, this is its fork {os.getpid()}")
        cell = self._cell
        if cell is None:
            raise ClosedError(f"{self.name} is closed")
        return cell


class Posts:
    """The posting ends of any number of channels, opened at first use and cached.

    For any number of threads. What was used longest ago is closed first. In a forked child the cache starts
    empty.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()  # a signal handler may publish, hence post, while this thread posts
        self._semaphores = _Cache(_open_semaphore, _close_semaphore, _MAX_SEMAPHORES)
        self._fifos = _Cache(_open_fifo, os.close, _MAX_FIFOS)

    def post(self, name: str) -> Callable[[], object] | None:
        """Wake who sleeps on the semaphore of `name`; None when it does not exist or cannot be opened.

        Returns what posts it again, for as long as it stays cached here; then that raises.
        """
        with self._own():
            semaphore = self._semaphores.get(name)
            if semaphore is None:
                return None
            with suppress(OSError):  # EOVERFLOW: of two thousand million posts it needs no more
                try:
                    semaphore.release()
                except posix_ipc.ExistentialError:  # a signal handler has closed us in between
                    _post_once(name)
                    return None
            return semaphore.release

    def post_fifo(self, name: str) -> bool:
        """Wake who awaits the FIFO of `name`; False when it does not exist or cannot be opened."""
        with self._own():
            fd = self._fifos.get(name)
            if fd is None:
                return False
            try:
                os.write(fd, b"\0")
            except BlockingIOError:  # full: its reader has enough to wake up for
                return True
            except OSError as error:
                if error.errno != errno.EBADF:  # a signal handler has closed us in between
                    raise
                return False
            return True

    def forget(self, name: str) -> None:
        """Close what is cached of `name`."""
        with self._own():
            self._semaphores.drop(name)
            self._fifos.drop(name)

    def close(self) -> None:
        """Close everything cached; a later post opens anew. Idempotent."""
        with self._own():
            self._semaphores.clear()
            self._fifos.clear()

    def _own(self) -> threading.RLock:
        """The lock; in a forked child a new one, and the inherited copies are closed."""
        if os.getpid() != self._pid:
            semaphores, fifos = self._semaphores, self._fifos
            self._begin()
            semaphores.clear()
            fifos.clear()
        return self._lock


class _Cache(Generic[_T]):
    """At most `most` open things by name; the one used longest ago makes room."""

    def __init__(self, open_: Callable[[str], _T | None], close: Callable[[_T], None], most: int) -> None:
        self._open = open_
        self._close = close
        self._most = most
        self._items: dict[str, _T] = {}  # in order of use

    def get(self, name: str) -> _T | None:
        item = self._items.pop(name, None)
        if item is None:
            item = self._open(name)
        if item is None:
            return None
        self._items[name] = item
        if len(self._items) > self._most:
            self.drop(next(iter(self._items)))
        return item

    def drop(self, name: str) -> None:
        item = self._items.pop(name, None)
        if item is not None:
            self._close(item)

    def clear(self) -> None:
        while self._items:
            self._close(self._items.popitem()[1])


def _post_once(name: str) -> None:
    semaphore = _open_semaphore(name)
    if semaphore is not None:
        try:
            semaphore.release()
        finally:
            _close_semaphore(semaphore)


def names(prefix: str) -> list[str]:
    """The channels whose names begin with `prefix`, sorted."""
    channels = {file.removeprefix(_SEMAPHORE_PREFIX).removesuffix(_FIFO_SUFFIX) for file in _files(prefix)}
    return sorted(channels)


def unlink_all(prefix: str) -> int:
    """Remove the semaphores and FIFOs of all channels whose names begin with `prefix`; returns how many."""
    return sum(_segment.unlink(file) for file in _files(prefix))


def _files(prefix: str) -> list[str]:
    with place.listing() as entries:
        return [entry.name for entry in entries if _is_end(entry, prefix)]


def _is_end(entry: os.DirEntry[str], prefix: str) -> bool:
    if entry.is_file(follow_symlinks=False):
        return entry.name.startswith(_SEMAPHORE_PREFIX + prefix)
    return entry.name.startswith(prefix) and entry.name.endswith(_FIFO_SUFFIX)


def _open_or_create(name: str) -> _segment.Segment:
    """The semaphore of that name; made only if there is none, for /dev/shm may be full."""
    while True:
        try:
            segment = _segment.Segment.attach(name)
        except FileNotFoundError:
            with suppress(FileExistsError):
                return _segment.Segment.create(name, _core.SEMAPHORE_BYTES, _core.semaphore_init)
            continue
        if segment.size < _core.SEMAPHORE_BYTES:
            need = _core.SEMAPHORE_BYTES
            raise CorruptSegmentError(f"semaphore {name} is too short: size={segment.size}, need {need}")
        return segment


def _open_semaphore(name: str) -> _Semaphore | None:
    try:
        return cast("_Semaphore", posix_ipc.Semaphore("/" + name))
    except posix_ipc.PermissionsError:
        _warn(os.geteuid())
        return None
    except (posix_ipc.Error, OSError, MemoryError):
        return None  # absent, another user's, no descriptor or no map left


@functools.cache
def _warn(uid: int) -> None:
    _log.warning("as uid %d this process can wake nobody on a bus that it opened as another user", uid)


def _close_semaphore(semaphore: _Semaphore) -> None:
    semaphore.close()


def _open_or_create_fifo(name: str) -> int:
    path = place.path_of(name)
    place.require_user(name)
    try:
        with suppress(FileExistsError):
            os.mkfifo(path, 0o600)
        fd = descriptors.open_file(path, _FIFO_FLAGS)
    except OSError as error:
        raise place.refused(error, name, 0) from None
    status = os.fstat(fd)
    if stat.S_ISFIFO(status.st_mode) and status.st_uid == os.geteuid():
        return fd
    os.close(fd)
    raise AccessError(
        errno.EACCES,
        f"not a FIFO of uid={os.geteuid()}: mode={status.st_mode:o}, owner uid={status.st_uid}",
        path,
    )


def _open_fifo(name: str) -> int | None:
    try:
        fd = descriptors.open_file(place.path_of(name + _FIFO_SUFFIX), _FIFO_FLAGS)
    except OSError:
        return None
    if stat.S_ISFIFO(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


def _drain_fifo(fd: int) -> None:
    with suppress(BlockingIOError):
        while os.read(fd, 65536):  # the whole of a pipe
            pass
