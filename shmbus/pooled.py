"""PooledPublisher: a publisher whose events have arrays and buffers in a pool.

May touch: its own pool, beside what every publisher touches.

Must stay true:
- A full pool is a full ring: `on_full` and `timeout` say what becomes of an event that finds no room there.
- An event has all of its buffers, or nothing of it is written and its arrays are as they were.
"""

from __future__ import annotations

import math
import os
import threading
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from shmbus import _core
from shmbus._handles.awaiting import interpreter_ends
from shmbus._handles.care import BOUND
from shmbus._handles.flushing import NAP
from shmbus._handles.growing import PATIENCE, PATIENCE_IN_LOOPS
from shmbus._payload import arrays
from shmbus._payload.packing import Packer
from shmbus.errors import ClosedError, ConfigError, CorruptSegmentError, EventTooLargeError, Full
from shmbus.publisher import Publisher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from shmbus._ledger.document import PublisherEntry
    from shmbus._schema.codec import Codec
    from shmbus.topic import Topic

T = TypeVar("T")

_KNOWN: Final = 256
"""Shapes, with their dtypes, that `empty` remembers."""
_MOMENT_NS: Final = 20_000  # as receivers spin: about what a wake-up costs on both sides


class PooledPublisher(Publisher[T]):
    """A publisher of a topic with a pool. Made by `Bus.publisher`."""

    def _encoder(self, codec: Codec, me: PublisherEntry) -> Callable[[Any], Any]:
        session = self._session
        if not me.pool:
            raise CorruptSegmentError(f"publisher {me.name!r} of topic {self.topic.name!r} has no pool")
        ring = next(r for r in session.membership(self._entry.index).rings if r.publisher == me.id and r.group == 0)
        self._pool = session.rings.pools.enter(me.pool, me.id, partial(session.wake_slot, me.slot))
        self._pool.serve(session.rings.broadcast(ring))
        self._impatient: dict[int, list[Any]] = {}  # by thread: events whose buffers do not wait for room
        packer = Packer(self.topic, self._pool, _core.BroadcastRing.maximum(ring.capacity), self._place)
        self._lend, self._shapes = packer.lend, packer._shapes
        return packer.pack

    # -- publishing

    def publish_many(self, events: Iterable[T]) -> int:
        """Publish events one by one; returns how many went everywhere. Full says how many are in, `published`."""
        done = 0
        try:
            for event in events:
                done += self.publish(event) is not None
        except Full as error:
            raise Full(error.topic, error.blocked_by, done) from None
        return done

    async def apublish(self, event: T, *, headers: dict[str, Any] | None = None) -> int | None:
        """`publish` that waits for room without blocking the event loop, in rings and pool."""
        if self.closed and _core.exiting():
            await interpreter_ends()
        since, again = time.monotonic_ns(), False
        while (record := self._encode_now(event, headers)) is None:
            if self._on_full == "drop":
                self._refuse()
                return None
            await self._await_room(since, again)
            again = True
        payload, encoded = record
        length = len(payload) + (len(encoded or b"") + 7) // 8 * 8
        try:
            return cast("int | None", await self._in_room(lambda drop: self._put(record, drop, event), lambda: length))
        except BaseException:
            _give_up(payload)
            raise

    def publish_now(self, event: T, *, headers: dict[str, Any] | None = None) -> int:
        """Publish one event if there is room for it now, in rings and pool. Raises Full, whatever `on_full` is."""
        record = self._encode_now(event, headers)
        if record is None:
            raise Full(self.topic.name, self._holders())
        try:
            return self._put_now(record, event)
        except BaseException:
            _give_up(record[0])
            raise

    def _encode_now(self, event: T, headers: dict[str, Any] | None) -> tuple[Any, bytes | None] | None:
        """The event as `_put` takes it; None where its arrays find no room in the pool, which is not waited for."""
        me = threading.get_ident()
        mine = self._impatient.setdefault(me, [])
        mine.append(event)
        try:
            record = self._encode(event, headers)
        finally:
            mine.pop()
            if not mine:
                self._impatient.pop(me, None)
        return None if record is _core.NOTHING else cast("tuple[Any, bytes | None]", record)

    async def apublish_many(self, events: Iterable[T]) -> int:
        """`publish_many` that waits for room without blocking the event loop."""
        done = 0
        for event in events:
            done += await self.apublish(event) is not None
        return done

    def _place(self, packing: _core.Packing) -> object:
        """What the encoder asks for whose event finds no room in the pool: waits for it as `on_full` says."""
        wanted = packing.wanted
        if wanted > self._pool.bytes:
            raise EventTooLargeError(self.topic.name, wanted, self._pool.bytes, "the publisher's pool")
        mine = self._impatient.get(threading.get_ident(), ())
        return self._in_pool(packing.place, "drop", any(event is packing.event for event in mine))

    def _in_pool(self, place: Callable[[], object], dropping: str, impatient: bool) -> object:
        """What `place` returns once there is room in the pool; NOTHING if that is not waited for."""
        since = time.monotonic_ns()
        while (placed := place()) is None:
            if self._leave_pool(PATIENCE_IN_LOOPS if impatient else PATIENCE) and (placed := place()) is not None:
                break
            if impatient or self._on_full == dropping:
                self._session.care()
                return _core.NOTHING
            if self._on_full != "block" or not self._comes_soon():
                self._wait_for_pool(since)
        return placed

    def _comes_soon(self) -> bool:
        """Whether something is let go of within a moment: then a sleep would cost both sides more than it saves.

        Whoever has it may be ready on this very core: each look lets it run.
        """
        until = time.perf_counter_ns() + _MOMENT_NS
        while time.perf_counter_ns() < until:
            if self._pool.wanted(False):
                return True
            os.sched_yield()
        return self._pool.wanted(False)

    def _leave_pool(self, patience: float) -> bool:
        """Let those in quarantine be owed nothing of the pool; True if they were."""
        consumers = self._session.membership(self._entry.index).consumers  # who waits for a pool does not refresh
        quarantined = sum(1 << c.slot for c in consumers if c.quarantined_ns)
        if not quarantined or time.monotonic() < self._not_before:
            return False
        return self._pool.debtors()[0] & quarantined != 0 and self._leave_behind(patience)

    def _wait_for_pool(self, since: int) -> None:
        """Sleep until something in the pool may be free; raises Full at the timeout."""
        self._session.care()  # who never waits must not be held up by the dead either
        self._block(False)
        try:
            self._full(0)  # raises the flag that consumers look at
            if self._pool.wanted(True):
                return
            left = NAP if self._timeout is None else min(NAP, since / 1e9 + self._timeout - time.monotonic())
            if self._on_full == "raise" or left <= 0:
                raise Full(self.topic.name, self._holders())
            self._tell(since, "room in its pool", self._holders)
            self._sleeper.sleep(left)
            self._session.care()
            self._require_open()
        finally:
            self._unblock(False)
            if not self.closed:
                self._pool.wanted(False)

    async def _await_room(self, since: int, again: bool) -> None:
        """The same in an event loop."""
        self._session.care()
        self._block(True)
        try:
            left = BOUND if self._timeout is None else min(BOUND, since / 1e9 + self._timeout - time.monotonic())
            self._full(0)
            if self._pool.wanted(True):
                return
            if self._on_full == "raise" or left <= 0:
                raise Full(self.topic.name, self._holders())
            self._tell(since, "room in its pool", self._holders)
            await self._tasks.wait(self._has_pool, lambda: min(NAP, left), again=again)
            if self.closed and _core.exiting():
                await interpreter_ends()
            self._session.care()
        finally:
            self._unblock(True)
            self._tasks.pass_on(lambda: True)

    def _has_pool(self) -> bool:
        if self.closed:
            return True
        self._full(0)
        return self._pool.wanted(True)

    def _require_open(self) -> None:
        if self.closed:
            self._full(0)  # raises what every call of a closed handle raises

    # -- who holds it

    def _holders(self) -> list[str]:
        """Names of the consumers that are owed what is in the pool, or look at it."""
        membership = self._session.membership(self._entry.index)
        slots, ring_ids = self._pool.debtors()
        owed = {ring.group for ring in membership.rings if ring.id in ring_ids}
        looking = {consumer: life for life, consumer, *_ in self._pool.holders()}
        names = []
        for consumer in membership.consumers:
            mine = consumer.id in owed if consumer.kind == "group" else slots >> consumer.slot & 1 != 0
            if consumer.state == "active" and (mine or consumer.id in looking):
                names.append(consumer.name)
                looking.pop(consumer.id, None)
        if looking.pop(self._id, None):
            names.append(f"{self.name} (arrays of its own)")
        pids = {p.life: p.pid for p in self._session.document().participants}
        return names + [f"process {pids[life]}" if life in pids else "a process" for life in looking.values()]

    # -- memory to write into

    def empty(self, shape: int | Sequence[int], dtype: Any = "u1") -> Any:  # noqa: D102
        try:
            array = self._lend(shape, dtype)
        except (TypeError, ClosedError):  # a shape that is a list, say
            array = None
        if array is None:
            ndarray, sides, kind, nbytes = self._measured(shape, dtype)
            array = ndarray(sides, kind, self._loan(nbytes))
        return array

    def _measured(self, shape: int | Sequence[int], dtype: Any) -> tuple[type[Any], tuple[int, ...], Any, int]:
        """What an array is made from; remembered for `lend`."""
        numpy = arrays.package("numpy")
        kind = numpy.dtype(dtype)
        if kind.hasobject:
            raise ConfigError(f"an array of objects has no bytes to send: dtype={kind}")
        sides = (shape,) if isinstance(shape, int) else tuple(shape)
        if min(sides, default=0) < 0:
            raise ConfigError(f"an array has no negative side: shape={sides}")
        measured = numpy.ndarray, sides, kind, math.prod(sides) * kind.itemsize
        plain = kind.fields is None and measured[3] <= self._pool.bytes  # fields may be renamed, in the dtype itself
        if plain and len(self._shapes) < _KNOWN and (isinstance(shape, int) or type(shape) is tuple):
            with suppress(TypeError):  # a dtype as a list
                self._shapes[shape, dtype] = measured
        return measured

    def buffer(self, size: int) -> memoryview:  # noqa: D102
        if not isinstance(size, int) or size < 0:
            raise ConfigError(f"a buffer has a number of bytes: size={size!r}")
        return memoryview(self._loan(size))

    def _loan(self, size: int) -> _core.Lease:
        if self.closed:
            self._require_open()
        if size > self._pool.bytes:
            raise EventTooLargeError(self.topic.name, size, self._pool.bytes, "the publisher's pool")
        lease: object = self._pool.lease(size)
        if lease is None:
            lease = self._in_pool(lambda: self._pool.lease(size), "", threading.get_ident() in self._impatient)
        if lease is _core.NOTHING:  # in a task's thread that encodes: not here
            raise Full(self.topic.name, self._holders())
        return cast("_core.Lease", lease)

    # -- the end

    def _let_go(self) -> None:
        super()._let_go()
        self._pool.unserve()


def _give_up(payload: object) -> None:
    """The event was not published: what was sealed for it is writable again now, whoever has the payload still."""
    if isinstance(payload, _core.Parcel):
        payload.unseal()


def publisher_class(topic: Topic[T]) -> type[Publisher[T]]:
    """What publishes a topic."""
    return PooledPublisher if topic.pool else Publisher
