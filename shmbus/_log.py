"""Loggers that load `logging` when there is something to log: most participants never have, and it takes 4 ms.

Imports nothing of the project.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from logging import Logger


def logger(name: str) -> Logger:
    """What `logging.getLogger(name)` returns, to all who only call it."""
    return cast("Logger", _Late(name))


class _Late:
    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        """The logger's own method, so that a record names who called it."""
        import logging

        return getattr(logging.getLogger(self._name), attribute)
