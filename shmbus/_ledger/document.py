"""The registry document: who takes part in a bus, and what each holds. Data only; slots.py says how it lies.
Whatever comes out of a segment is untrusted: every number and every string is bounded by its type, and the checks of
this module say what entries must not say of each other. Ids count up from 1 and are never used twice on a bus; slots
and indices are those of the fixed tables of layout.h, and are.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from shmbus import _core
from shmbus._ledger.notes import MAX_NOTES, Note

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

Natural = Annotated[int, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
"""Leaves room for sums: all that the books add up must fit into 64 bits."""
Pid = Annotated[int, msgspec.Meta(ge=0, le=1 << 22)]
"""The kernel's PID_MAX_LIMIT."""
Life = Annotated[int, msgspec.Meta(ge=1, lt=1 << 60)]
Capacity = Annotated[int, msgspec.Meta(ge=_core.MIN_CAPACITY, le=_core.MAX_CAPACITY)]
TopicIndex = Annotated[int, msgspec.Meta(ge=0, lt=_core.MAX_TOPICS)]
Line = Annotated[int, msgspec.Meta(ge=0, lt=_core.MAX_CONSUMERS)]
ConsumerSlot = Annotated[int, msgspec.Meta(ge=0, lt=_core.MAX_GROUPS)]
PublisherSlot = Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
WorkerSlot = Annotated[int, msgspec.Meta(ge=0, lt=_core.MAX_WORKERS)]
Generation = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
Name = Annotated[str, msgspec.Meta(max_length=64)]
"""Of a topic, publisher, consumer or worker; `check_name` and `check_label` admit 63 bytes."""
Mode = Literal["reliable", "lossy", "latest"]
"""Of a subscriber; what is not reliable holds up nobody, and its cursor slot says `lossy`."""
Cause = Literal["overrun", "refused", "abandoned", "undecodable", "rejected"]

SAMPLED: Final = 26
"""Octaves of latency that outlive a consumer: up to 1,024 ns, 24 that double, above 17.2 s."""
COMMAND: Final = 80
"""Characters of a command line that the document keeps."""
HOW: Final = 100  # characters, of ASCII, of how a process died
TRACE: Final = 55  # characters of a `traceparent`
TYPE_NAME: Final = 80
"""Characters of the name of an event type; the schema itself lies in a segment of its own (`_shm/schemas.py`)."""


class Totals(msgspec.Struct):
    """A consumer's books, in events, for rings that are gone."""

    offered: Count = 0
    delivered: Count = 0
    overrun: Count = 0
    refused: Count = 0
    abandoned: Count = 0
    undecodable: Count = 0
    rejected: Count = 0


Sampled = dict[Annotated[int, msgspec.Meta(ge=0, lt=SAMPLED)], Count]
"""Events, estimated, by the octave of their latency; what nobody fell into is left out."""


class Past(msgspec.Struct):
    """What is on the books of a topic and of nobody's name any more."""

    published: Count = 0
    unrouted: Count = 0
    totals: Totals = msgspec.field(default_factory=Totals)
    sampled: Sampled = {}


class Departed(msgspec.Struct, array_like=True):
    """What publishers of one name had published that are gone with their rings."""

    name: Name
    published: Count
    unrouted: Count


class Participant(msgspec.Struct):
    """A process attached to the bus, once for each Bus object. `id` is its generation too."""

    id: Count
    life: Life
    """Its byte of the lives file: the same for all Bus objects of a process, and the one proof that it lives."""
    pid: Pid
    """In its own PID namespace; for people."""
    namespace: Natural
    """The inode of that; 0 where it is not known."""
    command: Annotated[str, msgspec.Meta(max_length=COMMAND)]
    state: Literal["active", "reclaiming"] = "active"
    promised: bool = False
    """Whoever started the process will say how it died (`_ledger/deaths.py`)."""
    notes: Annotated[list[Note], msgspec.Meta(max_length=MAX_NOTES)] = []


class TopicEntry(msgspec.Struct):
    """A topic, for as long as anybody publishes or consumes it, or a ring of it is there."""

    index: TopicIndex
    id: Count
    """Its schema's segment is named by it; the index is another topic's once this one is forgotten."""
    name: Name
    capacity: Capacity
    codec: Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
    fingerprint: Natural
    type: Annotated[str, msgspec.Meta(max_length=TYPE_NAME)]
    history: bool = True
    """False: what publishers that are gone have left goes once nobody is owed anything of it (`topics.end_history`)."""
    max_capacity: Natural = 0
    """What its rings may grow to; 0: they are fixed."""
    past: Past | None = None
    """Of topics of its name that were forgotten."""


class PublisherEntry(msgspec.Struct):
    """A publisher, for as long as one of its rings is there."""

    id: Count
    slot: PublisherSlot
    """Which `pub-<slot>` channel it sleeps on; free again once it is retired."""
    topic: TopicIndex
    name: Name
    participant: Natural
    state: Literal["active", "retired"] = "active"
    dead: bool = False
    pool: Natural = 0
    """A segment `shmbus-<bus>:pool-<id>`, for as long as anybody is owed what is in it; 0: there is none."""
    pool_bytes: Annotated[int, msgspec.Meta(ge=0, le=_core.MAX_POOL)] = 0
    grown: Count = 0
    shrunk: Count = 0
    """How often one of its rings was replaced by a larger, or a smaller one."""
    refused: Count = 0
    unrouted: Count = 0
    """What its rings counted that it has grown out of, and that are gone."""
    settled: Count = 0
    """Retired: how many of its events are on the books of the past already, with the ring that they went through."""
    before: tuple[Count, Count] = (0, 0)
    """Published and unrouted by those of its name before it, as Departed has them."""


class GivenUp(msgspec.Struct, frozen=True, array_like=True):
    """What one subscriber will not get of a ring that went before it came; on its books already, and to be told."""

    publisher: Name
    first: Natural
    last: Natural
    count: Count
    total: Count
    """Of this subscriber, with all before: so it knows what it has been told, and what was forgotten meanwhile."""


class ConsumerEntry(msgspec.Struct):
    """A subscriber or a group. A subscriber that comes back under its name gets an entry and an id of its own."""

    id: Count
    line: Line
    """Its line in the bus segment's consumer table."""
    topic: TopicIndex
    kind: Literal["subscriber", "group"]
    name: Name
    slot: ConsumerSlot
    """A subscriber's bit in its topic, a group's line in the group table."""
    mode: Mode = "reliable"
    participant: Natural = 0
    """0: a group."""
    state: Literal["joining", "active", "leaving"] = "joining"
    dead: bool = False
    totals: Totals = msgspec.field(default_factory=Totals)
    generations: dict[WorkerSlot, Generation] = {}
    """Group: the last generation of each worker slot."""
    expires_ns: Natural = 0
    """Group: it is removed after so long without a worker; 0: never."""
    key: Annotated[str, msgspec.Meta(max_length=128)] = ""
    """Group: the path of the field whose events it gets one at a time; "": it has no key, and no lanes."""
    idle_since_ns: Natural = 0
    """Group: CLOCK_MONOTONIC since when it has no worker; 0: it has one."""
    given_up: list[GivenUp] = []
    """Not reliable, or in quarantine: the last of them."""
    sampled: Sampled = {}
    """Of those of its name before it."""
    quarantined_ns: Natural = 0
    """CLOCK_REALTIME since when, by policy, it holds nobody back though it is reliable; 0: it is in no quarantine."""

    @property
    def gates(self) -> bool:  # in rings that are made now
        return self.mode == "reliable" and not self.quarantined_ns


class ClosedEntry(msgspec.Struct):
    """A subscriber that is gone, or a group that was removed: it holds nothing, and is here for its totals."""

    id: Count
    topic: TopicIndex
    name: Name
    mode: Mode
    dead: bool
    totals: Totals
    kind: Literal["subscriber", "group"] = "subscriber"
    latency: tuple[Natural, Natural, Natural, Natural] | None = None
    """What its latency line said at last: count, median, 99th percentile and maximum in ns. Its name's, not merged."""
    sampled: Sampled = {}
    """All that was sampled under its name."""


class WorkerEntry(msgspec.Struct):
    id: Count
    group: Natural
    slot: WorkerSlot
    generation: Generation
    participant: Natural
    name: Name
    ack_within_ns: Natural = 0
    """What it holds for longer is given to another worker; 0: it may take its time."""


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

    consumer: Name
    topic: Name
    publisher: Name
    cause: Cause
    count: Count
    first: Natural
    last: Natural
    first_ns: Natural
    last_ns: Natural
    trace: Annotated[str, msgspec.Meta(max_length=TRACE)] = ""
    """The span that sent the first, as a header `traceparent` has it."""


class HeldRun(msgspec.Struct, frozen=True, array_like=True):
    """Events of one ring, `first` to `last`, that a worker held."""

    ring: Natural
    first: Natural
    last: Natural


class Death(msgspec.Struct, array_like=True):
    """A process that died, or was too slow, with events of a group in its hands: for what their dead letters say."""

    participant: Natural
    pid: Pid
    namespace: Natural
    at_ns: Natural
    """CLOCK_MONOTONIC when it was found out."""
    promised: bool
    told: bool
    """By whoever promised it, or there is nothing to tell."""
    how: Annotated[str, msgspec.Meta(max_length=HOW)]
    """"" until somebody knows."""
    held: list[HeldRun]


class _Lookups:
    """What can be asked of the entries of one topic, and of those of all."""

    __slots__ = ()
    publishers: list[PublisherEntry]
    consumers: list[ConsumerEntry]
    rings: list[RingEntry]

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


class Membership(msgspec.Struct, _Lookups):
    """What the handles of one topic go by."""

    topic: TopicEntry
    publishers: list[PublisherEntry] = []
    consumers: list[ConsumerEntry] = []
    workers: list[WorkerEntry] = []
    rings: list[RingEntry] = []


class Section(Membership):
    """All that the document has of one topic. Who is gone is for the books alone: handles do not decode it."""

    closed: list[ClosedEntry] = []
    departed: list[Departed] = []


class Head(msgspec.Struct):
    """What the document has that belongs to no topic."""

    next_id: Count = 1
    stall_ns: Natural = 10_000_000_000
    policy: Literal["report", "quarantine", "kill"] = "report"
    """What is done about consumers without progress for `policy_ns`."""
    policy_ns: Natural = 10_000_000_000
    participants: list[Participant] = []
    losses: list[LossEntry] = []
    losses_forgotten: Count = 0
    """Entries that no longer fit into `losses`; their counts are in the totals all the same."""
    deaths: list[Death] = []
    """The last of them."""
    died: Count = 0
    """Participants that were reclaimed as dead."""
    forgotten: dict[Name, Past] = {}
    """By topic, the one that was forgotten last at the end."""


class Document(Head, _Lookups):
    """All of it."""

    topics: list[TopicEntry] = []
    publishers: list[PublisherEntry] = []
    consumers: list[ConsumerEntry] = []
    workers: list[WorkerEntry] = []
    rings: list[RingEntry] = []
    closed: list[ClosedEntry] = []
    departed: dict[TopicIndex, list[Departed]] = {}

    def new_id(self) -> int:
        self.next_id += 1
        return self.next_id - 1

    def participant(self, id: int) -> Participant | None:
        return next((p for p in self.participants if p.id == id), None)

    def topic_named(self, name: str) -> TopicEntry | None:
        return next((t for t in self.topics if t.name == name), None)

    def topic_at(self, index: int) -> TopicEntry:
        return next(t for t in self.topics if t.index == index)


def check_membership(found: Membership, index: int) -> None:
    """Raise ValueError where the entries of the topic at `index` contradict each other."""
    if found.topic.index != index:
        raise ValueError(f"topic {index} says that it is topic {found.topic.index}")
    entries: list[PublisherEntry | ConsumerEntry | RingEntry] = [*found.publishers, *found.consumers, *found.rings]
    for entry in entries:
        if entry.topic != index:
            raise ValueError(f"an entry of topic {index} names topic {entry.topic}: id={entry.id}")
    for ring in found.rings:
        if ring.capacity & (ring.capacity - 1):
            raise ValueError(f"the capacity of ring {ring.id} is no power of two: capacity={ring.capacity}")
    groups = {c.id for c in found.consumers if c.kind == "group"}
    for group in [w.group for w in found.workers] + [r.group for r in found.rings if r.group]:
        if group not in groups:
            raise ValueError(f"an entry of topic {index} names group {group}, which is not there")
    written = [(r.publisher, r.group) for r in found.rings if r.state == "active"]
    _require_unique("publisher and group of a ring", written)
    taken = [c.slot for c in found.consumers if c.kind == "subscriber"]
    _require_unique("subscriber slot", taken)
    if max(taken, default=0) >= _core.MAX_SUBSCRIBERS:
        raise ValueError(f"there is no subscriber slot {max(taken)}")
    for table in (found.publishers, found.consumers, found.workers, found.rings):
        _require_unique("id", [entry.id for entry in table])


def check_document(document: Document) -> None:
    """Raise ValueError where sections, each of which is right, contradict each other."""
    _require_unique("topic name", [t.name for t in document.topics])
    _require_unique("topic id", [t.id for t in document.topics])
    _require_unique("group slot", [c.slot for c in document.consumers if c.kind == "group"])
    _require_unique("consumer line", [c.line for c in document.consumers])
    groups = {c.id for c in document.consumers if c.kind == "group"}
    for worker in document.workers:
        if worker.group not in groups:
            raise ValueError(f"worker {worker.id} is one of group {worker.group}, which is not there")
    for closed in document.closed:
        if all(closed.topic != t.index for t in document.topics):
            raise ValueError(f"a closed consumer names topic {closed.topic}, which is not there: id={closed.id}")
    for table in (document.participants, document.publishers, document.consumers, document.workers, document.rings):
        _require_unique("id", [entry.id for entry in table])


def _require_unique(what: str, values: Sequence[Hashable]) -> None:
    if len(set(values)) != len(values):
        twice = next(value for value, count in Counter(values).items() if count > 1)
        raise ValueError(f"{what} occurs twice: {twice!r}")
