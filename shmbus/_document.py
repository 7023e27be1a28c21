"""The registry document: who takes part in a bus, and what each holds. Data only.

One document is kept twice in the bus segment (`_registry.py`); it is encoded with msgspec and decoded with full
validation, for whatever comes out of a segment is untrusted. Ids count up from 1 and are never used twice on a bus;
slots and indices are those of the fixed tables of layout.h, and are.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Natural = Annotated[int, msgspec.Meta(ge=0)]
Cause = Literal["overrun", "refused", "abandoned", "undecodable", "rejected"]


class Totals(msgspec.Struct):
    """A consumer's books, in events, for rings that are gone."""

    offered: Natural = 0
    delivered: Natural = 0
    overrun: Natural = 0
    refused: Natural = 0
    abandoned: Natural = 0
    undecodable: Natural = 0
    rejected: Natural = 0


class Participant(msgspec.Struct):
    """A process attached to the bus, once for each Bus object. `id` is its generation too."""

    id: Natural
    pid: Natural
    start: Natural
    """Clock ticks from boot to the start of the process."""
    command: str
    state: Literal["active", "reclaiming"] = "active"


class TopicEntry(msgspec.Struct):
    index: Natural
    name: str
    capacity: Natural
    codec: Literal["msgpack", "json", "pickle"]
    fingerprint: Natural
    description: bytes


class PublisherEntry(msgspec.Struct):
    """A publisher, for as long as one of its rings is there."""

    id: Natural
    slot: Natural
    """Which `pub-<slot>` channel it sleeps on; free again once it is retired."""
    topic: Natural
    name: str
    participant: Natural
    state: Literal["active", "retired"] = "active"
    dead: bool = False


class ConsumerEntry(msgspec.Struct):
    """A subscriber or a group; kept, closed, for its totals."""

    id: Natural
    line: Natural
    """Its line in the bus segment's consumer table."""
    topic: Natural
    kind: Literal["subscriber", "group"]
    name: str
    slot: Natural
    """A subscriber's bit in its topic, a group's line in the group table."""
    mode: Literal["reliable", "lossy"] = "reliable"
    participant: Natural = 0
    """0: a group, or closed."""
    state: Literal["joining", "active", "leaving", "closed"] = "joining"
    dead: bool = False
    totals: Totals = msgspec.field(default_factory=Totals)
    generations: dict[int, int] = {}
    """Group: the last generation of each worker slot."""


class WorkerEntry(msgspec.Struct):
    id: Natural
    group: Natural
    slot: Natural
    generation: Natural
    participant: Natural
    name: str


class RingEntry(msgspec.Struct):
    """A segment `shmbus-<bus>:ring-<id>`. `group` is 0 for a broadcast ring."""

    id: Natural
    topic: Natural
    publisher: Natural
    group: Natural
    capacity: Natural
    state: Literal["active", "retired"] = "active"


class LossEntry(msgspec.Struct, frozen=True):
    """What one consumer lost from one publisher's ring that is gone, for one cause."""

    consumer: str
    topic: str
    publisher: str
    cause: Cause
    count: Natural
    first: Natural
    last: Natural
    first_ns: Natural
    last_ns: Natural


class Document(msgspec.Struct):
    next_id: Natural = 1
    stall_ns: Natural = 10_000_000_000
    participants: list[Participant] = []
    topics: list[TopicEntry] = []
    publishers: list[PublisherEntry] = []
    consumers: list[ConsumerEntry] = []
    workers: list[WorkerEntry] = []
    rings: list[RingEntry] = []
    losses: list[LossEntry] = []
    losses_forgotten: Natural = 0
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


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Document).decode
