"""Parcels: how a call and its result become what fits into an event, whatever their size.

What is small is pickled into the event, or, where it is plain too, written without pickle (`_core.plain`). Large
buffers (NumPy arrays, bytearrays of `pickle.PickleBuffer`), and a pickle that is itself large, lie in a *block*: a
file of the bus in /dev/shm, or, where that has no room, one of the folder for temporary files. The receiver maps it,
and what it unpickles has its buffers there: no copy, writable, and valid for as long as anything refers to it.

May touch: files that begin with the prefix it was given. They are not extents of a topic's pool: those many look at, so
that they are read-only, and a task may write into what it was given.

Must stay true:
- A block is written by one process at a time: by its owner until the parcel is sent, then by who got it.
- A block is used again only when its receiver said that nothing refers to it, or is dead.
"""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import sys
import tempfile
import threading
from contextlib import suppress
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, Final

import msgspec

from shmbus import _core
from shmbus._shm import place
from shmbus.errors import NoSpaceError

if TYPE_CHECKING:
    from collections.abc import Sequence

INLINE: Final = 1 << 15
"""Bytes: what is larger does not go through a ring. A copy of so much costs about what a block in use does."""
REUSED: Final = 8 << 20
"""Bytes of the largest block that is used again, and kept mapped: a fresh page costs as much as to fill a warm one."""
KEPT: Final = 64 << 20
"""Bytes of blocks that an owner keeps for later, and that a receiver keeps mapped."""
_ALIGN: Final = 64  # a cache line, for who computes on it
_PROTOCOL: Final = 5


class Parcel(msgspec.Struct, array_like=True, frozen=True):
    """An object on its way. `cuts` are offsets and lengths in the block: first the pickle's, then each buffer's."""

    body: bytes
    path: str = ""
    size: int = 0
    cuts: tuple[int, ...] = ()


class Block:
    """A file that is mapped. Freed with the last reference to it and to the buffers that were taken from it."""

    __slots__ = ("map", "path", "size")

    def __init__(self, path: str, size: int, map: _core.Mapping) -> None:
        self.path = path
        self.size = size
        self.map = map

    def unlink(self) -> None:
        """Take its name away. Idempotent; who has it mapped keeps it."""
        with suppress(FileNotFoundError):
            os.unlink(self.path)


class Sender:
    """Makes parcels, and keeps the blocks that may be used again. Any number of threads; no lock while pickling."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._lock = threading.Lock()
        self._count = 0
        self._free: list[Block] = []

    def pack(self, thing: object, *, again: bool) -> tuple[Parcel, Block | None]:
        """The parcel of an object. `again`: its block will come back by `give_back`, once it may be used again.

        Raises what pickling raises, and NoSpaceError.
        """
        plain = _core.plain(thing)
        if plain is not None:
            return Parcel(plain), None
        buffers: list[memoryview] = []
        body = pickled(thing, buffers)
        if not buffers and len(body) <= INLINE:
            return Parcel(bytes(body)), None
        parts: list[memoryview] = [body, *buffers]
        cuts: list[int] = []
        end = 0
        for part in parts:
            cuts += (end, part.nbytes)
            end += -(-part.nbytes // _ALIGN) * _ALIGN
        size = max(end, 1)
        if again:
            block = self._block(size)
            for at, part in zip(cuts[::2], parts, strict=True):
                block.map[at : at + part.nbytes] = part
            return Parcel(b"", block.path, block.size, tuple(cuts)), block
        path, descriptor = self._create(size)
        try:
            for at, part in zip(cuts[::2], parts, strict=True):
                _write(descriptor, part, at)  # a page that is written whole need not be cleared first
        finally:
            os.close(descriptor)
        return Parcel(b"", path, size, tuple(cuts)), None

    def give_back(self, block: Block, *, free: bool) -> None:
        """A block whose parcel is done with; `free`: nothing refers to it any more."""
        if not free or block.size > REUSED:
            block.unlink()
            return
        with self._lock:
            self._free.append(block)
            while sum(one.size for one in self._free) > KEPT:
                self._free.pop(0).unlink()

    def _block(self, size: int) -> Block:
        with self._lock:
            fitting = [block for block in self._free if size <= block.size <= 4 * size]
            if fitting:
                found = min(fitting, key=lambda block: block.size)
                self._free.remove(found)
                return found
        room = 1 << (size - 1).bit_length() if size <= REUSED else size
        path, descriptor = self._create(room)
        try:
            return Block(path, room, _core.Mapping(descriptor, room, True))
        finally:
            os.close(descriptor)

    def _create(self, size: int) -> tuple[str, int]:
        with self._lock:
            self._count += 1
            name = f"{self._prefix}{self._count}"
        try:
            return _create(f"{place.SHM_DIR}/{name}", size)
        except NoSpaceError:
            return _create(f"{tempfile.gettempdir()}/{name}", size)


class Receiver:
    """Opens parcels, and keeps the blocks mapped that may come again. One thread at a time."""

    def __init__(self) -> None:
        self._maps: dict[str, _core.Mapping] = {}

    def load(self, parcel: Parcel, *, last: bool) -> Any:
        """The object. `last`: its block is this parcel's alone, and loses its name. Raises what unpickling does."""
        if not parcel.path:
            body = parcel.body
            return _core.unplain(body) if body[0] == _core.PLAIN else pickle.loads(body)
        view = memoryview(self._mapping(parcel, last))
        cuts = zip(parcel.cuts[::2], parcel.cuts[1::2], strict=True)
        pickled, *buffers = [view[at : at + length] for at, length in cuts]
        return pickle.loads(pickled, buffers=buffers)

    def _mapping(self, parcel: Parcel, last: bool) -> _core.Mapping:
        found = self._maps.pop(parcel.path, None)
        if found is None:
            descriptor = os.open(parcel.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                found = _core.Mapping(descriptor, parcel.size, True)
            finally:
                os.close(descriptor)
        if last:
            os.unlink(parcel.path)
        else:
            self._maps[parcel.path] = found  # the youngest
        return found

    def released(self, parcel: Parcel) -> bool:
        """Whether nothing refers to the block any more, so that it may be used again; keeps it mapped then."""
        found = self._maps.pop(parcel.path, None)
        if found is None:
            return not parcel.path
        if sys.getrefcount(found) > 2:  # a buffer refers to it; ours and the argument's are two
            return False
        if parcel.size <= REUSED:
            self._maps[parcel.path] = found
            while sum(map(len, self._maps.values())) > KEPT:
                del self._maps[next(iter(self._maps))]
        return True


def pickled(thing: object, buffers: list[memoryview]) -> memoryview:
    """The pickle of an object, by the reducers of `multiprocessing`; its large buffers are put into `buffers`."""

    def keep(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < INLINE:
            return True
        buffers.append(raw)
        return False

    file = io.BytesIO()
    pickler = pickle.Pickler(file, _PROTOCOL, buffer_callback=keep)
    pickler.dispatch_table = _reducers()
    pickler.dump(thing)
    return file.getbuffer()


_table: dict[type, Any] = {}
_sizes = (0, 0)


def _reducers() -> dict[type, Any]:
    """Those of `copyreg` and of `multiprocessing`, made anew when one of the two has more."""
    global _table, _sizes
    own: dict[type, Any] = ForkingPickler._extra_reducers  # type: ignore[attr-defined]
    sizes = len(copyreg.dispatch_table), len(own)
    if sizes != _sizes:
        _table, _sizes = {**copyreg.dispatch_table, **own}, sizes
    return _table


def remove(prefix: str, known: Sequence[str] = ()) -> None:
    """Unlink what begins with the prefix, of a sender that died."""
    for folder in (place.SHM_DIR, tempfile.gettempdir()):
        for name in os.listdir(folder):
            if name.startswith(prefix) and f"{folder}/{name}" not in known:
                Block(f"{folder}/{name}", 0, None).unlink()  # type: ignore[arg-type]


def _create(path: str, size: int) -> tuple[str, int]:
    """A new file of that size, all of it there; its descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)  # or a store into it could be SIGBUS
    except OSError as error:
        os.close(descriptor)
        os.unlink(path)
        status = os.statvfs(os.path.dirname(path))
        raise NoSpaceError(error.errno or 0, os.path.basename(path), size, status.f_bavail * status.f_frsize) from None
    return path, descriptor


def _write(descriptor: int, part: memoryview, at: int) -> None:
    flat = part.cast("B") if part.nbytes else part
    done = 0
    while done < part.nbytes:
        done += os.pwrite(descriptor, flat[done:], at + done)
