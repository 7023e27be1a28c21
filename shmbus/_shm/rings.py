"""Ring segments: created, attached and removed by the id that the registry document gives them.

May touch: segments named `shmbus-<bus>:ring-<id>`.

Must stay true:
- An id is never used twice, so an attached ring never becomes another one.
- A segment that is not in the document belongs to nobody: whoever holds the bus lock may unlink it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from shmbus import _core
from shmbus._shm import segment
from shmbus._shm.failpoint import reach
from shmbus._shm.segment import Segment
from shmbus.errors import CorruptSegmentError

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from shmbus._ledger.document import RingEntry

_Ring = TypeVar("_Ring", _core.BroadcastRing, _core.WorkRing)


class Rings:
    """The rings of one bus that this process has attached to."""

    def __init__(self, prefix: str, *, writable: bool = True, owner: int | None = None) -> None:
        self.prefix: Final = prefix + "ring-"
        self._writable = writable
        self._owner = owner
        self._broadcast: dict[int, _core.BroadcastRing] = {}
        self._work: dict[int, _core.WorkRing] = {}

    def create(self, entry: RingEntry) -> None:
        """Make the segment of a ring that the document does not have yet. Raises NoSpaceError.

        A segment of that name is what a creator left that died before its commit.
        """
        work = entry.group != 0
        size = _core.WorkRing.size(entry.capacity) if work else _core.BroadcastRing.size(entry.capacity)
        layout = _core.WorkRing.format if work else _core.BroadcastRing.format
        name = f"{self.prefix}{entry.id}"
        while True:
            try:
                Segment.create(name, size, lambda memory: layout(memory, entry.capacity, entry.id)).close()
                reach("ring.created")
                return
            except FileExistsError:
                segment.unlink(name)

    def broadcast(self, entry: RingEntry) -> _core.BroadcastRing:
        """A broadcast ring. Raises FileNotFoundError once it is removed, CorruptSegmentError, LayoutMismatchError."""
        ring = self._broadcast.get(entry.id)
        if ring is None:
            ring = self._broadcast[entry.id] = _same(_core.BroadcastRing(self._attach(entry)), entry)
        return ring

    def work(self, entry: RingEntry) -> _core.WorkRing:
        """A work ring; raises as `broadcast` does."""
        ring = self._work.get(entry.id)
        if ring is None:
            ring = self._work[entry.id] = _same(_core.WorkRing(self._attach(entry)), entry)
        return ring

    def attach(self, entries: Iterable[RingEntry]) -> None:
        """Attach to all of these now: what is done with them later does not fail for want of descriptors or memory."""
        for entry in entries:
            if entry.group:
                self.work(entry)
            else:
                self.broadcast(entry)

    def remove(self, id: int) -> None:
        """Unlink a ring that the document no longer has; whoever is attached keeps its memory until it lets go."""
        self.forget(id)
        segment.unlink(f"{self.prefix}{id}")

    def forget(self, id: int) -> None:
        self._broadcast.pop(id, None)
        self._work.pop(id, None)

    def keep(self, ids: Container[int]) -> None:
        """Forget every ring that is not among `ids`."""
        for cache in (self._broadcast, self._work):
            for id in [id for id in list(cache) if id not in ids]:
                cache.pop(id, None)

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

    def clear(self) -> None:
        self._broadcast.clear()
        self._work.clear()

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
