"""Worker: receives its share of a group's events, and settles each: ack, nack or reject. The path of an event is in C
(`_core.Claimer`).

May touch: claim words of its group through `_core`, its own wake-up channel, the dead-letter topic.

Must stay true:
- What it claimed and did not settle goes back to the group when it closes, breaks off or dies: at least once, each.
- An event is dead-lettered before it is marked done: a death in between makes two dead letters of it, never none.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, TypeVar

from shmbus import _core
from shmbus._handles.handle import Handle
from shmbus._handles.messages import Messages
from shmbus._handles.waiting import Parking, Receiver
from shmbus._ledger import departures
from shmbus._shm.failpoint import reach
from shmbus.errors import DecodeError, ReclaimedError
from shmbus.message import NACK, REJECT, UNDECODABLE, ClaimedMessage
from shmbus.topic import DeadLetter, codec_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shmbus._handles.session import Session
    from shmbus._ledger.document import ConsumerEntry, RingEntry, TopicEntry, WorkerEntry
    from shmbus._ledger.registry import Change
    from shmbus.publisher import Publisher
    from shmbus.topic import Topic

T = TypeVar("T")

MAX_PREFETCH: Final = 1024
MAX_REASON: Final = 1000  # characters; the smallest dead-letter ring holds them beside the payload

_log = logging.getLogger("shmbus.loss")


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
        dead_letters: Callable[[], Publisher[DeadLetter] | None],
        forget: Callable[[Any], None],
    ) -> None:
        self._session = session
        self.topic: Final = topic
        self.group: Final = group.name
        self.name: Final = me.name
        self._entry = entry
        self._group_id = group.id
        self._group_line = group.slot
        self._id = me.id
        self._dead_letters = dead_letters
        self._forget = forget
        self._sources = {}
        self._open: dict[tuple[int, int], ClaimedMessage[T]] = {}
        self._settling: dict[tuple[int, int], object] = {}
        _core.Claimer.__init__(
            self,
            session.map,
            entry.index,
            codec_of(topic).decode,
            group.slot,
            me.slot,
            me.generation,
            max_deliver,
            prefetch,
        )
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

    def messages(self) -> Messages[ClaimedMessage[T]]:
        """Iterate over messages, each of which is held until its `ack`, `nack` or `reject` is called, by any thread.

        As many may be open as the ring has room for; open ones hold up the publisher once it is full.
        """
        return Messages(self, self._hold)

    def _hold(self, found: tuple[Any, ...]) -> ClaimedMessage[T]:
        message: ClaimedMessage[T] = ClaimedMessage(self, *found)
        self._open[message.ring_id, message.sequence] = message
        return message

    def settle(self, message: ClaimedMessage[Any], how: int, reason: str = "") -> bool:
        """Settle a message of this worker; False if it is no longer this worker's. `ClaimedMessage` calls it."""
        with self._settling_alone(message) as alone:
            if not alone:
                return True
            if how == REJECT:
                done = self._within(
                    self._bury, *message.claim, message.attempt, message.time_ns, message.publisher, reason, REJECT
                )
            else:
                done = self._settle(*message.claim, how)
            return self._settled(message, done)

    async def areject(self, message: ClaimedMessage[Any], reason: str) -> bool:
        """`settle` by REJECT that waits for room in an event loop; the message stays open if it is cancelled."""
        with self._settling_alone(message) as alone:
            if not alone:
                return True
            done = await self._abury(message, reason)
            return self._settled(message, done)

    @contextmanager
    def _settling_alone(self, message: ClaimedMessage[Any]) -> Iterator[bool]:
        """False if another thread or task settles this message right now, or has."""
        key, me = (message.ring_id, message.sequence), object()
        if self._settling.setdefault(key, me) is not me:
            yield False
            return
        try:
            yield not message.settled
        finally:
            del self._settling[key]

    def _settled(self, message: ClaimedMessage[Any], done: bool) -> bool:
        message.settled = done
        self._open.pop((message.ring_id, message.sequence), None)
        return done

    # -- hooks of the C type

    def _refresh(self) -> None:
        """Take over the group's rings as they are now."""
        self._seen_epoch()
        document = self._session.membership(self._entry.index)
        group = document.consumer(self._group_id)
        if group is None or all(w.id != self._id for w in document.workers):
            raise ReclaimedError(f"worker {self.name!r} of group {self.group!r} was taken for dead")

        def add(ring: RingEntry, publisher: str) -> bool:
            self._add_source(self._session.rings.work(ring), publisher, ring.state == "retired")
            return True

        self._follow(document, document.rings_of(group), add)

    def _post(self, group: int, slot: int) -> Callable[[], object] | None:
        return self._session.post_worker(group, slot)

    def _exhausted(self, ring_id: int, sequence: int, word: int, attempt: int, time_ns: int, publisher: str) -> None:
        reason = f"delivered {attempt - 1} times without an ack"
        self._bury(ring_id, sequence, word, attempt - 1, time_ns, publisher, reason, REJECT)

    def _undecodable(
        self, ring_id: int, sequence: int, word: int, attempt: int, time_ns: int, publisher: str, error: Exception
    ) -> NoReturn:
        self._bury(ring_id, sequence, word, attempt, time_ns, publisher, f"undecodable: {error}", UNDECODABLE)
        raise DecodeError(self.topic.name, publisher, sequence, str(error)) from error

    def _bury(
        self,
        ring_id: int,
        sequence: int,
        word: int,
        attempt: int,
        time_ns: int,
        publisher: str,
        reason: str,
        how: int,
    ) -> bool:
        """Publish a dead letter, then mark the event done; on an error it goes back. False: it is not ours any more."""
        letter = self._letter(ring_id, sequence, word, attempt, time_ns, publisher, reason)
        if letter is None:
            return False
        try:
            letters = self._dead_letters()
            if letters is not None:
                letters.publish(letter)
        except BaseException:
            self._settle(ring_id, sequence, word, NACK)
            raise
        return self._buried(ring_id, sequence, word, publisher, reason, how)

    async def _abury(self, message: ClaimedMessage[Any], reason: str) -> bool:
        """The same in an event loop; on an error the message stays with who has it."""
        letter = self._letter(*message.claim, message.attempt, message.time_ns, message.publisher, reason)
        if letter is None:
            return False
        letters = self._dead_letters()
        if letters is not None:
            await letters.apublish(letter)
        return self._buried(*message.claim, message.publisher, reason, REJECT)

    def _letter(
        self, ring_id: int, sequence: int, word: int, attempt: int, time_ns: int, publisher: str, reason: str
    ) -> DeadLetter | None:
        """The dead letter of an event that this worker holds; None: it is not ours any more."""
        payload = self._payload(ring_id, sequence, word)
        if payload is None:
            return None
        return DeadLetter(
            reason=reason[:MAX_REASON],
            attempts=attempt,
            publisher=publisher,
            sequence=sequence,
            payload=payload,
            topic=self.topic.name,
            group=self.group,
            time_ns=time_ns,
        )

    def _buried(self, ring_id: int, sequence: int, word: int, publisher: str, reason: str, how: int) -> bool:
        """The letter is out: mark the event done."""
        reach("bury.published")
        _log.warning(
            "group %s of topic %s dead-lettered event %d of %s: %s",
            self.group,
            self.topic.name,
            sequence,
            publisher,
            reason,
            extra={"consumer": self.group, "topic": self.topic.name, "publisher": publisher, "sequence": sequence},
        )
        return self._settle(ring_id, sequence, word, how)

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
