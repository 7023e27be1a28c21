"""Middleware that says when: Retry, Timeout, Throttle, CircuitBreaker, Delay.

Must stay true: whoever waits for long gives the event back with a delay, so that no worker waits for it; what nobody
has tried yet costs no attempt.
"""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from shmbus.errors import CircuitOpenError, ConfigError
from shmbus.message import MAX_DELAY
from shmbus.middleware.protocol import (
    Redeliver,
    Reject,
    Sleep,
    Within,
    check_count,
    check_seconds,
    described,
)

if TYPE_CHECKING:
    from shmbus.middleware.protocol import Delivery, Steps


class Retry:
    """Delivers an event again whose handler raised, up to `most` times; then it goes to the dead-letter topic.

    The first time after `delay` seconds, each further time after `factor` times as many, `longest` at most, less a
    random part of up to `jitter` of it: what failed together does not come back together. Nobody waits meanwhile, and
    whichever worker is free gets it. Deaths of workers, and whatever else has it delivered again, are among the `most`.
    `on` are the errors that it is for; others, and Reject, pass. A group's max_deliver is the limit all the same.

    Subscribers and services have no second delivery: there errors pass.
    """

    def __init__(
        self,
        most: int = 3,
        *,
        delay: float = 0.1,
        factor: float = 2.0,
        longest: float = 60.0,
        jitter: float = 0.5,
        on: type[Exception] | tuple[type[Exception], ...] = Exception,
    ) -> None:
        self.most: Final = check_count("most", most)
        self.delay: Final = check_seconds("delay", delay, zero=True)
        self.longest: Final = min(check_seconds("longest", longest), MAX_DELAY)
        self.factor: Final = check_seconds("factor", factor)
        if not isinstance(jitter, (int, float)) or not 0 <= jitter <= 1:
            raise ConfigError(f"jitter is a part of the delay, from 0 to 1: jitter={jitter!r}")
        self.jitter: Final = float(jitter)
        self.on: Final = on

    def __call__(self, delivery: Delivery[Any]) -> Steps:
        """See Middleware."""
        try:
            return (yield)
        except Reject:
            raise
        except self.on as error:
            if not delivery.can_come_again:
                raise
            if delivery.attempt > self.most or delivery.attempt >= delivery.max_deliver:
                raise Reject(f"{described(error)} in {delivery.handler}, attempt {delivery.attempt}") from error
            raise Redeliver(self.after(delivery.attempt)) from error

    def after(self, attempt: int) -> float:
        """Seconds until the next delivery, once this many have failed."""
        try:
            full = min(self.longest, self.delay * self.factor ** (attempt - 1))
        except OverflowError:
            full = self.longest
        return full * (1 - self.jitter * random.random())


class Timeout:
    """Raises TimeoutError where a handler takes longer than `seconds`.

    An async handler is cancelled. A sync one cannot be stopped: see `Within`; each call of it is in a thread of its
    own, and costs about 50 us.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds: Final = check_seconds("seconds", seconds)

    def __call__(self, delivery: Delivery[Any]) -> Steps:
        """See Middleware."""
        return (yield Within(self.seconds))


class Throttle:
    """At most `rate` events in `per` seconds, evenly, in this process; up to `burst` at once after a pause.

    The handler's thread or task waits, with the event in its hands. A router that is cancelled gives it back.
    """

    def __init__(self, rate: float, *, per: float = 1.0, burst: int = 1) -> None:
        self.interval: Final = check_seconds("per", per) / check_seconds("rate", rate)
        self.burst: Final = check_count("burst", burst)
        self._lock = threading.Lock()
        self._next = 0.0

    def __call__(self, delivery: Delivery[Any]) -> Steps:
        """See Middleware."""
        with self._lock:
            now = time.monotonic()
            turn = max(self._next, now - (self.burst - 1) * self.interval)
            self._next = turn + self.interval
        if turn > now:
            yield Sleep(turn - now)
        return (yield)


class CircuitBreaker:
    """After `failures` failures in a row nothing is tried for `reset` seconds; then one event is, and decides.

    What comes while it is open is given back until then, at no attempt; a subscriber's event or a call raises
    CircuitOpenError. `on` are the errors that count; a Retry inside of it does not hide them. It is this process's.
    """

    def __init__(
        self,
        failures: int = 5,
        *,
        reset: float = 10.0,
        on: type[Exception] | tuple[type[Exception], ...] = Exception,
    ) -> None:
        self.failures: Final = check_count("failures", failures)
        self.reset: Final = min(check_seconds("reset", reset), MAX_DELAY)
        self.on: Final = on
        self._lock = threading.Lock()
        self._in_a_row = 0
        self._open_until = 0.0
        self._trial: object = None

    @property
    def is_open(self) -> bool:
        """True while nothing is tried."""
        return self._in_a_row >= self.failures

    def __call__(self, delivery: Delivery[Any]) -> Steps:
        """See Middleware."""
        left = self._left(delivery)
        if left > 0:
            if delivery.can_come_again:
                raise Redeliver(left * (1 + 0.1 * random.random()), counts=False)
            raise CircuitOpenError(
                f"{delivery.handler} is not tried for {left:.1f} s: {self._in_a_row} failures in a row"
            )
        try:
            result = yield
        except Redeliver as again:
            self._note(delivery, isinstance(again.__cause__, self.on) if again.__cause__ else None)
            raise
        except Exception as error:
            cause = error.__cause__ if isinstance(error, Reject) and error.__cause__ else error
            self._note(delivery, isinstance(cause, self.on))
            raise
        except BaseException:
            self._note(delivery, None)
            raise
        self._note(delivery, False)
        return result

    def _left(self, delivery: Delivery[Any]) -> float:
        """Seconds until it may be tried; 0: now."""
        with self._lock:
            if not self.is_open:
                return 0.0
            left = self._open_until - time.monotonic()
            if left > 0:
                return left
            if self._trial is not None:  # another one decides
                return min(1.0, self.reset)
            self._trial = delivery
            return 0.0

    def _note(self, delivery: Delivery[Any], failed: bool | None) -> None:
        """None: it says nothing of the handler."""
        with self._lock:
            if self._trial is delivery:
                self._trial = None
            if failed:
                self._in_a_row += 1
                if self.is_open:
                    self._open_until = time.monotonic() + self.reset
            elif failed is False:
                self._in_a_row = 0


class Delay:
    """Handles no event before it is `seconds` old. A worker gives it back until then, at no attempt; others wait."""

    def __init__(self, seconds: float) -> None:
        self.seconds: Final = check_seconds("seconds", seconds)
        if self.seconds > MAX_DELAY:
            raise ConfigError(f"seconds is at most {MAX_DELAY:g}, a week: seconds={seconds!r}")

    def __call__(self, delivery: Delivery[Any]) -> Steps:
        """See Middleware."""
        left = min(self.seconds, delivery.time_ns / 1e9 + self.seconds - time.time())
        if left > 0 and delivery.can_come_again:
            raise Redeliver(left, counts=False)
        if left > 0:
            yield Sleep(left)
        return (yield)
