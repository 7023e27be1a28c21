"""Middleware that says what becomes of a failure: Ignore, Recover, Poison.

Must stay true: an event whose failure is swallowed here is done, so whatever is to be kept of it is published before.
"""

from __future__ import annotations

import asyncio
import traceback
from typing import TYPE_CHECKING, Any, Final

import msgspec

from shmbus._log import logger
from shmbus.errors import ConfigError, RecoveredError
from shmbus.middleware.protocol import Publish, Redeliver, Reject, Result, described

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmbus.middleware.protocol import Delivery, Steps
    from shmbus.topic import Topic

MAX_TRACEBACK: Final = 8000
"""Characters, the last of it: where it was raised."""

_log = logger("shmbus.router")


class Ignore:
    """Takes an event for done whose handler raised one of these errors."""

    def __init__(self, *errors: type[Exception]) -> None:
        if not errors or not all(isinstance(e, type) and issubclass(e, Exception) for e in errors):
            raise ConfigError(f"Ignore takes one or more classes of exceptions: errors={errors!r}")
        self.errors: Final = errors

    def __call__(self, delivery: Delivery[Any]) -> Steps:
        """See Middleware."""
        try:
            return (yield)
        except self.errors as error:
            _log.info("%s, event %s: ignored: %s", delivery.handler, delivery.id, described(error))
            return None
        except Reject as error:  # what a Retry inside of this one made of it
            if not isinstance(error.__cause__, self.errors):
                raise
            _log.info("%s, event %s: ignored: %s", delivery.handler, delivery.id, described(error.__cause__))
            return None


class Recover:
    """Makes a failure of what would end the process: SystemExit, or whatever else is no Exception, is RecoveredError.

    With `fallback` a failure of any kind is what that returns, called with delivery and error: a worker's `to` gets it,
    a call is answered with it.
    """

    def __init__(self, fallback: Callable[[Delivery[Any], BaseException], Any] | None = None) -> None:
        if fallback is not None and not callable(fallback):
            raise ConfigError(f"fallback is a callable or None: fallback={fallback!r}")
        self.fallback: Final = fallback

    def __call__(self, delivery: Delivery[Any]) -> Steps:
        """See Middleware."""
        try:
            return (yield)
        except (Redeliver, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError):
            raise
        except BaseException as error:
            if self.fallback is None:
                if isinstance(error, Exception):
                    raise
                raise RecoveredError(f"{delivery.handler} raised {described(error)}") from error
            _log.warning("%s, event %s: recovered: %s", delivery.handler, delivery.id, described(error))
            value = self.fallback(delivery, error)
        yield Result(value)
        return value


class Poisoned(msgspec.Struct, frozen=True):
    """An event that a handler failed on, as `Poison` publishes it."""

    reason: str
    """The error, in one line."""
    handler: str
    traceback: str
    attempts: int
    """How often it had been delivered."""
    topic: str
    consumer: str
    id: str
    """That of the message."""
    time_ns: int
    payload: bytes
    """The event, as its topic encodes it."""


class Poison:
    """Publishes an event whose handler raised to a topic of its own, and takes it for done. Outside of a Retry: the
    events whose retries are used up.

    A topic of Poisoned gets that. Any other one gets the event itself, with the headers `poison-reason`,
    `poison-handler`, `poison-traceback`, `poison-attempts`, `poison-topic` and `poison-id` beside those it came with.
    """

    def __init__(self, topic: Topic[Any], *, on: type[Exception] | tuple[type[Exception], ...] = Exception) -> None:
        self.topic: Final = topic
        self.on: Final = on

    def __call__(self, delivery: Delivery[Any]) -> Steps:
        """See Middleware."""
        try:
            return (yield)
        except Exception as error:
            told = self._told(delivery, error)
            if told is None:
                raise
        yield self._letter(delivery, *told)
        return None

    def _told(self, delivery: Delivery[Any], error: Exception) -> tuple[str, str] | None:
        """Reason and traceback; None for an error of another kind. Not where it was caught: it leads to that frame."""
        cause = error.__cause__ if isinstance(error, Reject) and isinstance(error.__cause__, Exception) else error
        if not isinstance(cause, self.on):
            return None
        reason = described(cause)
        _log.warning("%s, event %s: poisoned: %s", delivery.handler, delivery.id, reason)
        return reason, "".join(traceback.format_exception(cause))[-MAX_TRACEBACK:]

    def _letter(self, delivery: Delivery[Any], reason: str, trace: str) -> Publish:
        if self.topic.type is Poisoned:
            return Publish(
                self.topic,
                Poisoned(
                    reason=reason,
                    handler=delivery.handler,
                    traceback=trace,
                    attempts=delivery.attempt,
                    topic=delivery.topic,
                    consumer=delivery.consumer,
                    id=delivery.id,
                    time_ns=delivery.time_ns,
                    payload=delivery.payload(),
                ),
            )
        told = {
            "poison-reason": reason,
            "poison-handler": delivery.handler,
            "poison-traceback": trace,
            "poison-attempts": delivery.attempt,
            "poison-topic": delivery.topic,
            "poison-id": delivery.id,
        }
        return Publish(self.topic, delivery.event, {**delivery.headers, **told})
