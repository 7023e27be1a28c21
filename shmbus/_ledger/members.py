"""Membership: what the document and the rings go through when somebody joins. Always under the bus lock.

May touch: the registry document, ring segments, the cursor slots of rings, the latency lines of who joins.

Must stay true:
- A ring is born with a cursor for every subscriber that exists, and a work ring for every group; a subscriber or group
  that joins is written into every ring that exists. So a publisher that lives for ten events loses none of them.
- Segments exist before the document names them; what a death in between leaves is an orphan (`Rings.remove_orphans`).
- A subscriber is in the document, as `joining`, before any ring has its cursor; so whoever finds it can undo it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from shmbus import _core
from shmbus._ledger import departures, past, slots
from shmbus._ledger.document import COMMAND, ConsumerEntry, Participant, PublisherEntry, RingEntry, WorkerEntry
from shmbus._shm.failpoint import reach
from shmbus.errors import CapacityError, ConfigError, NameTakenError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Literal

    from shmbus._ledger.document import Document, Mode, TopicEntry
    from shmbus._ledger.registry import Change
    from shmbus._shm.rings import Rings

MAX_PARTICIPANTS = 4096
"""Open Bus objects on one bus; keeps the document far within its slot."""


def attach(change: Change, life: int, pid: int, namespace: int, command: str) -> Participant:
    """Enter a process, whose life is locked."""
    document = change.document
    _require_room("participants", len(document.participants), MAX_PARTICIPANTS)
    participant = Participant(document.new_id(), life, pid, namespace, command[:COMMAND])
    document.participants.append(participant)
    change.commit(entering=True)
    reach("attach.committed")
    return participant


def open_publisher(
    change: Change,
    rings: Rings,
    topic: TopicEntry,
    participant: int,
    name: str | None,
    capacity: int,
    *,
    pool: int = 0,
) -> PublisherEntry:
    """Enter a publisher with its rings, of `capacity` bytes each, and a pool of `pool` bytes, 0: none.

    Raises NoSpaceError, CapacityError, ConfigError.
    """
    document = change.document
    publisher = PublisherEntry(
        id=document.new_id(),
        slot=_lowest_free((p.slot for p in document.publishers if p.state == "active"), 1 << 16, "publishers"),
        topic=topic.index,
        name=name or "",
        participant=participant,
    )
    publisher.name = name or f"pub-{publisher.id}"
    past.take_publisher(document, publisher)
    groups = [c for c in document.consumers if c.topic == topic.index and c.kind == "group" and c.state == "active"]
    entries = [_new_ring(document, publisher, group, capacity) for group in (0, *(g.id for g in groups))]
    created: list[RingEntry] = []
    version = change.version
    try:
        if pool:
            publisher.pool, publisher.pool_bytes = document.new_id(), pool
            rings.pools.create(publisher.pool, pool)
        for entry in entries:
            rings.create(entry)
            created.append(entry)
        broadcast = rings.broadcast(entries[0])
        for consumer in document.consumers:
            if consumer.topic == topic.index and consumer.kind == "subscriber" and consumer.state == "active":
                broadcast.join(consumer.slot, not consumer.gates)
        reach("publisher.rings")
        document.publishers.append(publisher)
        document.rings.extend(entries)
        change.commit(topic.index, entering=True)
        reach("publisher.committed")
    except BaseException:
        if change.version == version:
            for entry in created:
                rings.remove(entry.id)
            if publisher.pool:
                rings.pools.remove(publisher.pool)
        raise
    return publisher


def _new_ring(document: Document, publisher: PublisherEntry, group: int, capacity: int) -> RingEntry:
    return RingEntry(
        id=document.new_id(), topic=publisher.topic, publisher=publisher.id, group=group, capacity=capacity
    )


def require_free_name(document: Document, topic: TopicEntry, kind: str, name: str | None) -> None:
    """Raise NameTakenError if a subscriber or publisher of the topic has this name."""
    entries: Iterable[ConsumerEntry | PublisherEntry]
    if kind == "publisher":
        entries = [p for p in document.publishers if p.state == "active"]
    else:
        entries = [c for c in document.consumers if c.kind == "subscriber"]
    for entry in entries:
        holder = document.participant(entry.participant)
        if entry.topic == topic.index and entry.name == name and holder is not None:
            raise NameTakenError(kind, entry.name, topic.name, holder.pid, holder.command)


def open_subscriber(
    change: Change,
    rings: Rings,
    topic: TopicEntry,
    participant: int,
    name: str | None,
    mode: Mode,
    start: Literal["latest", "oldest"],
) -> ConsumerEntry:
    """Enter a subscriber, and its cursor into every ring. One that comes back under its name keeps its totals."""
    document = change.document
    slot = _lowest_free(
        (c.slot for c in document.consumers if c.kind == "subscriber" and c.topic == topic.index),
        _core.MAX_SUBSCRIBERS,
        "subscribers",
        f" of topic {topic.name!r}",
    )
    consumer = _new_consumer(change, topic, "subscriber", name or "", slot)
    consumer.name = name or f"sub-{consumer.id}"
    consumer.mode, consumer.participant = mode, participant
    # All are attached before anything is entered: what may fail for want of descriptors or memory fails here.
    joined = [rings.joinable(r, slot) for r in document.rings_of(consumer) if r.state == "active" or start == "oldest"]
    change.commit(entering=True)
    reach("subscriber.joining")
    _begin_latency(change, consumer, time.time_ns() if start == "oldest" else 0)
    line = _core.TOPIC_LINES + topic.index * _core.LINE
    for word in (_core.TOPIC_PARKED, _core.TOPIC_AWAITING):
        _core.fetch_and(change.registry.map, line + word, ~(1 << slot) & (2**64 - 1))
    try:
        for ring in joined:
            ring.join(slot, mode != "reliable", start == "oldest")
            reach("subscriber.ring")
        consumer.state = "active"
        if name is not None:
            _take_totals(document, consumer)  # not before: until now it is not told of, and they are
        change.commit(topic.index)
        reach("subscriber.joined")
    except BaseException:
        consumer.state = "joining"
        departures.close_subscriber(change, rings, consumer.id)
        raise
    return consumer


def _take_totals(document: Document, consumer: ConsumerEntry) -> None:
    """One that comes back under its name goes on with its totals."""
    closed = departures.closed_namesake(document, consumer)
    if closed is not None:
        consumer.totals, consumer.sampled = closed.totals, closed.sampled
        document.closed.remove(closed)


def _new_consumer(
    change: Change, topic: TopicEntry, kind: Literal["subscriber", "group"], name: str, slot: int
) -> ConsumerEntry:
    document = change.document
    line = _lowest_free((c.line for c in document.consumers), _core.MAX_CONSUMERS, "consumers")
    slots.give_line(change.registry.segment, line)
    _core.store(change.registry.map, _core.CONSUMER_LINES + line * _core.LINE + _core.CONSUMER_STALLED, 0)
    consumer = ConsumerEntry(id=document.new_id(), line=line, topic=topic.index, kind=kind, name=name, slot=slot)
    document.consumers.append(consumer)
    return consumer


def _begin_latency(change: Change, consumer: ConsumerEntry, since_ns: int) -> None:
    """Empty a consumer's latency line. What was published before `since_ns` will not be sampled: it is history."""
    at = _core.LATENCY_LINES + consumer.line * _core.LATENCY_BYTES
    memory = change.registry.map
    memory[at : at + _core.LATENCY_BYTES] = bytes(_core.LATENCY_BYTES)
    _core.store(memory, at + _core.LATENCY_SINCE, since_ns)


def open_group(
    change: Change, rings: Rings, topic: TopicEntry, name: str, expires_ns: int | None = None, key: str | None = None
) -> ConsumerEntry:
    """The group of that name, created if need be with a work ring for every live publisher.

    One that was removed comes back with its totals. `expires_ns` None leaves what a group has; the last one to say
    something else is right. `key` None takes a group as it is; raises ConfigError if it has another key.
    """
    document = change.document
    groups = [c for c in document.consumers if c.kind == "group"]
    for group in groups:
        if group.topic == topic.index and group.name == name and group.state == "active":
            if key is not None and key != group.key:
                has = f"the key {group.key!r}" if group.key else "no key"
                raise ConfigError(f"group {name!r} of topic {topic.name!r} has {has}, for as long as it exists: {key=}")
            if expires_ns is not None and expires_ns != group.expires_ns:
                group.expires_ns = expires_ns
                change.commit()
            return group
    slot = _lowest_free((g.slot for g in groups), _core.MAX_GROUPS, "groups")
    group = _new_consumer(change, topic, "group", name, slot)
    _take_totals(document, group)
    group.state = "active"
    group.expires_ns, group.idle_since_ns, group.key = expires_ns or 0, _core.host_ns(), key or ""
    _begin_latency(change, group, 0)
    active = {p.id: p for p in document.publishers if p.topic == topic.index and p.state == "active"}
    capacities = {r.publisher: r.capacity for r in document.rings if r.group == 0 and r.state == "active"}
    entries = [_new_ring(document, p, group.id, capacities.get(p.id, topic.capacity)) for p in active.values()]
    created: list[RingEntry] = []
    version = change.version
    try:
        if group.key:
            rings.lanes.create(group.id)
        for entry in entries:
            rings.create(entry)
            created.append(entry)
        reach("group.rings")
        document.rings.extend(entries)
        change.commit(topic.index, entering=True)
    except BaseException:
        if change.version == version:
            for entry in created:
                rings.remove(entry.id)
            if group.key:
                rings.lanes.remove(group.id)
        raise
    return group


def open_worker(
    change: Change, group: ConsumerEntry, participant: int, name: str | None, ack_within_ns: int = 0
) -> WorkerEntry:
    """Enter a worker of a group, under a generation that its slot has not had."""
    document = change.document
    slot = _lowest_free(
        (w.slot for w in document.workers if w.group == group.id),
        _core.MAX_WORKERS,
        "workers",
        f" of group {group.name!r}",
    )
    generation = group.generations.get(slot, 0) % 0xFFFF + 1
    group.generations = {**group.generations, slot: generation}
    worker = WorkerEntry(
        id=document.new_id(),
        group=group.id,
        slot=slot,
        generation=generation,
        participant=participant,
        name=name or "",
        ack_within_ns=ack_within_ns,
    )
    worker.name = name or f"worker-{worker.id}"
    document.workers.append(worker)
    group.idle_since_ns = 0
    clear_worker_bits(change, group, slot)
    change.commit(entering=True)
    reach("worker.committed")
    return worker


def clear_worker_bits(change: Change, group: ConsumerEntry, slot: int) -> None:
    """Make a worker slot neither parked nor awaiting."""
    line = _core.GROUP_LINES + group.slot * _core.LINE + slot // 64 * 8
    for word in (_core.GROUP_PARKED, _core.GROUP_AWAITING):
        _core.fetch_and(change.registry.map, line + word, ~(1 << slot % 64) & (2**64 - 1))


def _lowest_free(taken: Iterable[int], size: int, table: str, of: str = "") -> int:
    used = set(taken)
    _require_room(table, len(used), size, of)
    return next(i for i in range(size) if i not in used)


def _require_room(table: str, used: int, size: int, of: str = "") -> None:
    if used >= size:
        raise CapacityError(f"no room for more {table}{of}: {used} of {size} in use", table=table)
