"""The rows of W9: a Struct of fixed size, and arrays of as many bytes a row that mark where a batch begins and ends."""

from __future__ import annotations

import functools
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import numpy as np
from msgspec import Meta

from .event import SequenceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_NUMBERS: Final = 29  # bytes of a row beside its note


class Row(msgspec.Struct):
    """What every row has; `row_type` adds a note that fills it up."""

    seq: int
    ts: int
    price: float
    lots: Annotated[int, Meta(ge=0, lt=1 << 32)]
    live: bool


@functools.cache
def row_type(size: int) -> Any:
    """The Struct whose record has `size` bytes."""
    note = Annotated[bytes, Meta(max_length=size - _NUMBERS)]
    return msgspec.defstruct("WideRow", [("note", note)], bases=(Row,))


@functools.cache
def dtype_of(size: int) -> Any:
    """The same as a NumPy dtype, as every peer but shmbus needs it; shmbus derives its own."""
    kinds = (("seq", "<i8"), ("ts", "<i8"), ("price", "<f8"), ("lots", "<u4"), ("live", "?"), ("note", f"S{size - 29}"))
    return np.dtype(list(kinds))


def row(size: int, seq: int = 1 << 40) -> Row:
    """One row as an object."""
    event: Row = row_type(size)(seq, 1 << 60, 1.0825, 1000, True, b"n" * (size - _NUMBERS))
    return event


def batches(count: int, batch: int, size: int) -> Iterator[Any]:
    """`count` rows in arrays of `batch`, always the same array: its first and last row carry its number."""
    rows = np.zeros(batch, dtype_of(size))
    rows["note"] = b"n" * (size - _NUMBERS)
    seq = rows["seq"]
    for number in range(count // batch):
        seq[0] = seq[-1] = number
        yield rows


def verify(arrays: Iterable[Any], count: int, batch: int) -> None:
    """Take `count` rows and make sure that the first and last of each batch carry its number. Raises SequenceError.

    A batch may come in several arrays, and an array may have rows of several batches.
    """
    seen = 0
    for rows in arrays:
        seq = rows["seq"]
        left = -seen % batch
        if left < len(seq) and seq[left] != (seen + left) // batch:
            raise SequenceError(
                f"another row than the next one: sequence={seq[left]}, expected={(seen + left) // batch}"
            )
        seen += len(seq)
        if seen % batch == 0 and seq[-1] != seen // batch - 1:
            raise SequenceError(f"another row than the last one: sequence={seq[-1]}, expected={seen // batch - 1}")
        if seen >= count:
            return


def objects(count: int, size: int) -> Iterator[Row]:
    """`count` times the same row."""
    event = row(size)
    return islice(iter(lambda: event, None), count)
