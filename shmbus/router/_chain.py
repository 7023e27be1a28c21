"""The chain around a handler: middleware, the first outermost, driven for a sync and for an async handler.

Pure but for what `Hands` do. Must stay true: both drivers do the same, step for step; only who waits differs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from shmbus.errors import ConfigError
from shmbus.middleware.protocol import Publish, Result, Sleep, Within

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from shmbus.middleware.protocol import Delivery, Middleware, Steps
    from shmbus.topic import Topic

Call: TypeAlias = "Callable[[Delivery[Any]], Any]"
AsyncCall: TypeAlias = "Callable[[Delivery[Any]], Awaitable[Any]]"


class Hands(Protocol):
    """What the steps of middleware need done, by who runs sync handlers."""

    def sleep(self, seconds: float) -> None: ...
    def within(self, seconds: float, call: Call, delivery: Delivery[Any]) -> Any: ...
    def publish(self, topic: Topic[Any], event: Any, headers: dict[str, Any] | None) -> Any: ...
    def emit(self, delivery: Delivery[Any], value: Any) -> Any: ...


class AsyncHands(Protocol):
    """The same of who runs async ones."""

    async def sleep(self, seconds: float) -> None: ...
    async def within(self, seconds: float, call: AsyncCall, delivery: Delivery[Any]) -> Any: ...
    async def publish(self, topic: Topic[Any], event: Any, headers: dict[str, Any] | None) -> Any: ...
    async def emit(self, delivery: Delivery[Any], value: Any) -> Any: ...


def chain(middleware: Sequence[Middleware], handler: Call, hands: Hands) -> Call:
    """A handler with its middleware around it."""
    for one in reversed(middleware):
        handler = _around(one, handler, hands)
    return handler


def achain(middleware: Sequence[Middleware], handler: AsyncCall, hands: AsyncHands) -> AsyncCall:
    """The same of an async one."""
    for one in reversed(middleware):
        handler = _aaround(one, handler, hands)
    return handler


def _around(one: Middleware, inner: Call, hands: Hands) -> Call:
    def perform(step: Any, delivery: Delivery[Any]) -> Any:
        if step is None:
            return inner(delivery)
        if isinstance(step, Sleep):
            return hands.sleep(step.seconds)
        if isinstance(step, Within):
            return hands.within(step.seconds, inner, delivery)
        if isinstance(step, Publish):
            return hands.publish(step.topic, step.event, step.headers)
        if isinstance(step, Result):
            return hands.emit(delivery, step.value)
        raise _no_step(one, step)

    def run(delivery: Delivery[Any]) -> Any:
        steps = _steps(one, delivery)
        try:
            step = next(steps)
            while True:
                try:
                    value = perform(step, delivery)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(value)
        except StopIteration as end:
            return end.value

    return run


def _aaround(one: Middleware, inner: AsyncCall, hands: AsyncHands) -> AsyncCall:
    async def perform(step: Any, delivery: Delivery[Any]) -> Any:
        if step is None:
            return await inner(delivery)
        if isinstance(step, Sleep):
            return await hands.sleep(step.seconds)
        if isinstance(step, Within):
            return await hands.within(step.seconds, inner, delivery)
        if isinstance(step, Publish):
            return await hands.publish(step.topic, step.event, step.headers)
        if isinstance(step, Result):
            return await hands.emit(delivery, step.value)
        raise _no_step(one, step)

    async def run(delivery: Delivery[Any]) -> Any:
        steps = _steps(one, delivery)
        try:
            step = next(steps)
            while True:
                try:
                    value = await perform(step, delivery)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(value)
        except StopIteration as end:
            return end.value

    return run


def _steps(one: Middleware, delivery: Delivery[Any]) -> Steps:
    steps = one(delivery)
    if not hasattr(steps, "send"):
        raise ConfigError(f"middleware is a generator function, it returns no {type(steps).__name__}: {one!r}")
    return steps


def _no_step(one: Middleware, step: object) -> ConfigError:
    return ConfigError(f"middleware yields nothing, or a step: {one!r} yielded {step!r}")
