"""Arrays: what of an event's values travels beside it, and how each kind is described in the event and made anew.

Pure, but for the imports of NumPy and pyarrow, which happen where a value or a record has such a kind. An array becomes
an extension value of msgpack: its kind, the number of its buffer, and what the kind needs to make it again.

Must stay true:
- What a record says of an array is checked against the buffer that it is made of: one that is too short is an error.
- No code travels: a dtype is a description, and an array of objects is refused.
"""

from __future__ import annotations

import importlib
import math
import sys
import types
import typing
import weakref
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from shmbus.errors import ConfigError, MissingPackageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmbus import _core

    Buffer = tuple[Any, int, int]

NDARRAY: Final = 81
"""Codes of extension values; a topic with a pool has no others of these numbers."""
BUFFER: Final = 82
BATCH: Final = 83
TABLE: Final = 84

_PACKAGES: Final = {"numpy": "numpy", "pyarrow": "arrow"}
"""Packages, and the extras of shmbus that bring them."""
_encode = msgspec.msgpack.Encoder().encode
_numbered = msgspec.msgpack.Decoder(int).decode
_described = msgspec.msgpack.Decoder(tuple[int, Any, tuple[int, ...]]).decode
_KNOWN: Final = 1024
_SHORT: Final = 256
"""How many descriptions of arrays a receiver remembers, and the bytes of the longest."""
alike: dict[bytes, tuple[int, Any, tuple[int, ...], Any, int]] = {}
"""By description, once that was checked: number of the buffer, what makes the array, its shape, dtype and bytes."""
_dtypes: dict[str | bytes, Any] = {}
_expected: dict[Any, tuple[type[Any], tuple[type[Any], ...]]] = {}
_kinds: weakref.WeakKeyDictionary[type[Any], int] = weakref.WeakKeyDictionary()


def package(name: str) -> Any:
    """NumPy or pyarrow; raises MissingPackageError, which says what to install."""
    found = sys.modules.get(name)
    if found is None:  # None too where somebody keeps it from being imported
        try:
            found = importlib.import_module(name)
        except ImportError as error:
            raise MissingPackageError(name, _PACKAGES[name]) from error
    return found


def kind_of(cls: type[Any]) -> int:
    """The code of a class whose values travel beside an event; 0 for any other. Imports nothing."""
    found = _kinds.get(cls)
    if found is None:
        found = _kinds[cls] = _kind_of(cls)
    return found


def _kind_of(cls: type[Any]) -> int:
    if cls is memoryview:
        return BUFFER
    for base in cls.__mro__:
        if base.__module__ == "numpy" and base.__qualname__ == "ndarray":
            return NDARRAY
        if base.__module__ == "pyarrow.lib" and base.__qualname__ in ("RecordBatch", "Table"):
            return BATCH if base.__qualname__ == "RecordBatch" else TABLE
    return 0


def is_array_type(cls: Any) -> bool:
    """Whether msgspec knows the values of this class by our hooks alone."""
    return isinstance(cls, type) and kind_of(cls) not in (0, BUFFER)


# -- out


Piece: TypeAlias = tuple[Any, int]
"""One buffer of an event on its way out: what has the bytes (an array, a buffer, or a callable that writes them into a
buffer), and how many they are. Plain tuples, here and in packing.py: a named one takes 200 ns more to make."""


def piece_of_array(array: Any) -> tuple[Piece, str | list[Any]]:
    """The buffer of an array, and its dtype as it is written. Raises TypeError for what has no meaning elsewhere."""
    numpy = package("numpy")
    if type(array) is not numpy.ndarray:
        if isinstance(array, numpy.ma.MaskedArray):
            raise TypeError("a masked array has two buffers: send `.data` and `.mask`")
        array = numpy.asarray(array)
    dtype = array.dtype
    if dtype.hasobject:
        raise TypeError(f"an array of objects has no bytes to send: dtype={dtype}")
    return (array, array.nbytes), dtype.str if dtype.fields is None else _structure(numpy, dtype)


def _structure(numpy: Any, dtype: Any) -> Any:
    described = numpy.lib.format.dtype_to_descr(dtype)
    if numpy.lib.format.descr_to_dtype(described) != dtype:
        raise TypeError(f"this dtype cannot be described: dtype={dtype}")
    return described


def extension_of_array(number: int, array: Any, dtype: str | list[Any]) -> msgspec.msgpack.Ext:
    """What stands in the event for an array."""
    if array.dtype.kind == "V" and array.dtype.fields is None and array.dtype.type.__module__ != "numpy":
        raise TypeError(
            f"NumPy alone does not know this dtype: dtype={array.dtype}; send `.view()` of one that it knows"
        )
    return msgspec.msgpack.Ext(NDARRAY, _encode((number, dtype, array.shape)))


def write_array(array: Any, into: _core.Lease) -> None:
    """Copy an array into the pool, in C order."""
    numpy = package("numpy")
    target = numpy.ndarray(array.shape, array.dtype, into)
    target[...] = array


def flat(view: memoryview) -> memoryview:
    """The bytes of a buffer in C order, without a copy where that is how they lie."""
    return view.cast("B") if view.c_contiguous and view.ndim else memoryview(view.tobytes())


def piece_of_batch(batch: Any) -> Piece:
    """A record batch or table, which is written as an Arrow stream."""
    arrow = package("pyarrow")
    measured = arrow.MockOutputStream()
    _write_stream(arrow, batch, measured)
    nbytes: int = measured.size()
    return Stream(arrow, batch, nbytes), nbytes


class Stream:
    """What writes a record batch or table into a buffer."""

    def __init__(self, arrow: Any, batch: Any, nbytes: int) -> None:
        self._arrow, self._batch = arrow, batch
        self.nbytes: Final = nbytes

    def __call__(self, into: Any) -> None:
        _write_into(self._arrow, self._batch, into)


def _write_into(arrow: Any, batch: Any, into: Any) -> None:
    _write_stream(arrow, batch, arrow.FixedSizeBufferWriter(arrow.py_buffer(into)))


def _write_stream(arrow: Any, batch: Any, sink: Any) -> None:
    with arrow.ipc.new_stream(sink, batch.schema) as writer:
        writer.write(batch)


def extension(code: int, number: int) -> msgspec.msgpack.Ext:
    """What stands in the event for a buffer, a record batch or a table."""
    return msgspec.msgpack.Ext(code, _encode(number))


# -- in


def revive(code: int, data: memoryview, buffers: list[Buffer]) -> Any:
    """The value that an extension stands for. Raises ValueError for what cannot be, MissingPackageError."""
    if code == NDARRAY:
        return _array(bytes(data), buffers)
    if code in (BUFFER, BATCH, TABLE):
        holder, offset, length = _buffer(buffers, _numbered(data))
        view = memoryview(holder)[offset : offset + length]
        return view if code == BUFFER else _batch(view, code)
    return msgspec.msgpack.Ext(code, bytes(data))


def _buffer(buffers: list[Buffer], number: int) -> Buffer:
    if not 0 <= number < len(buffers):
        raise ValueError(f"the event has no buffer {number}")
    return buffers[number]


def _array(description: bytes, buffers: list[Buffer]) -> Any:
    numpy = package("numpy")
    number, described, shape = _described(description)
    holder, offset, length = _buffer(buffers, number)
    dtype = _dtype(numpy, described)
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != length:
        raise ValueError(f"{length} bytes are no array of {dtype}: shape={shape}")
    if not length:
        return _empty(numpy, shape, dtype)
    array = numpy.ndarray(shape, dtype, holder, offset)
    if dtype.fields is None and len(alike) < _KNOWN and len(description) <= _SHORT:
        alike[description] = number, numpy.ndarray, shape, dtype, length
    return array


def _empty(numpy: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    array = numpy.empty(shape, dtype)
    array.flags.writeable = False
    return array


def _dtype(numpy: Any, described: Any) -> Any:
    key = described if isinstance(described, str) else _encode(described)
    found = _dtypes.get(key)
    if found is None:
        if not isinstance(described, str):
            described = _tuples(described)
        found = numpy.lib.format.descr_to_dtype(described)
        if found.hasobject:
            raise ValueError("an array of objects cannot be received")
        if len(_dtypes) < _KNOWN:
            _dtypes[key] = found
    if found.fields is not None:
        return found.newbyteorder("|")  # a copy: fields may be renamed, in the dtype itself
    return found


def _tuples(described: Any) -> Any:
    """A structure as NumPy wants it: fields are tuples, and so are shapes."""
    if isinstance(described, str):
        return described
    fields = []
    for name, kind, *shape in described:
        fields.append((tuple(name) if isinstance(name, list) else name, _tuples(kind), *map(tuple, shape)))
    return fields


def _batch(view: memoryview, code: int) -> Any:
    arrow = package("pyarrow")
    reader = arrow.ipc.open_stream(arrow.py_buffer(view))
    table = reader.read_all()
    if code == TABLE:
        return table
    batches = table.to_batches()
    if len(batches) == 1:
        return batches[0]
    return arrow.RecordBatch.from_pylist([], schema=table.schema)  # an empty one is no batch of a stream


# -- types


def require_arrays(event_type: Any) -> None:
    """Raise ConfigError for a field whose array type cannot be sent, an array of objects say; names the field."""
    for where, hint in _hints(event_type, "event", set()):
        if typing.get_origin(hint) is None or not is_array_type(typing.get_origin(hint)):
            continue
        for argument in typing.get_args(hint):
            if getattr(argument, "__name__", "") == "dtype" and "object_" in str(typing.get_args(argument)):
                raise ConfigError(f"{where} is an array of objects, which has no bytes to send: type={hint!r}")


def _hints(hint: Any, where: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    yield where, hint
    if hasattr(hint, "__value__"):  # type X = ...
        yield from _hints(hint.__value__, where, seen)
    for argument in typing.get_args(hint):
        if isinstance(argument, type | types.GenericAlias) or typing.get_origin(argument) is not None:
            yield from _hints(argument, where, seen)
    cls = typing.get_origin(hint) or hint
    if not isinstance(cls, type) or id(cls) in seen or cls.__module__ in ("builtins", "typing", "numpy"):
        return
    seen.add(id(cls))
    try:
        fields = typing.get_type_hints(cls)
    except (NameError, TypeError):  # msgspec says what is wrong with it
        return
    for name, field in fields.items():
        yield from _hints(field, f"field {cls.__qualname__}.{name}", seen)


def wants(expected: Any, value: Any) -> Any:
    """What a decoder is given for a field of an array type: the value, if it is one of that type."""
    found = _expected.get(expected)
    if found is None:
        found = _expect(expected)
        if len(_expected) < _KNOWN:
            _expected[expected] = found
    cls, scalars = found
    if not isinstance(value, cls):
        raise ValueError(f"Expected `{cls.__name__}`, got `{type(value).__name__}`")
    if scalars and not issubclass(value.dtype.type, scalars):
        raise ValueError(f"Expected `ndarray` of {' or '.join(s.__name__ for s in scalars)}, got {value.dtype}")
    return value


def _expect(expected: Any) -> tuple[type[Any], tuple[type[Any], ...]]:
    """The class of an array type, and those that its items may have, none for any."""
    scalars: tuple[Any, ...] = ()
    for argument in typing.get_args(expected)[1:]:  # dtype[float32], dtype[float32 | float64], dtype[Any]
        for scalar in typing.get_args(argument):
            scalars += typing.get_args(scalar) or (scalar,)
    known = all(isinstance(scalar, type) and scalar is not Any for scalar in scalars)
    return typing.get_origin(expected) or expected, scalars if known else ()
