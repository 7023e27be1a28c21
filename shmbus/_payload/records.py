"""Columns: the events of a topic with `codec="record"` as NumPy arrays.

May touch: nothing but what handles hand in. NumPy is imported here, at first use, and nowhere else.

Must stay true: an array that looks into a ring is read-only, and keeps the ring's memory mapped for as long as it, or
anything made of it, lives; what is published is of the topic's dtype, exactly.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Protocol, Self

from shmbus import _core
from shmbus._schema.columns import Column
from shmbus._schema.description import parse
from shmbus.errors import ClosedError, ConfigError, EventTypeError, MissingPackageError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import ModuleType

    import numpy as np

    from shmbus.topic import Topic

    Array = np.ndarray[Any, np.dtype[np.void]]


def numpy() -> ModuleType:
    """NumPy; raises MissingPackageError, which says what to install."""
    try:
        import numpy
    except ImportError as error:
        raise MissingPackageError("numpy", "numpy") from error
    return numpy


@functools.lru_cache(maxsize=256)
def dtype_of(description: bytes) -> np.dtype[np.void]:
    """The structured dtype of a described record: packed, little-endian, under the names on the wire."""
    found: np.dtype[np.void] = _dtype(numpy(), parse(description).columns)
    return found


def _dtype(np: Any, columns: tuple[Column, ...]) -> Any:
    return np.dtype([(column.name, _dtype(np, column.of) if column.of else column.code) for column in columns])


def require_records(topic: Topic[Any]) -> None:
    """Raise `ConfigError` for a topic whose events are no records."""
    if topic.codec != "record":
        raise ConfigError(f"arrays are of topics with codec='record': topic={topic.name!r}, codec={topic.codec!r}")


def check_most(most: object) -> int:
    """How many rows an array may have; raises `ConfigError` for what is no positive int."""
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        raise ConfigError(f"an array has at least one row: most={most!r}")
    return most


def flat(topic: Topic[Any], rows: Any) -> Any:
    """The bytes of rows that are to be published, in their order; a copy where they do not lie in one piece.

    Raises `EventTypeError` for anything but an array of the topic's dtype, of one dimension.
    """
    require_records(topic)
    np = numpy()
    if not isinstance(rows, np.ndarray):
        why = f"publish_array takes a NumPy array, not {type(rows).__name__}"
    elif isinstance(rows, np.ma.MaskedArray):
        why = "a masked array has rows without a value: fill it first"
    elif rows.dtype != topic.dtype:
        why = f"rows of dtype {rows.dtype}, not {topic.dtype} (rows.astype(topic.dtype))"
    elif rows.ndim != 1:
        why = f"rows have one dimension: shape={rows.shape}"
    else:
        return np.ascontiguousarray(rows).view(np.uint8)
    raise EventTypeError(f"topic {topic.name!r}: {why}", topic.name)


class Source(Protocol):
    """What arrays come from: the C side of a subscriber or worker."""

    @property
    def closed(self) -> bool: ...
    @property
    def topic(self) -> Topic[Any]: ...
    def _ask(self) -> Any: ...
    def _next_rows(self, most: int, /) -> Any: ...
    def _poll_rows(self, ask: Any, most: int, /) -> Any: ...
    async def _anext(self, poll: Callable[[Any], Any], ask: Any) -> Any: ...


def array_of(rows: _core.Rows, dtype: Any) -> Array:
    """An array over rows: it holds them, and they hold their memory."""
    array: Array = numpy().ndarray((rows.count,), dtype, rows, 0, (rows.stride,))
    return array


class Arrays(Iterator["Array"], AsyncIterator["Array"]):
    """Arrays as they come: `for rows in subscriber.arrays()`, or `async for`.

    Asking for the next ends the use of the last one: its memory stays, and is written to again. Ends on close() and
    cancel().
    """

    def __init__(self, source: Source, most: int) -> None:
        require_records(source.topic)
        self._source = source
        self._most = check_most(most)
        self._dtype = source.topic.dtype
        self._next = self._run()

    def __iter__(self) -> Iterator[Array]:  # noqa: PYI034 -- the generator spares each turn a Python frame
        return self._next

    def __next__(self) -> Array:
        return next(self._next)

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[Any, Any, Array]:
        return self._anext(self._source._ask())

    async def _anext(self, ask: Any) -> Array:
        most = self._most
        return self._shown(await self._source._anext(lambda ask: self._source._poll_rows(ask, most), ask))

    def _run(self) -> Iterator[Array]:
        source = self._source
        while not source.closed:
            try:
                found = source._next_rows(self._most)
            except ClosedError:
                if source.closed:
                    return  # by another thread, while we looked
                raise
            if found is _core.NOTHING:
                return
            yield self._shown(found)

    def _shown(self, rows: _core.Rows) -> Array:
        array = array_of(rows, self._dtype)
        array.flags.writeable = False  # where it is a copy too: which of the two it is depends on the mode
        return array
