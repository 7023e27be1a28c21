"""Routes: what a router was told, one for each handler. Pure, but for `open`, which opens the route's handle on a bus.

Must stay true: what cannot be opened on any bus is refused with ConfigError where it is registered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from shmbus.middleware.protocol import Delivery
from shmbus.topic import codec_of

if TYPE_CHECKING:
    from shmbus.bus import Bus
    from shmbus.message import ClaimedMessage, Message
    from shmbus.middleware.protocol import Kind, Middleware
    from shmbus.router._handlers import Handler
    from shmbus.server import Call, Server
    from shmbus.service import Service
    from shmbus.subscriber import Subscriber
    from shmbus.topic import Topic
    from shmbus.worker import Worker


class WorkerRoute(NamedTuple):
    """A handler that works for a group."""

    handler: Handler
    topic: Topic[Any]
    group: str
    to: Topic[Any] | None
    middleware: tuple[Middleware, ...]
    max_deliver: int
    concurrency: int
    ack_within: float | None
    options: dict[str, Any]
    kind: Kind = "worker"

    @property
    def shared(self) -> bool:
        """Whether any number of processes may run it."""
        return True

    def open(self, bus: Bus) -> Worker[Any]:
        """Its handle."""
        return bus.worker(
            self.topic, group=self.group, max_deliver=self.max_deliver, ack_within=self.ack_within, **self.options
        )

    def delivery(self, message: ClaimedMessage[Any]) -> Delivery[Any]:
        """A message as the chain takes it."""
        return _delivery(self, message, self.group, message.attempt, self.max_deliver)

    def __str__(self) -> str:
        return f"{self.handler.name} for group {self.group!r} of topic {self.topic.name!r}"


class SubscriberRoute(NamedTuple):
    """A handler that is called for every event."""

    handler: Handler
    topic: Topic[Any]
    name: str | None
    middleware: tuple[Middleware, ...]
    options: dict[str, Any]
    kind: Kind = "subscriber"
    concurrency: int = 1
    ack_within: float | None = None

    @property
    def shared(self) -> bool:
        """A name is one process's; without one every process has a subscriber of its own."""
        return self.name is None

    def open(self, bus: Bus) -> Subscriber[Any]:
        """Its handle."""
        return bus.subscriber(self.topic, name=self.name, **self.options)

    def delivery(self, message: Message[Any]) -> Delivery[Any]:
        """A message as the chain takes it."""
        return _delivery(self, message, self.name or "", 1, 0)

    def __str__(self) -> str:
        return f"{self.handler.name} for subscriber {self.name or '(unnamed)'} of topic {self.topic.name!r}"


class Served:
    """A server as the runs see the other handles: what it hands out are calls."""

    def __init__(self, server: Server[Any, Any]) -> None:
        self._server = server
        self.cancelled = False

    @property
    def closed(self) -> bool:
        """True after close(), of the server or its bus."""
        return self._server.closed

    def messages(self) -> Server[Any, Any]:
        """Its calls, in a thread or an event loop."""
        return self._server

    def cancel(self) -> None:
        """Hand out no more."""
        self.cancelled = True
        self._server.cancel()

    def close(self) -> None:
        """Leave; calls that are open go to other servers."""
        self._server.close()


class ServiceRoute(NamedTuple):
    """A handler that answers the calls of a service."""

    handler: Handler
    service: Service[Any, Any]
    middleware: tuple[Middleware, ...]
    max_deliver: int
    concurrency: int
    options: dict[str, Any]
    kind: Kind = "service"
    ack_within: float | None = None

    @property
    def shared(self) -> bool:
        """Any number of processes share the calls."""
        return True

    def open(self, bus: Bus) -> Served:
        """Its handle."""
        return Served(bus.server(self.service, max_deliver=self.max_deliver, **self.options))

    def delivery(self, call: Call[Any, Any]) -> Delivery[Any]:
        """A call as the chain takes it."""
        requests: Topic[Any] = self.service.requests
        return Delivery(
            event=call.event,
            message=call,
            kind=self.kind,
            handler=self.handler.name,
            topic=self.service.name,
            consumer="servers",
            id=call.message.id,
            time_ns=call.message.time_ns,
            attempt=call.attempt,
            max_deliver=self.max_deliver,
            type=requests.type,
            encode=codec_of(requests).encode or bytes,
        )

    def __str__(self) -> str:
        return f"{self.handler.name} for service {self.service.name!r}"


Route = WorkerRoute | SubscriberRoute | ServiceRoute


def _delivery(
    route: WorkerRoute | SubscriberRoute, message: Message[Any], consumer: str, attempt: int, max_deliver: int
) -> Delivery[Any]:
    return Delivery(
        event=message.event,
        message=message,
        kind=route.kind,
        handler=route.handler.name,
        topic=route.topic.name,
        consumer=consumer,
        id=message.id,
        time_ns=message.time_ns,
        attempt=attempt,
        max_deliver=max_deliver,
        type=route.topic.type,
        encode=codec_of(route.topic).encode or bytes,
    )


MAX_CONCURRENCY: Final = 4096
"""Tasks of one handler: each may hold an event."""
