"""Ring segments: created, attached and removed by the id that the registry document gives them.

May touch: segments named `shmbus-<bus>:ring-<id>`.

Must stay true:
- An id is never used twice, so an attached ring never becomes another one.
- A ring is mapped for as long as somebody has it, and no longer; nobody can take it from whoever has it.
- A segment that is not in the document belongs to nobody: whoever holds the bus lock may unlink it.
"""

from __future__ import annotations

import os
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from shmbus import _core
from shmbus._payload.pool import Pools
from shmbus._shm import place, segment
from shmbus._shm.failpoint import reach
from shmbus._shm.lanes import Lanes
from shmbus._shm.segment import Segment
from shmbus._shm.traces import Traces
from shmbus.errors import CorruptSegmentError

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from shmbus._ledger.document import RingEntry

_Ring = TypeVar("_Ring", _core.BroadcastRing, _core.WorkRing)


class Rings:
    """The rings of one bus that this process has attached to.

    Two threads that ask for one ring at once may each get a map of its own: a ring is known by its id.
    """

    def __init__(self, prefix: str, *, writable: bool = True, owner: int | None = None, keep: bool = False) -> None:
        """`keep`: what was asked for stays mapped until `keep_only`, for who looks at all of it again and again."""
        self.prefix: Final = prefix + "ring-"
        self.pools: Final = Pools(prefix, writable=writable, owner=owner)
        self.traces: Final = Traces(prefix, owner)
        self.lanes: Final = Lanes(prefix, owner)
        self._writable = writable
        self._owner = owner
        self._keep = keep
        self._kept: dict[int, _core.BroadcastRing | _core.WorkRing] = {}
        self._broadcast: weakref.WeakValueDictionary[int, _core.BroadcastRing] = weakref.WeakValueDictionary()
        self._work: weakref.WeakValueDictionary[int, _core.WorkRing] = weakref.WeakValueDictionary()

    def create(self, entry: RingEntry, sequence: int = 1) -> None:
        """Make the segment of a ring that the document does not have yet, its first event to be `sequence`.

        Raises NoSpaceError.

        A segment of that name is what a creator left that died before its commit.
        """
        work = entry.group != 0
        size = _core.WorkRing.size(entry.capacity) if work else _core.BroadcastRing.size(entry.capacity)
        layout = _core.WorkRing.format if work else _core.BroadcastRing.format
        name = f"{self.prefix}{entry.id}"
        while True:
            try:
                Segment.create(name, size, lambda memory: layout(memory, entry.capacity, entry.id, sequence)).close()
                reach("ring.created")
                return
            except FileExistsError:
                segment.unlink(name)

    def broadcast(self, entry: RingEntry) -> _core.BroadcastRing:
        """A broadcast ring. Raises FileNotFoundError once it is removed, CorruptSegmentError, LayoutMismatchError."""
        ring = self._broadcast.get(entry.id)
        if ring is None:
            ring = self._broadcast[entry.id] = _same(_core.BroadcastRing(self._attach(entry)), entry)
            if self._keep:
                self._kept[entry.id] = ring
        return ring

    def work(self, entry: RingEntry) -> _core.WorkRing:
        """A work ring; raises as `broadcast` does."""
        ring = self._work.get(entry.id)
        if ring is None:
            ring = self._work[entry.id] = _same(_core.WorkRing(self._attach(entry)), entry)
            if self._keep:
                self._kept[entry.id] = ring
        return ring

    def either(self, entry: RingEntry) -> _core.BroadcastRing | _core.WorkRing:
        """The ring, of whichever kind it is."""
        return self.work(entry) if entry.group else self.broadcast(entry)

    def shrink(self, entry: RingEntry, *, history: bool) -> int:
        """Under the lock: give back the memory of a retired ring that nobody will look at; returns bytes.

        Without `history` nobody who joins from now on gets what all that are there have received.
        """
        ring = self.either(entry)
        descriptor = self._open(entry)
        try:
            return ring.shrink(descriptor, history)
        finally:
            os.close(descriptor)

    def joinable(self, entry: RingEntry, slot: int) -> _core.BroadcastRing:
        """Under the lock: a broadcast ring with memory for the cursor of `slot`. Raises NoSpaceError too."""
        ring = self.broadcast(entry)
        if entry.state == "active":
            return ring
        descriptor = self._open(entry)
        try:
            ring.reserve(descriptor, slot)
        except OSError as error:
            raise place.refused(error, f"{self.prefix}{entry.id}", _core.PAGE) from None
        finally:
            os.close(descriptor)
        return ring

    def remove(self, id: int) -> None:
        """Unlink a ring that the document no longer has; whoever is attached keeps its memory until it lets go."""
        self._kept.pop(id, None)
        segment.unlink(f"{self.prefix}{id}")

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """What is asked for in a `with` block stays mapped to its end: a change comes back to the same rings."""
        self._keep = True
        try:
            yield
        finally:
            self._keep = False
            self._kept.clear()

    def keep_only(self, ids: Container[int]) -> None:
        """Let go of what was kept, but for `ids`."""
        for id in list(self._kept):
            if id not in ids:
                self._kept.pop(id, None)

    def remove_orphans(self, ids: Container[int]) -> list[str]:
        """Under the lock: unlink the segments of rings that are not among `ids`, which a dead process left behind."""
        found = segment.names(self.prefix)
        orphans = [name for name in found if _id_of(name, self.prefix) not in ids]
        for name in orphans:
            segment.unlink(name)
        return orphans

    def bytes(self, entry: RingEntry) -> int:
        """Size of a ring's segment."""
        return _core.WorkRing.size(entry.capacity) if entry.group else _core.BroadcastRing.size(entry.capacity)

    def _open(self, entry: RingEntry) -> int:
        return segment.descriptor(f"{self.prefix}{entry.id}")

    def _attach(self, entry: RingEntry) -> object:
        return Segment.attach(f"{self.prefix}{entry.id}", writable=self._writable, owner=self._owner).map


def _id_of(name: str, prefix: str) -> int:
    rest = name.removeprefix(prefix)
    return int(rest) if rest.isdecimal() else -1


def _same(ring: _Ring, entry: RingEntry) -> _Ring:
    if ring.ring_id != entry.id or ring.capacity != entry.capacity:
        raise CorruptSegmentError(
            f"ring {entry.id} of {entry.capacity} bytes says that it is ring {ring.ring_id} of {ring.capacity}"
        )
    return ring
