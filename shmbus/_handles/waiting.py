"""Waiting for events: where a handle sleeps. In a thread `_core` does it (wait.c), in an event loop this module.

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
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, Protocol, TypeVar, cast

from shmbus import _core
from shmbus._handles.care import BOUND
from shmbus._handles.session import Session
from shmbus._shm import descriptors
from shmbus._shm.waker import Sleeper
from shmbus.errors import ClosedError, ConfigError, Empty, ForkedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from shmbus._ledger.document import Membership, RingEntry, TopicEntry
    from shmbus.topic import Topic

T = TypeVar("T")

IDLE_MODES: Final = ("adaptive", "park", "spin")
FAIR: Final = 64
"""Events that `async for` takes in a row before the other tasks of the loop have their turn."""
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

    def bind(self, core: Core, idle: str) -> None:
        """Have a handle sleep here; `_core` does it."""
        core._bind(self.sleeper.memory, self._parked, self._bit, idle)

    async def apark(self, ready: Callable[[], bool], seconds: float) -> bool:
        """Sleep in an event loop, on the channel's FIFO, until woken, but at most `seconds`; False then."""
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        # Ours: the number must not be another's when close() overtakes us.
        descriptor = descriptors.duplicate(self.sleeper.fifo())
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
            self._clear_bits()
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
        self._clear_bits()
        self.sleeper.close()

    def _clear_bits(self) -> None:
        for at in (self._parked, self._awaiting):
            _core.fetch_and(self._map, at, _ALL ^ self._bit)


class Core(Protocol):
    """What a Receiver uses of the C types: Consumer and Claimer."""

    @property
    def closed(self) -> bool: ...
    @property
    def cancelled(self) -> bool: ...
    @property
    def topic(self) -> Topic[Any]: ...

    def _bind(self, semaphore: Any, offset: int, bit: int, idle: str, /) -> None: ...
    def _poll(self) -> Any: ...
    def _take(self, maximum: int, timeout: float | None, /) -> list[Any]: ...
    def _ready(self) -> bool: ...
    def _pass_on(self) -> None: ...
    def _cancel(self) -> None: ...
    def _drop_source(self, ring_id: int, /) -> None: ...


class Receiver(Generic[T]):
    """The waiting half of a subscriber or worker; the other half is its C type, which `_core` is."""

    _session: Session
    _entry: TopicEntry
    _parking: Parking
    _sources: set[int]
    _run = 0

    def receive_many(self, maximum: int, timeout: float | None = None) -> list[T]:
        """Up to `maximum` events in one call: waits up to `timeout` seconds for the first, and takes what is there.

        Raises Empty when there is none. A timeout of None waits for ever, 0 not at all.
        """
        if maximum < 1:
            raise ConfigError(f"receive_many takes at least one event: maximum={maximum}")
        return self._as_core()._take(maximum, timeout)

    async def areceive(self, timeout: float | None = None) -> T:
        """`receive` without blocking the event loop."""
        deadline = None if timeout is None else time.monotonic() + timeout
        core = self._as_core()
        try:
            while True:
                event = core._poll()
                if event is not _core.NOTHING:
                    return cast("T", event)
                if not await self._await(deadline):
                    self._nothing(timeout)
        except BaseException:
            with suppress(ClosedError, ForkedError, RuntimeError):  # RuntimeError: another thread has the handle
                core._pass_on()
            raise

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

    def _care(self) -> bool:
        self._session.care()
        return self._session.crowded()

    def _nothing(self, timeout: float | None) -> NoReturn:
        core = self._as_core()
        if core.closed or core.cancelled:
            raise ClosedError(f"the handle on topic {core.topic.name!r} was {'closed' if core.closed else 'cancelled'}")
        raise Empty(f"nothing on topic {core.topic.name!r} within the timeout: timeout={timeout}")

    def _wake_publisher(self, ring_id: int) -> Callable[[], object] | None:
        return self._session.wake_publisher(self._entry.index, ring_id)

    def _follow(
        self, document: Membership, entries: Iterable[RingEntry], add: Callable[[RingEntry, str], bool]
    ) -> None:
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

    async def _await(self, deadline: float | None) -> bool:
        """Sleep until there may be something: True; False at the deadline, and once closed or cancelled."""
        core = self._as_core()
        seconds = BOUND if deadline is None else min(BOUND, deadline - time.monotonic())
        if core.closed or core.cancelled or seconds <= 0:
            return False
        self._session.care()
        await self._parking.apark(self._look, seconds)
        return not (core.closed or core.cancelled)

    def _look(self) -> bool:
        core = self._as_core()
        return core.closed or core.cancelled or core._ready()
