"""Middleware that looks and says: Log, Correlate, Validate.

Must stay true: none of them changes what becomes of an event that is as it should be.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final, get_origin

import msgspec

from shmbus.errors import ConfigError
from shmbus.middleware.protocol import Redeliver, Reject, described

if TYPE_CHECKING:
    from collections.abc import Callable

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
        self._decoders: dict[int, Callable[[bytes], Any]] = {}
        self._type: Final = type
        try:
            if type is not None:
                self._decoder(type)
        except TypeError as error:
            raise ConfigError(f"msgspec cannot validate this: type={type!r}: {error}") from error

    def __call__(self, delivery: Delivery[Any]) -> Steps:
        """See Middleware."""
        try:
            self._check(delivery.type if self._type is None else self._type, delivery.event)
        except (msgspec.MsgspecError, TypeError, UnicodeEncodeError) as error:
            raise Reject(f"invalid: {error}") from error
        return (yield)

    def _check(self, expected: Any, event: Any) -> None:
        apart: list[Any] = []  # what msgspec does not know, arrays say: looked at by its class

        def aside(value: Any) -> msgspec.msgpack.Ext:
            apart.append(value)
            return msgspec.msgpack.Ext(0, str(len(apart) - 1).encode())

        encoded = msgspec.msgpack.encode(event, enc_hook=aside)
        if not apart:
            self._decoder(expected)(encoded)
        else:
            msgspec.msgpack.decode(
                encoded, type=expected, dec_hook=_known, ext_hook=lambda _, number: apart[int(bytes(number))]
            )

    def _decoder(self, type: Any) -> Callable[[bytes], Any]:
        found = self._decoders.get(id(type))
        if found is None:
            found = self._decoders[id(type)] = msgspec.msgpack.Decoder(type).decode
        return found


def _known(expected: Any, value: Any) -> Any:
    if not isinstance(value, get_origin(expected) or expected):
        raise TypeError(f"expected {expected}, got {type(value).__name__}")
    return value
