"""Growing: when a publisher's rings become larger, and smaller again, and when it leaves one to those in quarantine;
`_ledger/growing.py` says how.

May touch: the bus lock, through the session.

Must stay true:
- No thread writes while the rings change: `_freeze` sends whoever comes to `_refresh`, which waits for `_changing`.
- What cannot grow now stays as it is, and its publisher waits, drops or raises as ever; the log says why.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, ClassVar, Final

from shmbus import _core
from shmbus._ledger import growing
from shmbus._log import logger
from shmbus.errors import CapacityError, EventTooLargeError, LockTimeoutError, NoSpaceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shmbus._handles.session import Session
    from shmbus._ledger.document import TopicEntry

SHRINK_NS: Final = 60_000_000_000
"""A ring that has been mostly empty for so long shrinks."""
PATIENCE: Final = 1.0
"""Seconds that growing waits for the bus lock; a publisher that waits for room waits all the same."""
PATIENCE_IN_LOOPS: Final = 0.05  # the same where an event loop stands still meanwhile
RESPITE: Final = 1.0  # seconds after an attempt in vain
_SPARE: Final = 4  # times what was used at most that a ring shrinks to

_log = logger("shmbus.bus")


class Growing:
    """That half of a publisher."""

    _session: Session
    _entry: TopicEntry
    _id: int
    _shrink_ns: ClassVar[int] = SHRINK_NS
    _quarantined = 0
    """Bitmap of the subscribers that hold nobody back any more."""
    _smallest = _largest = 0
    """Capacities between which its rings may be; 0: they are fixed."""
    _not_before = 0.0
    _changer = 0
    """The thread that changes the rings."""

    if TYPE_CHECKING:  # of the C type, and of Publisher
        name: str

        def _freeze(self) -> None: ...
        def _lacking(self, length: int, /) -> tuple[bool, int, list[int]]: ...
        def _may_shrink(self, floor: int, ns: int, /) -> None: ...
        def _refresh(self) -> None: ...

    def _begin_growing(self, smallest: int, largest: int | None) -> None:
        self._changing = threading.Lock()
        if largest is not None and largest > smallest:
            self._smallest, self._largest = smallest, largest
            self._may_shrink(smallest, self._shrink_ns)

    def _grow(self, length: int, patience: float = PATIENCE, *, must: bool = False) -> bool:
        """Make larger what has no room for a record of `length` bytes; True if the attempt to write is worth repeating.

        `must`: no ring will ever hold it as they are, so what keeps them from growing is raised.
        """
        if not (self._largest or self._quarantined) or (not must and time.monotonic() < self._not_before):
            return False
        fits, slots, lines = self._lacking(length)
        if self._quarantined and slots and not slots & ~self._quarantined:
            return self._leave_behind(patience)
        if not self._largest:
            return False
        wanted = self._larger(length, fits, lines)
        return bool(wanted) and self._change(wanted, patience, must=must)

    def _leave_behind(self, patience: float = PATIENCE) -> bool:
        """Go on in a ring in which those in quarantine hold nothing back; what they had is theirs in the old one."""
        capacity = next(capacity for group, _, capacity in self._own_rings() if not group)
        return self._change({0: capacity}, patience, leaves=True)

    def _too_large(self, size: int, maximum: int) -> None:
        """No ring holds an event of `size` bytes: they grow, or EventTooLargeError says what one could."""
        most = max(maximum, _core.BroadcastRing.maximum(self._largest) if self._largest else 0)
        if size > most or not self._grow(size, must=True):
            raise EventTooLargeError(self._entry.name, size, most)

    def _larger(self, length: int, fits: bool, lines: list[int]) -> dict[int, int]:
        """By group, the capacity that rings want which have no room, or cannot have any; 0 is the broadcast ring."""
        wanted = {}
        for group, line, capacity in self._own_rings():
            larger = max(capacity, self._holding(length))
            full = line in lines if group else not fits
            if full and larger == capacity:
                larger *= 2
            if capacity < larger <= self._largest:
                wanted[group] = larger
        return wanted

    def _holding(self, length: int) -> int:
        """The least capacity that admits a record of `length` bytes."""
        capacity = self._smallest
        while capacity < self._largest and _core.BroadcastRing.maximum(capacity) < length:
            capacity *= 2
        return capacity

    def _own_rings(self) -> Iterable[tuple[int, int, int]]:
        """Group, its line, and capacity of each ring that is written to."""
        document = self._session.membership(self._entry.index)
        lines = {c.id: c.slot for c in document.consumers if c.state == "active"}
        for ring in document.rings:
            if ring.publisher == self._id and ring.state == "active" and (not ring.group or ring.group in lines):
                yield ring.group, lines.get(ring.group, -1), ring.capacity

    def _shrink(self, roomy: list[tuple[int, int]]) -> None:
        """These rings, by line of the group, have been mostly empty: so many bytes were used at most."""
        peaks = dict(roomy)
        wanted = {}
        for group, line, capacity in self._own_rings():
            if line in peaks:
                smaller = self._smallest
                while smaller < _SPARE * peaks[line]:
                    smaller *= 2
                if smaller < capacity:
                    wanted[group] = smaller
        if wanted:
            self._change(wanted, PATIENCE_IN_LOOPS)

    def _change(self, wanted: Mapping[int, int], patience: float, *, must: bool = False, leaves: bool = False) -> bool:
        if self._changer == threading.get_ident():
            return False  # a signal handler, or a finaliser, that came in between
        with self._changing:
            self._changer = threading.get_ident()
            try:
                self._freeze()
                with self._session.locked(patience) as change:
                    growing.change_rings(change, self._session.rings, self._id, wanted, leaves=leaves)
            except (NoSpaceError, CapacityError, LockTimeoutError) as error:
                if must:
                    raise
                self._put_off_growing(wanted, error)
                return False
            finally:
                self._changer = 0
        self._refresh()
        self._session.tell_supervisor()  # of the retired rings
        return True

    def _put_off_growing(self, wanted: Mapping[int, int], error: Exception) -> None:
        self._not_before = time.monotonic() + RESPITE
        if not isinstance(error, LockTimeoutError):
            _log.warning(
                "publisher %s of topic %s cannot go on in a ring of %d bytes, and stays where it is: %s",
                self.name,
                self._entry.name,
                max(wanted.values()),
                error,
            )

    def _require_not_changing(self) -> None:
        """Raise where this very thread changes the rings, and was interrupted."""
        if self._changer == threading.get_ident():
            raise LockTimeoutError(f"publisher {self.name!r} changes its rings below this call, in the same thread")
