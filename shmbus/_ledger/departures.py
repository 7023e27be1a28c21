"""Departures: what the document and the rings go through when somebody leaves, and when a ring is drained. Under the
bus lock, for the living and the dead alike.

May touch: the registry document, ring segments, cursor slots, claim words of workers that are gone.

Must stay true:
- Every function may be cut short by a death at any line, and done again from the document as it then is: what is on
  the books is committed before the ring forgets it, and what a ring must forget is forgotten before the document does.
- The books of a ring go into its consumers' totals in the same commit that takes the ring, or the cursor, away.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, cast

from shmbus import _core
from shmbus._ledger import topics
from shmbus._ledger.document import Cause, ClosedEntry, LossEntry, Totals
from shmbus._ledger.slots import MAX_LOSSES
from shmbus._shm.failpoint import reach
from shmbus.errors import AccessError, CorruptSegmentError, LayoutMismatchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from shmbus._ledger.document import ConsumerEntry, Document, PublisherEntry, RingEntry
    from shmbus._ledger.registry import Change
    from shmbus._shm.rings import Rings

HISTORY: Final = 4
"""Drained rings of gone publishers that a topic keeps for `start="oldest"`; each costs its capacity in memory."""
MAX_CLOSED: Final = 32
"""Closed subscribers that a topic keeps by name; past it the oldest are merged into one."""
DEPARTED: Final = "(departed)"

_CAUSES: Final[tuple[Cause, ...]] = ("overrun", "refused", "undecodable", "rejected")

_log = logging.getLogger("shmbus.loss")


def close_publisher(change: Change, rings: Rings, id: int, *, dead: bool = False) -> None:
    """Retire a publisher. Its rings stay until their consumers have drained them."""
    document = change.document
    publisher = document.publisher(id)
    if publisher is None or publisher.state == "retired":
        return
    publisher.state, publisher.dead = "retired", dead
    for ring in document.rings:
        if ring.publisher == id:
            ring.state = "retired"
    change.commit(publisher.topic)
    sweep(change, rings)


def close_subscriber(change: Change, rings: Rings, id: int, *, dead: bool = False) -> None:
    """Take a subscriber off every ring; what it had not received is on the books as abandoned."""
    document = change.document
    consumer = document.consumer(id)
    if consumer is None:
        return
    bit = 1 << consumer.slot
    members: list[tuple[RingEntry, _core.BroadcastRing]] = []
    for entry in document.rings_of(consumer):
        with unless_unreadable(entry):
            ring = rings.broadcast(entry)
            if ring.info()["members"] & bit:
                members.append((entry, ring))
    if consumer.state != "leaving":
        if consumer.state == "active":  # a join that was cut short received nothing, and its slots may be half-made
            for entry, ring in members:
                with unless_unreadable(entry):
                    _settle_slot(document, consumer, entry, ring, abandoned=True)
        consumer.state, consumer.dead = "leaving", dead
        change.commit()
        reach("close.leaving")
    for _, ring in members:
        ring.leave(consumer.slot)
        reach("close.ring")
    document.consumers.remove(consumer)
    document.closed.append(
        ClosedEntry(consumer.id, consumer.topic, consumer.name, consumer.mode, consumer.dead, consumer.totals)
    )
    merge_closed(document, consumer.topic, MAX_CLOSED)
    change.commit(consumer.topic)
    sweep(change, rings)


def close_worker(change: Change, rings: Rings, id: int) -> int:
    """Give back what a worker held, and free its slot; returns how many events went back."""
    document = change.document
    worker = next((w for w in document.workers if w.id == id), None)
    if worker is None:
        return 0
    group = document.consumer(worker.group)
    given_back = 0
    if group is not None:
        for entry in document.rings_of(group):
            with unless_unreadable(entry):
                given_back += rings.work(entry).reclaim(worker.slot, worker.generation)
    reach("close.worker")
    document.workers.remove(worker)
    change.commit(*(() if group is None else (group.topic,)))
    return given_back


def remove_group(change: Change, rings: Rings, id: int) -> None:
    """Undo the making of a group that never had a worker, under the lock that it was made under."""
    document = change.document
    group = document.consumer(id)
    if group is None:
        return
    gone = [r.id for r in document.rings if r.group == id]
    document.consumers.remove(group)
    document.workers = [w for w in document.workers if w.group != id]
    document.rings = [r for r in document.rings if r.group != id]
    change.commit(group.topic)
    for ring in gone:
        rings.remove(ring)
    topics.forget_unused(change)


def drained(document: Document, rings: Rings) -> list[RingEntry]:
    """Retired rings that nobody has anything left to receive from, but for the history of each topic."""
    found: list[RingEntry] = []
    kept: defaultdict[int, list[RingEntry]] = defaultdict(list)
    for entry in document.rings:
        if entry.state == "retired":
            depth, history = _rest(document, rings, entry)
            if not depth and not history:
                found.append(entry)
            elif not depth:
                kept[entry.topic].append(entry)
    for entries in kept.values():
        found.extend(entries[:-HISTORY])
    return found


def sweep(change: Change, rings: Rings) -> None:
    """Take the drained rings out of the document, and the topics that nobody needs then."""
    release(change, rings, drained(change.document, rings))
    topics.forget_unused(change)


def release(change: Change, rings: Rings, entries: list[RingEntry]) -> None:
    """Put the books of rings without events to receive into their consumers' totals, and remove the rings."""
    if not entries:
        return
    document = change.document
    for entry in entries:
        with unless_unreadable(entry):
            _settle_ring(document, rings, entry)
    gone = {entry.id for entry in entries}
    document.rings = [r for r in document.rings if r.id not in gone]
    having = {r.publisher for r in document.rings}
    document.publishers = [p for p in document.publishers if p.state == "active" or p.id in having]
    change.commit(*{entry.topic for entry in entries})
    reach("sweep.committed")
    for entry in entries:
        rings.remove(entry.id)


def history(document: Document, rings: Rings) -> list[RingEntry]:
    """Rings that are kept for `start="oldest"` alone, the oldest first."""
    retired = [entry for entry in document.rings if entry.state == "retired"]
    return sorted((e for e in retired if not _rest(document, rings, e)[0]), key=lambda entry: entry.id)


@contextmanager
def unless_unreadable(entry: RingEntry) -> Iterator[None]:
    """A ring that cannot be read must not keep the dead from being buried: its books are lost, and that is said."""
    try:
        yield
    except (AccessError, CorruptSegmentError, LayoutMismatchError, FileNotFoundError) as error:
        _log.error("the books of ring %d are lost: %s", entry.id, error)


def _rest(document: Document, rings: Rings, entry: RingEntry) -> tuple[int, bool]:
    """What is left in a ring: events to receive, and whether it is worth keeping as history."""
    with unless_unreadable(entry):
        if entry.group:
            return rings.work(entry).terms()["depth"], False
        ring = rings.broadcast(entry)
        depth = sum(ring.terms(consumer.slot)["depth"] for consumer in _members(document, entry, ring))
        return depth, ring.info()["sequence"] > 1
    return 0, False


def _members(document: Document, entry: RingEntry, ring: _core.BroadcastRing) -> list[ConsumerEntry]:
    bits = ring.info()["members"]
    return [
        c
        for c in document.consumers
        if c.topic == entry.topic and c.kind == "subscriber" and c.state == "active" and bits >> c.slot & 1
    ]


def _settle_ring(document: Document, rings: Rings, entry: RingEntry) -> None:
    if not entry.group:
        ring = rings.broadcast(entry)
        for consumer in _members(document, entry, ring):
            _settle_slot(document, consumer, entry, ring, abandoned=False)
        return
    work = rings.work(entry)
    group = document.consumer(entry.group)
    if group is not None:
        terms = cast("dict[str, int]", work.terms())
        _add(group.totals, terms)
        _note_losses(document, group, entry, terms, work.losses())


def _settle_slot(
    document: Document, consumer: ConsumerEntry, entry: RingEntry, ring: _core.BroadcastRing, *, abandoned: bool
) -> None:
    """Put a slot's books into its consumer's totals; what is left unread is abandoned."""
    terms = cast("dict[str, int]", dict(ring.terms(consumer.slot)))
    losses = ring.losses(consumer.slot)
    _add(consumer.totals, terms)
    _note_losses(document, consumer, entry, terms, losses)
    depth = terms["depth"]
    if abandoned and depth:
        consumer.totals.abandoned += depth
        first, now = terms["next"], time.time_ns()
        _note(document, consumer, entry, "abandoned", (depth, first, first + depth - 1, now, now))


def _add(totals: Totals, terms: Mapping[str, int]) -> None:
    for name in ("offered", "delivered", *_CAUSES):
        setattr(totals, name, getattr(totals, name) + terms.get(name, 0))


def _note_losses(
    document: Document,
    consumer: ConsumerEntry,
    entry: RingEntry,
    terms: Mapping[str, int],
    losses: Mapping[str, _core.LossTuple],
) -> None:
    for cause in _CAUSES:
        count = terms.get(cause, 0)
        if count:
            _, *details = with_pending(cause, losses[cause], terms, time.time_ns())
            _note(document, consumer, entry, cause, (count, *details))


def with_pending(cause: str, recorded: _core.LossTuple, terms: Mapping[str, int], now: int) -> _core.LossTuple:
    """What a ring has on record for a cause, with the overrun that its reader has yet to find out about."""
    count, first, _, first_ns, _ = recorded
    if cause != "overrun" or not terms.get("pending_last"):
        return recorded
    return count, first or terms["pending_first"], terms["pending_last"], first_ns or now, now


def _note(document: Document, consumer: ConsumerEntry, entry: RingEntry, cause: Cause, loss: tuple[int, ...]) -> None:
    publisher = document.publisher(entry.publisher)
    count, first, last, first_ns, last_ns = loss
    document.losses.append(
        LossEntry(
            consumer=consumer.name,
            topic=document.topic_at(consumer.topic).name,
            publisher=_name_of(publisher),
            cause=cause,
            count=count,
            first=first,
            last=last,
            first_ns=first_ns,
            last_ns=last_ns,
        )
    )
    excess = len(document.losses) - MAX_LOSSES
    if excess > 0:
        document.losses_forgotten += excess
        del document.losses[:excess]


def _name_of(publisher: PublisherEntry | None) -> str:
    return publisher.name if publisher is not None else "(gone)"


def merge_closed(document: Document, topic: int, most: int) -> bool:
    """Keep at most `most` entries of subscribers that are gone: the oldest become one, and none of their totals is
    lost. False if there are no more.
    """
    closed = [c for c in document.closed if c.topic == topic]
    if len(closed) <= most:
        return False
    into = next((c for c in closed if c.name == DEPARTED), closed[0])
    into.name = DEPARTED
    for victim in [c for c in closed if c is not into][: len(closed) - most]:
        for field in Totals.__struct_fields__:
            setattr(into.totals, field, getattr(into.totals, field) + getattr(victim.totals, field))
        document.closed.remove(victim)
    return True
