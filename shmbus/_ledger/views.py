"""What `stat` says of a publisher's pool: how much of it is used, and who looks at what.

May touch: nothing; it reads segments, also ones that are attached read-only. A pool that is gone meanwhile, or that
cannot be read, says nothing: who is owed what is on the books of the rings.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from shmbus._payload.pool import UNREADABLE
from shmbus.stats import Viewer

if TYPE_CHECKING:
    from shmbus._ledger.document import PublisherEntry
    from shmbus._ledger.look import Look
    from shmbus._payload.pool import Pools


def pool_of(look: Look, pools: Pools, publisher: PublisherEntry) -> dict[str, Any]:
    """The fields of PublisherStats that tell of its pool."""
    if not publisher.pool:
        return {}
    with suppress(*UNREADABLE):
        pool = pools.look(publisher.pool)
        rings: list[Any] = [look.broadcast[r.id] for r in look.document.rings if _is_of(publisher, r, look.broadcast)]
        rings += [look.work[r.id] for r in look.document.rings if _is_of(publisher, r, look.work)]
        viewers = tuple(_viewer(look, publisher, *holder) for holder in pool.holders())
        return {"pool": pool.bytes, "pool_used": pool.used(rings), "viewers": viewers}
    return {"pool": publisher.pool_bytes}


def _is_of(publisher: PublisherEntry, ring: Any, held: Any) -> bool:
    return ring.publisher == publisher.id and ring.id in held


def _viewer(
    look: Look, publisher: PublisherEntry, life: int, consumer: int, views: int, size: int, since_ns: int
) -> Viewer:
    entry = look.document.consumer(consumer)
    name = publisher.name if consumer == publisher.id else entry.name if entry is not None else ""
    pid = next((p.pid for p in look.document.participants if p.life == life), 0)
    return Viewer(name=name, pid=pid, views=views, bytes=size, since_ns=since_ns)
