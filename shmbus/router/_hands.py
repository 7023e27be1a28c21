"""Hands: what handlers and their middleware have done for them, in threads and in the event loop.

May touch: the outbox. Must stay true: whoever sleeps here is woken when the router is cancelled, from a signal handler
too: no lock stands in between.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from shmbus._log import logger
from shmbus.middleware.protocol import Redeliver

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmbus.middleware.protocol import Delivery
    from shmbus.router._chain import AsyncCall, Call
    from shmbus.router._outbox import Outbox
    from shmbus.topic import Topic

_log = logger("shmbus.router")


class Bell:
    """Wakes sleepers, from anywhere: SimpleQueue.put is safe in a signal handler that came upon a get."""

    def __init__(self) -> None:
        self.rung = False
        self._sleepers: set[queue.SimpleQueue[None]] = set()
        self._loops: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}

    def ring(self) -> None:
        """Let all sleepers go, now and from now on."""
        self.rung = True
        for sleeper in self._sleepers.copy():
            sleeper.put(None)
        for event, loop in self._loops.copy().items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)

    def sleep(self, seconds: float) -> bool:
        """False if the bell rang before they were over."""
        sleeper: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._sleepers.add(sleeper)
        try:
            if not self.rung:
                sleeper.get(timeout=seconds)
            return False
        except queue.Empty:
            return True
        finally:
            self._sleepers.discard(sleeper)

    async def asleep(self, seconds: float) -> bool:
        """The same in an event loop."""
        event = asyncio.Event()
        self._loops[event] = asyncio.get_running_loop()
        try:
            if not self.rung:
                async with asyncio.timeout(seconds):
                    await event.wait()
            return False
        except TimeoutError:
            return True
        finally:
            del self._loops[event]


class ThreadHands:
    """For the sync handlers of one run."""

    def __init__(self, outbox: Outbox, bell: Bell, stuck: Callable[[Delivery[Any], float], None]) -> None:
        self._outbox = outbox
        self._bell = bell
        self._stuck = stuck

    def sleep(self, seconds: float) -> None:
        if not self._bell.sleep(seconds):
            raise Redeliver(counts=False)

    def within(self, seconds: float, call: Call, delivery: Delivery[Any]) -> Any:
        """What the call returns, made in a thread of its own; TimeoutError past the seconds, and the thread goes on."""
        told: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                told.put((call(delivery), None))
            except BaseException as error:
                told.put((None, error))

        name = f"{threading.current_thread().name}-timed"
        threading.Thread(target=contextvars.copy_context().run, args=(run,), name=name, daemon=True).start()
        try:
            value, error = told.get(timeout=seconds)
        except queue.Empty:
            delivery.over = True
            self._stuck(delivery, seconds)
            raise TimeoutError(f"{delivery.handler} takes more than {seconds:g} s") from None
        if error is not None:
            try:
                raise error
            finally:
                del error  # it leads to this frame, and that to the event
        return value

    def publish(self, topic: Topic[Any], event: Any, headers: dict[str, Any] | None) -> int | None:
        return self._outbox.publish(topic, event, headers)

    def emit(self, delivery: Delivery[Any], value: Any) -> Any:
        return value

    def emitter(self, to: Topic[Any] | None) -> Emitter:
        """The same hands, of a worker whose results go to a topic."""
        return Emitter(self._outbox, self._bell, self._stuck, to)


class _ToTopic:
    """A result has a topic, or is told of once and dropped."""

    _to: Topic[Any] | None
    _told = False

    def _unwanted(self, delivery: Delivery[Any], event: object) -> bool:
        if self._to is not None:
            return False
        if not self._told:
            self._told = True
            _log.warning("%s returns %s, and has no topic for it: to=None", delivery.handler, type(event).__name__)
        return True


class Emitter(_ToTopic, ThreadHands):
    """For the sync handlers of workers: a result is published, if it is for a topic."""

    def __init__(
        self,
        outbox: Outbox,
        bell: Bell,
        stuck: Callable[[Delivery[Any], float], None],
        to: Topic[Any] | None,
    ) -> None:
        super().__init__(outbox, bell, stuck)
        self._to = to

    def emit(self, delivery: Delivery[Any], value: Any) -> Any:
        """Publish a result: each of an iterator's; returns it, None for an iterator."""
        if not isinstance(value, Iterator):
            self._one(delivery, value)
            return value
        try:
            for event in value:
                self._one(delivery, event)
        finally:
            close = getattr(value, "close", None)  # a generator's; an iterator need have none
            if close is not None:
                close()
        return None

    def _one(self, delivery: Delivery[Any], event: Any) -> None:
        if event is not None and not self._unwanted(delivery, event):
            assert self._to is not None
            self._outbox.publish(self._to, event)


class LoopHands:
    """For the async handlers of one run."""

    def __init__(self, outbox: Outbox, bell: Bell) -> None:
        self._outbox = outbox
        self._bell = bell

    async def sleep(self, seconds: float) -> None:
        if not await self._bell.asleep(seconds):
            raise Redeliver(counts=False)

    async def within(self, seconds: float, call: AsyncCall, delivery: Delivery[Any]) -> Any:
        """What the call returns; it is cancelled past the seconds, and TimeoutError raised."""
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                return await call(delivery)
        except TimeoutError as error:
            if not limit.expired():
                raise  # its own
            raise TimeoutError(f"{delivery.handler} takes more than {seconds:g} s") from error

    async def publish(self, topic: Topic[Any], event: Any, headers: dict[str, Any] | None) -> int | None:
        return await self._outbox.apublish(topic, event, headers)

    async def emit(self, delivery: Delivery[Any], value: Any) -> Any:
        return value

    def emitter(self, to: Topic[Any] | None) -> LoopEmitter:
        """The same hands, of a worker whose results go to a topic."""
        return LoopEmitter(self._outbox, self._bell, to)


class LoopEmitter(_ToTopic, LoopHands):
    """For the async handlers of workers."""

    def __init__(self, outbox: Outbox, bell: Bell, to: Topic[Any] | None) -> None:
        super().__init__(outbox, bell)
        self._to = to

    async def emit(self, delivery: Delivery[Any], value: Any) -> Any:
        """As that of `Emitter`."""
        if isinstance(value, AsyncIterator):
            try:
                async for event in value:
                    await self._one(delivery, event)
            finally:
                close = getattr(value, "aclose", None)
                if close is not None:
                    await close()
            return None
        if isinstance(value, Iterator):
            for event in value:
                await self._one(delivery, event)
            return None
        await self._one(delivery, value)
        return value

    async def _one(self, delivery: Delivery[Any], event: Any) -> None:
        if event is not None and not self._unwanted(delivery, event):
            assert self._to is not None
            await self._outbox.apublish(self._to, event)
