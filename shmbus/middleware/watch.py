"""Middleware that looks and says: Log, Correlate, Validate.

Must stay true: none of them changes what becomes of an event that is as it should be.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from shmbus.errors import ConfigError
from shmbus.middleware.protocol import Redeliver, Reject, described

if TYPE_CHECKING:
    from shmbus.middleware.protocol import Delivery, Steps

CORRELATION: Final = "correlation-id"
CAUSATION: Final = "causation-id"


class Log:
    """A line for each delivery: handler, id, attempt, how long it took, what became of it. Failures are warnings.

    The record's `extra` has `handler`, `topic`, `consumer`, `event_id`, `attempt`, `seconds` and `outcome`.
    """

    def __init__(self, logger: str | logging.Logger = "shmbus.router", *, level: int = logging.INFO) -> None:
        self.logger: Final = logging.getLogger(logger) if isinstance(logger, str) else logger
        self.level: Final = level

    def __call__(self, delivery: Delivery[Any]) -> Steps:
        """See Middleware."""
        began = time.monotonic()
        try:
            result = yield
        except Redeliver as again:
            cause = f", after {described(again.__cause__)}" if again.__cause__ else ""
            self._say(delivery, began, logging.WARNING if cause else self.level, f"again in {again.delay:.3g} s{cause}")
            raise
        except BaseException as error:
            self._say(delivery, began, logging.WARNING, f"failed: {described(error)}")
            raise
        self._say(delivery, began, self.level, "done")
        return result

    def _say(self, delivery: Delivery[Any], began: float, level: int, outcome: str) -> None:
        if not self.logger.isEnabledFor(level):
            return
        seconds = time.monotonic() - began
        self.logger.log(
            level,
            "%s: event %s, attempt %d: %s (%.1f ms)",
            *(delivery.handler, delivery.id, delivery.attempt, outcome, seconds * 1e3),
            extra={
                "handler": delivery.handler,
                "topic": delivery.topic,
                "consumer": delivery.consumer,
                "event_id": delivery.id,
                "attempt": delivery.attempt,
                "seconds": seconds,
                "outcome": outcome,
            },
        )


class Correlate:
    """Passes ids on in headers, so that whatever came of one event can be found: `correlation-id` is that of the first
    event of all, or what it came with; `causation-id` is that of the event that led to this one.

    They are on what a handler returns, and on what it publishes by `router.publish`; for a publisher of its own there
    is `headers=middleware.outgoing()`.
    """

    def __call__(self, delivery: Delivery[Any]) -> Steps:
        """See Middleware."""
        try:
            came_with = delivery.headers.get(CORRELATION)
        except msgspec.DecodeError:  # headers that are no map: somebody else's, and no reason to fail
            came_with = None
        delivery.outgoing[CORRELATION] = delivery.id if came_with is None else came_with
        delivery.outgoing[CAUSATION] = delivery.id
        return (yield)


class Validate:
    """Rejects an event that is not of the topic's type, its constraints (`msgspec.Meta`) included; no retry helps it.

    What msgspec decodes from a ring is valid already: this is for `codec="pickle"`, and for a stricter `type` than the
    topic's.
    """

    def __init__(self, type: Any = None) -> None:
        try:
            self._strict = None if type is None else msgspec.msgpack.Decoder(type).decode
        except TypeError as error:
            raise ConfigError(f"msgspec cannot validate this: type={type!r}: {error}") from error
        self._decoders: dict[Any, Any] = {}

    def __call__(self, delivery: Delivery[Any]) -> Steps:
        """See Middleware."""
        try:
            self._decoder(delivery.type)(msgspec.msgpack.encode(delivery.event))
        except (msgspec.MsgspecError, TypeError, UnicodeEncodeError) as error:
            raise Reject(f"invalid: {error}") from error
        return (yield)

    def _decoder(self, type: Any) -> Any:
        if self._strict is not None:
            return self._strict
        found = self._decoders.get(id(type))
        if found is None:
            found = self._decoders[id(type)] = msgspec.msgpack.Decoder(type).decode
        return found
