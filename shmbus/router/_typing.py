"""What a decorator of the router accepts, for mypy and pyright: nothing of this runs.

A handler takes the event or its message; it returns what its topic `to` carries, or None, or an iterator of such
events; it is sync or async. Each of these is an overload, so that the decorated function keeps its own type.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Protocol, TypeVar, overload

from shmbus.message import ClaimedMessage, Message
from shmbus.server import Call

T = TypeVar("T")
R = TypeVar("R")
M = TypeVar("M")


class Produces(Protocol[T, R]):
    """Decorates a worker whose results go to a topic of R.

    The overloads overlap in what takes anything and returns nothing ever: the first one is right for that too.
    """

    @overload
    def __call__(self, handler: Callable[[ClaimedMessage[T]], R], /) -> Callable[[ClaimedMessage[T]], R]: ...
    @overload
    def __call__(
        self, handler: Callable[[ClaimedMessage[T]], R | None], /
    ) -> Callable[[ClaimedMessage[T]], R | None]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, handler: Callable[[ClaimedMessage[T]], Iterator[R]], /
    ) -> Callable[[ClaimedMessage[T]], Iterator[R]]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, handler: Callable[[ClaimedMessage[T]], AsyncIterator[R]], /
    ) -> Callable[[ClaimedMessage[T]], AsyncIterator[R]]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, handler: Callable[[ClaimedMessage[T]], Coroutine[Any, Any, R]], /
    ) -> Callable[[ClaimedMessage[T]], Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, handler: Callable[[ClaimedMessage[T]], Coroutine[Any, Any, R | None]], /
    ) -> Callable[[ClaimedMessage[T]], Coroutine[Any, Any, R | None]]: ...
    @overload
    def __call__(self, handler: Callable[[T], R], /) -> Callable[[T], R]: ...
    @overload
    def __call__(self, handler: Callable[[T], R | None], /) -> Callable[[T], R | None]: ...
    @overload
    def __call__(self, handler: Callable[[T], Iterator[R]], /) -> Callable[[T], Iterator[R]]: ...
    @overload
    def __call__(self, handler: Callable[[T], AsyncIterator[R]], /) -> Callable[[T], AsyncIterator[R]]: ...
    @overload
    def __call__(self, handler: Callable[[T], Coroutine[Any, Any, R]], /) -> Callable[[T], Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(
        self, handler: Callable[[T], Coroutine[Any, Any, R | None]], /
    ) -> Callable[[T], Coroutine[Any, Any, R | None]]: ...


class Consumes(Protocol[T, M]):
    """Decorates a handler without results; M is what its messages are."""

    @overload
    def __call__(self, handler: Callable[[M], None], /) -> Callable[[M], None]: ...
    @overload
    def __call__(
        self, handler: Callable[[M], Coroutine[Any, Any, None]], /
    ) -> Callable[[M], Coroutine[Any, Any, None]]: ...
    @overload
    def __call__(self, handler: Callable[[T], None], /) -> Callable[[T], None]: ...
    @overload
    def __call__(
        self, handler: Callable[[T], Coroutine[Any, Any, None]], /
    ) -> Callable[[T], Coroutine[Any, Any, None]]: ...


class Answers(Protocol[T, R]):
    """Decorates a handler that answers calls."""

    @overload
    def __call__(self, handler: Callable[[Call[T, R]], R], /) -> Callable[[Call[T, R]], R]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, handler: Callable[[Call[T, R]], Coroutine[Any, Any, R]], /
    ) -> Callable[[Call[T, R]], Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, handler: Callable[[T], R], /) -> Callable[[T], R]: ...
    @overload
    def __call__(self, handler: Callable[[T], Coroutine[Any, Any, R]], /) -> Callable[[T], Coroutine[Any, Any, R]]: ...


__all__ = ["Answers", "ClaimedMessage", "Consumes", "Message", "Produces"]
