"""Words: what the processes of one queue share beside its bus. Flags, where who waits sleeps, and a slot a process.

Layout      a header; a line each for shutdown, room and ends; `used` and the words of `putting`; a word a slot.
Writers     header: creator. shut: anybody, bits are only set. room, ends: anybody, by adding. `putting`: each
            process its own bit. `open`: each its own word. Bit and word of the dead: whoever has locked their slot.
Invariants  S1  a slot is of the process that holds the record lock on its byte of the file; a free byte is nobody's,
                and what its bit and word say counts for nothing.
            S2  nothing here says how much is in the queue: that is for the claim words of its rings alone.
Crash order A slot is locked, emptied, then used. A bit is set before room is looked for and taken back after the put:
            a death in between leaves a bit of nobody.

Closing any descriptor of the file frees the locks of this process there: so a process has one, its children inherit it,
and lock through it what is theirs.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
from typing import TYPE_CHECKING, Final

from shmbus import _core
from shmbus._shm import segment
from shmbus._shm.segment import Segment
from shmbus.errors import CapacityError, ConfigError, CorruptSegmentError, LayoutMismatchError

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAGIC: Final = int.from_bytes(b"shmqueue", "little")
_VERSION: Final = 2
SLOTS: Final = 4096
"""Processes of one queue, as many as a bus will have participants."""

SHUT: Final = 64
ROOM, ROOM_AWAITED = 128, 136
ENDS, ENDS_AWAITED = 192, 200
_USED: Final = 256
_PUTTING: Final = 320
_OPEN: Final = 1024
_BYTES: Final = _OPEN + 8 * SLOTS
_SLOT_BYTES: Final = 1 << 20  # where the bytes begin that are locked, behind all words

NO_PUTS, DISCARDED, ENDING = 1, 2, 4
"""Bits of SHUT: nothing more may be put; nothing is to be got any more; the last has been got."""

_ALL: Final = 2**64 - 1


class Words:
    """The shared words of one queue, mapped; and the slot of this process, once it needs one."""

    def __init__(self, mapped: Segment, descriptor: int) -> None:
        self._segment: Final = mapped
        self.map: Final = mapped.map
        self.quick: Final = memoryview(mapped.map).cast("Q")
        """The same words for a look whose order does not matter."""
        self._descriptor: Final = descriptor
        self._identity: Final = _identity(descriptor)
        self._slot = -1
        self._putting = self._bit = self._used = 0
        self._taking = threading.Lock()

    @classmethod
    def open(cls, name: str, maxsize: int, tasks: int, *, create: bool) -> Words:
        """Map the words of a queue, or make them. Raises ConfigError where the queue is of another kind.

        Raises FileNotFoundError too, and what `Segment` raises.
        """

        def initialise(memory: _core.Mapping) -> None:
            struct.pack_into("<4Q", memory, 0, _MAGIC, _VERSION, maxsize, tasks)

        while True:
            try:
                mapped = Segment.attach(name)
                break
            except FileNotFoundError:
                if not create:
                    raise
            try:
                mapped = Segment.create(name, _BYTES, initialise)
                break
            except FileExistsError:
                continue
        descriptor = -1
        try:
            _check(mapped, maxsize, tasks)
            descriptor = segment.descriptor(name)
            return cls(mapped, descriptor)
        except BaseException:
            mapped.close()
            if descriptor >= 0:
                os.close(descriptor)
            raise

    def close(self) -> None:
        """Give up the slot and the memory, unless a wait of another thread has it."""
        self.quick.release()
        self._segment.close()
        if self._ours():
            os.close(self._descriptor)

    def forked(self) -> None:
        """In a child: the slot is the parent's."""
        self._slot = -1
        self._taking = threading.Lock()

    # -- slots

    @property
    def slot(self) -> int:
        """That of this process; the first look takes one. Raises CapacityError."""
        return self._slot if self._slot >= 0 else self._take()

    def _take(self) -> int:
        with self._taking:
            if self._slot >= 0:
                return self._slot
            if not self._ours():
                raise CorruptSegmentError("a descriptor of this queue was closed by other code of this process")
            for slot in range(SLOTS):
                if self._lock(slot):
                    self._empty(slot)
                    self._used = 1 << slot // 64
                    _core.fetch_or(self.map, _USED, self._used)
                    self._putting, self._bit = _putting(slot), 1 << slot % 64
                    self._slot = slot
                    return slot
        raise CapacityError(f"{SLOTS} processes use this queue, and it has room for no more", table="slots")

    def _empty(self, slot: int) -> None:
        _core.fetch_and(self.map, _putting(slot), _ALL ^ (1 << slot % 64))
        _core.store(self.map, _OPEN + 8 * slot, 0)

    def _lock(self, slot: int) -> bool:
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _SLOT_BYTES + slot)
        except OSError:
            return False
        return True

    def bury(self) -> None:
        """Empty the slots of the dead, each while we have it locked: so nobody takes it meanwhile."""
        for word in self._words():
            for slot in range(64 * word, 64 * word + 64):
                at = _OPEN + 8 * slot
                marked = _core.load(self.map, _putting(slot)) >> slot % 64 & 1 or _core.load(self.map, at)
                if marked and slot != self._slot and self._lock(slot):
                    self._empty(slot)
                    fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, _SLOT_BYTES + slot)

    def _words(self) -> Iterator[int]:
        used = _core.load(self.map, _USED)
        while used:
            bit = used & -used
            used ^= bit
            yield bit.bit_length() - 1

    # -- who is about to put

    def begin_put(self) -> int:
        """Say that this process is about to put one; returns how many others are. Before a look at the depth."""
        if self._slot < 0:
            self._take()
        bit = self._bit
        others = (_core.fetch_or(self.map, self._putting, bit) & ~bit).bit_count()
        if self.quick[_USED // 8] != self._used:  # there are more words than ours
            for word in self._words():
                if _PUTTING + 8 * word != self._putting:
                    others += _core.load(self.map, _PUTTING + 8 * word).bit_count()
        return others

    def own_bit(self) -> tuple[int, int, int, int]:
        """For who does the same in C: where the bit of this process is, which, where the words are named that have any,
        and what is there while that of ours is the only one.
        """
        if self._slot < 0:
            self._take()
        return self._putting, self._bit, _USED, self._used

    def end_put(self) -> None:
        """It is in, or will not be."""
        _core.fetch_and(self.map, self._putting, _ALL ^ self._bit)

    # -- tasks that were got and are not done

    def set_open(self, count: int) -> None:
        """How many this process has."""
        _core.store(self.map, _OPEN + 8 * self.slot, count)

    def open_tasks(self) -> int:
        """How many all have. After a look at the depth: what is got is here before it is gone from there."""
        slots = (slot for word in self._words() for slot in range(64 * word, 64 * word + 64))
        return sum(_core.load(self.map, _OPEN + 8 * slot) for slot in slots)

    # -- waiting

    def shut(self, bits: int) -> int:
        """Set bits of SHUT; returns what it was."""
        return _core.fetch_or(self.map, SHUT, bits)

    def awaiting(self, at: int) -> int:
        """To be called before the last look before a wait at ROOM or ENDS: what to hand to it."""
        seen = _core.load(self.map, at)
        _core.store(self.map, at + 8, 1)
        return seen

    def wait(self, at: int, seen: int, seconds: float) -> None:
        """Sleep until somebody tells."""
        _core.await_change(self.map, at, seen, seconds, 1)

    def tell(self, at: int) -> None:
        """Wake all that wait there, if any do."""
        if _core.load(self.map, at + 8):
            _core.store(self.map, at + 8, 0)
            _core.fetch_add(self.map, at, 1)
            _core.wake(self.map, at, 1)

    # --

    def _ours(self) -> bool:
        try:
            return _identity(self._descriptor) == self._identity
        except OSError:
            return False


def _putting(slot: int) -> int:
    return _PUTTING + slot // 64 * 8


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _check(mapped: Segment, maxsize: int, tasks: int) -> None:
    if mapped.size != _BYTES:
        raise LayoutMismatchError(f"{mapped.name} is no queue of this version: {mapped.size} bytes")
    magic, version, has, kind = struct.unpack_from("<4Q", mapped.map)
    if (magic, version) != (_MAGIC, _VERSION):
        raise LayoutMismatchError(f"{mapped.name} is no queue of this version: {magic=:#x}, {version=}")
    if has != maxsize:
        raise ConfigError(f"the queue exists with another maxsize: {has}, not {maxsize}")
    if kind != tasks:
        names = TASKS[kind] if kind < len(TASKS) else kind
        raise ConfigError(f"the queue exists as another kind: {names}, not {TASKS[tasks]}")


TASKS: Final = ("Queue", "JoinableQueue", "redeliver=True")
"""What becomes of an event that was got: it is done, done once somebody says so, or comes again otherwise."""
NONE, COUNTED, CLAIMED = range(3)
