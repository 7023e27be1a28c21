"""Gauge: how many events a group is owed at this moment.

May touch: nothing; it reads the group's rings.

Must stay true: exact wherever nobody publishes or acks meanwhile, and else a number that was true of each ring while it
was looked at. No lock, and no reading of the document but after somebody has joined or left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from shmbus import _core

if TYPE_CHECKING:
    from shmbus.bus import Bus
    from shmbus.topic import Topic


class Depth(NamedTuple):
    """What a group is owed."""

    depth: int
    """Events that are not done."""
    claimed: int
    """How many of them a worker holds."""

    @property
    def ready(self) -> int:
        """Those that a worker could have now, or later if they are delayed."""
        return self.depth - self.claimed


class Gauge:
    """Reads the depth of one group of one topic: `shmbus.Gauge(bus, ORDERS, "billing").read().depth`.

    Neither need exist yet.
    """

    def __init__(self, bus: Bus, topic: Topic[Any], group: str) -> None:
        self._session: Final = bus._session
        self._map: Final = memoryview(bus._session.map)  # so that it stays mapped while another thread closes the bus
        self._topic: Final = topic.name
        self._group: Final = group
        self._rings: list[_core.WorkRing] = []
        self._epoch_at = 0
        self._epoch = -1

    def read(self) -> Depth:
        """The depth now. Raises ClosedError once the bus is closed or removed."""
        return Depth(*self.look())

    def look(self) -> tuple[int, int]:
        """The same without a class, for who asks before every event."""
        load, memory = _core.load, self._map
        while True:
            epoch = self._epoch
            if epoch < 0 or load(memory, self._epoch_at) != epoch:
                epoch = self._refresh()
            depth = claimed = 0
            for ring in self._rings:
                one, held = ring.depth()
                depth += one
                claimed += held
            if epoch < 0 or load(memory, self._epoch_at) == epoch:
                return depth, claimed

    def at_most(self) -> int:
        """No fewer than the depth, and as a rule just that: two words a ring, however deep it is."""
        while True:
            span = _core.spans(self._rings, self._map, self._epoch_at, self._epoch)
            if span >= 0:
                return span
            if self._refresh() < 0:
                return 0

    def attended(self) -> bool:
        """Whether the group has a worker, be it at work or not. Reads the document; for who asks now and then."""
        document = self._session.document()
        entry = document.topic_named(self._topic)
        mine = {c.id for c in document.consumers if entry and c.topic == entry.index and c.name == self._group}
        return any(worker.group in mine for worker in document.workers)

    def _refresh(self) -> int:
        """Take over the group's rings; returns the epoch that they are of, -1 while there is no such topic."""
        self._session.check()
        self._rings, self._epoch = [], -1
        entry = self._session.document().topic_named(self._topic)
        if entry is None:
            return -1
        self._epoch_at = _core.TOPIC_LINES + entry.index * _core.LINE + _core.TOPIC_EPOCH
        epoch = _core.load(self._map, self._epoch_at)
        document = self._session.document()
        if document.topic_named(self._topic) != entry:
            return self._refresh()
        group = next((c for c in document.consumers if c.topic == entry.index and c.name == self._group), None)
        if group is not None and group.kind == "group":
            for ring in document.rings_of(group):
                try:
                    self._rings.append(self._session.rings.work(ring))
                except FileNotFoundError:
                    continue  # removed since: it had nothing left
        self._epoch = epoch
        return epoch
