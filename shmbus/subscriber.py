"""Subscriber: receives every event of a topic. The path of an event is in C (`_core.Consumer`).

May touch: its cursors and losses through `_core`, its own wake-up channel.

Must stay true:
- Every event of each publisher in its order, none twice; what is missing is a Gap, a DecodeError, or on the books.
- A ring is let go of only when the document has: that is, when nothing in it is left to receive.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NoReturn, Protocol, TypeVar

from shmbus import _core
from shmbus._handles.handle import Handle
from shmbus._handles.messages import Messages
from shmbus._handles.waiting import Parking, Receiver
from shmbus._ledger import departures, past, policies
from shmbus._log import logger
from shmbus._options import check_choice
from shmbus._shm.failpoint import reach
from shmbus.errors import ConfigError, DecodeError, GapError, LockTimeoutError, ReclaimedError
from shmbus.message import Gap, Message
from shmbus.topic import decoder_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from shmbus._handles.session import Session
    from shmbus._ledger.document import ConsumerEntry, Membership, RingEntry, TopicEntry
    from shmbus._ledger.registry import Change
    from shmbus._payload.records import Arrays
    from shmbus.topic import Topic

    OnGap: TypeAlias = Callable[[Gap], object] | Literal["raise", "repair"] | None

T = TypeVar("T")

Mode = Literal["reliable", "lossy", "latest"]
Start = Literal["latest", "oldest"]
MODES: Final = ("reliable", "lossy", "latest")
STARTS: Final = ("latest", "oldest")

LOG_INTERVAL: Final = 1.0
"""Seconds between two log records of one lossy subscriber; the books have every event all the same."""

_PATIENCE: Final = 0.2
"""Seconds that the end of a quarantine waits for the bus lock; in vain: it is tried again from the next wait."""

_log = logger("shmbus.loss")


class History(Protocol):
    """What has the events that a ring does not have any more: a `shmbus.Journal`."""

    def subscriber_type(self, topic: Topic[Any], *, catch_up: bool, repair: bool) -> Callable[..., Subscriber[Any]]:
        """What to make in the place of a Subscriber, of the same arguments. Raises SchemaMismatchError."""
        ...


def kind_of(
    topic: Topic[Any], mode: Mode, start: Start | History, on_gap: object, journal: History | None
) -> tuple[Callable[..., Subscriber[Any]], Start]:
    """What makes a subscriber of these options, and where it begins in the rings. Raises ConfigError."""
    check_choice("mode", mode, MODES)
    if not (on_gap is None or on_gap in ("raise", "repair") or callable(on_gap)):
        raise ConfigError(f"on_gap is None, 'raise', 'repair' or a callable: on_gap={on_gap!r}")
    if on_gap is not None and mode == "latest":
        raise ConfigError(f"mode='latest' skips events by design, and tells nobody: on_gap={on_gap!r}")
    repairs = on_gap == "repair"
    if repairs != (journal is not None) or (repairs and mode != "lossy"):
        raise ConfigError(f"on_gap='repair' is for mode='lossy', with a journal: {mode=}, {on_gap=}, {journal=}")
    if isinstance(start, str):
        check_choice("start", start, STARTS)
        if journal is None:
            return Subscriber, start
        return journal.subscriber_type(topic, catch_up=False, repair=True), start
    if not hasattr(start, "subscriber_type") or journal not in (None, start):
        raise ConfigError(f"start is 'latest', 'oldest' or the journal: {start=}, {journal=}")
    return start.subscriber_type(topic, catch_up=True, repair=repairs), "oldest"


class Subscriber(Handle, Receiver[T], _core.Consumer[T], Generic[T]):
    """Receives every event of a topic. Made by `Bus.subscriber`.

    One thread at a time receives, or any number of tasks of an event loop; any thread may close or cancel it.
    """

    def __init__(
        self,
        session: Session,
        topic: Topic[T],
        entry: TopicEntry,
        me: ConsumerEntry,
        on_gap: Callable[[Gap], object] | Literal["raise"] | None,
        idle: str,
        forget: Callable[[Any], None],
    ) -> None:
        self._session = session
        self.topic: Final = topic
        self.name: Final = me.name
        self.mode: Final = me.mode
        self._entry = entry
        self._id = self._consumer_id = me.id
        self._slot = me.slot
        self._on_gap = on_gap
        self._forget = forget
        self._sources = {}
        self._told = _given_up(me)
        self._missed: deque[tuple[str, int, int]] = deque()
        self._late = False
        self._unlogged, self._next_log = 0, 0.0
        decode, buffers = decoder_of(topic)
        _core.Consumer.__init__(self, session.map, entry.index, decode, me.mode == "latest")
        if buffers is not None:
            self._buffers_into(buffers)
        self._sample_into(me.line)
        self._parking = Parking(
            session,
            f"sub-{entry.index}-{me.slot}",
            _core.TOPIC_LINES + entry.index * _core.LINE,
            _core.TOPIC_PARKED,
            _core.TOPIC_AWAITING,
            me.slot,
        )
        self._parking.bind(self, idle)
        self._left = False

    def messages(self) -> Messages[Message[T]]:
        """Iterate as over the subscriber itself, but over Messages: event, sequence, publisher, time_ns, headers."""
        return Messages(self, lambda found: Message(*found))

    def arrays(self, most: int = 65536) -> Arrays:
        """Iterate over structured arrays of at most `most` events, for a topic with `codec="record"`.

        They are read-only and in place in the ring: asking this subscriber for anything more ends their use, and what
        they show from then on is the publisher's to overwrite. Each is of one publisher and without holes; an array
        ends where the ring begins anew, and before and after an event with headers. In lossy mode they are copies, out
        of any ring. Raises ConfigError for a topic of another codec, ImportError without NumPy.
        """
        from shmbus._payload.records import Arrays

        return Arrays(self, most)

    # -- hooks of the C type

    def _refresh(self) -> None:
        """Take over the topic's rings as they are now."""
        document, me = self._look_up()
        if me.quarantined_ns:
            self._rejoin()
            document, me = self._look_up()
        entries = document.rings_of(me)
        missed = _given_up(me) > self._told
        if missed and self._retired_left():  # these are older: first what they hold
            self._follow(document, [entry for entry in entries if entry.id in self._sources], self._add)
            self._more_retired(True)
            return
        if missed:
            self._tell(me)
        self._follow(document, entries, self._add)
        if (self._missed or me.quarantined_ns) and self._retired_left():
            self._more_retired(True)  # the same: what was missed came after what they hold
        while self._missed and not self._retired_left():
            self._gap(*self._missed.popleft())

    def _care(self) -> bool:
        if self._late:
            self._more_retired(True)  # `_refresh` is called
        return super()._care()

    def _look_up(self) -> tuple[Membership, ConsumerEntry]:
        self._seen_epoch()
        document = self._session.membership(self._entry.index)
        me = document.consumer(self._id)
        if me is None or me.participant != self._session.participant or me.state != "active":
            who = f"subscriber {self.name!r} of topic {self.topic.name!r}"
            raise ReclaimedError(self._session.why_reclaimed(who))
        return document, me

    def _add(self, entry: RingEntry, publisher: str) -> bool:
        ring = self._session.rings.broadcast(entry)
        member = ring.info()["members"] >> self._slot & 1 != 0
        origin = self._session.registry.origin(entry.publisher)
        return member and self._add_source(ring, self._slot, publisher, entry.state == "retired", origin)

    def _rejoin(self) -> None:
        """End the quarantine: be gated in every ring that is written; or not yet, then it is tried again.

        Who has been left two rings of one publisher receives those first: so one that stalls again and again is never
        owed more than that.
        """
        self._late = False
        try:
            with self._session.locked(_PATIENCE) as change:
                document, me = self._session.membership(self._entry.index), change.document.consumer(self._id)
                if me is None or not me.quarantined_ns:
                    return
                entries = document.rings_of(me)
                written = [entry for entry in entries if entry.state == "active"]
                left = Counter(entry.publisher for entry in entries if entry.state == "retired")
                self._follow(document, entries, self._add)
                if self._retired_left() > 1 and any(left[entry.publisher] > 1 for entry in written):
                    return
                if any(entry.id not in self._sources for entry in written):
                    return  # these come once older ones are received
                self._missed.extend(filter(None, (self._regate(entry.id) for entry in written)))
                reach("rejoin.gated")
                since, me.quarantined_ns = me.quarantined_ns, 0
                change.commit(self._entry.index)
        except LockTimeoutError:
            self._late = True
            return
        policies.release(self._session.registry, change.document, me)
        _log.warning(
            "subscriber %s of topic %s was in quarantine for %.1f s, and is reliable again: %d events lost",
            self.name,
            self.topic.name,
            (time.time_ns() - since) / 1e9,
            sum(last - first + 1 for _, first, last in self._missed),
        )

    def _tell(self, me: ConsumerEntry) -> None:
        """Tell of the rings that were given up before we came to them."""
        for one in me.given_up:
            forgotten = one.total - one.count - self._told
            if forgotten > 0:
                self._told += forgotten
                self._gap(past.DEPARTED, 0, 0, forgotten)
            if one.total > self._told:
                self._told = one.total
                self._gap(one.publisher, one.first, one.last)

    def _gap(self, publisher: str, first: int, last: int, count: int | None = None) -> None:
        if self.mode == "latest":
            return  # to skip is what it asked for; the books have it
        gap = Gap(publisher, first, last, last - first + 1 if count is None else count, "overrun")
        self._unlogged += gap.count
        if time.monotonic() >= self._next_log:
            _log.warning(
                "subscriber %s of topic %s was overrun: %d events lost, up to %d of %s",
                self.name,
                self.topic.name,
                self._unlogged,
                last,
                publisher,
                extra={"consumer": self.name, "topic": self.topic.name, "gap": gap},
            )
            self._unlogged, self._next_log = 0, time.monotonic() + LOG_INTERVAL
        if self._on_gap == "raise":
            raise GapError(gap)
        if callable(self._on_gap):
            self._on_gap(gap)

    def _undecodable(self, publisher: str, sequence: int, error: Exception) -> NoReturn:
        raise DecodeError(self.topic.name, publisher, sequence, str(error)) from error

    # -- the end

    def _let_go(self) -> None:
        self._release()
        self._parking.let_go()

    def _depart(self, change: Change) -> None:
        departures.close_subscriber(change, self._session.rings, self._id)

    def _departed(self) -> None:
        self._session.wake_publishers(self._entry.index)

    def __repr__(self) -> str:
        return f"<Subscriber {self.name!r} of topic {self.topic.name!r} on bus {self._session.bus!r}>"


def _given_up(me: ConsumerEntry) -> int:
    """Events of rings that were given up for a subscriber since it joined."""
    return me.given_up[-1].total if me.given_up else 0
