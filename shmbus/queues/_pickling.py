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
APART: Final = 1 << 15
"""Bytes of a buffer that is not copied into the pickle (PEP 574). For less a file costs more than the copies."""
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


class Apart:
    """A pickle whose large buffers are not in it. They are the object's own: whoever has this copies them at once."""

    __slots__ = ("body", "buffers")

    def __init__(self, body: bytes, buffers: list[memoryview]) -> None:
        self.body = body
        self.buffers = buffers


class _TooLarge(Exception):
    """What is pickled has a buffer that is to lie beside the ring."""


def _divert(buffer: pickle.PickleBuffer) -> bool:
    """In band, or by `by_reducers`."""
    with buffer.raw() as raw:
        if raw.nbytes >= APART:
            raise _TooLarge
    return True


def by_reducers(value: Any, expected: bool) -> bytes | Apart:
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
        self.buffers: list[memoryview] = []
        self.pickler = pickle.Pickler(self.buffer, PROTOCOL, buffer_callback=self._in_band)
        self.pickler.dispatch_table = _reducers()
        self.sizes = _Known.sizes

    def _in_band(self, buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < APART:
            return True
        self.buffers.append(raw)
        return False


_own = _Own()


def _by_reducers(value: Any) -> bytes | Apart:
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
        own.buffers = []
        own.pickler.dump(value)
        body = own.buffer.getvalue()
        return Apart(body, own.buffers) if own.buffers else body
    finally:
        own.buffers = []
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
    "options": (PROTOCOL, _divert, ("buffer_callback",)),
    "named": by_reducers,
    "slow": _slow,
    "registered": _registered,
}
"""What `_core.Putter` makes pickles of."""
