"""Growing: a publisher goes on in rings of another size, or in one without those in quarantine. Under the bus lock.

May touch: the registry document, ring segments, cursor slots of rings that nobody knows yet.

Must stay true:
- The new ring begins with the sequence at which the old one ends, and has a cursor there for every subscriber, before
  the document names it; the old one is retired in the commit that names the new one. So each event is in one of the
  two, and whoever reads retired rings first reads a publisher's events in order.
- Its publisher writes nothing from before the ends are looked at until it has taken over what was committed.
- To grow takes half of what /dev/shm has free at most: others have to enter too.
- A ring that is left because of who is in quarantine is written no more, so what they read in it stays as it is.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from shmbus._ledger import departures
from shmbus._ledger.document import RingEntry
from shmbus._shm import place
from shmbus._shm.failpoint import reach
from shmbus.errors import NoSpaceError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shmbus._ledger.document import Document
    from shmbus._ledger.registry import Change
    from shmbus._shm.rings import Rings


def change_rings(change: Change, rings: Rings, id: int, capacities: Mapping[int, int], *, leaves: bool = False) -> None:
    """Have a publisher go on in rings of these capacities, by group; 0 is its broadcast ring.

    Rings that are not there any more are passed over. `leaves`: its broadcast ring is replaced, by one of that size, if
    anybody in quarantine holds it back there. Raises NoSpaceError and CapacityError, with nothing changed.
    """
    document = change.document
    publisher = document.publisher(id)
    if publisher is None or publisher.state != "active":
        return  # it finds out when it takes over the document
    created: list[tuple[RingEntry, RingEntry]] = []
    version = change.version
    try:
        for before in [r for r in document.rings if r.publisher == id and r.state == "active"]:
            capacity = capacities.get(before.group, before.capacity)
            if capacity != before.capacity or (leaves and not before.group and _held(document, rings, before)):
                ring = RingEntry(
                    id=document.new_id(), topic=before.topic, publisher=id, group=before.group, capacity=capacity
                )
                _require_room(rings, before, ring)
                created.append((before, ring))
                _begin(document, rings, before, ring)
                reach("grow.ring")
        if not created:
            return
        for before, ring in created:
            before.state = "retired"
            document.rings.append(ring)
            publisher.grown += ring.capacity > before.capacity
            publisher.shrunk += ring.capacity < before.capacity
        change.commit(publisher.topic, entering=True)
        reach("grow.committed")
        for before, _ in created:
            if not before.group and (held := _held(document, rings, before)):
                rings.broadcast(before).ungate(held)  # its pool owes them nothing
    except BaseException:
        if change.version == version:
            for _, ring in created:
                rings.remove(ring.id)
            change.revert()
        raise
    departures.sweep(change, rings)


def _held(document: Document, rings: Rings, ring: RingEntry) -> int:
    """Bitmap of the slots in quarantine that hold a ring's publisher back there."""
    quarantined = [c for c in document.consumers if c.topic == ring.topic and c.quarantined_ns]
    return rings.broadcast(ring).info()["reliable"] & sum(1 << c.slot for c in quarantined)


def _require_room(rings: Rings, before: RingEntry, ring: RingEntry) -> None:
    free, size = place.free_bytes(), rings.bytes(ring)
    if ring.capacity > before.capacity and 2 * size > free:
        raise NoSpaceError(errno.ENOSPC, f"{rings.prefix}{ring.id}", size, free)


def _begin(document: Document, rings: Rings, before: RingEntry, ring: RingEntry) -> None:
    """Make the ring that goes on where `before` ends."""
    if ring.group:
        rings.create(ring, rings.work(before).bounds()[1])
        return
    rings.create(ring, rings.broadcast(before).info()["sequence"])
    broadcast = rings.broadcast(ring)
    for consumer in document.consumers:
        if consumer.topic == ring.topic and consumer.kind == "subscriber" and consumer.state == "active":
            broadcast.join(consumer.slot, not consumer.gates)
