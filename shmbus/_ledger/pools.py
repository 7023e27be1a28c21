"""Pools of publishers: which of them nobody needs any more, and what the dead held of those that are there.

May touch: the registry document, pool segments through `Pools`.

Must stay true:
- A pool goes once its publisher is gone and no ring of it owes anything to a consumer that is there; history does not
  keep it, so whoever joins at the oldest event may find that its arrays are gone, and is told of a gap.
- A pool leaves the document before its name goes; what a death in between leaves is an orphan.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmbus._ledger.retired import subscribed, unless_unreadable
from shmbus._shm.failpoint import reach

if TYPE_CHECKING:
    from shmbus._ledger.document import Document, PublisherEntry
    from shmbus._ledger.registry import Change
    from shmbus._shm.rings import Rings


def ids(document: Document) -> list[int]:
    """The pools that are there."""
    return [p.pool for p in document.publishers if p.pool]


def idle(document: Document, rings: Rings) -> list[PublisherEntry]:
    """Publishers that are gone, and whose pools nobody is owed anything of."""
    return [p for p in document.publishers if p.pool and p.state == "retired" and not _owes(document, rings, p)]


def _owes(document: Document, rings: Rings, publisher: PublisherEntry) -> bool:
    for entry in document.rings:
        if entry.publisher != publisher.id:
            continue
        with unless_unreadable(entry):
            if entry.group:
                if rings.work(entry).terms()["depth"]:
                    return True
            elif any(rings.broadcast(entry).owed(subscribed(document, entry.topic))):
                return True
    return False


def drop_idle(change: Change, rings: Rings) -> None:
    """Take the pools that nobody needs out of the document, and away."""
    gone = idle(change.document, rings)
    if not gone:
        return
    pools = [publisher.pool for publisher in gone]
    for publisher in gone:
        publisher.pool = 0
    change.commit(*{publisher.topic for publisher in gone})
    reach("pool.dropped")
    remove(rings, pools)


def remove(rings: Rings, pools: list[int]) -> None:
    """Take away pools that the document does not have any more."""
    for pool in pools:
        rings.pools.remove(pool)


def forget_dead(change: Change, rings: Rings) -> int:
    """Free what processes held that are dead; how many extents that were."""
    return rings.pools.forget_dead(ids(change.document), change.registry.lives)
