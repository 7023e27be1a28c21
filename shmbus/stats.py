"""What `Bus.stats()` returns and `shmbus stat` prints: frozen Structs, one field one fact.

Pure data and arithmetic; `_ledger/books.py` fills it in from a bus. The names are a stable schema: `shmbus stat
--json` is `BusStats` encoded as JSON, with `rate` fields from two looks half a second apart.

For each entry of `consumers`, and for each of its `publishers`:
`offered == delivered + depth + overrun + refused + abandoned + undecodable + rejected`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Health = Literal["ok", "slow", "stalled", "stopped", "dead", "closed", "idle"]
"""ok: keeps up; slow: a quarter of its ring or more behind; stalled: no progress for `stall_timeout` with work to do;
stopped: by a signal; dead: gone without goodbye; closed: gone; idle: a group without a worker."""


class Books(msgspec.Struct, frozen=True, kw_only=True):
    """One consumer's books, in events, since it joined."""

    offered: int = 0
    delivered: int = 0
    """Handed to the subscriber, or acked by a worker."""
    depth: int = 0
    """Not yet received, or not yet acked."""
    overrun: int = 0
    """Overwritten before a lossy subscriber, or one in quarantine, came to them."""
    refused: int = 0
    """Not written, because a ring was full and its publisher drops."""
    abandoned: int = 0
    """Left behind by a subscriber that closed or died."""
    undecodable: int = 0
    """Not of the topic's type."""
    rejected: int = 0
    """Sent to the dead-letter topic."""

    @property
    def dropped(self) -> int:
        """Events that the consumer will not get, for any cause."""
        return self.overrun + self.refused + self.abandoned + self.undecodable + self.rejected


class SourceStats(Books, frozen=True, kw_only=True):
    """A consumer's books with one publisher."""

    publisher: str
    lag_ns: int = 0
    """Age of the first event not yet received, 0 when there is none."""


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Nanoseconds from publish to hand-out, sampled: each event that followed a wait, and one in 64 of the others.

    By CLOCK_REALTIME, so a step of the wall clock shows. Not in it: what was on the ring before a subscriber joined
    (`start="oldest"`), and what a worker gets for the second time. A quantile is the upper end of its bucket, at most
    19% too high.
    """

    count: int
    """Events that the samples stand for, an estimate."""
    p50_ns: int
    p99_ns: int
    max_ns: int
    """The largest of the samples, exact."""


class WorkerStats(msgspec.Struct, frozen=True, kw_only=True):
    """One worker of a group."""

    name: str
    pid: int
    held: int
    """Events that it has claimed and not settled."""
    state: Health = "ok"


class ConsumerStats(Books, frozen=True, kw_only=True):
    """A subscriber or a group."""

    name: str
    topic: str
    kind: Literal["subscriber", "group"]
    mode: Literal["reliable", "lossy", "latest"]
    state: Health
    pid: int
    """0 for a group, and for a consumer that is gone."""
    lag_ns: int
    """Age of the oldest event not yet received, 0 when there is none."""
    claimed: int = 0
    """Group: events in workers' hands; part of `depth`."""
    key: str = ""
    """Group: the path of the field by which it orders its events; "": it has no key."""
    blocks: tuple[str, ...] = ()
    """Publishers that wait, or would have to, for this consumer to free room."""
    quarantined_ns: int = 0
    """CLOCK_REALTIME in ns since when it is in quarantine: reliable, and yet it holds up nobody, for it was stalled.
    What it misses is overrun. 0: it is in none."""
    rate: float = 0.0
    """Events delivered per second between two looks."""
    latency: Latency | None = None
    """Since it last joined, or since the group exists; None while nothing was sampled."""
    latencies: tuple[int, ...] = ()
    """Of all who had its name: events, estimated, of up to 1,024 ns, of up to twice that, and so on, the last above
    17.2 s; () when nothing was sampled."""
    workers: tuple[WorkerStats, ...] = ()
    publishers: tuple[SourceStats, ...] = ()


class Viewer(msgspec.Struct, frozen=True, kw_only=True):
    """Who looks at arrays and buffers in a publisher's pool, and so keeps them there."""

    name: str
    """A subscriber or group, the publisher itself for its own arrays; "" once it is gone, and its views are not."""
    pid: int
    """0 for a process that has left the bus."""
    views: int
    bytes: int
    since_ns: int
    """CLOCK_REALTIME in ns: when the oldest of what it looks at was allocated."""


class PublisherStats(msgspec.Struct, frozen=True, kw_only=True):
    """A publisher, for as long as one of its rings is there."""

    id: int
    """Never used twice on a bus; a name is, once its publisher is gone."""
    name: str
    topic: str
    state: Health
    pid: int
    """0 for a publisher that is gone and whose ring is still there."""
    published: int
    """Events in its broadcast ring since it opened; the sequence of the last one when counted from 1."""
    unrouted: int
    """Published while the topic had no consumer."""
    refused: int
    """Events that at least one ring did not take, summed over its rings."""
    capacity: int
    """Bytes of the largest of its rings."""
    used: int
    """Bytes of the fullest ring that wait for a consumer."""
    waiting: bool
    """It sleeps until there is room."""
    grown: int = 0
    """How often one of its rings was replaced by a larger one."""
    shrunk: int = 0
    """How often by a smaller one."""
    blocked_by: tuple[str, ...] = ()
    """Consumers whose unread events leave it no room."""
    pool: int = 0
    """Bytes of its pool, 0: it has none."""
    pool_used: int = 0
    """Bytes of it that somebody is owed or looks at, in whole blocks; loans that are not published yet among them."""
    viewers: tuple[Viewer, ...] = ()
    """Who looks at what is in the pool."""
    rate: float = 0.0
    """Events published per second between two looks."""
    before: int = 0
    """Events of those who had its name before it, and are gone with their rings."""
    unrouted_before: int = 0


class DepartedStats(Books, frozen=True, kw_only=True):
    """What is on the books and nobody's any more: of publishers of a name that are gone with their rings; of all who
    took part in a topic that was forgotten, maybe made anew, as one "(departed)".
    """

    topic: str
    """"(forgotten)": of more topics than are remembered."""
    name: str
    published: int = 0
    unrouted: int = 0
    latencies: tuple[int, ...] = ()
    """As in ConsumerStats."""


class TopicStats(msgspec.Struct, frozen=True, kw_only=True):
    """A topic, as the first to use it defined it."""

    name: str
    capacity: int
    codec: str
    type: str
    """Name of the event type."""
    max_capacity: int = 0
    """What its rings may grow to; 0: they are fixed."""


class NoteStats(msgspec.Struct, frozen=True, kw_only=True):
    """What a part of a process says of itself, a bridge or a journal; it goes with the process."""

    who: str
    state: Literal["ok", "away", "failing"]
    """away: what it talks to is not there; failing: that does not do what it is asked for."""
    text: str
    """What it does, or what is wrong, for people."""
    since_ns: int
    """CLOCK_REALTIME in ns: since when it is in that state."""
    waiting: int = 0
    """Events that it has not passed on yet."""


class ParticipantStats(msgspec.Struct, frozen=True, kw_only=True):
    """A process, once for each Bus object that it has open."""

    id: int
    pid: int
    command: str
    state: Health
    namespace: int = 0
    """0 when `pid` is one of this PID namespace; else the inode of the namespace that it is a pid of."""
    notes: tuple[NoteStats, ...] = ()


class SupervisorStats(msgspec.Struct, frozen=True, kw_only=True):
    """The supervisor in office."""

    pid: int
    """0 when none runs."""
    state: Literal["ok", "stalled", "none"]
    namespace: int = 0
    """As in ParticipantStats."""


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """Events that one consumer will not get from one publisher, for one cause."""

    consumer: str
    topic: str
    publisher: str
    cause: Literal["overrun", "refused", "abandoned", "undecodable", "rejected"]
    count: int
    first: int
    """Sequence of the first; for `refused`, of the event that came after it."""
    last: int
    first_ns: int
    """CLOCK_REALTIME in ns when the first was counted."""
    last_ns: int
    trace: str = ""
    """The span that sent the first, as a header `traceparent` has it; "" where it was not traced (docs/observe.md)."""


class BusStats(msgspec.Struct, frozen=True, kw_only=True):
    """A bus at one moment. Looking perturbs nothing and takes no lock."""

    bus: str
    time_ns: int
    created_ns: int
    bytes: int
    """Shared memory of the bus segment and its rings."""
    lost_rings: int = 0
    """Rings whose files somebody removed by hand; what was in them is on nobody's books."""
    interval: float = 0.0
    """Seconds between the two looks that `rate` comes from, 0.0 when there was one."""
    supervisor: SupervisorStats
    topics: tuple[TopicStats, ...] = ()
    participants: tuple[ParticipantStats, ...] = ()
    publishers: tuple[PublisherStats, ...] = ()
    consumers: tuple[ConsumerStats, ...] = ()
    departed: tuple[DepartedStats, ...] = ()
    deaths: int = 0
    """Participants that were reclaimed as dead since the bus was made."""


def new_losses(before: Sequence[Loss], after: Sequence[Loss]) -> list[Loss]:
    """What was lost between two looks at the log: losses that were not there, and by how much others have grown.

    `count` is the growth, and `first` the first sequence of it where those that were lost follow each other.
    """
    found = []
    for loss, count, last in _grown(before, after):
        first = last + 1 if loss.first <= last < loss.last else loss.first
        found.append(msgspec.structs.replace(loss, count=loss.count - count, first=first))
    return found


def grown_losses(before: Sequence[Loss], after: Sequence[Loss]) -> list[Loss]:
    """Of `after` the losses that were not there, or have grown, with all that they are by now."""
    return [loss for loss, _, _ in _grown(before, after)]


def _grown(before: Sequence[Loss], after: Sequence[Loss]) -> Iterator[tuple[Loss, int, int]]:
    """Such losses, how much of each there was, and up to which sequence."""
    known: dict[tuple[str, ...], tuple[int, int]] = {}
    for loss in before:
        count, last = known.get(_which(loss), (0, 0))
        known[_which(loss)] = count + loss.count, max(last, loss.last)
    for loss in after:
        count, last = known.get(_which(loss), (0, 0))
        known[_which(loss)] = max(0, count - loss.count), last
        if loss.count > count:
            yield loss, count, last


def _which(loss: Loss) -> tuple[str, ...]:
    return loss.topic, loss.consumer, loss.publisher, loss.cause, str(loss.first)


def with_rates(before: BusStats, after: BusStats) -> BusStats:
    """`after`, with events per second since `before`; what was not there before has a rate of 0."""
    seconds = (after.time_ns - before.time_ns) / 1e9
    if seconds <= 0:
        return after
    published = {p.id: p.published for p in before.publishers}
    delivered = {(c.topic, c.kind, c.name): c.delivered for c in before.consumers}
    return msgspec.structs.replace(
        after,
        interval=seconds,
        publishers=tuple(
            msgspec.structs.replace(p, rate=_rate(p.published, published.get(p.id), seconds)) for p in after.publishers
        ),
        consumers=tuple(
            msgspec.structs.replace(c, rate=_rate(c.delivered, delivered.get((c.topic, c.kind, c.name)), seconds))
            for c in after.consumers
        ),
    )


def _rate(now: int, then: int | None, seconds: float) -> float:
    return max(0, now - then) / seconds if then is not None else 0.0
