"""The bus segment: identity, the lock, and the registry document, changed as a whole and read without the lock.

May touch: the bus segment and its lock; no ring, no semaphore.

Must stay true:
- The document is kept twice. Slot `version & 1` is valid; a change is written whole into the other, then `version` is
  stored, then the epochs of the topics concerned are bumped (SYNC document, SYNC epoch). A death before the store of
  `version` leaves the old document, a death after it the new one.
- Changes happen under the lock only. `holder` names the process inside; whoever finds it set on entry knows that its
  predecessor died inside, and bumps every epoch, for the document may be newer than the epochs.
- A segment gets its name after it was filled in, so an attacher never sees half a bus.
"""

from __future__ import annotations

import os
import struct
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from shmbus import _core
from shmbus._ledger import slots
from shmbus._ledger.audit import Audit
from shmbus._ledger.document import Document
from shmbus._shm import processes, waker
from shmbus._shm.failpoint import reach
from shmbus._shm.lives import Lives, describe_holder
from shmbus._shm.names import object_prefix, segment_name
from shmbus._shm.segment import Segment, names, unlink
from shmbus.errors import (
    BusNotFoundError,
    CapacityError,
    ClosedError,
    CorruptSegmentError,
    LayoutMismatchError,
    ShmbusError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shmbus._ledger.document import Membership, Section

LOCK_TIMEOUT: Final = 30.0  # seconds; a change takes a millisecond, so this is a holder that was stopped

_READ_TRIES: Final = 1000  # of a document that keeps changing; each change takes longer than a look


class Registry:
    """One process's view of a bus segment, and the lives file beside it."""

    def __init__(self, bus: str, uid: int, segment: Segment, lives: Lives) -> None:
        self.bus: Final = bus
        self.uid: Final = uid
        self.prefix: Final = object_prefix(bus, uid)
        self.segment: Final = segment
        self.map: Final = segment.map
        self.lives: Final = lives
        self._closed = False
        self._cached = (-1, Document())  # one object, so that threads see a version with its own document
        self._known: dict[int, tuple[bytes, Section]] = {}  # sections by topic, for those that did not change
        self.lost_rings: Final[set[int]] = set()
        """Rings that were found to be named and not there; each is reported once."""
        self._memberships: dict[int, tuple[int, bytes, Membership]] = {}

    @classmethod
    def open(cls, bus: str, *, create: bool, stall_ns: int | None = None, uid: int | None = None) -> Registry:
        """Attach to a bus, or create it; of many that do so at once, one creates.

        Raises BusNotFoundError (without `create`), NoSpaceError, AccessError, LayoutMismatchError,
        CorruptSegmentError, LockTimeoutError.
        """
        uid = os.geteuid() if uid is None else uid
        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                lives = cls._lives(bus, uid, create=create)
            except FileNotFoundError:
                raise BusNotFoundError(bus) from None
            try:
                segment = cls._segment(bus, uid, lives, create=create, stall_ns=stall_ns)
                if segment is not None:
                    return cls(bus, uid, segment, lives)
            except BaseException:
                lives.close()
                raise
            lives.close()  # of a bus that was removed meanwhile
            if time.monotonic() > deadline:
                raise ClosedError(f"bus {bus!r} is removed again and again")

    @classmethod
    def _lives(cls, bus: str, uid: int, *, create: bool, writable: bool = True) -> Lives:
        """The lives file; nothing is made beside a segment that cannot be a bus."""
        name = f"{object_prefix(bus, uid)}lives"
        try:
            return Lives.open(name, writable=writable, owner=uid)
        except FileNotFoundError:
            with suppress(FileNotFoundError):
                _checked(Segment.attach(segment_name(bus, uid), writable=False, owner=uid)).close()
            if not create:
                raise
        return Lives.open(name, create=True, owner=uid)

    @classmethod
    def _segment(cls, bus: str, uid: int, lives: Lives, *, create: bool, stall_ns: int | None) -> Segment | None:
        """The bus segment beside a lives file; None if that file serves no longer."""
        name = segment_name(bus, uid)
        found = cls._attached(name, uid, lives)
        if found is not None:
            return found
        if not create:
            raise BusNotFoundError(bus)
        # Under the lock of the bus that is to be, and of the one that may just be removed: `reclaim.unlink_all`.
        with lives.locked(LOCK_TIMEOUT, lambda: describe_holder(lives)):
            if not lives.linked():
                return None
            found = cls._attached(name, uid, lives)
            if found is not None:
                return found
            _clear_for(bus, uid)
            document = Document() if stall_ns is None else Document(stall_ns=stall_ns)
            try:
                return Segment.create(name, _core.BUS_BYTES, lambda memory: _fill(memory, document, lives), slots.HOLES)
            except BaseException:  # no room, say
                unlink(lives.name)
                raise

    @classmethod
    def _attached(cls, name: str, uid: int, lives: Lives, *, writable: bool = True) -> Segment | None:
        """The segment that goes with a lives file, None if there is none."""
        try:
            found = _checked(Segment.attach(name, writable=writable, owner=uid))
        except FileNotFoundError:
            return None
        if _core.load(found.map, _core.BUS_LIVES_INODE) == lives.key[1]:
            return found
        found.close()
        return None

    @classmethod
    def peek(cls, bus: str, uid: int | None = None) -> Registry:
        """Attach read-only, as the tools do that perturb nothing."""
        uid = os.geteuid() if uid is None else uid
        try:
            lives = cls._lives(bus, uid, create=False, writable=False)
        except FileNotFoundError:
            raise BusNotFoundError(bus) from None
        try:
            found = cls._attached(segment_name(bus, uid), uid, lives, writable=False)
            if found is None:
                raise BusNotFoundError(bus)
            return cls(bus, uid, found, lives)
        except BaseException:
            lives.close()
            raise

    # -- reading

    @property
    def removed(self) -> bool:
        return _core.load(self.map, _core.BUS_REMOVED) != 0

    def origin(self, publisher: int) -> str:
        """What the ids of a publisher's events begin with: no other publisher's, on this bus or any other, do."""
        return f"{_core.load(self.map, _core.BUS_IDENTITY):016x}-{publisher:x}"

    def read(self) -> Document:
        """The document as it is now, without the lock. Not to be changed: it is shared with other readers here."""
        for _ in range(_READ_TRIES):
            version = _core.load(self.map, _core.BUS_VERSION)
            cached = self._cached
            if version == cached[0]:
                return cached[1]
            raw = slots.read(self.map, version)
            if raw is None or _core.load(self.map, _core.BUS_VERSION) != version:
                continue  # overtaken while we copied
            document = _decode(raw, self._known)
            self._cached = (version, document)
            return document
        raise CorruptSegmentError(f"bus {self.bus!r}: no valid registry document in {_READ_TRIES} looks")

    def membership(self, topic: int) -> Membership | None:
        """What the document has of one topic now, None if it has no such topic: a part of what `read` costs, however
        much else changes. Not to be changed.
        """
        version, raw, found = self._memberships.get(topic, (-1, b"", None))
        for _ in range(_READ_TRIES):
            now = _core.load(self.map, _core.BUS_VERSION)
            if now == version:
                return found
            try:
                section, error = slots.read_section(self.map, now, topic), None
            except ValueError as reason:
                section, error = None, reason
            if _core.load(self.map, _core.BUS_VERSION) != now:
                continue  # overtaken while we copied
            if error is not None:
                raise CorruptSegmentError(f"registry document cannot be: {error}") from error
            if section is None:
                self._memberships.pop(topic, None)
                return None
            if found is None or section != raw:
                try:
                    found = slots.decode_membership(section, topic)
                except (ValueError, RecursionError) as reason:
                    raise CorruptSegmentError(f"registry document cannot be: {reason}") from reason
            self._memberships[topic] = (now, section, found)
            return found
        raise CorruptSegmentError(f"bus {self.bus!r}: no valid registry document in {_READ_TRIES} looks")

    # -- changing

    @contextmanager
    def locked(self, timeout: float = LOCK_TIMEOUT, ended: Callable[[], bool] = bool) -> Iterator[Change]:
        """Hold the bus lock and change the document; nothing is changed without `Change.commit`.

        Raises ClosedError when the bus was removed, LockTimeoutError when its holder does not let go, and
        CorruptSegmentError.
        """
        whole, change = True, None
        try:
            with self.lives.locked(timeout, lambda: describe_holder(self.lives), ended):
                if not self.linked():
                    raise FileNotFoundError(self.segment.name)
                died_inside = _core.load(self.map, _core.BUS_HOLDER) != 0
                _core.store(self.map, _core.BUS_HOLDER, os.getpid())
                reach("lock.taken")
                try:
                    change = Change(self, died_inside=died_inside)
                    yield change
                except (ShmbusError, OSError):
                    raise
                except BaseException:  # what a signal handler raised, say
                    whole = False  # cut short anywhere, as by a death: the next holder repairs
                    raise
                finally:
                    reach("lock.releasing")
                    if whole and (not died_inside if change is None else change.repaired):
                        _core.store(self.map, _core.BUS_HOLDER, 0)
        except FileNotFoundError as error:
            if self.linked():
                raise CorruptSegmentError(f"bus {self.bus!r} names what is not there: {error.filename}") from error
            raise ClosedError(f"bus {self.bus!r} was removed") from None
        finally:
            if change is not None:
                change.audit.tell(self.bus)

    def linked(self) -> bool:
        """Whether the names of this bus still lead to it: nobody has removed its files, by whatever means."""
        return self.segment.linked() and self.lives.linked()

    def close(self) -> None:
        """Let go of both. Idempotent."""
        if not self._closed:
            self._closed = True
            self.segment.close()
            self.lives.close()


class Change:
    """The document under the lock: change `document` in place, then `commit`."""

    def __init__(self, registry: Registry, *, died_inside: bool = False) -> None:
        self.registry: Final = registry
        self.died_inside: Final = died_inside
        """The last holder of the lock died with it: it may have left segments that the document does not have."""
        self.repaired = not died_inside
        """Whoever does not repair what the dead left leaves that to the next holder."""
        self.bus: Final = registry.bus
        self.document: Document
        self.revert()
        self.audit: Final = Audit(self.document)
        if died_inside:
            self._bump()

    @property
    def version(self) -> int:
        """Of the valid document: it tells whether a commit that was cut short has come about."""
        return _core.load(self.registry.map, _core.BUS_VERSION)

    def revert(self) -> None:
        """Take `document` as it was last committed; what was changed since, and its entries, are nobody's."""
        raw = slots.read(self.registry.map, self.version)
        if raw is None:
            raise CorruptSegmentError(f"bus {self.bus!r}: registry document {self.version} fails its checksum")
        self.document = _decode(raw)

    def commit(self, *topics: int, entering: bool = False) -> None:
        """Make the document as it is now the valid one, and let the participants of `topics` notice.

        Raises CapacityError, with nothing changed, when somebody enters for whom there is no room; what that leaves
        (`slots.reserve`) is enough for all that may be committed until everybody is gone.
        """
        memory = self.registry.map
        body = slots.encode(self.document)
        reserve = slots.reserve(self.document) if entering else 0
        room = slots.ROOM - reserve
        if len(body) > room:
            raise CapacityError(
                f"the registry of bus {self.bus!r} is full: {len(body)} bytes, room for {room}", table="registry"
            )
        if entering:
            slots.give_memory(self.registry.segment, len(body) + reserve)
        version = self.version + 1
        slots.write(memory, version, body)
        reach("commit.written")
        _core.store(memory, _core.BUS_VERSION, version)
        reach("commit.stored")
        _core.store(memory, _core.BUS_PROCESSES, len({p.life for p in self.document.participants}))
        for topic in topics:
            _core.fetch_add(memory, _epoch_at(topic), 1)
        self.audit.committed(self.document)

    def _bump(self) -> None:
        """Let the participants of every topic notice what a dead holder may have committed."""
        for entry in self.document.topics:
            _core.fetch_add(self.registry.map, _epoch_at(entry.index), 1)


def _epoch_at(topic: int) -> int:
    return _core.TOPIC_LINES + topic * _core.LINE + _core.TOPIC_EPOCH


def _decode(raw: bytes, known: dict[int, tuple[bytes, Section]] | None = None) -> Document:
    try:
        return slots.decode(raw, known)
    except (ValueError, RecursionError) as error:  # DecodeError is a ValueError
        raise CorruptSegmentError(f"registry document cannot be: {error}") from error


def _clear_for(bus: str, uid: int) -> None:
    """Before a bus is made: whatever has its names belongs to one whose files somebody took away in part.

    Who is still there finds out by the files that it has lost.
    """
    left = segment_name(bus, uid)
    with suppress(FileNotFoundError, CorruptSegmentError):
        found = Segment.attach(left, owner=uid)
        mark_removed(found.map)
        found.close()
    unlink_objects(bus, uid)
    unlink(left)


def mark_removed(memory: _core.Mapping) -> None:
    """Let every handle of a bus know that it is gone."""
    _core.store(memory, _core.BUS_REMOVED, 1)
    for index in range(_core.MAX_TOPICS):
        _core.fetch_add(memory, _epoch_at(index), 1)


def unlink_objects(bus: str, uid: int) -> None:
    """Unlink every name of a bus but those of its segment and of its lives file."""
    prefix = object_prefix(bus, uid)
    for name in names(prefix):
        if name != f"{prefix}lives":
            unlink(name)
            reach("remove.unlinked")
    waker.unlink_all(prefix)


def _fill(memory: _core.Mapping, document: Document, lives: Lives) -> None:
    boot = struct.unpack("<2Q", processes.boot_id())
    identity = int.from_bytes(os.urandom(8), "little")
    struct.pack_into("<8Q", memory, 0, 0, _core.LAYOUT_VERSION, *boot, time.time_ns(), 0, lives.key[1], identity)
    slots.write(memory, 0, slots.encode(document))
    struct.pack_into("<Q", memory, 0, _core.BUS_MAGIC)


def _checked(segment: Segment) -> Segment:
    """The segment, if it is a bus of this layout and this boot."""
    try:
        if segment.size < 64:
            raise LayoutMismatchError(f"{segment.name} is no bus: {segment.size} bytes")
        magic, version, *boot = struct.unpack_from("<4Q", segment.map)
        _check_identity(segment, magic, version)
        if tuple(boot) != struct.unpack("<2Q", processes.boot_id()):
            raise LayoutMismatchError(f"{segment.name} is from before the last reboot: `shmbus rm --force` removes it")
    except BaseException:
        segment.close()
        raise
    return segment


def _check_identity(segment: Segment, magic: int, version: int) -> None:
    if magic != _core.BUS_MAGIC:
        raise LayoutMismatchError(f"{segment.name} is no bus: magic {magic:#x}, expected {_core.BUS_MAGIC:#x}")
    if version != _core.LAYOUT_VERSION:
        raise LayoutMismatchError(
            f"{segment.name} has layout version {version}, this shmbus has {_core.LAYOUT_VERSION}:"
            " close its participants, then `shmbus rm --force` it"
        )
    if segment.size != _core.BUS_BYTES:
        raise CorruptSegmentError(f"{segment.name} has {segment.size} bytes, a bus has {_core.BUS_BYTES}")
