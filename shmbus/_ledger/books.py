"""The books of a bus, read from its document and rings. Takes no lock and changes nothing.

May touch: nothing; it reads segments, also ones that are attached read-only.

Must stay true:
- For each consumer, offered == delivered + depth + overrun + refused + abandoned + undecodable + rejected: the terms of
  a ring come from one reading of its words (reader.c, work.c), those of rings that are gone from the totals.
- Each consumer and each publisher is as at one moment, those of a bus not all as at the same: others come and go
  meanwhile (`_ledger/look.py`).
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import msgspec

from shmbus import _core
from shmbus._ledger import notes, past, views
from shmbus._ledger.departures import name_of, trace_of, with_pending
from shmbus._ledger.look import Look, require_plausible
from shmbus._shm import processes
from shmbus.stats import (
    BusStats,
    ConsumerStats,
    Latency,
    Loss,
    ParticipantStats,
    PublisherStats,
    SourceStats,
    SupervisorStats,
    TopicStats,
    WorkerStats,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from shmbus._ledger.document import ClosedEntry, ConsumerEntry, Participant, PublisherEntry, RingEntry
    from shmbus._ledger.registry import Registry
    from shmbus._shm.rings import Rings
    from shmbus.stats import Health

_TERMS: Final = ("offered", "delivered", "depth", "overrun", "refused", "abandoned", "undecodable", "rejected")
_FIGURES: Final = ("count", "first", "last", "first_ns", "last_ns")  # of a loss
_BEAT_NS: Final = 5_000_000_000  # a supervisor looks once a second


def stats(registry: Registry, rings: Rings) -> BusStats:
    """The bus at this moment."""
    return _Books(registry, rings).bus()


class Progress(NamedTuple):
    """What an active consumer has done so far, and whether it could do more: no progress is the same `done` again."""

    entry: ConsumerEntry
    done: tuple[int, ...]  # its own doing: what others refuse it, or overwrite, is none
    depth: int
    """Events that wait for it; those that are delayed are not waited for."""
    dropped: int


def progress(registry: Registry, rings: Rings) -> list[Progress]:
    """How far every active consumer is: a few words of each, a small part of what `stats` reads."""
    return _Books(registry, rings).progress()


def losses(registry: Registry, rings: Rings) -> list[Loss]:
    """Every loss on the books, the oldest first: of rings that are gone, and of those that are there."""
    return sorted(_Books(registry, rings).losses(), key=lambda loss: loss.first_ns)


class _Books(Look):
    """One reading of everything."""

    def __init__(self, registry: Registry, rings: Rings) -> None:
        super().__init__(registry, rings)
        self.now = time.time_ns()
        self.namespace = processes.pid_namespace()
        self.topics = {t.index: t for t in self.document.topics}
        self.publishers = {p.id: p for p in self.document.publishers}
        self.participants = {p.id: p for p in self.document.participants}
        self.blocks: defaultdict[int, set[str]] = defaultdict(set)
        self.blocked_by: defaultdict[int, set[str]] = defaultdict(set)
        self.process_health: dict[int, Health] = {}
        """By life: one word of a process in all of this look."""
        self.pools, self.traces = rings.pools, rings.traces
        self.bytes = registry.segment.allocated() + _core.LIVES_BYTES + sum(map(rings.bytes, self.document.rings))
        self.bytes += sum(_core.Pool.size(p.pool_bytes) for p in self.document.publishers if p.pool)

    # -- the whole

    def bus(self) -> BusStats:
        document = self.document
        for entry in document.rings:
            self.find_blocking(entry)
        depths = notes.waiting(consumers := tuple(self.consumers()))
        return BusStats(
            bus=self.registry.bus,
            time_ns=self.now,
            created_ns=_core.load(self.registry.map, _core.BUS_CREATED),
            bytes=self.bytes,
            lost_rings=len(self.lost),
            supervisor=self.supervisor(),
            topics=tuple(
                TopicStats(name=t.name, capacity=t.capacity, codec=t.codec, type=t.type, max_capacity=t.max_capacity)
                for t in document.topics
            ),
            participants=tuple(self.participant(p, depths) for p in document.participants),
            publishers=tuple(self.publisher(p) for p in document.publishers),
            consumers=consumers,
            departed=tuple(past.told(document)),
            deaths=document.died,
        )

    def health(self, participant: int) -> Health:
        entry = self.participants.get(participant)
        if entry is None:
            return "dead"
        if entry.life not in self.process_health:
            self.process_health[entry.life] = self.look_at(entry.life)
        return self.process_health[entry.life]

    def look_at(self, life: int) -> Health:
        pid = self.registry.lives.holder(life)
        if pid is None:
            return "dead"
        return "stopped" if pid and processes.stopped(pid) else "ok"

    def participant(self, entry: Participant, depths: Mapping[str, int]) -> ParticipantStats:
        pid, namespace = self.process(entry.life, entry.pid, entry.namespace)
        return ParticipantStats(
            id=entry.id,
            pid=pid,
            namespace=namespace,
            command=entry.command,
            state=self.health(entry.id),
            notes=notes.told(entry.notes, depths),
        )

    def process(self, life: int, pid: int, namespace: int) -> tuple[int, int]:
        """A pid that means something here and 0, or else the one of another namespace, and which that is."""
        here = self.registry.lives.holder(life)
        if here:
            return here, 0
        return pid, 0 if namespace == self.namespace else namespace

    def pid(self, participant: int) -> int:
        """Of a participant; 0 for one that is gone."""
        entry = self.participants.get(participant)
        return self.process(entry.life, entry.pid, entry.namespace)[0] if entry else 0

    def supervisor(self) -> SupervisorStats:
        memory = self.registry.map
        life = _core.load(memory, _core.BUS_SUPERVISOR_LIFE)
        if not life or not self.registry.lives.alive(life):
            return SupervisorStats(pid=0, state="none")
        stale = abs(time.time_ns() - _core.load(memory, _core.BUS_SUPERVISOR_BEAT)) > _BEAT_NS
        own, where = (_core.load(memory, at) for at in (_core.BUS_SUPERVISOR_PID, _core.BUS_SUPERVISOR_NAMESPACE))
        pid, namespace = self.process(life, own, where)
        return SupervisorStats(pid=pid, namespace=namespace, state="stalled" if stale else "ok")

    # -- publishers

    def find_blocking(self, entry: RingEntry) -> None:
        """Note who keeps a ring's publisher from writing what it wants, or an eighth of the ring."""
        if entry.state != "active":
            return
        if entry.id in self.work:
            terms = self.work[entry.id].terms()
            if terms["room"] < max(terms["need"], entry.capacity // 8):
                self.note_blocking(entry, self.document.consumer(entry.group))
            return
        ring = self.broadcast.get(entry.id)
        if ring is None:
            return
        bits = ring.blocking(max(ring.info()["need"], entry.capacity // 8))
        for consumer in self.document.consumers:
            here = consumer.topic == entry.topic and consumer.kind == "subscriber" and consumer.state == "active"
            if here and bits >> consumer.slot & 1:
                self.note_blocking(entry, consumer)

    def note_blocking(self, entry: RingEntry, consumer: ConsumerEntry | None) -> None:
        publisher = self.publishers.get(entry.publisher)
        if consumer is not None and publisher is not None:
            self.blocks[consumer.id].add(publisher.name)
            self.blocked_by[publisher.id].add(consumer.name)

    def publisher(self, publisher: PublisherEntry) -> PublisherStats:
        waiting, published, used, capacity = False, 0, 0, 0
        unrouted, refused = publisher.unrouted, publisher.refused
        for entry in [r for r in self.document.rings if r.publisher == publisher.id]:
            going = entry.state == "active"
            written = going or publisher.state == "retired"
            capacity = max(capacity, entry.capacity if written else 0)
            if entry.id in self.work:
                terms = self.work[entry.id].terms()
                refused += terms["refused"]
                used = max(used, entry.capacity - terms["room"] if written else 0)
            elif entry.id in self.broadcast:
                info = self.broadcast[entry.id].info()
                published = max(published, info["sequence"] - 1)
                unrouted += info["unrouted"]
                waiting = waiting or (going and info["need"] != 0)
                refused += info["refused"]
                used = max(used, entry.capacity - info["room"] if written else 0)
        published = max(0, published - publisher.settled)
        require_plausible((published, refused), f"the counters of publisher {publisher.name!r}")
        state: Health = "closed" if publisher.state == "retired" else self.health(publisher.participant)
        return PublisherStats(
            id=publisher.id,
            name=publisher.name,
            topic=self.topics[publisher.topic].name,
            state="dead" if publisher.dead else state,
            pid=self.pid(publisher.participant) if publisher.state == "active" else 0,
            published=published,
            unrouted=unrouted,
            refused=refused,
            capacity=capacity,
            used=used,
            waiting=waiting,
            grown=publisher.grown,
            shrunk=publisher.shrunk,
            blocked_by=tuple(sorted(self.blocked_by[publisher.id])),
            **views.pool_of(self, self.pools, publisher),
            before=publisher.before[0],
            unrouted_before=publisher.before[1],
        )

    # -- consumers

    def consumers(self) -> Iterator[ConsumerStats]:
        """Each once: who leaves while we look is looked up again, and may be back under its name."""
        document, left = self.document, None
        while left is None or left:
            moving = set()
            for consumer in document.consumers:
                if consumer.state != "joining" and (left is None or name_of(consumer) in left):
                    found = self.consumer(consumer)
                    if self.still_there(consumer):
                        yield found
                    else:
                        moving.add(name_of(consumer))
            for closed in document.closed:
                if (left is None or name_of(closed) in left) and name_of(closed) not in moving:
                    yield self.closed(closed)
            if moving:
                document = self.registry.read()
            left = moving

    def closed(self, closed: ClosedEntry) -> ConsumerStats:
        return ConsumerStats(
            name=closed.name,
            topic=self.topics[closed.topic].name,
            kind=closed.kind,
            mode=closed.mode,
            state="dead" if closed.dead else "closed",
            pid=0,
            lag_ns=0,
            latencies=past.dense(closed.sampled),
            latency=None
            if closed.latency is None
            else Latency(**dict(zip(Latency.__struct_fields__, closed.latency, strict=True))),
            workers=(),
            publishers=(),
            blocks=(),
            key="",
            **_sums(closed, ()),
        )

    def consumer(self, consumer: ConsumerEntry) -> ConsumerStats:
        entries = self.sources(consumer)
        found = [self.terms(consumer, entry) for entry in entries]
        sources: dict[int, SourceStats] = {}
        for entry, terms in zip(entries, found, strict=True):
            before = sources.get(entry.publisher)
            sources[entry.publisher] = self.source(entry, terms, before)
        sums = _sums(consumer, found)
        workers = self.workers(consumer)
        return ConsumerStats(
            name=consumer.name,
            topic=self.topics[consumer.topic].name,
            kind=consumer.kind,
            mode=consumer.mode,
            state=self.consumer_health(consumer, workers, sums["depth"]),
            pid=self.pid(consumer.participant),
            lag_ns=max((s.lag_ns for s in sources.values()), default=0),
            claimed=sum(w.held for w in workers),
            key=consumer.key,
            blocks=tuple(sorted(self.blocks[consumer.id])),
            quarantined_ns=consumer.quarantined_ns,
            latency=self.latency(consumer),
            latencies=past.dense(past.sampled(self.registry.map, consumer)),
            workers=workers,
            publishers=tuple(sources.values()),
            **sums,
        )

    def latency(self, consumer: ConsumerEntry) -> Latency | None:
        terms = _core.latency_terms(self.registry.map, consumer.line)
        return None if terms is None else Latency(**terms)

    def source(self, entry: RingEntry, terms: Mapping[str, int], before: SourceStats | None) -> SourceStats:
        """The books of one publisher, which may be in another ring too."""
        publisher = self.publishers.get(entry.publisher)
        oldest = terms["oldest_ns"]
        lag = max(0, self.now - oldest) if oldest else 0
        return SourceStats(
            publisher=publisher.name if publisher else "(gone)",
            lag_ns=max(lag, before.lag_ns if before else 0),
            **{t: terms[t] + (getattr(before, t) if before else 0) for t in _TERMS if t in terms},
        )

    def workers(self, group: ConsumerEntry) -> tuple[WorkerStats, ...]:
        entries = [w for w in self.document.workers if w.group == group.id]
        rings = [self.work[entry.id] for entry in self.sources(group)] if entries else []
        return tuple(
            WorkerStats(
                name=w.name,
                pid=self.pid(w.participant),
                held=sum(ring.held(w.slot, w.generation) for ring in rings),
                state=self.health(w.participant),
            )
            for w in entries
        )

    def consumer_health(self, consumer: ConsumerEntry, workers: tuple[WorkerStats, ...], depth: int) -> Health:
        if consumer.state == "leaving":
            return "dead" if consumer.dead else "closed"
        if consumer.kind == "group":
            if not workers:
                return "idle"
        else:
            health = self.health(consumer.participant)
            if health != "ok":
                return health
        if depth and _core.load(
            self.registry.map, _core.CONSUMER_LINES + consumer.line * _core.LINE + _core.CONSUMER_STALLED
        ):
            return "stalled"
        return "slow" if self.blocks[consumer.id] or self.behind(consumer) else "ok"

    # -- progress

    def progress(self) -> list[Progress]:
        found = []
        for consumer in self.document.consumers:
            if consumer.state == "active":
                terms = [self.terms(consumer, entry) for entry in self.sources(consumer)]
                sums = _sums(consumer, terms)
                if not self.still_there(consumer):
                    continue
                done = tuple(sums[t] for t in ("delivered", "undecodable", "rejected"))
                depth = sums["depth"] - sum(t.get("delayed", 0) for t in terms)
                found.append(Progress(consumer, done, depth, sum(sums[t] for t in _TERMS[3:])))
        return found

    # -- losses

    def losses(self) -> list[Loss]:
        settled = list(self.document.losses)
        found: list[Loss] = []
        for consumer in self.document.consumers:
            live = [loss for entry in self.sources(consumer) for loss in self.ring_losses(consumer, entry)]
            if self.still_there(consumer):
                found += live
            else:
                settled += self.losses_since(consumer)
        return found + [Loss(**msgspec.structs.asdict(loss)) for loss in settled]

    def ring_losses(self, consumer: ConsumerEntry, entry: RingEntry) -> Iterable[Loss]:
        details = self.work[entry.id].losses() if entry.group else self.broadcast[entry.id].losses(consumer.slot)
        terms = self.terms(consumer, entry)
        publisher = self.publishers.get(entry.publisher)
        for cause, recorded in details.items():
            if terms[cause]:
                figures = with_pending(cause, recorded, terms, self.now)
                yield Loss(
                    consumer=consumer.name,
                    topic=self.topics[consumer.topic].name,
                    publisher=publisher.name if publisher else "(gone)",
                    cause=cast("Any", cause),
                    trace=trace_of(self.traces, entry, cause, figures[1]),
                    **dict(zip(_FIGURES, (terms[cause], *figures[1:]), strict=True)),
                )


def _sums(consumer: ConsumerEntry | ClosedEntry, found: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """The books of a consumer over all of its rings. While it leaves, what those say is in the totals already."""
    totals = msgspec.structs.asdict(consumer.totals)
    sums = {t: sum(terms.get(t, 0) for terms in found) + totals.get(t, 0) for t in _TERMS}
    require_plausible(sums.values(), f"the books of consumer {consumer.name!r}")
    return sums
