"""Record types that the tests of `codec="record"` share, and their values as Hypothesis draws them."""

from __future__ import annotations

import enum
import struct
from typing import Annotated, Any, Literal

import msgspec
from hypothesis import strategies as st
from msgspec import Meta

import shmbus
from shmbus._schema.columns import Column
from shmbus._schema.description import parse
from shmbus.stats import ConsumerStats
from shmbus.topic import codec_of


class Side(enum.Enum):
    BUY = "buy"
    SELL = "sell"


class Level(enum.IntEnum):
    LOW = -1
    HIGH = 300


class Spot(msgspec.Struct, frozen=True):
    x: float
    y: Annotated[int, Meta(ge=-128, le=127)]


class Trade(msgspec.Struct, frozen=True):
    time: int
    price: float
    size: Annotated[int, Meta(ge=0, lt=1 << 32)]
    symbol: Annotated[str, Meta(max_length=8)]
    live: bool


class Everything(msgspec.Struct, rename="camel", tag=True):
    signed: int
    plain_float: float
    flag: bool
    tiny: Annotated[int, Meta(ge=0, le=255)]
    small: Annotated[int, Meta(ge=-300, lt=300)]
    wide: Annotated[int, Meta(ge=0)]
    name: Annotated[str, Meta(max_length=12)]
    raw: Annotated[bytes, Meta(max_length=5)]
    spot: Spot
    side: Side
    level: Level
    kind: Literal["a", "bcd"] = "a"
    number: Literal[1, 2, 70000] = 1


TRADES = shmbus.Topic("trades", Trade, codec="record")
ALL = shmbus.Topic("all", Everything, codec="record")
SMALL = shmbus.Topic("small", Trade, codec="record", capacity=4096)
"""Rings that hold 73 records: 56 bytes each, and the frontier."""
STRIDE = 56

FORMAT = "<qd?BhQ12s5sdb4sh3sI"
"""The row of an Everything as `struct` writes it: what the encoder is compared with."""


def row_of(event: Everything) -> bytes:
    """The oracle: Python's own packing of the fields in their order."""
    return struct.pack(
        FORMAT,
        *(event.signed, event.plain_float, event.flag, event.tiny, event.small, event.wide),
        *(event.name.encode(), event.raw, event.spot.x, event.spot.y),
        *(event.side.value.encode(), event.level.value, event.kind.encode(), event.number),
    )


def _fits(room: int) -> Any:
    text = st.text(st.characters(codec="utf-8"), max_size=room)
    return text.filter(lambda value: len(value.encode()) <= room and not value.endswith("\0"))


def everything() -> st.SearchStrategy[Everything]:
    """Any event that its columns can hold."""
    floats = st.floats(allow_nan=False)
    return st.builds(
        Everything,
        st.integers(-(1 << 63), (1 << 63) - 1),
        floats,
        st.booleans(),
        st.integers(0, 255),
        st.integers(-300, 299),
        st.integers(0, (1 << 64) - 1),
        _fits(12),
        st.binary(max_size=5).filter(lambda value: not value.endswith(b"\0")),
        st.builds(Spot, floats, st.integers(-128, 127)),
        st.sampled_from(Side),
        st.sampled_from(Level),
        st.sampled_from(["a", "bcd"]),
        st.sampled_from([1, 2, 70000]),
    )


def trades(count: int, first: int = 1) -> list[Trade]:
    """`count` trades with consecutive times."""
    return [Trade(time, time / 4, time % 7, f"S{time % 100}", time % 2 == 0) for time in range(first, first + count)]


def rows_of(events: list[Trade]) -> Any:
    """The rows of events, made by NumPy alone."""
    import numpy as np

    rows = np.zeros(len(events), TRADES.dtype)
    for i, event in enumerate(events):
        rows[i] = (event.time, event.price, event.size, event.symbol.encode(), event.live)
    return rows


def books(bus: shmbus.Bus, name: str) -> ConsumerStats:
    """The balanced books of a consumer."""
    found = next(c for c in bus.stats().consumers if c.name == name)
    terms = found.delivered + found.depth + found.overrun + found.refused
    assert found.offered == terms + found.abandoned + found.undecodable + found.rejected
    return found


EVENT = Everything(1, 2.0, True, 3, 4, 5, "six", b"seven", Spot(8.0, 9), Side.SELL, Level.HIGH)


def record(**fields: Any) -> Any:
    """A topic of a Struct with these fields."""
    return shmbus.Topic("t", msgspec.defstruct("R", list(fields.items())), codec="record")


def encode(topic: shmbus.Topic[Any], event: Any) -> bytes:
    encoder = codec_of(topic).encode
    assert encoder is not None
    return encoder(event)


def decode(topic: shmbus.Topic[Any], payload: bytes) -> Any:
    decoder = codec_of(topic).decode
    assert decoder is not None
    return decoder(payload)


def columns(topic: shmbus.Topic[Any]) -> tuple[Column, ...]:
    return parse(codec_of(topic).description).columns
