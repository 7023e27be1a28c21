"""Undoing: what is to be done where a step does not come to its end."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def undoing(undo: Callable[[], object]) -> Iterator[None]:
    """Call `undo` if the block raises, whatever it is."""
    try:
        yield
    except BaseException:
        undo()
        raise
