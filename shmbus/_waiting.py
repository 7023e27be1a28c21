"""Waiting for events: spin, then park, in a thread or in an event loop.

May touch: the parked and awaiting bits of one handle, and its own wake-up channel.

Must stay true (SYNC park):
- Park: set the bit, look at all rings again, sleep at most `BOUND` seconds. Wake: whoever clears the bit posts.
- Whoever un-parks itself and finds its bit cleared takes the post that is coming, at the latest before its next park.
- Nobody sleeps with an event in a ring for longer than `BOUND`, and that long only if a waker died on the way.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, cast

from shmbus import _core
from shmbus._session import BOUND, Session
from shmbus._waker import Sleeper
from shmbus.errors import ClosedError, ConfigError, Empty, ForkedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from shmbus._document import Document, RingEntry
    from shmbus.topic import Topic

T = TypeVar("T")

IDLE_MODES: Final = ("adaptive", "park", "spin")
SPIN_NS: Final = 20_000
"""A wake-up through the kernel costs about this much on both sides: spinning for longer than that never pays back."""
SPIN_ALWAYS_NS: Final = 200_000
"""For `idle="spin"`: a turn without the interpreter's lock; between two of them signals are handled."""
FAIR: Final = 64
"""Events that `async for` takes in a row before the other tasks of the loop have their turn."""
_PATIENCE: Final = 8  # spins in vain before an adaptive handle stops spinning, until an event comes quickly again
_ALL: Final = 2**64 - 1


class Parking:
    """One handle's place to sleep."""

    def __init__(self, session: Session, channel: str, line: int, parked: int, awaiting: int, slot: int) -> None:
        self._session = session
        self._map = memoryview(session.map)  # so that it stays mapped while a sleep lasts longer than the session
        self._parked: Final = line + parked + slot // 64 * 8
        self._awaiting: Final = line + awaiting + slot // 64 * 8
        self._bit: Final = 1 << slot % 64
        self.sleeper: Final = Sleeper(session.prefix + channel)

    def park(self, ready: Callable[[], bool], seconds: float) -> bool:
        """Sleep until woken, but at most `seconds`; True if there may be something."""
        self.sleeper.drain()
        _core.fetch_or(self._map, self._parked, self._bit)
        try:
            return ready() or self.sleeper.sleep(seconds)
        finally:
            _core.fetch_and(self._map, self._parked, _ALL ^ self._bit)

    async def apark(self, ready: Callable[[], bool], seconds: float) -> bool:
        """The same in an event loop, on the channel's FIFO."""
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        descriptor = os.dup(self.sleeper.fifo())  # ours: the number must not be another's when close() overtakes us
        self.sleeper.drain_fifo()
        loop.add_reader(descriptor, lambda: None if woken.done() else woken.set_result(None))
        _core.fetch_or(self._map, self._awaiting, self._bit)  # before the parked bit: a waker reads it after
        _core.fetch_or(self._map, self._parked, self._bit)
        try:
            if ready():
                return True
            await asyncio.wait_for(woken, seconds)
        except TimeoutError:
            return False
        finally:
            _core.fetch_and(self._map, self._parked, _ALL ^ self._bit)
            _core.fetch_and(self._map, self._awaiting, _ALL ^ self._bit)
            loop.remove_reader(descriptor)
            os.close(descriptor)
        return True

    def interrupt(self) -> None:
        """End a sleep of this handle from another thread or a signal handler; nothing happens once it is closed."""
        with suppress(ClosedError, ForkedError):
            self.sleeper.post()
            self._session.posts.post_fifo(self.sleeper.name)

    def let_go(self) -> None:
        """End a sleep and close the channel. Idempotent; in a forked child the parent's bits stay."""
        if self._session.inherited:
            self.sleeper.close()
            return
        self.interrupt()
        _core.fetch_and(self._map, self._parked, _ALL ^ self._bit)
        _core.fetch_and(self._map, self._awaiting, _ALL ^ self._bit)
        self.sleeper.close()


class Core(Protocol):
    """What a Receiver uses of the C types: Consumer and Claimer."""

    @property
    def closed(self) -> bool: ...
    @property
    def cancelled(self) -> bool: ...
    @property
    def topic(self) -> Topic[Any]: ...

    _spin_ns: int

    def _poll(self) -> Any: ...
    def _take(self, maximum: int, /) -> list[Any]: ...
    def _poll_message(self) -> Any: ...
    def _ready(self) -> bool: ...
    def _cancel(self) -> None: ...
    def _drop_source(self, ring_id: int, /) -> None: ...


class Receiver(Generic[T]):
    """The waiting half of a subscriber or worker; the other half is its C type, which `_core` is."""

    _session: Session
    _parking: Parking
    _idle: str
    _sources: set[int]
    _vain = 0
    _run = 0

    def receive_many(self, maximum: int, timeout: float | None = None) -> list[T]:
        """Up to `maximum` events in one call: waits up to `timeout` seconds for the first, and takes what is there.

        Raises Empty when there is none. A timeout of None waits for ever, 0 not at all.
        """
        if maximum < 1:
            raise ConfigError(f"receive_many takes at least one event: maximum={maximum}")
        core = self._as_core()
        deadline = _deadline(timeout)
        waited = False
        while True:
            events: list[T] = core._take(maximum)
            if events:
                if waited:
                    self._after_wait()
                return events
            waited = True
            self._wait_or_raise(deadline)

    async def areceive(self, timeout: float | None = None) -> T:
        """`receive` without blocking the event loop."""
        deadline = _deadline(timeout)
        core = self._as_core()
        waited = False
        while True:
            event = core._poll()
            if event is not _core.NOTHING:
                if waited:
                    self._after_wait()
                return cast("T", event)
            waited = True
            if not await self._await(deadline):
                raise self._nothing(timeout)

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        self._run += 1
        if self._run % FAIR == 0:
            await asyncio.sleep(0)
        core = self._as_core()
        try:
            if not core.closed and not core.cancelled:
                return await self.areceive()
        except ClosedError:
            if not (core.closed or core.cancelled):
                raise
        raise StopAsyncIteration

    def cancel(self) -> None:
        """End the iteration and any wait of this handle, for good; callable from signal handlers and other threads."""
        self._as_core()._cancel()
        self._parking.interrupt()

    # -- hooks of the C types

    def _next_slow(self) -> T:
        core = self._as_core()
        try:
            while self._wait(None):
                event = core._poll()
                if event is not _core.NOTHING:
                    self._after_wait()
                    return cast("T", event)
        except ClosedError:
            if not (core.closed or core.cancelled):
                raise  # the bus is gone, and nobody here has asked for an end
        raise StopIteration

    def _receive_slow(self, timeout: float | None) -> T:
        core = self._as_core()
        deadline = _deadline(timeout)
        while True:
            self._wait_or_raise(deadline)
            event = core._poll()
            if event is not _core.NOTHING:
                self._after_wait()
                return cast("T", event)

    def _wake_publisher(self, ring_id: int) -> None:
        self._session.wake_publisher(ring_id)

    def _after_wait(self) -> None:
        """An event came after a wait; a worker passes the wake-up on."""

    def _follow(self, document: Document, entries: Iterable[RingEntry], add: Callable[[RingEntry, str], bool]) -> None:
        """Let go of the rings that the document no longer has, and `add` those that are new, with their publisher."""
        wanted = {entry.id: entry for entry in entries}
        for id in self._sources - wanted.keys():
            self._as_core()._drop_source(id)
            self._session.rings.forget(id)
            self._sources.discard(id)
        for id in wanted.keys() - self._sources:
            publisher = document.publisher(wanted[id].publisher)
            try:
                if add(wanted[id], publisher.name if publisher else "(gone)"):
                    self._sources.add(id)
            except FileNotFoundError:
                continue  # removed since: it had nothing left for us

    # -- waiting

    def _as_core(self) -> Core:
        return cast("Core", self)

    def _wait_or_raise(self, deadline: float | None) -> None:
        if not self._wait(deadline):
            raise self._nothing(deadline)

    def _nothing(self, timeout: float | None) -> Exception:
        core = self._as_core()
        if core.closed or core.cancelled:
            return ClosedError(
                f"the handle on topic {core.topic.name!r} was {'closed' if core.closed else 'cancelled'}"
            )
        return Empty(f"nothing on topic {core.topic.name!r} within the timeout" if timeout is not None else "nothing")

    def _wait(self, deadline: float | None) -> bool:
        """Sleep until there may be something: True; False at the deadline, and once closed or cancelled."""
        core = self._as_core()
        seconds = _left(deadline)
        if core.closed or core.cancelled or seconds <= 0:
            return False
        self._session.care()
        self._tune(core)
        if self._idle == "spin":
            return True
        began = time.monotonic_ns()
        woken = self._parking.park(self._look, seconds)
        self._vain = 0 if woken and time.monotonic_ns() - began < 2 * SPIN_NS else self._vain + 1
        return not (core.closed or core.cancelled)

    async def _await(self, deadline: float | None) -> bool:
        core = self._as_core()
        seconds = _left(deadline)
        if core.closed or core.cancelled or seconds <= 0:
            return False
        self._session.care()
        await self._parking.apark(self._look, seconds)
        return not (core.closed or core.cancelled)

    def _look(self) -> bool:
        core = self._as_core()
        return core.closed or core.cancelled or core._ready()

    def _tune(self, core: Core) -> None:
        """How long the next poll spins: not at all where others need the core, or where it has not paid lately."""
        if self._idle == "spin":
            core._spin_ns = SPIN_ALWAYS_NS
        elif self._idle == "park" or self._vain >= _PATIENCE or self._session.crowded():
            core._spin_ns = 0
        else:
            core._spin_ns = SPIN_NS


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _left(deadline: float | None) -> float:
    return BOUND if deadline is None else min(BOUND, deadline - time.monotonic())
