"""What a handler is: whether it is async, and whether it takes the message or its event. Pure.

Must stay true: what cannot be a handler is refused where it is registered, with a ConfigError that names it.
"""

from __future__ import annotations

import inspect
import re
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, get_origin

from shmbus.errors import ConfigError
from shmbus.message import ClaimedMessage, Message

if TYPE_CHECKING:
    from collections.abc import Callable

_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Handler(NamedTuple):
    """A function that a user gave, and how to call it."""

    function: Callable[[Any], Any]
    name: str
    asynchronous: bool
    takes_message: bool


def describe(function: Any, messages: tuple[type, ...] = (Message, ClaimedMessage)) -> Handler:
    """Look at a handler; `messages` are the annotations that ask for more than the event. Raises ConfigError."""
    if not callable(function):
        raise ConfigError(f"a handler is a callable that takes an event or a message: handler={function!r}")
    name = _name(function)
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # of a builtin that does not tell
        return Handler(function, name, _asynchronous(function), False)
    needed = [p for p in parameters if p.default is p.empty and p.kind in (*_POSITIONAL, p.KEYWORD_ONLY)]
    first = next((p for p in parameters if p.kind in (*_POSITIONAL, p.VAR_POSITIONAL)), None)
    if first is None or len(needed) > 1 or (needed and needed[0] is not first):
        raise ConfigError(
            f"a handler takes one argument, the event or the message: {name}{inspect.signature(function)}"
        )
    return Handler(function, name, _asynchronous(function), _takes_message(first.annotation, function, messages))


def _name(function: Any) -> str:
    inner = function
    while isinstance(inner, partial):
        inner = inner.func
    if not hasattr(inner, "__qualname__"):
        inner = type(inner)
    return f"{inner.__module__}.{inner.__qualname__}"


def _asynchronous(function: Any) -> bool:
    while isinstance(function, partial):
        function = function.func
    found = (function, getattr(type(function), "__call__", None))  # noqa: B004 -- the method, not whether there is one
    return any(inspect.iscoroutinefunction(f) or inspect.isasyncgenfunction(f) for f in found)


def _takes_message(annotation: Any, function: Any, messages: tuple[type, ...]) -> bool:
    if not isinstance(annotation, str):
        return (get_origin(annotation) or annotation) in messages
    head = annotation.strip(" \"'").partition("[")[0].strip()
    if not re.fullmatch(r"[\w.]+", head):
        return False
    try:  # what stands in the brackets may not be there: under TYPE_CHECKING, or in the function that made this one
        found = eval(head, _names(function))
    except (NameError, AttributeError):
        return "[" in annotation and head.rpartition(".")[2] in {m.__name__ for m in messages}
    return found in messages


def _names(function: Any) -> dict[str, Any]:
    """What the annotations of a function can name."""
    while isinstance(function, partial):
        function = function.func
    function = inspect.unwrap(function)
    function = getattr(function, "__func__", function)
    if not hasattr(function, "__globals__"):
        function = getattr(type(function), "__call__", None)  # noqa: B004 -- the method
    return dict(getattr(function, "__globals__", {}))
