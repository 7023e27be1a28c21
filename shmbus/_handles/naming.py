"""Names that are taken: by which handle of this very process, where it was opened, and whether anything refers to it.

May touch: handles of this process. Must stay true: a handle that something refers to keeps its name.
"""

from __future__ import annotations

import functools
import gc
import sys
import weakref
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from shmbus.errors import NameTakenError

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmbus._handles.handle import Handle

P = ParamSpec("P")
R = TypeVar("R")

_handles: Final[weakref.WeakSet[Any]] = weakref.WeakSet()


def note(handle: Handle) -> None:
    """Remember where a handle was opened: the line that called this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "shmbus":
        frame = frame.f_back
    handle.opened_at = f"{frame.f_code.co_filename}:{frame.f_lineno}"
    _handles.add(handle)


def telling(open_handle: Callable[P, R]) -> Callable[P, R]:
    """What opens a handle, with more to say where a handle of this process has the name.

    One that is garbage, of a traceback in a cycle say, gives its name up; one that is not is told with its place.
    """

    @functools.wraps(open_handle)
    def opened(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return open_handle(*args, **kwargs)
        except NameTakenError as error:
            if _holder(args[0], error) is None:
                raise
        gc.collect()
        try:
            return open_handle(*args, **kwargs)
        except NameTakenError as error:
            holder = _holder(args[0], error)
            if holder is not None:
                place = f"this very process, at {holder.opened_at}; close that one or its bus first"
                kept = "what a variable, a traceback or the output of a notebook refers to stays open"
                error.args = (f"{error}: {place} ({kept})",)
            raise

    return opened


def _holder(bus: Any, error: NameTakenError) -> Handle | None:
    for handle in list(_handles):
        session = handle._session
        if (
            session.usable
            and session.bus == bus.name
            and session.pid == error.pid
            and (handle.topic.name, handle.name) == (error.topic, error.name)
            and type(handle).__name__.lower() == error.kind
        ):
            return handle  # type: ignore[no-any-return]
    return None
