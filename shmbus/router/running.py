"""Running: one run of a router on a bus: its handles, its threads, its event loop.

One thread for each sync handler, one event loop, in a thread of its own, for all async ones.

Must stay true:
- No lock of ours is held while a handler runs, and none of the bus: a handler may publish, subscribe, open and close.
- Nothing ends unheard: a thread or task that ends for whatever reason is told of, and a failure ends the whole run.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from shmbus._log import logger
from shmbus.errors import ClosedError, DecodeError, GapError
from shmbus.middleware.protocol import current
from shmbus.router._chain import achain, chain
from shmbus.router._hands import Bell, LoopHands, ThreadHands
from shmbus.router._outbox import Outbox
from shmbus.router._routes import WorkerRoute
from shmbus.router._settle import aanswer, answer, asettle, judge, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextvars import Token

    from shmbus.bus import Bus
    from shmbus.middleware.protocol import Delivery, Middleware
    from shmbus.router._chain import AsyncCall, Call
    from shmbus.router._routes import Route, Served
    from shmbus.subscriber import Subscriber
    from shmbus.worker import Worker

    Opened: TypeAlias = Worker[Any] | Subscriber[Any] | Served

GRACE: Final = 1.0
"""Seconds that closing waits for threads whose handles are closed; one that is in a handler still is left behind."""

_log = logger("shmbus.router")


class Running:
    """Made by `Router.run`, and by the worker processes of the runner."""

    def __init__(self, bus: Bus, middleware: Sequence[Middleware], handled: Callable[[], object] | None = None) -> None:
        """`handled` is called after each event, by whoever handled it."""
        self._bus = bus
        self._middleware = tuple(middleware)
        self._handled = handled
        self._bell = Bell()
        self.outbox: Final = Outbox(bus)
        self._thread_hands = ThreadHands(self.outbox, self._bell, self._is_stuck)
        self._loop_hands = LoopHands(self.outbox, self._bell)
        self._handles: list[Opened] = []
        self._threads: list[threading.Thread] = []
        self._news: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._going = 0
        self._loop: Loop | None = None
        self.in_hand: Final[dict[Delivery[Any], tuple[Route, float]]] = {}
        """What is being handled: the route, and when it began by the monotonic clock."""
        self.stuck: Final[list[Delivery[Any]]] = []
        """Events whose handler goes on although its time is up."""

    def begin(self, routes: Iterable[Route], opened: Callable[[], object] = bool) -> None:
        """Open the handles of these routes, say so by `opened`, then start their handlers. Raises what opening does."""
        found = []
        for route in routes:
            if isinstance(route, WorkerRoute) and route.to is not None:
                self.outbox.open(route.to)
            handle = route.open(self._bus)
            self._handles.append(handle)
            found.append((route, handle))
        opened()
        for route, handle in found:
            if route.handler.asynchronous:
                self._begin_tasks(route, handle)
            else:
                self._begin_thread(route, handle)
        if self._bell.rung:
            self.cancel()  # which did not see the new ones

    def wait(self) -> None:
        """Return once all handlers have ended; raises what the first one failed of."""
        failure: BaseException | None = None
        while self._going:
            error = self._news.get()
            self._going -= 1
            if error is not None:
                failure = failure or error
                self.cancel()
        if failure is not None:
            raise failure

    def cancel(self) -> None:
        """Let all handlers finish what they have in hand, and end. From any thread, and signal handlers."""
        self._bell.ring()
        for handle in list(self._handles):
            handle.cancel()

    def close(self) -> None:
        """Close all handles: what is still in hand goes back to its group. Tasks are cancelled, threads left."""
        self.cancel()
        if self._loop is not None:
            self._loop.end()
        for handle in self._handles:
            handle.close()
        self.outbox.close()
        deadline = time.monotonic() + GRACE
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                _log.warning("%s is left to itself: its handler has not returned", thread.name)

    # -- one handler

    def _begin_thread(self, route: Route, handle: Opened) -> None:
        hands = self._thread_hands.emitter(route.to) if isinstance(route, WorkerRoute) else self._thread_hands
        function, whole = route.handler.function, route.handler.takes_message

        def call(delivery: Delivery[Any]) -> Any:
            return hands.emit(delivery, function(delivery.message if whole else delivery.event))

        run = chain((*self._middleware, *route.middleware), call, hands)
        thread = threading.Thread(
            target=self._in_thread, args=(route, handle, run), name=f"shmbus {route.handler.name}", daemon=True
        )
        self._going += 1
        self._threads.append(thread)
        thread.start()

    def _in_thread(self, route: Route, handle: Opened, run: Call) -> None:
        try:
            while not (handle.cancelled or handle.closed):
                with _told(route):
                    for message in handle.messages():
                        self._handle(route, message, run)
                        del message  # who waits for the next keeps no views of this one
            self._news.put(None)
        except BaseException as error:
            self._news.put(_unless_ended(handle, error))

    def _handle(self, route: Route, message: Any, run: Call) -> None:
        delivery, token = self._began(route, message)
        value: Any = None
        error: BaseException | None = None
        try:
            value = run(delivery)
        except BaseException as raised:
            error = raised
        try:
            if route.kind == "service":
                answer(delivery, value, error)
            else:
                settle(delivery, judge(delivery, error))
        finally:
            self._ended(delivery, token, error)
            del error  # it leads to this frame, and that to the event

    def _begin_tasks(self, route: Route, handle: Opened) -> None:
        hands = self._loop_hands.emitter(route.to) if isinstance(route, WorkerRoute) else self._loop_hands
        function, whole = route.handler.function, route.handler.takes_message

        async def call(delivery: Delivery[Any]) -> Any:
            found = function(delivery.message if whole else delivery.event)
            return await hands.emit(delivery, found if hasattr(found, "__aiter__") else await found)

        run = achain((*self._middleware, *route.middleware), call, hands)
        if self._loop is None:
            self._loop = Loop()
        for _ in range(route.concurrency):
            self._going += 1
            self._loop.start(lambda: self._in_loop(route, handle, run))

    async def _in_loop(self, route: Route, handle: Opened, run: AsyncCall) -> None:
        try:
            while not (handle.cancelled or handle.closed):
                with _told(route):
                    async for message in handle.messages():
                        await self._ahandle(route, message, run)
                        del message
            self._news.put(None)
        except BaseException as error:
            self._news.put(_unless_ended(handle, error))

    async def _ahandle(self, route: Route, message: Any, run: AsyncCall) -> None:
        delivery, token = self._began(route, message)
        value: Any = None
        error: BaseException | None = None
        try:
            value = await run(delivery)
        except BaseException as raised:
            error = raised
        try:
            if route.kind == "service":
                await aanswer(delivery, value, error)
            else:
                await asettle(delivery, judge(delivery, error))
        finally:
            self._ended(delivery, token, error)
            del error  # it leads to this frame, and that to the event

    def _began(self, route: Route, message: Any) -> tuple[Delivery[Any], Token[Delivery[Any] | None]]:
        delivery = route.delivery(message)
        self.in_hand[delivery] = (route, time.monotonic())
        return delivery, current.set(delivery)

    def _ended(self, delivery: Delivery[Any], token: Token[Delivery[Any] | None], error: BaseException | None) -> None:
        current.reset(token)
        del self.in_hand[delivery]
        if error is not None and ends(error):
            raise error
        if self._handled is not None:
            self._handled()

    def _is_stuck(self, delivery: Delivery[Any], seconds: float) -> None:
        self.stuck.append(delivery)
        _log.error(
            "%s has not returned within %g s for event %s, and cannot be stopped: its thread goes on",
            *(delivery.handler, seconds, delivery.id),
        )
        if self._handled is not None:
            self._handled()


def ends(error: BaseException) -> bool:
    """Whether an error of a handler ends the whole run: SystemExit, a cancelled task, whatever is no failure."""
    from shmbus.middleware.protocol import Redeliver

    return not isinstance(error, (Exception, Redeliver))


class _told:
    """Around the asking for events: what is said of one of them ends the asking, but not the handler."""

    def __init__(self, route: Route) -> None:
        self._route = route

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, (DecodeError, GapError)):
            return False
        _log.error("%s: %s", self._route, error)
        return True


def _unless_ended(handle: Opened, error: BaseException) -> BaseException | None:
    """What a handler's end is to be told as: that its handle was closed, or its loop, is no failure."""
    if isinstance(error, (ClosedError, asyncio.CancelledError)) and (handle.closed or handle.cancelled):
        return None
    return error


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        started: queue.SimpleQueue[asyncio.AbstractEventLoop] = queue.SimpleQueue()
        self._over: asyncio.Event | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._main(started)), name="shmbus event loop", daemon=True
        )
        self._thread.start()
        self._loop = started.get()

    async def _main(self, started: queue.SimpleQueue[asyncio.AbstractEventLoop]) -> None:
        self._over = asyncio.Event()
        started.put(asyncio.get_running_loop())
        await self._over.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def start(self, make: Callable[[], Any]) -> None:
        """Run what `make` makes as a task."""

        def begin() -> None:
            task = self._loop.create_task(make())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._loop.call_soon_threadsafe(begin)

    def end(self) -> None:
        """Cancel the tasks and end the loop; one that a task blocks is left behind."""
        with suppress(RuntimeError):  # it has ended already
            if self._over is not None:
                self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(GRACE)
        if self._thread.is_alive():
            _log.warning("%s is left to itself: a handler blocks it", self._thread.name)
