"""Reclaim: takes from a participant all that it held, step by step, and removes a bus that nobody needs.

May touch: what `departures` touches, the parked bits of the bus segment, and, to remove a bus, everything of it.

Must stay true:
- ACTIVE -> RECLAIMING -> gone. Each step is done again from the document by whoever comes next, and changes nothing
  the second time. Claims go back first, since live workers wait for them; then cursors and views, which hold up
  live publishers; then the rings.
- Only what is proven dead is reclaimed: its byte of the lives file is free.
- A bus with events that a group is owed is not removed; where there are holds, they decide in place of that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmbus._ledger import deaths, departures, groups, pools, topics
from shmbus._ledger.registry import mark_removed, unlink_objects
from shmbus._ledger.retired import unless_unreadable
from shmbus._log import logger
from shmbus._shm import hold, schemas, segment
from shmbus._shm.failpoint import reach
from shmbus._shm.names import object_prefix, segment_name

if TYPE_CHECKING:
    from shmbus._ledger.document import Document, Participant
    from shmbus._ledger.registry import Change, Registry
    from shmbus._shm.lives import Lives
    from shmbus._shm.rings import Rings

_CLEAR_TIMEOUT = 1.0  # seconds; what is not cleared away then is a leftover, which `shmbus doctor` names

_log = logger("shmbus.reclaim")


def reclaim(change: Change, rings: Rings, id: int, *, dead: bool, code: int | None = None) -> None:
    """Free everything that a participant holds, and its entry. `dead` goes on the books of what it held, and `code`,
    how its process ended, is noted with it.
    """
    document = change.document
    participant = document.participant(id)
    if participant is None:
        return
    if participant.state != "reclaiming":
        if dead:
            deaths.note(change, rings, participant, code)  # in the same commit: noted once, before anything goes back
        participant.state = "reclaiming"
        change.commit()
        reach("reclaim.noted")
    reach("reclaim.begun")
    for worker in [w for w in document.workers if w.participant == id]:
        given_back = departures.close_worker(change, rings, worker.id)
        if dead:
            _log.warning("worker %s (pid %d) died: %d events given back", worker.name, participant.pid, given_back)
    reach("reclaim.workers")
    for consumer in [c for c in document.consumers if c.kind == "subscriber" and c.participant == id]:
        departures.close_subscriber(change, rings, consumer.id, dead=dead)
    reach("reclaim.consumers")
    if dead:
        pools.forget_dead(change, rings)
    reach("reclaim.views")
    for publisher in [p for p in document.publishers if p.participant == id]:
        departures.close_publisher(change, rings, publisher.id, dead=dead)
    reach("reclaim.publishers")
    document.participants = [p for p in document.participants if p.id != id]
    document.died += dead
    change.commit()
    reach("reclaim.done")


def dead_participants(document: Document, lives: Lives) -> list[Participant]:
    """Participants whose process is gone; those whose reclaim was cut short among them."""
    dead = {life for life in {p.life for p in document.participants} if not lives.alive(life)}
    return [p for p in document.participants if p.state == "reclaiming" or p.life in dead]


def repair(change: Change, rings: Rings) -> None:
    """After a death under the lock: remove the segments that the document does not know, and finish what was begun."""
    document = change.document
    groups.finish_all(change, rings)
    for group in [c for c in document.consumers if c.kind == "group"]:
        departures.give_back(document, rings, group, 0, 0)
    orphans = rings.remove_orphans({r.id for r in document.rings})
    orphans += rings.pools.remove_orphans(set(pools.ids(document)))
    orphans += rings.traces.remove_orphans(p.id for p in document.publishers)
    orphans += rings.lanes.remove_orphans({c.id for c in document.consumers if c.key})
    orphans += segment.remove_temporaries(change.registry.prefix)
    orphans += schemas.remove_orphans(change.registry.prefix, {t.id for t in document.topics})
    topics.forget_unused(change)
    change.repaired = True
    if orphans:
        _log.warning("removed what a dead process left half-made: %s", ", ".join(orphans))


def owed(document: Document, rings: Rings) -> dict[str, int]:
    """Events that groups have still to receive, by "topic/group"."""
    result: dict[str, int] = {}
    for group in document.consumers:
        if group.kind == "group":
            depth = 0
            for entry in document.rings_of(group):
                with unless_unreadable(entry):
                    depth += rings.work(entry).terms()["depth"]
            if depth:
                result[f"{document.topic_at(group.topic).name}/{group.name}"] = depth
    return result


def remove_bus(change: Change) -> None:
    """Unlink everything of the bus, its own segment last: a removal cut short is found there and done again."""
    mark_removed(change.registry.map)
    reach("remove.marked")
    unlink_all(change.bus, change.registry.uid)


def unlink_all(bus: str, uid: int) -> None:
    """Unlink every name of a bus, under its lock: the lives file, whose lock that is, after the bus segment.

    Whoever makes the bus anew waits for that lock, and finds out that the file has no name any more.
    """
    unlink_objects(bus, uid)
    segment.unlink(segment_name(bus, uid))
    reach("remove.segment")
    segment.unlink(f"{object_prefix(bus, uid)}lives")


def clear_away(registry: Registry) -> None:
    """Where somebody took the bus segment away and left the rest, take that too, unless there is a new bus."""
    with registry.lives.locked(_CLEAR_TIMEOUT, lambda: "another process"):
        if registry.lives.linked() and not segment.exists(registry.segment.name):
            unlink_all(registry.bus, registry.uid)


def remove_if_unused(change: Change, rings: Rings) -> bool:
    """Remove the bus if nobody takes part in it and nothing is owed to a group. Says what goes with it."""
    document = change.document
    if document.participants:
        return False
    held = hold.held(change.registry.prefix)
    if held or (held is None and owed(document, rings)):
        return False
    for entry in document.rings:
        if entry.group:
            continue
        with unless_unreadable(entry):
            unrouted = rings.broadcast(entry).info()["unrouted"]
            if unrouted:
                _log.info(
                    "bus %s removed with %d events of topic %s that nobody was there for",
                    change.bus,
                    unrouted,
                    document.topic_at(entry.topic).name,
                )
    remove_bus(change)
    return True
