"""Worker: receives its share of a group's events, and settles each: ack, nack or reject. The path of an event is in C
(`_core.Claimer`).

May touch: claim words of its group through `_core`, its own wake-up channel, the dead-letter topic.

Must stay true:
- What it claimed and did not settle goes back to the group when it closes, breaks off or dies: at least once, each.
- What it cannot settle now, for want of room among the dead letters, it gives back for later; the group goes on.
- An event is dead-lettered before it is marked done: a death in between makes two dead letters of it, never none.
"""

from __future__ import annotations

import time
from _thread import LockType, allocate_lock, get_ident
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, NoReturn, TypeVar

from shmbus import _core
from shmbus._handles.handle import Handle
from shmbus._handles.messages import Messages
from shmbus._handles.waiting import Parking, Receiver
from shmbus._ledger import deaths, departures
from shmbus._log import logger
from shmbus._shm.failpoint import reach
from shmbus.errors import ClosedError, ConfigError, DecodeError, ForkedError, ReclaimedError, ShmbusError
from shmbus.message import NACK, REJECT, SPARE, UNDECODABLE, ClaimedMessage, event_id
from shmbus.topic import DeadLetter, decoder_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shmbus._handles.session import Session
    from shmbus._ledger.document import ConsumerEntry, RingEntry, TopicEntry, WorkerEntry
    from shmbus._ledger.registry import Change
    from shmbus._payload.records import Arrays
    from shmbus.letters import Letters
    from shmbus.topic import Topic

T = TypeVar("T")

MAX_PREFETCH: Final = 1024
MAX_REASON: Final = 1000  # characters; the smallest dead-letter ring holds them beside the payload
MANY_RINGS: Final = 1024
"""Retired rings that are compared with each other and with those of the living; each is a mapping of this process."""
RETRY_NS: Final = 1_000_000_000
"""After so long an event is tried again whose dead letter could not be written."""
LOG_INTERVAL: Final = 10.0  # seconds between two lines of a worker that say so

_log = logger("shmbus.loss")


class ClaimedEvent(NamedTuple):
    """A claimed event, as the hooks of the C type name it."""

    ring_id: int
    sequence: int
    word: int
    attempt: int
    time_ns: int
    publisher: str
    origin: str

    @property
    def claim(self) -> tuple[int, int, int]:
        """Ring, sequence, claim word."""
        return self[:3]


def _at_the_end(error: ShmbusError) -> bool:
    return isinstance(error, (ClosedError, ForkedError, ReclaimedError))


def _event_of(message: ClaimedMessage[Any]) -> ClaimedEvent:
    return ClaimedEvent(*message.claim, message.attempt, message.time_ns, message.publisher, message.origin)


class Worker(Handle, Receiver[T], _core.Claimer[T], Generic[T]):
    """One of the workers of a group. Made by `Bus.worker`.

    Asking for the next event acks the last one that the same thread or task was handed: by iteration, `receive`,
    `try_receive`, `receive_many` and `areceive`. `messages` leaves that to each message. What was not acked when the
    worker closes goes back to the group.

    One thread at a time receives, or any number of tasks of an event loop; any thread may settle, close and cancel.
    """

    def __init__(
        self,
        session: Session,
        topic: Topic[T],
        entry: TopicEntry,
        group: ConsumerEntry,
        me: WorkerEntry,
        max_deliver: int,
        prefetch: int,
        idle: str,
        letters: Letters | None,
        forget: Callable[[Any], None],
    ) -> None:
        self._session = session
        self.topic: Final = topic
        self.group: Final = group.name
        self.key: Final = group.key or None
        self.name: Final = me.name
        self._entry = entry
        self._group_id = self._consumer_id = group.id
        self._group_line = group.slot
        self._id = me.id
        self._letters = letters
        self._next_log = 0.0
        self._forget = forget
        self._sources = {}
        self._open: dict[tuple[int, int, int], ClaimedMessage[T]] = {}
        self._settling: dict[tuple[int, int, int], tuple[LockType, int]] = {}
        decode, buffers = decoder_of(topic)
        mine, most = (group.slot, me.slot, me.generation), (max_deliver, prefetch)
        _core.Claimer.__init__(self, session.map, entry.index, decode, *mine, *most, me.ack_within_ns != 0)
        if buffers is not None:
            self._buffers_into(buffers)
        if group.key:
            self._window = MANY_RINGS  # those that wait for a key keep their place
            self._key_lanes(session.rings.lanes.map(group.id))
        self._sample_into(group.line)
        self._parking = Parking(
            session,
            f"work-{group.slot}-{me.slot}",
            _core.GROUP_LINES + group.slot * _core.LINE,
            _core.GROUP_PARKED,
            _core.GROUP_AWAITING,
            me.slot,
        )
        self._parking.bind(self, idle)
        self._left = False

    if TYPE_CHECKING:

        def ack(self) -> None:
            """Ack what this thread or task was handed, without asking for more.

            And what threads were handed that have ended, and tasks that have returned: nobody works on it any more.

            Raises ReclaimedError if any of it has been given to another worker.
            """

    def oldest_first(self) -> None:
        """From now on take, of all publishers' events, the one that was published first.

        What was out before another event was begun comes before it, whoever published the two; beyond 1,024 publishers
        that are gone and have left some, those come in the order in which they began. Without this the publishers have
        their turns, those that are gone first. Each publisher's own order holds in any case. ConfigError: by key.
        """
        if self.key:
            raise ConfigError(f"group {self.group!r} orders its events by key alone: key={self.key!r}")
        self._window = MANY_RINGS
        super().oldest_first()

    def receive_message(self, timeout: float | None = None) -> ClaimedMessage[T]:
        """One message, as `messages` gives them, held until it is settled. Raises Empty after `timeout` seconds."""
        return self._hold(self._take_message(timeout))

    def messages(self) -> Messages[ClaimedMessage[T]]:
        """Iterate over messages, each of which is held until its `ack`, `nack` or `reject` is called, by any thread.

        As many may be open as the ring has room for; open ones hold up the publisher once it is full.
        """
        return Messages(self, self._hold)

    def arrays(self, most: int = 1024) -> Arrays:
        """Iterate over structured arrays of at most `most` events, claimed together, for a topic with `codec="record"`.

        Asking for the next acks them all; what is in hand when the worker closes goes back to the group. Read-only and
        in place in the ring, where they stay until then; copies in a group whose claims expire.
        """
        from shmbus._payload.records import Arrays

        return Arrays(self, most)

    def _hold(self, found: tuple[Any, ...]) -> ClaimedMessage[T]:
        message: ClaimedMessage[T] = ClaimedMessage(self, *found)
        self._open[message.claim] = message
        return message

    def settle(self, message: ClaimedMessage[Any], how: int, reason: str = "", delay_ns: int = 0) -> bool:
        """Settle a message of this worker; False if it is no longer this worker's. `ClaimedMessage` calls it."""
        with self._settling_alone(message) as alone:
            if not alone:
                return True
            if how == REJECT:
                done = self._within(self._bury, _event_of(message), reason, REJECT)
            elif how == SPARE:
                done = self._settle(*message.claim, NACK, delay_ns, True)
            else:
                done = self._settle(*message.claim, how, delay_ns)
            return self._settled(message, done)

    async def areject(self, message: ClaimedMessage[Any], reason: str) -> bool:
        """`settle` by REJECT that waits for room in an event loop; the message stays open if it is cancelled."""
        with self._settling_alone(message) as alone:
            if not alone:
                return True
            done = await self._abury(_event_of(message), reason)
            return self._settled(message, done)

    @contextmanager
    def _settling_alone(self, message: ClaimedMessage[Any]) -> Iterator[bool]:
        """False if the message is settled, or is being settled by this very thread: by another task, or under a signal.

        Another thread is waited for: what it does may fail, and whoever asked for the same must hear of that.
        """
        key, over = message.claim, allocate_lock()  # by its claim: the event may be back already, under another one
        over.acquire()
        mine = over, get_ident()
        while (other := self._settling.setdefault(key, mine)) is not mine:
            if other[1] == mine[1]:
                yield False
                return
            with other[0]:
                pass
        try:
            yield not message.settled
        finally:
            del self._settling[key]
            over.release()

    def _settled(self, message: ClaimedMessage[Any], done: bool) -> bool:
        message.settled = done
        self._open.pop(message.claim, None)
        return done

    # -- hooks of the C type

    def _refresh(self) -> None:
        """Take over the group's rings as they are now."""
        self._seen_epoch()
        document = self._session.membership(self._entry.index)
        group = document.consumer(self._group_id)
        if group is None or all(w.id != self._id for w in document.workers):
            who = f"worker {self.name!r} of group {self.group!r}"
            if group is None or group.state != "active":
                raise ReclaimedError(f"{who} lost it: it was removed")
            raise ReclaimedError(self._session.why_reclaimed(who))

        def add(ring: RingEntry, publisher: str) -> bool:
            origin = self._session.registry.origin(ring.publisher)
            self._add_source(self._session.rings.work(ring), publisher, ring.state == "retired", origin)
            return True

        self._follow(document, document.rings_of(group), add)

    def _post(self, group: int, slot: int) -> Callable[[], object] | None:
        return self._session.post_worker(group, slot)

    def _exhausted(
        self, ring_id: int, sequence: int, word: int, attempt: int, time_ns: int, publisher: str, origin: str
    ) -> None:
        event = ClaimedEvent(ring_id, sequence, word, attempt - 1, time_ns, publisher, origin)
        if deaths.pending(self._session.document(), ring_id, sequence):  # whoever saw it is about to say how
            self._settle(*event.claim, NACK, deaths.PATIENCE_NS // 8, True)
            return
        self._give_up(event)

    def _undecodable(
        self,
        ring_id: int,
        sequence: int,
        word: int,
        attempt: int,
        time_ns: int,
        publisher: str,
        origin: str,
        error: Exception,
    ) -> NoReturn:
        self._spoilt(ClaimedEvent(ring_id, sequence, word, attempt, time_ns, publisher, origin), error)
        raise DecodeError(self.topic.name, publisher, sequence, str(error)) from error

    def _give_up(self, event: ClaimedEvent) -> None:
        """An event was handed out as often as it may be."""
        died = "; ".join(self.deaths(event.ring_id, event.sequence))
        reason = f"delivered {event.attempt} times without an ack{f' ({died})' if died else ''}"
        self._bury(event, reason, REJECT, unseen=True)

    def _spoilt(self, event: ClaimedEvent, error: Exception) -> None:
        """An event does not decode."""
        self._bury(event, f"undecodable: {error}", UNDECODABLE, unseen=True)

    def deaths(self, ring_id: int, sequence: int) -> tuple[str, ...]:
        """How the workers died that had this event, in order, as far as that is known; the last are remembered."""
        return deaths.of(self._session.document(), ring_id, sequence)

    def _bury(self, event: ClaimedEvent, reason: str, how: int, *, unseen: bool = False) -> bool:
        """Publish a dead letter, then mark the event done; False: it is not ours any more.

        Where the letter cannot be written the event goes back, delayed, so that its group goes on; `unseen` says that
        nobody saw it this time.
        """
        letter = self._letter(event, reason)
        if letter is None:
            return False
        try:
            if self._letters is not None:
                letter = self._letters.write(letter)
        except BaseException as error:
            return self._refused(event, error, unseen)
        return self._buried(event, letter, how)

    async def _abury(self, event: ClaimedEvent, reason: str) -> bool:
        """The same in an event loop; if that is cut short the message stays with who has it."""
        letter = self._letter(event, reason)
        if letter is None:
            return False
        try:
            if self._letters is not None:
                letter = await self._letters.awrite(letter)
        except ShmbusError as error:
            if _at_the_end(error):
                raise
            return self._refused(event, error, False)
        return self._buried(event, letter, REJECT)

    def _letter(self, event: ClaimedEvent, reason: str) -> DeadLetter | None:
        """The dead letter of an event that this worker holds; None: it is not ours any more."""
        payload = self._payload(*event.claim)
        if payload is None:
            return None
        return DeadLetter(
            reason=reason[:MAX_REASON],
            attempts=event.attempt,
            publisher=event.publisher,
            sequence=event.sequence,
            payload=payload,
            topic=self.topic.name,
            group=self.group,
            time_ns=event.time_ns,
            id=event_id(event.origin, event.time_ns),
        )

    def _refused(self, event: ClaimedEvent, error: BaseException, unseen: bool) -> bool:
        """The letter is not out: give the event back, for later unless this worker is at its end."""
        late = isinstance(error, ShmbusError) and not _at_the_end(error)
        reach("bury.refused")
        done = self._settle(*event.claim, NACK, RETRY_NS if late else 0, unseen)
        if not late:
            raise error
        if time.monotonic() >= self._next_log:  # one line for many; the error names who holds up the dead letters
            self._next_log = time.monotonic() + LOG_INTERVAL
            again = f"comes again after {RETRY_NS / 1e9:g} s"
            _log.warning(
                "group %s of topic %s cannot dead-letter event %d of %s, which %s: %s",
                *(self.group, self.topic.name, event.sequence, event.publisher, again, error),
                extra=self._described(event),
            )
        return done

    def _buried(self, event: ClaimedEvent, letter: DeadLetter, how: int) -> bool:
        """The letter is out: mark the event done."""
        reach("bury.published")
        cut = f", cut by {letter.truncated} bytes" if letter.truncated else ""
        _log.warning(
            "group %s of topic %s dead-lettered event %d of %s%s: %s",
            *(self.group, self.topic.name, event.sequence, event.publisher, cut, letter.reason),
            extra=self._described(event),
        )
        return self._settle(*event.claim, how)

    def _described(self, event: ClaimedEvent) -> dict[str, Any]:
        return {
            "consumer": self.group,
            "topic": self.topic.name,
            "publisher": event.publisher,
            "sequence": event.sequence,
        }

    # -- the end

    def _let_go(self) -> None:
        for message in list(self._open.values()):
            if not message.settled:
                self._give_back(*message.claim)
        self._open.clear()
        self._release()
        self._parking.let_go()

    def _depart(self, change: Change) -> None:
        departures.close_worker(change, self._session.rings, self._id)

    def _departed(self) -> None:
        self._session.wake_workers(self._group_line, _core.MAX_WORKERS)

    def __repr__(self) -> str:
        return (
            f"<Worker {self.name!r} of group {self.group!r} of topic {self.topic.name!r} on bus {self._session.bus!r}>"
        )
