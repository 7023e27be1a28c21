"""A look at a bus: a document and the rings that it names, held together. Takes no lock and changes nothing.

May touch: nothing; it reads segments, also ones that are attached read-only.

Must stay true:
- What a consumer's totals lack is in rings that the look holds. A ring whose books go into the totals meanwhile is
  removed, and keeps its memory, and its books, for whoever has it attached: totals and rings of one document go
  together, however much later the rings are read. So others may come and go all the time.
- A subscriber that leaves takes its cursors off the rings: who is not there any more after its rings were read
  (`still_there`) must be told of from a later document.
- Nothing refers back to a look: it lets go of its rings as soon as nobody needs it, and no collector has to come.
- A ring leaves the document before its file goes, and comes into it after. So a file that is not there, while the
  document that names it is the valid one, was removed by somebody else, and its books are lost; so are those of a file
  that is no ring.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, Final, cast

from shmbus._log import logger
from shmbus.errors import ClosedError, CorruptSegmentError, LayoutMismatchError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shmbus import _core
    from shmbus._ledger.document import ConsumerEntry, Document, LossEntry, RingEntry
    from shmbus._ledger.registry import Registry
    from shmbus._shm.rings import Rings

_PATIENCE: Final = 5.0  # seconds to find all rings of one document; nearly always the first try does
_PAUSE: Final = 1e-3  # seconds between two tries: whoever changes the bus may need our core

_log = logger("shmbus.loss")


class Look:
    """What there is of a bus now. Raises ClosedError where it is removed, and what attaching to a ring raises."""

    def __init__(self, registry: Registry, rings: Rings) -> None:
        self.registry: Final = registry
        self.broadcast: Final[dict[int, _core.BroadcastRing]] = {}
        self.work: Final[dict[int, _core.WorkRing]] = {}
        self._spoilt: Final[dict[int, str]] = {}
        self.document: Final = self._hold(rings)
        self.lost: Final = [r for r in self.document.rings if r.id not in self.broadcast and r.id not in self.work]
        """Rings that are named and not there, or not what they should be."""
        self._rings: defaultdict[tuple[int, int], list[RingEntry]] = defaultdict(list)
        for entry in self.document.rings:
            if entry.id in self.broadcast or entry.id in self.work:
                self._rings[entry.topic, entry.group].append(entry)
        self._report_lost()

    def _hold(self, rings: Rings) -> Document:
        deadline = time.monotonic() + _PATIENCE
        while True:
            document = self.registry.read()
            rings.keep_only({r.id for r in document.rings})
            self.broadcast.clear()
            self.work.clear()
            self._spoilt.clear()
            missing = False
            for entry in document.rings:
                try:
                    if entry.group:
                        self.work[entry.id] = rings.work(entry)
                    else:
                        self.broadcast[entry.id] = rings.broadcast(entry)
                except FileNotFoundError:
                    missing = True
                except (CorruptSegmentError, LayoutMismatchError) as error:  # one that is spoilt says nothing of others
                    self._spoilt[entry.id] = str(error)
            if not missing:
                return document
            if self.registry.removed or not self.registry.linked():
                raise ClosedError(f"bus {self.registry.bus!r} was removed")
            if self.registry.read() is document:  # and has been all the time
                return document
            if time.monotonic() > deadline:
                raise CorruptSegmentError(f"bus {self.registry.bus!r}: its rings change all the time")
            time.sleep(_PAUSE)

    def _report_lost(self) -> None:
        for entry in self.lost:
            if entry.id not in self.registry.lost_rings:
                self.registry.lost_rings.add(entry.id)
                why = self._spoilt.get(entry.id, "its file is gone")
                _log.error("bus %s: the books of ring %d are lost: %s", self.registry.bus, entry.id, why)

    def sources(self, consumer: ConsumerEntry) -> list[RingEntry]:
        """The rings that have books of a consumer."""
        if consumer.kind == "group":
            return self._rings[consumer.topic, consumer.id]
        if consumer.state != "active":
            return []  # what they had of it is in the totals already
        broadcast = self._rings[consumer.topic, 0]
        return [r for r in broadcast if self.broadcast[r.id].info()["members"] >> consumer.slot & 1]

    def terms(self, consumer: ConsumerEntry, entry: RingEntry) -> Mapping[str, int]:
        """The books that a ring has of a consumer."""
        if entry.group:
            return cast("Mapping[str, int]", self.work[entry.id].terms())
        return cast("Mapping[str, int]", self.broadcast[entry.id].terms(consumer.slot))

    def behind(self, consumer: ConsumerEntry) -> bool:
        """True where what a consumer has not received takes a quarter of a ring or more."""
        if consumer.mode != "reliable":
            return False
        for entry in self.sources(consumer):
            quarter = entry.capacity // 4
            if consumer.kind == "group":
                if self.work[entry.id].terms()["room"] < entry.capacity - quarter:
                    return True
            elif self.broadcast[entry.id].blocking(entry.capacity - quarter) >> consumer.slot & 1:
                return True
        return False

    def still_there(self, consumer: ConsumerEntry) -> bool:
        """Whether what the rings said of it is its own: a subscriber that has left since has no cursor there."""
        if consumer.kind == "group" or consumer.state != "active":
            return True
        topic = self.registry.membership(consumer.topic)
        now = topic.consumer(consumer.id) if topic else None
        return now is not None and now.state == "active"

    def losses_since(self, consumer: ConsumerEntry) -> list[LossEntry]:
        """What a consumer that has left since lost: in the document of now, and not in that of this look."""
        known = set(self.document.losses)
        name, topic = consumer.name, self.document.topic_at(consumer.topic).name
        found = self.registry.read().losses
        return [loss for loss in found if (loss.consumer, loss.topic) == (name, topic) and loss not in known]


def require_plausible(counts: Iterable[int], what: str) -> None:
    """Each word of a segment is 64 bits of anything; what is told of them must be too."""
    if any(not 0 <= count < 2**63 for count in counts):
        raise CorruptSegmentError(f"{what} cannot be: {list(counts)}")
