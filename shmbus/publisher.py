"""Publisher: writes one topic. The path of an event is in C (`_core.Producer`); here is what is out of the ordinary.

May touch: its own rings through `_core`, and the wake-up channels of those who wait for them.

Must stay true:
- An event is written whole into every ring, or, with `on_full="drop"`, counted as refused by those without room.
- A publisher that waits is woken by room, by a change of membership, and by every signal; its sleep is short.
"""

from __future__ import annotations

import time
import weakref
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar, cast

from shmbus import _core
from shmbus._handles.awaiting import Awaiting, interpreter_ends
from shmbus._handles.care import BOUND
from shmbus._handles.flushing import NAP, Flushing
from shmbus._handles.growing import PATIENCE_IN_LOOPS, Growing
from shmbus._handles.handle import Handle
from shmbus._handles.lending import Lending
from shmbus._ledger import departures
from shmbus._shm.waker import Sleeper
from shmbus.errors import (
    ClosedError,
    ConfigError,
    CorruptSegmentError,
    EventTooLargeError,
    EventTypeError,
    ForkedError,
    Full,
    ReclaimedError,
    ShmbusError,
)
from shmbus.message import encode_headers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shmbus._handles.session import Session
    from shmbus._ledger.document import ConsumerEntry, Membership, PublisherEntry, RingEntry, TopicEntry
    from shmbus._ledger.registry import Change
    from shmbus._payload.records import Array
    from shmbus._schema.codec import Codec
    from shmbus.topic import Topic

T = TypeVar("T")
R = TypeVar("R", _core.BroadcastRing, _core.WorkRing)

OnFull = Literal["block", "drop", "raise"]
ON_FULL: Final = ("block", "drop", "raise")


class Publisher(Handle, Flushing, Growing, Lending, _core.Producer[T], Generic[T]):
    """Publishes events of one topic. Made by `Bus.publisher`.

    Per-publisher order holds for every consumer. Threads and tasks may share a publisher.
    """

    def __init__(
        self,
        session: Session,
        topic: Topic[T],
        codec: Codec,
        entry: TopicEntry,
        me: PublisherEntry,
        on_full: OnFull,
        timeout: float | None,
        forget: Callable[[Any], None],
    ) -> None:
        self._session = session
        self.topic = topic
        self.name = me.name
        self._entry = entry
        self._id = me.id
        self._on_full = on_full
        self._timeout = timeout
        self._forget = forget
        ring = next((r for r in session.membership(entry.index).rings if r.publisher == me.id and not r.group), None)
        if ring is None:
            raise CorruptSegmentError(f"publisher {me.name!r} of topic {topic.name!r} has no ring")
        super().__init__(
            session.map,
            entry.index,
            session.rings.broadcast(ring),
            self._encoder(codec, me),
            codec.accepts,
            f"topic {topic.name!r} carries {_words(topic.type)}",
            None if topic.validate else codec.encode_into,  # bytes are decoded faster than a bytearray
            codec.decode if topic.validate else None,
            codec.suspects,
            codec.finite,
        )
        self._codec: Final = codec
        self._begin_growing(topic.capacity, topic.max_capacity)
        self._refresh()  # what it may lack, memory say, it lacks now
        self._sleeper = Sleeper(f"{session.prefix}pub-{me.slot}")
        self._tasks = Awaiting(self._sleeper, _nothing, _nothing)  # who waits says so with the need, in every ring
        self._left = False

    def _encoder(self, codec: Codec, me: PublisherEntry) -> Callable[[Any], Any] | None:
        """What makes a payload of an event."""
        return codec.encode

    if TYPE_CHECKING:

        def publish(self, event: T, *, headers: dict[str, Any] | None = None) -> int | None:
            """Publish one event; returns its sequence in the broadcast ring, None if a consumer had to go without it.

            Blocks, drops or raises as `on_full` says when a reliable consumer is a whole ring behind. Raises
            EventTypeError and EventTooLargeError before anything is written; Full, ClosedError, ForkedError,
            CorruptSegmentError.
            """

    def publish_array(self, rows: Array) -> int | None:
        """Publish the rows of a structured array of the topic's dtype, in their order, each an event.

        One commit for as many as find room at once; returns the sequence of the last one, None if a consumer had to go
        without any of them. Raises EventTypeError, with nothing written, for another dtype and for a row that no
        receiver would get: text that is not UTF-8, a bool that is neither, a value outside of its limits. Full says in
        `published` how many are in.
        """
        from shmbus._payload import records

        return self._publish_rows(records.flat(self.topic, rows))

    async def apublish(self, event: T, *, headers: dict[str, Any] | None = None) -> int | None:
        """`publish` that waits for room without blocking the event loop. Any number of tasks may wait at once.

        The event is encoded at once. A cancelled call has published it whole or not at all; where it raises
        CancelledError, not at all.
        """
        if self.closed and _core.exiting():
            await interpreter_ends()
        record = payload, encoded = self._encode(event, headers)
        length = len(payload) + (len(encoded or b"") + 7) // 8 * 8
        return cast("int | None", await self._in_room(lambda drop: self._put(record, drop, event), lambda: length))

    async def apublish_many(self, events: Iterable[T]) -> int:
        """`publish_many` that waits for room without blocking the event loop.

        Everything is encoded at once. A cancelled call has published the first of the events, and no part of one.
        """
        if self.closed and _core.exiting():
            await interpreter_ends()
        events = list(events)
        payloads = self._encode_many(events)
        done = missed = 0

        def put(drop: bool) -> object:
            nonlocal done, missed
            more, less = self._put_many(payloads, done, drop, events)
            done, missed = done + more, missed + less
            return done - missed if done == len(payloads) else _core.NOTHING

        return cast("int", await self._in_room(put, lambda: len(payloads[done]), lambda: done))

    async def _in_room(
        self, put: Callable[[bool], object], length: Callable[[], int], committed: Callable[[], int] = int
    ) -> object:
        """What `put` returns once it finds room for the `length` that it needs next; raises Full."""
        found = put(self._on_full == "drop" and not self._largest and not self._quarantined)
        while found is _core.NOTHING and self._within(self._grow, length(), PATIENCE_IN_LOOPS):
            found = put(False)
        if found is _core.NOTHING and self._on_full == "drop":
            found = put(True)
        if found is not _core.NOTHING:
            return found
        self._session.care()  # who never waits must not be held up by the dead either
        since = time.monotonic_ns()
        timeout = self._patience()
        deadline = None if timeout is None else since / 1e9 + timeout
        again = False
        self._block(True)
        try:
            while True:
                left = BOUND if deadline is None else min(BOUND, deadline - time.monotonic())
                room, slots, lines = self._full(length())
                if (not room or lines) and (self._on_full == "raise" or left <= 0):
                    raise Full(self.topic.name, self._blocking(slots, lines), committed())
                self._tell_blocked(since, slots, lines)
                await self._tasks.wait(lambda: self._has_room(length()), partial(float, left), again=again)
                again = True
                if self.closed and _core.exiting():
                    await interpreter_ends()
                self._session.care()
                self._within(self._grow, length(), PATIENCE_IN_LOOPS)
                found = put(False)
                if found is not _core.NOTHING:
                    return found
        finally:
            self._unblock(True)
            self._tasks.pass_on(lambda: True)

    def publish_now(self, event: T, *, headers: dict[str, Any] | None = None) -> int:
        """Publish one event if there is room for it now. Raises Full, whatever `on_full` and `timeout` are."""
        return self._put_now(self._encode(event, headers), event)

    def _put_now(self, record: tuple[Any, bytes | None], event: T) -> int:
        payload = record[0]
        found = self._put(record, False, event)
        while found is _core.NOTHING and self._quarantined:
            if not self._within(self._grow, len(payload), PATIENCE_IN_LOOPS):
                break
            found = self._put(record, False, event)
        if found is _core.NOTHING:
            self._session.care()
            _, slots, lines = self._full(len(payload))
            self._unblock(False)
            raise Full(self.topic.name, self._blocking(slots, lines))
        return cast("int", found)

    def _has_room(self, length: int) -> bool:
        """Raises the flag that a consumer looks at, then looks; true as well at the end."""
        if self.closed:
            return True
        room, _, lines = self._full(length)
        return room and not lines

    # -- hooks of the C type

    def _refresh(self) -> None:
        """Take over the topic's membership, and the rings to write, as they are now."""
        self._require_not_changing()
        with self._changing:
            self._take_over()

    def _take_over(self) -> None:
        epoch = self._epoch()
        document = self._session.membership(self._entry.index)
        me = document.publisher(self._id)
        if me is None or me.state != "active":
            who = f"publisher {self.name!r} of topic {self.topic.name!r}"
            raise ReclaimedError(self._session.why_reclaimed(who))
        consumers = {c.id: c for c in document.consumers if c.state == "active"}
        groups = [
            (self._ring(self._session.rings.work, ring), consumers[ring.group].slot, self._key(consumers[ring.group]))
            for ring in self._written(document)
            if ring.group in consumers
        ]
        broadcast = next((ring for ring in self._written(document) if not ring.group), None)
        if broadcast is None:
            raise CorruptSegmentError(f"publisher {self.name!r} of topic {self.topic.name!r} has no ring")
        self._quarantined = sum(1 << c.slot for c in consumers.values() if c.quarantined_ns)
        subscribed = any(c.kind == "subscriber" for c in consumers.values())
        self._set_groups(subscribed, groups, self._ring(self._session.rings.broadcast, broadcast), epoch)

    def _key(self, group: ConsumerEntry) -> tuple[tuple[str, ...], Callable[[Any], Any]] | None:
        """What a group orders its events by, as `_core` takes it."""
        if not group.key:
            return None
        from shmbus._schema import keys

        return keys.resolver(group.key, self.topic.enc_hook)

    def _written(self, document: Membership) -> list[RingEntry]:
        return [r for r in document.rings if r.publisher == self._id and r.state == "active"]

    def _ring(self, attach: Callable[[RingEntry], R], entry: RingEntry) -> R:
        try:
            return attach(entry)
        except FileNotFoundError:
            self._session.require_files()  # raises ClosedError if the bus was removed since we looked
            raise CorruptSegmentError(f"ring {entry.id} of publisher {self.name!r} is not there") from None

    def _post(self, group: int, slot: int) -> Callable[[], object] | None:
        if group < 0:
            return self._session.post_subscriber(self._entry.index, slot)
        return self._session.post_worker(group, slot)

    def _encode_headers(self, headers: dict[str, Any]) -> bytes:
        if not isinstance(headers, dict) or not all(isinstance(key, str) for key in headers):
            raise ConfigError(f"headers are a dict with str keys: headers={headers!r}")
        try:
            data = encode_headers(headers)
        except Exception as error:
            from shmbus._schema import refusal

            path = refusal.blame(headers, encode_headers, None)
            raise EventTypeError(
                f"topic {self.topic.name!r}: headers: {error} - at `{path}`", self.topic.name
            ) from error
        if len(data) > _core.MAX_HEADERS:
            raise EventTooLargeError(self.topic.name, len(data), _core.MAX_HEADERS)
        return data

    def _foreign(self, event: object) -> weakref.ref[type]:
        """An event of another class than the topic's: admitted if that is the same definition, in another object."""
        from shmbus._schema import refusal

        topic, cls = self.topic, type(event)
        hooks = topic.enc_hook is not None and topic.dec_hook is not None
        lines = refusal.against(topic.type, cls, topic.codec, hooks=hooks)
        if not lines:
            return weakref.ref(cls)
        carried, got = _words(topic.type), _words(cls)
        raise EventTypeError(
            f"topic {topic.name!r} carries {carried}, got {got}: {'; '.join(lines)}", topic.name, difference=lines
        )

    def _refused(self, event: object, error: Exception) -> None:
        """What the encoder raised, or the decoder under `validate=True`, with topic and path."""
        if isinstance(error, ShmbusError | MemoryError):
            return
        from shmbus._schema import refusal

        path, message = refusal.where(event, error, self._codec, self.topic.codec)
        raise EventTypeError(f"topic {self.topic.name!r}: {message}", self.topic.name, path) from error

    def _suspect(self, event: object) -> None:
        """An event of a JSON topic that may hold NaN, for which msgspec writes null."""
        from shmbus._schema import refusal

        found = refusal.nonfinite(event, self._codec.enc_hook)
        if found is not None:
            raise EventTypeError(
                f"topic {self.topic.name!r}: JSON has no {found[1]!r} - at `{found[0]}`", self.topic.name, found[0]
            )

    def _make_room(self, length: int, since: int, committed: int) -> bool:
        """A ring is full: True to try again, False to write where there is room.

        `since` is when this call of publish or publish_many found that first: it has one timeout, however often it has
        to wait. `committed` events of it are in.
        """
        if self._grow(length):
            return True
        self._session.care()  # who never waits must not be held up by the dead either
        if self._on_full == "drop":
            return False
        self._block(False)
        try:
            fits, slots, lines = self._full(length)
            if fits and not lines:
                return True
            timeout = self._patience()
            left = NAP if timeout is None else min(NAP, since / 1e9 + timeout - time.monotonic())
            if self._on_full == "raise" or left <= 0:
                raise Full(self.topic.name, self._blocking(slots, lines), committed)
            self._tell_blocked(since, slots, lines)
            self._sleeper.sleep(left)
            self._session.care()
            return True
        finally:
            self._rested()

    def _patience(self) -> float | None:
        """Seconds that the call which asks may wait for room; None: for ever."""
        return self._timeout

    def _care(self) -> None:
        self._session.care()

    def _tell_blocked(self, since: int, slots: int, lines: list[int]) -> None:
        self._tell(since, "room", lambda: self._blocking(slots, lines))

    def _blocking(self, slots: int, lines: list[int]) -> list[str]:
        """Names of the consumers that hold the room."""

        def blocks(consumer: ConsumerEntry) -> bool:
            if consumer.state != "active":
                return False
            return consumer.slot in lines if consumer.kind == "group" else slots >> consumer.slot & 1 != 0

        return [c.name for c in self._session.membership(self._entry.index).consumers if blocks(c)]

    # -- the end

    def _interrupt(self) -> None:
        with suppress(ClosedError, ForkedError):
            self._sleeper.post()
            self._session.posts.post_fifo(self._sleeper.name)

    def _let_go(self) -> None:
        self._release()
        self._sleeper.close()

    def _depart(self, change: Change) -> None:
        departures.close_publisher(change, self._session.rings, self._id)

    def _departed(self) -> None:
        self._session.tell_supervisor()  # of the retired rings

    def __repr__(self) -> str:
        return f"<Publisher {self.name!r} of topic {self.topic.name!r} on bus {self._session.bus!r}>"


def _words(type: Any) -> str:
    """A type for a message; a class with its module, for two of one name are what such messages are about."""
    name = getattr(type, "__qualname__", None)
    if name is None:
        return str(type)
    return name if type.__module__ == "builtins" else f"{type.__module__}.{name}"


def _nothing() -> None: ...
