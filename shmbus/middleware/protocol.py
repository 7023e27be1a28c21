"""The protocol of middleware: one for sync and async handlers. Imports nothing that waits.

A middleware is a callable that takes a Delivery and returns a generator of steps. `yield` stands for all that is inside
of it, the handler last: it gives the handler's result or raises its error. The steps beside it are what a middleware
may want done in between, in whichever way the handler's colour has it. So a middleware has no colour:

    def timed(delivery: Delivery[Any]) -> Steps:
        began = time.perf_counter()
        try:
            return (yield)
        finally:
            print(delivery.handler, time.perf_counter() - began)

Must stay true:
- What a middleware raises, or lets pass, is what those outside of it see, and the router at last: an event whose chain
  returns is done, one whose chain raises is not.
- Redeliver is no Exception: `except Exception` is about failures, and an event that comes again is not one.
"""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

import msgspec

from shmbus.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from shmbus.topic import Topic

T = TypeVar("T")
Kind = Literal["worker", "subscriber", "service"]


class Sleep(NamedTuple):
    """A step: wait for so many seconds, in the handler's thread or its task. Ends at once, with Redeliver, when the
    router is cancelled.
    """

    seconds: float


class Within(NamedTuple):
    """A step: all that is inside, as `yield`, but TimeoutError is raised after so many seconds.

    An async handler is cancelled then. A sync one cannot be: it goes on in a thread of its own, what it publishes
    through the router from then on is refused, and the runner replaces its process.
    """

    seconds: float


class Result(NamedTuple):
    """A step: what the handler would have returned. A worker's router publishes it to `to`, None being nothing and an
    iterator each of its events; elsewhere nothing happens.
    """

    value: Any


class Publish(NamedTuple):
    """A step: publish an event through the router, with the headers that the delivery hands on beside its own."""

    topic: Topic[Any]
    event: Any
    headers: dict[str, Any] | None = None


Step: TypeAlias = Sleep | Within | Publish | Result | None
"""None, a mere `yield`: all that is inside."""
Steps: TypeAlias = "Generator[Any, Any, Any]"
"""Of steps; Any, so that mypy lets a `yield` stand alone."""


class Middleware(Protocol):
    """What stands around a handler."""

    def __call__(self, delivery: Delivery[Any], /) -> Steps:
        """The steps of one delivery. An instance serves all handlers that name it, from any thread at once."""
        ...


class Delivery(Generic[T]):
    """One event on its way to a handler."""

    __slots__ = (
        "__weakref__",
        "_encode",
        "_headers",
        "attempt",
        "consumer",
        "event",
        "handler",
        "id",
        "kind",
        "max_deliver",
        "message",
        "outgoing",
        "over",
        "time_ns",
        "topic",
        "type",
    )

    def __init__(
        self,
        *,
        event: T,
        message: Any,
        kind: Kind,
        handler: str,
        topic: str,
        consumer: str,
        id: str = "",
        time_ns: int = 0,
        attempt: int = 1,
        max_deliver: int = 0,
        type: Any = Any,
        encode: Callable[[Any], bytes] = msgspec.msgpack.encode,
    ) -> None:
        self.event = event
        self.message: Final = message
        """The Message, ClaimedMessage or Call that it came in."""
        self.kind: Final = kind
        self.handler: Final = handler
        """Module and name of the handler."""
        self.topic: Final = topic
        """Name of the topic, or of the service."""
        self.consumer: Final = consumer
        """Name of the group or subscriber."""
        self.id: Final = id
        """That of the message: the same at every delivery."""
        self.time_ns: Final = time_ns
        """CLOCK_REALTIME in ns when it was published."""
        self.attempt: Final = attempt
        """1 at the first delivery."""
        self.max_deliver: Final = max_deliver
        """Deliveries that the group allows; 0: it is delivered once."""
        self.type: Final = type
        """Of the topic's events."""
        self.outgoing: Final[dict[str, Any]] = {}
        """Headers of whatever is published through the router on behalf of this event."""
        self.over = False
        """Its time is up, by `Within`: what it still publishes is refused."""
        self._headers: dict[str, Any] | None = None
        self._encode = encode

    @property
    def headers(self) -> dict[str, Any]:
        """Headers that it came with, {} for none. Raises msgspec.DecodeError if they are no map."""
        if self._headers is None:
            self._headers = dict(self.message.headers)
        return self._headers

    def payload(self) -> bytes:
        """The event as its topic encodes it."""
        return self._encode(self.event)

    @property
    def can_come_again(self) -> bool:
        """True for a worker's event: Redeliver brings it back. A subscriber's, or a call, is delivered once."""
        return self.kind == "worker"

    def __repr__(self) -> str:
        return f"<Delivery of {self.id} to {self.handler}, attempt {self.attempt}>"


class Redeliver(BaseException):
    """Raised to have a worker's event delivered again, after `delay` seconds in which nobody waits for it.

    `counts=False`: nobody has tried it yet, and it costs no attempt. The error that led to it is its `__cause__`. A
    subscriber's event does not come again: there the router logs that cause.
    """

    def __init__(self, delay: float = 0.0, *, counts: bool = True) -> None:
        super().__init__(delay)
        self.delay = delay
        self.counts = counts


class Reject(Exception):
    """Raised to send a worker's event to the dead-letter topic at once, with this reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


current: Final[ContextVar[Delivery[Any] | None]] = ContextVar("shmbus.delivery", default=None)
"""What this thread or task handles; a handler's own tasks, and `asyncio.to_thread`, inherit it."""


def outgoing() -> dict[str, Any]:
    """Headers that belong on whatever a handler publishes by itself, {} outside of one: `headers=outgoing()`."""
    delivery = current.get()
    return {} if delivery is None else dict(delivery.outgoing)


def check_middleware(middleware: Iterable[object]) -> tuple[Middleware, ...]:
    """The middleware as a tuple, first outermost. Raises ConfigError for what is none."""
    found = tuple(middleware)
    for one in found:
        if inspect.isclass(one):
            raise ConfigError(
                f"middleware is an instance, not a class: middleware={one.__name__}, not {one.__name__}()"
            )
        if not callable(one):
            raise ConfigError(f"middleware is a callable that takes a Delivery: middleware={one!r}")
    return found  # type: ignore[return-value]


def described(error: BaseException) -> str:
    """An error in one line: "ValueError: no such thing"."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def check_seconds(option: str, value: object, *, zero: bool = False) -> float:
    """A finite number of seconds above 0, or from 0. Raises ConfigError."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not (0 <= float(value) < 1e9) or (value == 0 and not zero):  # type: ignore[arg-type]
        raise ConfigError(f"{option} is a number of seconds {'from' if zero else 'above'} 0: {option}={value!r}")
    return float(value)  # type: ignore[arg-type]


def check_count(option: str, value: object, least: int = 1) -> int:
    """A whole number from `least`. Raises ConfigError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{option} is a whole number from {least}: {option}={value!r}")
    return value
