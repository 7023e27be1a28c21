"""The registry document: who takes part in a bus, and what each holds. Data only.

One document is kept twice in the bus segment (`_ledger/registry.py`); it is encoded with msgspec and decoded with full
validation, for whatever comes out of a segment is untrusted: every number is bounded by its type, and `decode` checks
what entries say of each other. Ids count up from 1 and are never used twice on a bus; slots and indices are those of
the fixed tables of layout.h, and are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from shmbus import _core

if TYPE_CHECKING:
    from collections.abc import Iterable

Natural = Annotated[int, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
"""Leaves room for sums: all that the books add up must fit into 64 bits."""
Pid = Annotated[int, msgspec.Meta(ge=0, le=1 << 22)]
"""The kernel's PID_MAX_LIMIT."""
Life = Annotated[int, msgspec.Meta(ge=1, lt=1 << 60)]
Capacity = Annotated[int, msgspec.Meta(ge=_core.MIN_CAPACITY, le=_core.MAX_CAPACITY)]
TopicIndex = Annotated[int, msgspec.Meta(ge=0, lt=_core.MAX_TOPICS)]
Line = Annotated[int, msgspec.Meta(ge=0, lt=_core.MAX_CONSUMERS)]
ConsumerSlot = Annotated[int, msgspec.Meta(ge=0, lt=min(_core.MAX_SUBSCRIBERS, _core.MAX_GROUPS))]
PublisherSlot = Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
WorkerSlot = Annotated[int, msgspec.Meta(ge=0, lt=_core.MAX_WORKERS)]
Generation = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
Cause = Literal["overrun", "refused", "abandoned", "undecodable", "rejected"]


class Totals(msgspec.Struct):
    """A consumer's books, in events, for rings that are gone."""

    offered: Count = 0
    delivered: Count = 0
    overrun: Count = 0
    refused: Count = 0
    abandoned: Count = 0
    undecodable: Count = 0
    rejected: Count = 0


class Participant(msgspec.Struct):
    """A process attached to the bus, once for each Bus object. `id` is its generation too."""

    id: Count
    life: Life
    """Its byte of the lives file: the same for all Bus objects of a process, and the one proof that it lives."""
    pid: Pid
    """In its own PID namespace; for people."""
    namespace: Natural
    """The inode of that; 0 where it is not known."""
    command: str
    state: Literal["active", "reclaiming"] = "active"


class TopicEntry(msgspec.Struct):
    index: TopicIndex
    name: str
    capacity: Capacity
    codec: Literal["msgpack", "json", "pickle"]
    fingerprint: Natural
    description: bytes


class PublisherEntry(msgspec.Struct):
    """A publisher, for as long as one of its rings is there."""

    id: Count
    slot: PublisherSlot
    """Which `pub-<slot>` channel it sleeps on; free again once it is retired."""
    topic: TopicIndex
    name: str
    participant: Natural
    state: Literal["active", "retired"] = "active"
    dead: bool = False


class ConsumerEntry(msgspec.Struct):
    """A subscriber or a group; kept, closed, for its totals."""

    id: Count
    line: Line
    """Its line in the bus segment's consumer table."""
    topic: TopicIndex
    kind: Literal["subscriber", "group"]
    name: str
    slot: ConsumerSlot
    """A subscriber's bit in its topic, a group's line in the group table."""
    mode: Literal["reliable", "lossy"] = "reliable"
    participant: Natural = 0
    """0: a group, or closed."""
    state: Literal["joining", "active", "leaving", "closed"] = "joining"
    dead: bool = False
    totals: Totals = msgspec.field(default_factory=Totals)
    generations: dict[WorkerSlot, Generation] = {}
    """Group: the last generation of each worker slot."""


class WorkerEntry(msgspec.Struct):
    id: Count
    group: Natural
    slot: WorkerSlot
    generation: Generation
    participant: Natural
    name: str


class RingEntry(msgspec.Struct):
    """A segment `shmbus-<bus>:ring-<id>`. `group` is 0 for a broadcast ring."""

    id: Count
    topic: TopicIndex
    publisher: Natural
    group: Natural
    capacity: Capacity
    state: Literal["active", "retired"] = "active"


class LossEntry(msgspec.Struct, frozen=True):
    """What one consumer lost from one publisher's ring that is gone, for one cause."""

    consumer: str
    topic: str
    publisher: str
    cause: Cause
    count: Count
    first: Natural
    last: Natural
    first_ns: Natural
    last_ns: Natural


class Document(msgspec.Struct):
    next_id: Count = 1
    stall_ns: Natural = 10_000_000_000
    participants: list[Participant] = []
    topics: list[TopicEntry] = []
    publishers: list[PublisherEntry] = []
    consumers: list[ConsumerEntry] = []
    workers: list[WorkerEntry] = []
    rings: list[RingEntry] = []
    losses: list[LossEntry] = []
    losses_forgotten: Count = 0
    """Entries that no longer fit into `losses`; their counts are in the totals all the same."""

    def new_id(self) -> int:
        self.next_id += 1
        return self.next_id - 1

    def participant(self, id: int) -> Participant | None:
        return next((p for p in self.participants if p.id == id), None)

    def topic_named(self, name: str) -> TopicEntry | None:
        return next((t for t in self.topics if t.name == name), None)

    def topic_at(self, index: int) -> TopicEntry:
        return next(t for t in self.topics if t.index == index)

    def publisher(self, id: int) -> PublisherEntry | None:
        return next((p for p in self.publishers if p.id == id), None)

    def consumer(self, id: int) -> ConsumerEntry | None:
        return next((c for c in self.consumers if c.id == id), None)

    def ring(self, id: int) -> RingEntry | None:
        return next((r for r in self.rings if r.id == id), None)

    def rings_of(self, consumer: ConsumerEntry) -> list[RingEntry]:
        """Rings that may hold events for a consumer: its group's, or the topic's broadcast rings."""
        group = consumer.id if consumer.kind == "group" else 0
        return [r for r in self.rings if r.topic == consumer.topic and r.group == group]


encode: Final = msgspec.msgpack.Encoder().encode
_decoder: Final = msgspec.msgpack.Decoder(Document)


def decode(raw: bytes) -> Document:
    """The document, if it can be one. Raises msgspec.DecodeError, and ValueError for entries that contradict others."""
    document = _decoder.decode(raw)
    topics = [t.index for t in document.topics]
    entries: list[PublisherEntry | ConsumerEntry | RingEntry] = [*document.publishers, *document.consumers]
    for entry in [*entries, *document.rings]:
        if entry.topic not in topics:
            raise ValueError(f"an entry names topic {entry.topic}, which is not there: id={entry.id}")
    for ring in document.rings:
        if ring.capacity & (ring.capacity - 1):
            raise ValueError(f"the capacity of ring {ring.id} is no power of two: capacity={ring.capacity}")
    _require_unique("topic index", topics)
    _require_unique("topic name", (t.name for t in document.topics))
    for table in (document.participants, document.publishers, document.consumers, document.workers, document.rings):
        _require_unique("id", (entry.id for entry in table))
    _require_unique("group slot", (c.slot for c in document.consumers if c.kind == "group"))
    _require_unique("publisher and group of a ring", ((r.publisher, r.group) for r in document.rings))
    return document


def _require_unique(what: str, values: Iterable[object]) -> None:
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{what} occurs twice: {value!r}")
        seen.add(value)
