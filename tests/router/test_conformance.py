"""Every middleware of ours passes the suite that users have for theirs, and the suite finds what is wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from routes import ORDERS, Order

import shmbus
from shmbus import middleware
from shmbus.middleware import Delivery, Middleware, Redeliver, Steps
from shmbus.testing import check_middleware

POISON = shmbus.Topic("poison", middleware.Poisoned)

OURS: dict[str, Callable[[], Middleware]] = {
    "CircuitBreaker": lambda: middleware.CircuitBreaker(2, reset=0.01),
    "Correlate": middleware.Correlate,
    "Deduplicate": middleware.Deduplicate,
    "Deduplicate by key": lambda: middleware.Deduplicate(key=lambda event: event),
    "Delay": lambda: middleware.Delay(0.001),
    "Duplicate": middleware.Duplicate,
    "Fail": lambda: middleware.Fail(times=2),
    "Fail half": lambda: middleware.Fail(0.5, seed=1),
    "Fail after": lambda: middleware.Fail(after=True, times=2),
    "Ignore": lambda: middleware.Ignore(Exception),
    "Log": middleware.Log,
    "Poison": lambda: middleware.Poison(POISON),
    "Poison of events": lambda: middleware.Poison(ORDERS),
    "Recover": middleware.Recover,
    "Recover with": lambda: middleware.Recover(lambda delivery, error: None),
    "Retry": lambda: middleware.Retry(most=2, delay=0.001),
    "Retry at once": lambda: middleware.Retry(most=10, delay=0, jitter=0),
    "Throttle": lambda: middleware.Throttle(5000, burst=3),
    "Timeout": lambda: middleware.Timeout(30.0),
    "Validate": middleware.Validate,
}


@pytest.mark.parametrize("name", OURS)
def test_ours_conform(name: str) -> None:
    """Each middleware that shmbus brings passes the suite."""
    check_middleware(OURS[name], event=Order(1))


def test_all_of_ours_are_here() -> None:
    """No middleware of the package is left out above."""
    steps = {"Sleep", "Within", "Publish", "Result", "Step", "Steps"}
    words = {"Delivery", "Middleware", "Poisoned", "Redeliver", "Reject", "Seen", "outgoing"}
    assert {name.split()[0] for name in OURS} == set(middleware.__all__) - steps - words


def counting() -> Callable[[Delivery[Any]], Steps]:
    """A user's: ten lines, of either colour."""
    counts: dict[str, int] = {}
    lock = threading.Lock()

    def count(delivery: Delivery[Any]) -> Steps:
        with lock:
            counts[delivery.topic] = counts.get(delivery.topic, 0) + 1
        return (yield)

    return count


def test_a_function_is_middleware() -> None:
    """A generator function of a user's passes as it is."""
    check_middleware(counting)


def swallows_all(delivery: Delivery[Any]) -> Steps:
    try:
        return (yield)
    except BaseException:
        return None


def asks_again(delivery: Delivery[Any]) -> Steps:
    raise Redeliver(0.0, counts=False)
    yield


def loses_results(delivery: Delivery[Any]) -> Steps:
    yield


def ignores_its_end(delivery: Delivery[Any]) -> Steps:
    try:
        return (yield)
    except GeneratorExit:
        yield
        raise


class Keeps:
    def __init__(self) -> None:
        self.kept: list[object] = []

    def __call__(self, delivery: Delivery[Any]) -> Steps:
        self.kept.append(delivery)
        return (yield)


def is_no_generator(delivery: Delivery[Any]) -> Any:
    return None


def yields_what_it_likes(delivery: Delivery[Any]) -> Steps:
    yield 5


class IsNotReady:
    """Cannot serve two at once."""

    def __init__(self) -> None:
        self.inside = False

    def __call__(self, delivery: Delivery[Any]) -> Steps:
        assert not self.inside
        self.inside = True
        yield middleware.Sleep(0.001)
        result = yield
        self.inside = False
        return result


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: swallows_all, "becomes None"),
        (lambda: asks_again, "comes again and again"),
        (lambda: loses_results, "the chain None"),
        (lambda: ignores_its_end, "although it was closed"),
        (Keeps, "keeps the delivery"),
        (lambda: is_no_generator, "a generator function"),
        (lambda: yields_what_it_likes, "yields nothing, or a step"),
        (IsNotReady, "several threads"),
    ],
)
def test_the_suite_finds_what_is_wrong(wrong: Callable[[], Middleware], words: str) -> None:
    """Each way to be wrong is found, and told."""
    with pytest.raises((AssertionError, shmbus.ConfigError), match=words):
        check_middleware(wrong)
