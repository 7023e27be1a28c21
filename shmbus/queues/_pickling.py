"""Pickles as multiprocessing makes them: with the reducers that were registered there (sockets, connections, tensors).

A Pickler with a table of reducers takes four times as long as `pickle.dumps`. So that comes first, and what it made is
right unless it names a global: only what pickle cannot write by itself goes by a reducer, and that names one.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
import threading
from typing import Any, ClassVar, Final

from shmbus import _core

PROTOCOL: Final = 5
_KEPT: Final = 1 << 20  # bytes of a buffer that is used again
_registered: dict[Any, Any] = copyreg._extension_registry  # type: ignore[attr-defined]
_slow: set[type] = set()
"""Classes of the objects that name a global whatever is in them."""


class _Known:
    """What `ForkingPickler` would find, in one dict; made anew once somebody has registered more."""

    table: ClassVar[dict[Any, Any]] = {}
    sizes: ClassVar[tuple[int, int]] = (-1, -1)


def loads(data: Any) -> Any:
    """The object. Raises what pickle raises."""
    return _core.unplain(data) if data[0] == _core.PLAIN else pickle.loads(data)


def by_reducers(value: Any, expected: bool) -> bytes:
    """The pickle of an object that names something, or has to be written by who knows how; `expected`: as they all do.

    Raises what pickle raises.
    """
    if not expected and type(value).__module__ != "builtins":
        _slow.add(type(value))
    return _by_reducers(value)


class _Own(threading.local):
    """A pickler of this thread: to make one takes longer than to use it."""

    sizes = (-1, -1)
    busy = False

    def renew(self) -> None:
        """Take over what is registered now."""
        self.buffer = io.BytesIO()
        self.pickler = pickle.Pickler(self.buffer, PROTOCOL)
        self.pickler.dispatch_table = _reducers()
        self.sizes = _Known.sizes


_own = _Own()


def _by_reducers(value: Any) -> bytes:
    own = _own
    if own.busy:  # a reducer puts into a queue itself
        own = _Own()
    if own.sizes != _Known.sizes or _registered_since():
        own.renew()
    own.busy = True
    try:
        own.buffer.seek(0)
        own.buffer.truncate()
        own.pickler.clear_memo()
        own.pickler.dump(value)
        return own.buffer.getvalue()
    finally:
        own.busy = False
        if own.buffer.tell() > _KEPT:
            own.sizes = (-1, -1)


def _reducers() -> dict[Any, Any]:
    if _registered_since():
        _Known.sizes = len(_extra()), len(copyreg.dispatch_table)
        _Known.table = {**copyreg.dispatch_table, **_extra()}
    return _Known.table


def _registered_since() -> bool:
    return _Known.sizes != (len(_extra()), len(copyreg.dispatch_table))


def _extra() -> dict[Any, Any]:
    reduction = sys.modules.get("multiprocessing.reduction")  # without it there is nobody who could have
    return {} if reduction is None else reduction.ForkingPickler._extra_reducers


PICKLING: Final = {
    "dumps": pickle.dumps,
    "options": (PROTOCOL, None, ("buffer_callback",)),
    "named": by_reducers,
    "slow": _slow,
    "registered": _registered,
}
"""What `_core.Putter` makes pickles of."""
