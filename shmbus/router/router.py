"""Router: which handler is called for what, by decorator; and the runs of it in this process.

May touch: a bus, through a run. Must stay true: registering opens nothing, and returns the function as it was.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast, overload

from shmbus._options import check_choice, check_path, check_range, check_topic, expiry_ns, nanoseconds
from shmbus.bus import MAX_DELIVER
from shmbus.errors import ClosedError, ConfigError
from shmbus.middleware import Retry
from shmbus.middleware.protocol import check_middleware
from shmbus.router._handlers import describe
from shmbus.router._routes import MAX_CONCURRENCY, Route, ServiceRoute, SubscriberRoute, WorkerRoute
from shmbus.router.running import Running
from shmbus.subscriber import MODES, STARTS
from shmbus.topic import DEAD_SUFFIX, check_label, dead_letter_topic
from shmbus.worker import MAX_PREFETCH

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shmbus.bus import Bus, Idle
    from shmbus.message import ClaimedMessage, Message
    from shmbus.middleware.protocol import Middleware
    from shmbus.router._typing import Answers, Consumes, Produces
    from shmbus.service import Service
    from shmbus.subscriber import Mode, Start
    from shmbus.topic import Topic

T = TypeVar("T")
R = TypeVar("R")

_MAX_DELIVER: Final = 5


def _interruptible(running: Running, routes: list[Route]) -> None:
    """All of it in another thread, so that Ctrl-C comes upon nothing but the wait for its end."""
    told: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def serve() -> None:
        try:
            running.begin(routes)
            running.wait()
            told.put(None)
        except BaseException as error:
            told.put(error)

    try:
        threading.Thread(target=serve, name="shmbus router", daemon=True).start()
        failure = told.get()
    except KeyboardInterrupt:
        running.cancel()
        told.get()
        raise
    if failure is not None:
        raise failure


class Router:
    """Handlers, and what each is called for.

    A handler takes one argument: annotated `Message[...]` (of a worker: `ClaimedMessage[...]`) it is the message, else
    its event. It may be sync or async. `middleware` is around all handlers, the first outermost.

        router = Router(middleware=[middleware.Log()])

        @router.worker(ORDERS, group="billing", to=INVOICES)
        def bill(order: OrderPaid) -> Invoice: ...

        router.run(bus)
    """

    def __init__(self, *, middleware: Iterable[Middleware] = ()) -> None:
        self.middleware: Final = check_middleware(middleware)
        self.routes: Final[list[Route]] = []
        self._runs: list[Running] = []

    @overload
    def worker(
        self,
        topic: Topic[T],
        *,
        group: str,
        key: str | None = None,
        to: None = None,
        middleware: Iterable[Middleware] = (),
        concurrency: int = 1,
        name: str | None = None,
        max_deliver: int | None = None,
        prefetch: int = 1,
        ack_within: float | None = None,
        expires: float | None = None,
        idle: Idle | None = None,
    ) -> Consumes[T, ClaimedMessage[T]]: ...
    @overload
    def worker(
        self,
        topic: Topic[T],
        *,
        group: str,
        key: str | None = None,
        to: Topic[R],
        middleware: Iterable[Middleware] = (),
        concurrency: int = 1,
        name: str | None = None,
        max_deliver: int | None = None,
        prefetch: int = 1,
        ack_within: float | None = None,
        expires: float | None = None,
        idle: Idle | None = None,
    ) -> Produces[T, R]: ...

    def worker(
        self,
        topic: Topic[Any],
        *,
        group: str,
        key: str | None = None,
        to: Topic[Any] | None = None,
        middleware: Iterable[Middleware] = (),
        concurrency: int = 1,
        name: str | None = None,
        max_deliver: int | None = None,
        prefetch: int = 1,
        ack_within: float | None = None,
        expires: float | None = None,
        idle: Idle | None = None,
    ) -> Any:
        """Decorates a handler of a group's events; each is acked once the handler has returned.

        What it returns is published to `to` before that (None: nothing; an iterator: each of its events): a death in
        between publishes it again, never not. What raises is given back, and at its last delivery dead-lettered, with
        the error as the reason. A handler that settles its message itself is left to that.

        An async handler has up to `concurrency` events in hand at once, a sync one has a thread, and one event. The
        other options are those of `Bus.worker`; `max_deliver` is 5, or more where a Retry needs it. Raises ConfigError.
        """
        check_topic(topic)
        check_label("group", group)
        if name is not None:
            check_label("worker", name)
        if to is not None:
            check_topic(to)
        if not topic.name.endswith(DEAD_SUFFIX):
            dead_letter_topic(topic)
        around = check_middleware(middleware)
        if max_deliver is None:
            retries = [one.most for one in (*self.middleware, *around) if isinstance(one, Retry)]
            max_deliver = max(_MAX_DELIVER, 1 + max(retries, default=0))
        check_range("max_deliver", max_deliver, MAX_DELIVER)
        check_range("prefetch", prefetch, MAX_PREFETCH)
        check_range("concurrency", concurrency, MAX_CONCURRENCY)
        nanoseconds("ack_within", ack_within)
        expiry_ns(expires)
        options = {"key": check_path(key, topic), "name": name, "prefetch": prefetch, "expires": expires, "idle": idle}
        what = f"group {group!r} of topic {topic.name!r}"

        def register(function: Any) -> Any:
            handler = describe(function)
            if concurrency > 1 and not handler.asynchronous:
                raise ConfigError(f"a sync handler has one event in hand: {handler.name}, concurrency={concurrency}")
            for other in self.routes:
                if isinstance(other, WorkerRoute) and (other.topic.name, other.group) == (topic.name, group):
                    raise ConfigError(f"{what} has a handler already: {other.handler.name}, then {handler.name}")
            self.routes.append(
                WorkerRoute(handler, topic, group, to, around, max_deliver, concurrency, ack_within, options)
            )
            return function

        return register

    def subscriber(
        self,
        topic: Topic[T],
        *,
        name: str | None = None,
        mode: Mode = "reliable",
        start: Start = "latest",
        middleware: Iterable[Middleware] = (),
        idle: Idle | None = None,
    ) -> Consumes[T, Message[T]]:
        """Decorates a handler that is called for every event of a topic, one after another.

        With a `name` one process of a runner has it; without, each process has a subscriber of its own. An event is
        delivered once: what raises is logged. What comes while nobody subscribes is not for it: where no event may be
        missed across a restart, a worker is what is wanted. Raises ConfigError.
        """
        check_topic(topic)
        check_choice("mode", mode, MODES)
        check_choice("start", start, STARTS)
        if name is not None:
            check_label("subscriber", name)
        around = check_middleware(middleware)

        def register(function: Any) -> Any:
            handler = describe(function)
            for other in self.routes:
                if isinstance(other, SubscriberRoute) and name and (other.topic.name, other.name) == (topic.name, name):
                    what = f"subscriber {name!r} of topic {topic.name!r}"
                    raise ConfigError(f"{what} has a handler already: {other.handler.name}, then {handler.name}")
            options = {"mode": mode, "start": start, "idle": idle}
            self.routes.append(SubscriberRoute(handler, topic, name, around, options))
            return function

        return cast("Consumes[T, Message[T]]", register)

    def service(
        self,
        service: Service[T, R],
        *,
        middleware: Iterable[Middleware] = (),
        concurrency: int = 1,
        max_deliver: int = _MAX_DELIVER,
        idle: Idle | None = None,
    ) -> Answers[T, R]:
        """Decorates a handler that answers the calls of a service: what it returns is the reply.

        What it raises is CallFailed at the caller, with the error as the reason. Annotated `Call[...]` it takes the
        call, with attempt, deadline and headers. `concurrency` is as for workers. Raises ConfigError.
        """
        from shmbus.server import Call
        from shmbus.service import check_service

        check_service(service)
        around = check_middleware(middleware)
        check_range("max_deliver", max_deliver, MAX_DELIVER)
        check_range("concurrency", concurrency, MAX_CONCURRENCY)

        def register(function: Any) -> Any:
            handler = describe(function, (Call,))
            if concurrency > 1 and not handler.asynchronous:
                raise ConfigError(f"a sync handler has one call in hand: {handler.name}, concurrency={concurrency}")
            for other in self.routes:
                if isinstance(other, ServiceRoute) and other.service.name == service.name:
                    what = f"service {service.name!r}"
                    raise ConfigError(f"{what} has a handler already: {other.handler.name}, then {handler.name}")
            self.routes.append(ServiceRoute(handler, service, around, max_deliver, concurrency, {"idle": idle}))
            return function

        return cast("Answers[T, R]", register)

    # -- in this process

    def run(self, bus: Bus) -> None:
        """Run all handlers in this process until `cancel` or Ctrl-C: a thread for each sync one, one event loop for
        the async ones.

        Cancelled, handlers finish what they have in hand first; a second Ctrl-C gives it back instead. Raises
        ConfigError without handlers, what opening the handles raises, and what a handler raises that is no Exception.
        """
        if not self.routes:
            raise ConfigError("a router without handlers has nothing to run: routes=[]")
        running = Running(bus, self.middleware)
        self._runs.append(running)
        try:
            if threading.current_thread() is threading.main_thread():
                _interruptible(running, self.routes)
            else:
                running.begin(self.routes)
                running.wait()
        finally:
            running.close()
            self._runs.remove(running)

    def cancel(self) -> None:
        """End all runs of this router in this process, once what is in hand is done. From any thread, handlers, and
        signal handlers.
        """
        for running in list(self._runs):
            running.cancel()

    def publish(self, topic: Topic[T], event: T, *, headers: dict[str, Any] | None = None) -> int | None:
        """Publish from within a handler, by a publisher that all handlers share, with the headers that the event in
        hand passes on. Raises ClosedError where this router does not run, and what `Publisher.publish` does.
        """
        return self._running().outbox.publish(topic, event, headers)

    async def apublish(self, topic: Topic[T], event: T, *, headers: dict[str, Any] | None = None) -> int | None:
        """`publish` in an event loop."""
        return await self._running().outbox.apublish(topic, event, headers)

    def _running(self) -> Running:
        if not self._runs:
            raise ClosedError("this router does not run in this process: publish from within its handlers")
        return self._runs[-1]

    def __repr__(self) -> str:
        return f"<Router of {len(self.routes)} handlers{', running' if self._runs else ''}>"
