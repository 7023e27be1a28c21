"""Departures: what the document and the rings go through when somebody leaves, and when a ring is drained. Under the
bus lock, for the living and the dead alike.

May touch: the registry document, ring segments, cursor slots, claim words of workers that are gone.

Must stay true:
- Every function may be cut short by a death at any line, and done again from the document as it then is: what is on
  the books is committed before the ring forgets it, and what a ring must forget is forgotten before the document does.
- The books of a ring go into its consumers' totals in the same commit that takes the ring, or the cursor, away.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, cast

from shmbus import _core
from shmbus._ledger import past, pools, retired, topics
from shmbus._ledger.document import Cause, ClosedEntry, GivenUp, LossEntry, Totals
from shmbus._ledger.retired import unless_unreadable
from shmbus._ledger.slots import MAX_GIVEN_UP, MAX_LOSSES
from shmbus._log import logger
from shmbus._shm.failpoint import reach
from shmbus._shm.traces import BROADCAST, REFUSED
from shmbus.errors import ShmbusError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shmbus._ledger.document import ConsumerEntry, Document, PublisherEntry, RingEntry
    from shmbus._ledger.registry import Change
    from shmbus._shm.rings import Rings
    from shmbus._shm.traces import Traces

_log = logger("shmbus.reclaim")

MAX_CLOSED: Final = 32
"""Closed subscribers that a topic keeps by name, and as many removed groups; past it the oldest are merged into one."""

_CAUSES: Final[tuple[Cause, ...]] = ("overrun", "refused", "undecodable", "rejected", "abandoned")


def close_publisher(change: Change, rings: Rings, id: int, *, dead: bool = False) -> None:
    """Retire a publisher. Its rings stay until their consumers have drained them."""
    document = change.document
    publisher = document.publisher(id)
    if publisher is None or publisher.state == "retired":
        return
    for ring in document.rings:
        if ring.publisher == id:
            retired.shrink(rings, ring, history=True)  # first: whoever finds it retired takes it for small
    reach("close.shrunk")
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
            for entry, _ in members:
                with unless_unreadable(entry):
                    _settle_slot(document, rings, consumer, entry, abandoned=True)
        consumer.state, consumer.dead = "leaving", dead
        change.commit()
        reach("close.leaving")
    for _, ring in members:
        ring.leave(consumer.slot)
        reach("close.ring")
    keep_totals(change, consumer)
    change.commit(consumer.topic)
    sweep(change, rings)


def keep_totals(change: Change, consumer: ConsumerEntry) -> None:
    """Of a consumer that is gone nothing stays but its totals, and what was sampled of it."""
    document = change.document
    latency = _core.latency_terms(change.registry.map, consumer.line)
    document.consumers.remove(consumer)
    closed = ClosedEntry(
        id=consumer.id,
        topic=consumer.topic,
        name=consumer.name,
        mode=consumer.mode,
        dead=consumer.dead,
        totals=consumer.totals,
        kind=consumer.kind,
        latency=latency and (latency["count"], latency["p50_ns"], latency["p99_ns"], latency["max_ns"]),
        sampled=past.sampled(change.registry.map, consumer),
    )
    before = closed_namesake(document, consumer)
    if before is not None:  # it died before it had taken these over, or they are of one that was dead when it came
        document.closed.remove(before)
        past.add_totals(closed.totals, before.totals)
        closed.sampled = past.added(closed.sampled, before.sampled)
    document.closed.append(closed)
    merge_closed(document, consumer.topic, MAX_CLOSED)


def name_of(entry: ConsumerEntry | ClosedEntry) -> tuple[str, int, str]:
    """What the books of a consumer are known by from one life to the next."""
    return entry.kind, entry.topic, entry.name


def closed_namesake(document: Document, consumer: ConsumerEntry) -> ClosedEntry | None:
    """What is left of the one before it."""
    return next((c for c in document.closed if name_of(c) == name_of(consumer)), None)


def close_worker(change: Change, rings: Rings, id: int) -> int:
    """Give back what a worker held, and free its slot; returns how many events went back."""
    document = change.document
    worker = next((w for w in document.workers if w.id == id), None)
    if worker is None:
        return 0
    group = document.consumer(worker.group)
    given_back = 0
    if group is not None:
        given_back = give_back(document, rings, group, worker.slot, worker.generation)
    reach("close.worker")
    document.workers.remove(worker)
    if group is not None and all(w.group != group.id for w in document.workers):
        group.idle_since_ns = _core.host_ns()
    change.commit(*(() if group is None else (group.topic,)))
    return given_back


def give_back(document: Document, rings: Rings, group: ConsumerEntry, slot: int, generation: int) -> int:
    """Give back what a worker of a group held that is gone, and then its lanes; returns how many events went back.

    Of nobody, slot and generation 0: what was taken from somebody by one who died, and the hints, which the dead may
    not have lowered.
    """
    given_back = 0
    lanes = lanes_of(rings, group)
    for entry in document.rings_of(group):
        with unless_unreadable(entry):
            given_back += rings.work(entry).reclaim(slot, generation, lanes)
            reach("close.claims")
    if lanes is not None:
        _core.lanes_free(lanes, slot, generation)
    return given_back


def lanes_of(rings: Rings, group: ConsumerEntry) -> _core.Mapping | None:
    """The lanes of a group with a key; None as well where somebody has taken them away: events go back all the same."""
    if not group.key:
        return None
    try:
        return rings.lanes.map(group.id)
    except ShmbusError as error:
        _log.warning("group %s: what its workers held of its keys cannot be freed: %s", group.name, error)
        return None


def undo_group(change: Change, rings: Rings, id: int) -> None:
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
    if group.key:
        rings.lanes.remove(id)
    topics.forget_unused(change)


def sweep(change: Change, rings: Rings, patience: int | None = retired.PATIENCE) -> None:
    """Take the rings that are drained or given up out of the document, and the topics that nobody needs then; make
    those smaller that hold what nobody will read.
    """
    document = change.document
    found = retired.leftovers(document, rings, patience)
    for entry in found.loose:
        retired.shrink(rings, entry, history=False)
    release(change, rings, [entry for entry in found.gone if retired.take_back(document, rings, entry)])
    pools.drop_idle(change, rings)
    topics.forget_unused(change)


def release(change: Change, rings: Rings, entries: list[RingEntry]) -> None:
    """Put the books of rings that nobody waits for into their consumers' totals, and remove the rings."""
    if not entries:
        return
    reach("sweep.given_up")
    document = change.document
    for entry in sorted(entries, key=lambda entry: entry.id):
        with unless_unreadable(entry):
            settle_ring(document, rings, entry)
            _keep_counts(document, rings, entry)
    gone = {entry.id for entry in entries}
    document.rings = [r for r in document.rings if r.id not in gone]
    gone_pools = forget_publishers(document)
    change.commit(*{entry.topic for entry in entries})
    reach("sweep.committed")
    for entry in entries:
        rings.remove(entry.id)
    pools.remove(rings, gone_pools)
    forget_traces(document, rings, entries)


def forget_publishers(document: Document) -> list[int]:
    """Take those out that are gone and have no ring any more; returns their pools, to be removed after the commit."""
    having = {r.publisher for r in document.rings}
    gone = [p for p in document.publishers if p.state != "active" and p.id not in having]
    document.publishers = [p for p in document.publishers if p not in gone]
    return [p.pool for p in gone if p.pool]


def forget_traces(document: Document, rings: Rings, gone: Iterable[RingEntry]) -> None:
    """After the commit: of the rings that are gone, the trace files of those publishers that are gone with them."""
    there = {p.id for p in document.publishers}
    for publisher in {ring.publisher for ring in gone} - there:
        rings.traces.remove(publisher)


def _keep_counts(document: Document, rings: Rings, entry: RingEntry) -> None:
    """Of a publisher that has grown out of the ring."""
    publisher = document.publisher(entry.publisher)
    if publisher is None or publisher.state != "active":
        return
    if entry.group:
        publisher.refused += rings.work(entry).terms()["refused"]
    else:
        info = rings.broadcast(entry).info()
        publisher.refused += info["refused"]
        publisher.unrouted += info["unrouted"]


def _members(document: Document, entry: RingEntry, ring: _core.BroadcastRing) -> list[ConsumerEntry]:
    bits = ring.info()["members"]
    return [
        c
        for c in document.consumers
        if c.topic == entry.topic and c.kind == "subscriber" and c.state == "active" and bits >> c.slot & 1
    ]


def settle_ring(document: Document, rings: Rings, entry: RingEntry) -> None:
    """Put the books of a ring that goes into its consumers' totals; what a group is still owed then is abandoned."""
    if not entry.group:
        ring = rings.broadcast(entry)
        for consumer in _members(document, entry, ring):
            _settle_slot(document, rings, consumer, entry, abandoned=False)  # what is left was given up
        past.settle_publisher(document, entry, ring.info())
        return
    work = rings.work(entry)
    group = document.consumer(entry.group)
    if group is not None:
        terms = cast("dict[str, int]", work.terms())
        _add(group.totals, terms)
        _note_losses(document, rings, group, entry, terms, work.losses())
        _abandon(document, rings, group, entry, terms)


def _settle_slot(
    document: Document, rings: Rings, consumer: ConsumerEntry, entry: RingEntry, *, abandoned: bool
) -> None:
    """Put a slot's books into its consumer's totals; what is left unread is abandoned, or was given up: overrun."""
    ring = rings.broadcast(entry)
    terms = cast("dict[str, int]", dict(ring.terms(consumer.slot)))
    losses = ring.losses(consumer.slot)
    depth = terms["depth"]
    if depth and not abandoned:
        _give_up(document, consumer, entry, terms)
    _add(consumer.totals, terms)
    _note_losses(document, rings, consumer, entry, terms, losses)
    if abandoned:
        _abandon(document, rings, consumer, entry, terms)


def _abandon(
    document: Document, rings: Rings, consumer: ConsumerEntry, entry: RingEntry, terms: Mapping[str, int]
) -> None:
    depth = terms["depth"]
    if depth:
        consumer.totals.abandoned += depth
        first, now = terms["next"], time.time_ns()
        _note(document, rings, consumer, entry, "abandoned", (depth, first, first + depth - 1, now, now))


def _give_up(document: Document, consumer: ConsumerEntry, entry: RingEntry, terms: dict[str, int]) -> None:
    """A reader that never opened the ring: all that is left counts as overwritten, and it is to be told."""
    first, last = terms["pending_first"] or terms["next"], terms["next"] + terms["depth"] - 1
    terms["overrun"] += terms["depth"]
    terms["pending_first"], terms["pending_last"] = first, last
    count = last - first + 1
    total = consumer.given_up[-1].total if consumer.given_up else 0
    gap = GivenUp(_name_of(document.publisher(entry.publisher)), first, last, count, total + count)
    consumer.given_up = [*consumer.given_up, gap][-MAX_GIVEN_UP:]


def _add(totals: Totals, terms: Mapping[str, int]) -> None:
    for name in ("offered", "delivered", *_CAUSES):
        setattr(totals, name, getattr(totals, name) + terms.get(name, 0))


def _note_losses(
    document: Document,
    rings: Rings,
    consumer: ConsumerEntry,
    entry: RingEntry,
    terms: Mapping[str, int],
    losses: Mapping[str, _core.LossTuple],
) -> None:
    for cause in _CAUSES:
        count = terms.get(cause, 0)
        if count:
            _, *details = with_pending(cause, losses[cause], terms, time.time_ns())
            _note(document, rings, consumer, entry, cause, (count, *details))


def with_pending(cause: str, recorded: _core.LossTuple, terms: Mapping[str, int], now: int) -> _core.LossTuple:
    """What a ring has on record for a cause, with the overrun that its reader has yet to find out about."""
    count, first, _, first_ns, _ = recorded
    if cause != "overrun" or not terms.get("pending_last"):
        return recorded
    return count, first or terms["pending_first"], terms["pending_last"], first_ns or now, now


def trace_of(traces: Traces, entry: RingEntry, cause: str, first: int) -> str:
    """Which span sent the first event of a loss, as `traceparent` has it; "" if that is not known."""
    ring = entry.id | REFUSED if cause == "refused" else entry.id if entry.group else BROADCAST
    return traces.find(entry.publisher, ring, first)


def _note(
    document: Document,
    rings: Rings,
    consumer: ConsumerEntry,
    entry: RingEntry,
    cause: Cause,
    loss: tuple[int, ...],
) -> None:
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
            trace=trace_of(rings.traces, entry, cause, first),
        )
    )
    excess = len(document.losses) - MAX_LOSSES
    if excess > 0:
        document.losses_forgotten += excess
        del document.losses[:excess]


def _name_of(publisher: PublisherEntry | None) -> str:
    return publisher.name if publisher is not None else "(gone)"


def merge_closed(document: Document, topic: int, most: int) -> bool:
    """Keep at most `most` entries of subscribers that are gone, and as many of groups: the oldest become one, and none
    of their totals is lost. False if there are no more.
    """
    merged = [_merge(document, topic, kind, most) for kind in ("subscriber", "group")]
    return any(merged)


def _merge(document: Document, topic: int, kind: str, most: int) -> bool:
    closed = [c for c in document.closed if c.topic == topic and c.kind == kind]
    if len(closed) <= most:
        return False
    into = next((c for c in closed if c.name == past.DEPARTED), closed[0])
    into.name, into.latency = past.DEPARTED, None
    for victim in [c for c in closed if c is not into][: len(closed) - most]:
        past.add_totals(into.totals, victim.totals)
        into.sampled = past.added(into.sampled, victim.sampled)
        document.closed.remove(victim)
    return True
