"""Pickles as multiprocessing makes them: with the reducers that were registered there (sockets, connections, tensors).

A Pickler with a table of reducers takes four times as long as `pickle.dumps`. So that comes first, and what it made is
right unless it names a global: only what pickle cannot write by itself goes by a reducer, and that names one.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
from typing import Any, Final

PROTOCOL: Final = 5
_STACK_GLOBAL: Final = b"\x93"

loads = pickle.loads
_plainly = pickle.dumps
_registered: dict[Any, Any] = copyreg._extension_registry  # type: ignore[attr-defined]
_slow: set[type] = set()
"""Classes of the objects that name a global whatever is in them."""

_table: dict[Any, Any] = {}
_sizes = (-1, -1)


def dumps(value: Any) -> bytes | memoryview:
    """The pickle of an object. Raises what pickle raises."""
    cls = type(value)
    if cls not in _slow and not _registered:
        try:
            data = _plainly(value, PROTOCOL)
        except Exception:  # it may be one that has a reducer
            return _by_reducers(value)
        if _STACK_GLOBAL not in data:
            return data
        if cls.__module__ != "builtins":
            _slow.add(cls)
    return _by_reducers(value)


def _by_reducers(value: Any) -> memoryview:
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, PROTOCOL)
    pickler.dispatch_table = _reducers()
    pickler.dump(value)
    return buffer.getbuffer()


def _reducers() -> dict[Any, Any]:
    """What `ForkingPickler` would find, in one dict; made anew once somebody has registered more."""
    global _table, _sizes
    reduction = sys.modules.get("multiprocessing.reduction")  # without it there is nobody who could have
    extra = {} if reduction is None else reduction.ForkingPickler._extra_reducers
    sizes = len(extra), len(copyreg.dispatch_table)
    if sizes != _sizes:
        _table, _sizes = {**copyreg.dispatch_table, **extra}, sizes
    return _table
