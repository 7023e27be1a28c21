"""Middleware for tests: Duplicate and Fail, which do to a handler what a bad day does.

Must stay true: both do it in the handler's place, so that whatever stands outside of them has to deal with it.
"""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, Any, Final

from shmbus.errors import ConfigError, InjectedError
from shmbus.middleware.protocol import check_count

if TYPE_CHECKING:
    from shmbus.middleware.protocol import Delivery, Steps


class Duplicate:
    """Has every event handled `times` times, as at-least-once delivery may."""

    def __init__(self, times: int = 2) -> None:
        self.times: Final = check_count("times", times, 2)

    def __call__(self, delivery: Delivery[Any]) -> Steps:
        """See Middleware."""
        for _ in range(self.times - 1):
            yield
        return (yield)


class Fail:
    """Raises `error` for this part of the deliveries, `times` of them at most, in place of the handler, or with
    `after=True` once it is done.
    """

    def __init__(
        self,
        rate: float = 1.0,
        *,
        times: int | None = None,
        error: Exception | type[Exception] | None = None,
        after: bool = False,
        seed: int | None = None,
    ) -> None:
        if not isinstance(rate, (int, float)) or not 0 <= rate <= 1:
            raise ConfigError(f"rate is the part of the deliveries that fail, from 0 to 1: rate={rate!r}")
        self.rate: Final = float(rate)
        self.error: Final = error
        self.after: Final = after
        self._left = None if times is None else check_count("times", times, 0)
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def __call__(self, delivery: Delivery[Any]) -> Steps:
        """See Middleware."""
        fails = self._fails()
        if fails and not self.after:
            self._raise(delivery)
        result = yield
        if fails:
            self._raise(delivery)
        return result

    def _fails(self) -> bool:
        with self._lock:
            if self._left == 0 or self._random.random() >= self.rate:
                return False
            if self._left is not None:
                self._left -= 1
            return True

    def _raise(self, delivery: Delivery[Any]) -> None:
        raise InjectedError(f"{delivery!r} fails by order") if self.error is None else self.error
