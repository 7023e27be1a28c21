"""The lives file of a bus: who lives, and the bus lock. Both are POSIX record locks, which the kernel gives a process
and takes from it at its death and at an exec, whatever its namespaces, its privileges and who may look at it.

Each process that takes part locks one byte of the file, its life; a free byte is a death, a locked one is a life, and
nothing else is proof. Another byte is the bus lock. Who has to wait for that queues: it locks a byte of its own behind
all that queue, and sleeps until the one before it has let go (line.c).

May touch: the lives file. Knows nothing of buses, participants and documents.

Must stay true:
- Closing *any* descriptor of the file frees all locks of this process there. So a process has one object a file,
  whatever opens it; descriptors are closed with the last user of that object, and by nobody else.
- A life is a number that is never used twice on a bus, so a byte that is free stays free.
- The lock is the kernel's: words of the file order those who wait, and a word that lies costs time, nothing else.
- Whoever is stopped while it queues is passed over: by who queues behind it, who only tries a second time, then by all.
- A thread that comes back for a lock that it holds (a signal handler, a finaliser, a callback) is told at once.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from shmbus import _core, _log
from shmbus._core import leave_turn
from shmbus._shm import place, processes, segment, signals
from shmbus.errors import AccessError, ClosedError, LockTimeoutError, NoSpaceError, ReclaimedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LOCK: Final = _core.LIVES_LOCK
_LIFE: Final = _core.LIVES_LIFE
_LINE: Final = _core.LIVES_LINE
_TICKETS: Final = 1 << 60
_TO_THE_END: Final = 0  # a length

_HEAD_SLEEP: Final = 0.02  # seconds; the first in line looks again after it: a holder that died wakes nobody
_PASS_OVER: Final = 0.3  # seconds that a loaded machine may take to run who is first in line
_LINE_SLEEP: Final = 0.1  # the others, whose turn comes when the one before them has woken them
_IN_VAIN: Final = 1.0  # a wait that tells of those to come: who was shorter may just have met somebody busy

_FLOCK: Final = struct.Struct("hhqqi4x")  # struct flock, of every 64-bit Linux
_REFUSED: Final = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP})


class LockHeldError(LockTimeoutError):
    """This very thread holds the bus lock: it was interrupted by a signal handler, finaliser or callback under it."""


class Lives:
    """One lives file, as this process has it open. Made by `open` alone; every `open` wants its `close`."""

    def __init__(self, name: str, descriptor: int, key: tuple[int, int], *, writable: bool) -> None:
        self.name: Final = name
        self.key: Final = key
        self.writable = writable
        self._descriptor = descriptor
        self._others: list[int] = []  # of the same file, to be closed with it and not before
        self._map: _core.Mapping | None = None
        self._users = 1
        self._life = 0
        self._turn = threading.Lock()
        self._owner = 0  # the thread that has the turn
        self._deferred: deque[Callable[[], None]] = deque()
        self._let_lie = (-1, 0.0)  # since when the lock was seen free, with whom next in line
        self.held_up = False
        """The last long wait for the lock was in vain: who only wants to leave need not wait again."""

    @classmethod
    def open(cls, name: str, *, create: bool = False, writable: bool = True, owner: int | None = None) -> Lives:
        """The file of that name, made if need be.

        Raises FileNotFoundError (without `create`), AccessError, NoSpaceError.
        """
        with _opening:
            found = cls._known(name)
            if found is None or (writable and not found.writable):
                found = cls._open(name, create=create, writable=writable, owner=owner)
            else:
                found._users += 1
            return found

    @classmethod
    def _known(cls, name: str) -> Lives | None:
        try:
            status = os.stat(f"{place.SHM_DIR}/{name}", follow_symlinks=False)
        except FileNotFoundError:
            return None
        return _files.get((status.st_dev, status.st_ino))

    @classmethod
    def _open(cls, name: str, *, create: bool, writable: bool, owner: int | None) -> Lives:
        descriptor = segment.open_file(name, os.O_RDWR if writable else os.O_RDONLY, create=create, owner=owner)
        status = os.fstat(descriptor)
        key = (status.st_dev, status.st_ino)
        found = _files.get(key)
        if found is not None:  # a descriptor more, which must stay open as long as the others
            found._others.append(found._descriptor)
            found._descriptor = descriptor
            if writable and found._map is None:
                found.writable, found._map = True, _core.Mapping(descriptor, _core.LIVES_BYTES, True)
            found._users += 1
            return found
        try:
            if create:
                os.posix_fallocate(descriptor, 0, _core.LIVES_BYTES)
            elif status.st_size < _core.LIVES_BYTES:  # by somebody who is just making it, or who died then
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
            found = cls(name, descriptor, key, writable=writable)
            if writable:
                found._map = _core.Mapping(descriptor, _core.LIVES_BYTES, True)
        except OSError as error:
            os.close(descriptor)
            if create and status.st_size == 0:
                segment.unlink(name)
            if error.errno == errno.ENOSPC:
                raise NoSpaceError(errno.ENOSPC, name, _core.LIVES_BYTES, place.free_bytes()) from None
            raise
        _files[key] = found
        return found

    def close(self) -> None:
        """Let go of one `open`; with the last one the file is closed, and this process's locks in it are gone."""
        with _opening:
            self._users -= 1
            if self._users == 0:
                _files.pop(self.key, None)
                self._close()

    def _close(self) -> None:
        mapped, self._map = self._map, None
        if mapped is not None:
            mapped.close()  # another thread may wait for the lock: unmapped when it has let go
        for descriptor in (self._descriptor, *self._others):
            if _is(descriptor, self.key):  # somebody may have closed it, and the number be another file's by now
                os.close(descriptor)
        self._descriptor = -1
        self._others.clear()

    def linked(self) -> bool:
        """Whether the name still leads to this very file."""
        try:
            status = os.stat(f"{place.SHM_DIR}/{self.name}", follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) == self.key

    @property
    def shared(self) -> bool:
        """True while somebody else in this process has it open too."""
        return self._users > 1

    # -- lives

    @property
    def life(self) -> int:
        """This process's, 0 before `begin`."""
        return self._life

    def begin(self, life: int) -> bool:
        """Lock a byte for as long as this process lives, does not exec, and has the file open; False if it is taken."""
        if not self._try(_LIFE + life):
            return False
        self._life = life
        return True

    def end(self) -> None:
        """Give up this process's life. Idempotent."""
        life, self._life = self._life, 0
        if life and self._open_here():
            self._set(fcntl.F_UNLCK, _LIFE + life)

    def holder(self, life: int) -> int | None:
        """Who holds a life: its pid as seen from this namespace, 0 if it cannot be seen from here, None for nobody."""
        if not 0 < life < _LINE - _LIFE:  # out of a segment that lies
            return None
        if life == self._life:
            return os.getpid()
        return self._find(_LIFE + life, 1)

    def alive(self, life: int) -> bool:
        """Whether the process of that life still is what it was."""
        return self.holder(life) is not None

    def lost(self) -> bool:
        """True if this process had a life and holds it no longer: something closed a descriptor of the file."""
        if not self._life:
            return False
        if not self._open_here():
            return True
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _LIFE + self._life, 1, 0)
        answer = fcntl.fcntl(self._descriptor, fcntl.F_OFD_GETLK, asked)  # type: ignore[attr-defined, unused-ignore]
        return bool(_FLOCK.unpack(answer)[0] == fcntl.F_UNLCK)

    def _open_here(self) -> bool:
        """Whether the descriptor still is one of this file: somebody may have closed it, and the number been reused."""
        return _is(self._descriptor, self.key)

    def why_lost(self) -> str:
        """The sentence for a process that lives and has lost the proof of it."""
        return (
            f"this process no longer holds its byte of {self.name}: something closed a descriptor of that file"
            " (os.closerange, or a library that makes a daemon of the process): open the bus after that"
        )

    # -- the bus lock

    @contextmanager
    def locked(self, timeout: float, holder: Callable[[], str], ended: Callable[[], bool] = bool) -> Iterator[None]:
        """Hold the bus lock, with signals held off; they are let in while it is waited for.

        Whoever came first is first. Raises LockTimeoutError, whose message ends in what `holder` returns, after
        `timeout` seconds or once `ended` is true, and LockHeldError, which is one, at once in a thread that has it.
        """
        if self._owner == threading.get_ident():
            raise LockHeldError(f"lock of {self.name}: this very thread holds it, and was interrupted under it")
        if self._descriptor < 0:
            raise ClosedError(f"{self.name} is closed")
        if not self._open_here():
            raise ReclaimedError(self.why_lost())
        try:
            with signals.held_off():
                try:
                    taken = self._acquire(time.monotonic() + timeout, ended)
                    self.held_up = not taken and (self.held_up or (timeout >= _IN_VAIN and not ended()))
                    if not taken:
                        raise LockTimeoutError(f"lock of {self.name} not free within {timeout:g} s, held by {holder()}")
                    yield
                finally:
                    # One call into C, nothing before it: with several threads, a handler may raise between any two.
                    leave_turn(self)
        finally:  # also where who was interrupted finds its handle closed
            try:
                self._run_deferred()
            finally:
                _log.tell()

    def defer(self, departure: Callable[[], None]) -> None:
        """Have something done once this thread, which holds the lock, has let go of it."""
        self._deferred.append(departure)

    def lock_holder(self) -> int | None:
        """The pid, as `holder` gives it, of the process that has the bus lock; None if nobody else has."""
        return self._find(_LOCK, 1)

    def _acquire(self, deadline: float, ended: Callable[[], bool]) -> bool:
        while not _core.take_turn(self):
            seen = _core.load(self._words(), _core.LIVES_RELEASES)
            left = deadline - time.monotonic()
            if left <= 0 or ended():
                return False
            if self._turn.locked():
                self._sleep(seen, min(left, _LINE_SLEEP), 1 << _core.LINE_THREADS)
        return self._take() or self._queue(deadline, ended)

    def _sleep(self, seen: int, seconds: float, bits: int) -> None:
        with signals.let_in():
            _core.await_change(self._words(), _core.LIVES_RELEASES, seen, seconds, bits)

    def _take(self) -> bool:
        """Without queueing: if nobody queues, or who is next has let the lock lie since an earlier try."""
        next, now = self._next(), time.monotonic()
        if self._find(_LINE + next, _TO_THE_END) is not None:
            if self._find(_LOCK, 1) is None and self._let_lie[0] != next:
                self._let_lie = next, now
            if self._let_lie[0] != next or now - self._let_lie[1] <= _PASS_OVER:
                return False
        return self._try(_LOCK)

    def _next(self) -> int:
        """The ticket behind all that had the lock, or were passed over."""
        next = _core.load(self._words(), _core.LIVES_NEXT)
        return next if next <= _core.load(self._words(), _core.LIVES_TICKETS) < _TICKETS else 0  # a word that lies

    def _queue(self, deadline: float, ended: Callable[[], bool]) -> bool:
        """Wait in line; False at the deadline."""
        words = self._words()
        if time.monotonic() >= deadline:
            return False
        while not self._try(_LINE + (ticket := _core.fetch_add(words, _core.LIVES_TICKETS, 1) % _TICKETS)):
            pass  # a word that lies: another one has that number
        try:  # its byte is freed with the lock, by `leave_turn`
            return self._stand(ticket, deadline, ended)
        finally:  # whoever stands behind us, if we give up, is woken by us, since nobody else would
            _core.wake(words, _core.LIVES_RELEASES, _bit(ticket + 1))

    def _stand(self, ticket: int, deadline: float, ended: Callable[[], bool]) -> bool:
        words = self._words()
        free_since = 0.0
        while True:
            seen = _core.load(words, _core.LIVES_RELEASES)  # before the look: a release after it ends the sleep
            next = self._next()
            first = ticket <= next or self._find(_LINE + next, ticket - next) is None
            free = self._find(_LOCK, 1) is None
            now = time.monotonic()
            free_since = (free_since or now) if free else 0.0
            # Free for so long: the first in line does not come to take it (SIGSTOP, a debugger).
            if free and (first or now - free_since > _PASS_OVER) and self._try(_LOCK):
                _core.store(words, _core.LIVES_NEXT, max(ticket + 1, self._next()))
                return True
            left = deadline - now
            if left <= 0 or ended():
                return False
            self._sleep(seen, min(left, _HEAD_SLEEP if first or free else _LINE_SLEEP), _bit(ticket))

    def _run_deferred(self) -> None:
        while self._deferred and self._owner != threading.get_ident():
            try:
                departure = self._deferred.popleft()
            except IndexError:  # another thread took it
                return
            departure()

    # -- the kernel

    def _words(self) -> _core.Mapping:
        if self._map is None:
            raise ClosedError(f"{self.name} is closed")
        return self._map

    def _try(self, byte: int) -> bool:
        try:
            self._set(fcntl.F_WRLCK, byte)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def _set(self, kind: int, byte: int) -> None:
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))
        except OSError as error:
            raise _refused(error, self.name) from None

    def _find(self, first: int, length: int) -> int | None:
        """The pid of another process with a lock in a range, 0 if it cannot be seen from here, None for none."""
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, first, length, 0)
        try:
            kind, *_, pid = _FLOCK.unpack(fcntl.fcntl(self._descriptor, fcntl.F_GETLK, asked))
        except OSError as error:
            raise _refused(error, self.name) from None
        return None if kind == fcntl.F_UNLCK else max(pid, 0)


def _bit(ticket: int) -> int:
    """Which of a futex's bits a ticket waits under: whoever is woken in vain looks, and sleeps on."""
    return 1 << ticket % _core.LINE_THREADS


def _is(descriptor: int, key: tuple[int, int]) -> bool:
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == key


def describe_holder(lives: Lives) -> str:
    """Who has the bus lock, for a message."""
    pid = lives.lock_holder()
    if pid is None:
        return "a process that has just let go, or another thread of this one"
    return f"process {pid} ({processes.describe(pid) or '?'})" if pid else "a process of another PID namespace"


def _refused(error: OSError, name: str) -> OSError:
    if error.errno in _REFUSED:
        said = f"the file system of {place.SHM_DIR} refuses record locks: {error.strerror}"
        return AccessError(error.errno, said, name)
    return error


_files: Final[dict[tuple[int, int], Lives]] = {}
_log.silent_while(lambda: any(lives._owner == threading.get_ident() for lives in list(_files.values())))
# Held by fork(), so that a child finds all files; re-entrant, for a signal handler may fork or open in between.
_opening: Final = threading.RLock()


def _after_fork_in_child() -> None:
    """The child has none of the locks; closing its descriptors takes none from the parent."""
    for lives in _files.values():
        lives._life = 0
        lives._turn = threading.Lock()
        lives._owner = 0
        lives._deferred.clear()
        lives._close()
    _files.clear()
    _opening.release()


os.register_at_fork(before=_opening.acquire, after_in_parent=_opening.release, after_in_child=_after_fork_in_child)
