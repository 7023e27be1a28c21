"""Waiting for events: where a handle sleeps. In a thread `_core` does it (wait.c), in an event loop this module.

May touch: the parked and awaiting bits of one handle, and its own wake-up channel.

Must stay true (SYNC park):
- Park: set the bit, look at all rings again, sleep at most `BOUND` seconds. Wake: whoever clears the bit posts.
- Whoever un-parks itself and finds its bit cleared takes the post that is coming, at the latest before its next park.
- Nobody sleeps with an event in a ring for longer than `BOUND`, and that long only if a waker died on the way.
"""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, Protocol, TypeVar, cast

from shmbus import _core
from shmbus._handles.awaiting import Awaiting, interpreter_ends
from shmbus._handles.care import BOUND
from shmbus._handles.session import Session
from shmbus._shm.waker import Sleeper
from shmbus.errors import ClosedError, ConfigError, Empty, ForkedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable

    from shmbus._ledger.document import Membership, RingEntry, TopicEntry
    from shmbus._payload.records import Array
    from shmbus.topic import Topic

T = TypeVar("T")

IDLE_MODES: Final = ("adaptive", "park", "spin")
FAIR: Final = 64
"""Events that `async for` takes in a row before the other tasks of the loop have their turn."""
WINDOW: Final = 16
"""Retired rings that a handle has mapped at once, of however many it has yet to read."""
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
        self.tasks: Final = Awaiting(self.sleeper, self._set_bits, self._clear_bits)

    def bind(self, core: Core, idle: str) -> None:
        """Have a handle sleep here; `_core` does it."""
        core._bind(self.sleeper.memory, self._parked, self._bit, idle)

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

    def _set_bits(self) -> None:
        for at in (self._awaiting, self._parked):  # a waker reads the awaiting bit after the parked one
            _core.fetch_or(self._map, at, self._bit)

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
    def _ask(self) -> Any: ...
    def _finish(self, ask: Any, /) -> Any: ...
    def _poll(self, ask: Any = None, /) -> Any: ...
    def _poll_message(self, ask: Any = None, /) -> Any: ...
    def _next_message(self) -> Any: ...
    def _next_rows(self, most: int, /) -> Any: ...
    def _poll_rows(self, ask: Any, most: int, /) -> Any: ...
    def _take_rows(self, most: int, timeout: float | None, /) -> _core.Rows: ...
    def _take(self, maximum: int, timeout: float | None, /) -> list[Any]: ...
    def _ready(self) -> bool: ...
    def _due(self) -> float: ...
    def _pass_on(self) -> None: ...
    def _cancel(self) -> None: ...
    def _drop_source(self, ring_id: int, /) -> None: ...
    def _retire_source(self, ring_id: int, /) -> None: ...
    def _retired_left(self) -> int: ...
    def _more_retired(self, more: bool, /) -> None: ...


class Receiver(Generic[T]):
    """The waiting half of a subscriber or worker; the other half is its C type, which `_core` is."""

    _session: Session
    _entry: TopicEntry
    _consumer_id: int
    """Of the subscriber, or of the worker's group."""
    _parking: Parking
    _sources: dict[int, str]
    """Rings that were looked at, and the state they were in then."""
    _run = 0
    _window = WINDOW

    def receive_many(self, maximum: int, timeout: float | None = None) -> list[T]:
        """Up to `maximum` events in one call: waits up to `timeout` seconds for the first, and takes what is there.

        Raises Empty when there is none. A timeout of None waits for ever, 0 not at all.
        """
        if maximum < 1:
            raise ConfigError(f"receive_many takes at least one event: maximum={maximum}")
        return self._as_core()._take(maximum, timeout)

    def receive_array(self, most: int, timeout: float | None = None) -> Array:
        """Up to `most` events in a structured array that is the caller's own, for a topic with `codec="record"`.

        Waits as `receive_many` does, and raises Empty when there is none.
        """
        from shmbus._payload import records

        core = self._as_core()
        records.require_records(core.topic)
        return records.array_of(core._take_rows(records.check_most(most), timeout), core.topic.dtype)

    def areceive(self, timeout: float | None = None) -> Coroutine[Any, Any, T]:
        """`receive` without blocking the event loop. Any number of tasks may wait at once; each event goes to one.

        Whoever calls this asks, also when it is another task that awaits the result.
        """
        core = self._as_core()
        return self._obtain(core._poll, core._ask(), timeout)

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    def __anext__(self) -> Coroutine[Any, Any, T]:
        core = self._as_core()
        return self._anext(core._poll, core._ask())

    async def _anext(self, poll: Callable[[Any], Any], ask: Any) -> Any:
        self._run += 1
        if self._run % FAIR == 0:
            import asyncio

            await asyncio.sleep(0)
        core = self._as_core()
        try:
            if not core.closed or _core.exiting():
                return await self._obtain(poll, ask, None)
        except ClosedError:
            if not (core.closed or core.cancelled):
                raise
        raise StopAsyncIteration

    async def _obtain(self, poll: Callable[[Any], Any], ask: Any, timeout: float | None) -> Any:
        """What `poll` finds, for who asks; raises Empty at the timeout, ClosedError at the handle's end."""
        deadline = None if timeout is None else time.monotonic() + timeout
        core, again = self._as_core(), False
        try:
            while True:
                if core.closed and _core.exiting():
                    await interpreter_ends()
                if core.cancelled and (timeout is None or timeout > 0):
                    core._finish(ask)
                    self._nothing(timeout)
                found = poll(ask)
                if found is not _core.NOTHING:
                    return found
                if not await self._await(deadline, again) and not _core.exiting() and not core.cancelled:
                    self._nothing(timeout)
                again = True
        except BaseException:
            with suppress(ClosedError, ForkedError, SystemExit):
                core._pass_on()
            raise
        finally:
            self._parking.tasks.pass_on(self._look)

    def cancel(self) -> None:
        """End the iteration and any wait of this handle, for good; callable from signal handlers and other threads.

        A worker's loop that asks for the next event acks the one in its hands as ever, and ends; what was claimed ahead
        goes back to the group. What is there can still be had without waiting: `try_receive`, `timeout=0`.
        """
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

    def _pool(self, ring_id: int) -> _core.Pool | None:
        """The pool of a ring's publisher, for what is looked at in it; None if it is gone."""
        members = self._session.registry.membership(self._entry.index)
        ring = members.ring(ring_id) if members else None
        publisher = members.publisher(ring.publisher) if members and ring else None
        if publisher is None or not publisher.pool:
            return None
        with suppress(FileNotFoundError):
            wake = partial(self._session.wake_slot, publisher.slot)
            return self._session.rings.pools.enter(publisher.pool, self._consumer_id, wake)
        return None

    def _call_publisher(self, ring_id: int) -> None:
        self._session.call_publisher(self._entry.index, ring_id)

    def _follow(
        self, document: Membership, entries: Iterable[RingEntry], add: Callable[[RingEntry, str], bool]
    ) -> None:
        """Let go of the rings that the document no longer has, and `add` those that are new, with their publisher.

        Rings of publishers that are gone come first, in the order of their ids, a few at a time, and before the last
        of them none that is younger: `_core` calls `_refresh` again when it has come to their end.
        """
        core = self._as_core()
        wanted = {entry.id: entry for entry in entries}
        for id in self._sources.keys() - wanted.keys():
            core._drop_source(id)
            del self._sources[id]
        for id, state in self._sources.items():
            if state != wanted[id].state:
                core._retire_source(id)
                self._sources[id] = wanted[id].state
        new = sorted(wanted.keys() - self._sources.keys(), key=lambda id: (wanted[id].state == "active", id))
        room = self._window - core._retired_left()
        more = False
        for id in new:
            entry = wanted[id]
            if entry.state == "retired" and room <= 0:
                more = True
                break
            publisher = document.publisher(entry.publisher)
            try:
                if add(entry, publisher.name if publisher else "(gone)") and entry.state == "retired":
                    room -= 1
                self._sources[id] = entry.state
            except FileNotFoundError:
                continue  # removed since: it had nothing left for us
        core._more_retired(more)

    # -- waiting

    def _as_core(self) -> Core:
        return cast("Core", self)

    async def _await(self, deadline: float | None, again: bool) -> bool:
        """Sleep until there may be something: True; False at the deadline, and once closed or cancelled."""
        core = self._as_core()
        seconds = BOUND if deadline is None else min(BOUND, deadline - time.monotonic())
        if core.closed or core.cancelled or seconds <= 0:
            return False
        self._care()
        await self._parking.tasks.wait(self._look, lambda: min(seconds, core._due()), again=again)
        return not (core.closed or core.cancelled)

    def _look(self) -> bool:
        """Something may be there, be it the end."""
        core = self._as_core()
        with suppress(ClosedError, ForkedError, SystemExit):
            return core.cancelled or core._ready()
        return True

    def _interrupt(self) -> None:
        self._parking.interrupt()
