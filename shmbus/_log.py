"""Loggers that load `logging` when there is something to log, and say nothing under the bus lock.

Most participants never log, and to load `logging` takes 4 ms. A handler is anybody's code: it may block, open a bus, or
publish on the very bus that is spoken of. Imports nothing of the project.

Must stay true:
- What a thread says while it holds a bus lock is kept, and told once it holds none.
- Of what a handler does while it is told something, in the same thread: a warning goes to stderr at once (to
  `logging.lastResort`), for the handler may be what waits; an entry of the audit log follows, once; what a handler
  does about *that* is told to nobody, or it would go on for ever.
- What a handler or filter raises reaches `sys.unraisablehook`, and not whoever published or closed just then.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

if TYPE_CHECKING:
    from collections.abc import Callable
    from logging import Logger

DEBUG: Final = 10
INFO: Final = 20
WARNING: Final = 30
ERROR: Final = 40
CRITICAL: Final = 50
_ECHOES: Final = 1
"""How often the audit log may answer itself."""


class _Said(NamedTuple):
    """A record that is yet to be made."""

    logger: str
    level: int
    message: str
    arguments: tuple[Any, ...]
    extra: dict[str, Any] | None
    error: Any
    where: tuple[str, int, str]
    """File, line and function that said it."""
    echo: int
    """How many handlers deep."""
    audit: bool


class _Voice(threading.local):
    """What one thread has to say."""

    def __init__(self) -> None:
        self.kept: deque[_Said] = deque()
        self.telling = -1
        """The echo that is told just now; -1: nothing is."""


_voice: Final = _Voice()
_locks: Final[list[Callable[[], bool]]] = []


def silent_while(locked: Callable[[], bool]) -> None:
    """Keep what is said while `locked()`; who makes it false calls `tell` then."""
    _locks.append(locked)


def logger(name: str) -> Logger:
    """What `logging.getLogger(name)` returns, to all who only write to it."""
    return cast("Logger", _Late(name))


def tell() -> None:
    """Of what was kept, unless this thread holds a bus lock, or is just telling."""
    if not _voice.kept or _voice.telling >= 0 or _locked():
        return
    try:
        while _voice.kept:
            said = _voice.kept.popleft()
            _voice.telling = said.echo
            _hand_over(said)
    finally:
        _voice.telling = -1


def say(
    name: str,
    level: int,
    message: str,
    arguments: tuple[Any, ...],
    *,
    extra: dict[str, Any] | None = None,
    exc_info: Any = None,
    audit: bool = False,
    depth: int = 1,
) -> None:
    """One record of a logger, in the name of the caller `depth` frames up: now, or once the lock is free."""
    frame = sys._getframe(depth)
    where = frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name
    if exc_info is True:
        exc_info = sys.exc_info()
    elif isinstance(exc_info, BaseException):
        exc_info = type(exc_info), exc_info, exc_info.__traceback__
    said = _Said(name, level, message, arguments, extra, exc_info, where, _voice.telling + 1, audit)
    if said.echo and not audit and not _locked():
        _hand_over(said)
    elif said.echo <= _ECHOES or not audit:
        _voice.kept.append(said)
        tell()


def _locked() -> bool:
    return any(locked() for locked in _locks)


def _hand_over(said: _Said) -> None:
    try:
        import logging

        logger = logging.getLogger(said.logger)
        if not logger.isEnabledFor(said.level):
            return
        file, line, function = said.where
        record = logger.makeRecord(
            said.logger, said.level, file, line, said.message, said.arguments, said.error, function, said.extra
        )
        if not said.echo or said.audit:
            logger.handle(record)
        elif logging.lastResort is not None and said.level >= logging.lastResort.level:
            logging.lastResort.handle(record)
    except Exception as error:
        if not sys.is_finalizing():
            note = f"what listens to the logger {said.logger!r} failed"
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)
            _Unraisable(error)


class _Unraisable:
    """Its end raises: `sys.unraisablehook` takes what only the interpreter can make."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __del__(self) -> None:
        try:
            raise self._error
        finally:
            del self  # to which the traceback would refer


class _Late:
    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def debug(self, message: str, *arguments: Any, **more: Any) -> None:
        say(self._name, DEBUG, message, arguments, depth=2, **more)

    def info(self, message: str, *arguments: Any, **more: Any) -> None:
        say(self._name, INFO, message, arguments, depth=2, **more)

    def warning(self, message: str, *arguments: Any, **more: Any) -> None:
        say(self._name, WARNING, message, arguments, depth=2, **more)

    def error(self, message: str, *arguments: Any, **more: Any) -> None:
        say(self._name, ERROR, message, arguments, depth=2, **more)

    def critical(self, message: str, *arguments: Any, **more: Any) -> None:
        say(self._name, CRITICAL, message, arguments, depth=2, **more)

    def exception(self, message: str, *arguments: Any) -> None:
        say(self._name, ERROR, message, arguments, depth=2, exc_info=sys.exc_info())
