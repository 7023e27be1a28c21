"""Codecs: what may be published, that it comes back, and that nothing decoded points into the payload."""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import decimal
import enum
import os
import subprocess
import sys
import typing
import uuid
from typing import (
    Annotated,
    Any,
    Final,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    Optional,
    Protocol,
    TypedDict,
    TypeVar,
)

import msgspec
import pytest

from shmbus._schema.codec import Codec
from shmbus.topic import Topic, codec_of

T = TypeVar("T")


class Paid(msgspec.Struct, frozen=True):
    order_id: int
    cents: int


class PaidMore(Paid, frozen=True):
    note: str = ""


class Left(msgspec.Struct, tag=True):
    x: int


class Right(msgspec.Struct, tag=True):
    x: str


class Box(msgspec.Struct, Generic[T]):
    value: T


class Point(NamedTuple):
    x: int
    y: int = 0


class Row(TypedDict):
    a: int


@dataclasses.dataclass
class Data:
    a: int


class Colour(enum.Enum):
    RED = "red"


class Shape:
    def __init__(self, side: int) -> None:
        self.side = side


class Sized(Protocol):
    side: int


class View(msgspec.Struct):
    raw: msgspec.Raw
    view: memoryview


Price = NewType("Price", int)


def codec(event_type: Any, name: Any = "msgpack") -> Codec:
    return codec_of(Topic("t", event_type, codec=name))


ACCEPTS: list[tuple[Any, tuple[type, ...]]] = [
    (Paid, (Paid,)),
    (Left | Right, (Left, Right)),
    (Box[int], (Box,)),
    (Point, (Point,)),
    (Row, (dict,)),
    (Data, (Data,)),
    (Colour, (Colour,)),
    (Literal["a", 1] | None, (str, int, type(None))),
    (Literal[True, 1], (bool, int)),
    (Annotated[int, msgspec.Meta(ge=1)], (int,)),
    (Annotated[Left | Right, "x"], (Left, Right)),
    (Final[int], (int,)),
    (Price, (int,)),
    (Optional[Paid], (Paid, type(None))),  # noqa: UP045
    (float, (float, int)),
    (float | None, (float, int, type(None))),
    (int, (int,)),
    (None, (type(None),)),
    (bytes, (bytes, bytearray, memoryview)),
    (bytes | None, (bytes, type(None))),
    (list[int], (list,)),
    (dict[str, int], (dict,)),
    (tuple[int, str], (tuple,)),
    (set[int], (set,)),
    (frozenset, (frozenset,)),
    (typing.List, (list,)),  # noqa: UP006
    (datetime.datetime, (datetime.datetime,)),
    (Any, ()),
    (object, ()),
    (T, ()),
    (int | Any, ()),
    (collections.abc.Sequence[int], ()),
    (collections.abc.Mapping, ()),
    (collections.abc.Sequence[int] | None, ()),
]


@pytest.mark.parametrize(("event_type", "accepts"), ACCEPTS, ids=str)
def test_accepts(event_type: Any, accepts: tuple[type, ...]) -> None:
    """A codec lists the exact types that events may have, and nothing where that cannot be told."""
    assert codec(event_type).accepts == accepts


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the type statement is new in 3.12")
def test_accepts_type_alias() -> None:
    """A type alias stands for what it names."""
    names: dict[str, Any] = {}
    exec("type Number = int | None", names)
    assert codec(names["Number"]).accepts == (int, type(None))


def test_accepts_for_pickle() -> None:
    """A pickle topic takes its class exactly, and a protocol or abstract class unchecked."""
    assert codec(Shape, "pickle").accepts == (Shape,)
    assert codec(Sized, "pickle").accepts == ()
    assert codec(collections.abc.Hashable, "pickle").accepts == ()


def test_subclass_is_not_accepted() -> None:
    """A subclass of the Struct is no event, since the receiver would get the base class back."""
    assert PaidMore not in codec(Paid).accepts


EVENTS: list[tuple[Any, Any]] = [
    (Paid, Paid(1, 250)),
    (Left | Right, Right("x")),
    (Box[int], Box(3)),
    (Point, Point(1, 2)),
    (Row, {"a": 1}),
    (Data, Data(1)),
    (Colour, Colour.RED),
    (Optional[int], None),  # noqa: UP045
    (float, 2),
    (bytes | None, b"\x00\xff"),
    (dict[int, uuid.UUID], {1: uuid.UUID(int=7)}),
    (tuple[decimal.Decimal, datetime.date], (decimal.Decimal("1.10"), datetime.date(2020, 2, 29))),
    (set[int], {1, 2}),
    (Any, {"a": [1, None, "x"]}),
]


@pytest.mark.parametrize("name", ["msgpack", "json", "pickle"])
@pytest.mark.parametrize(("event_type", "event"), EVENTS, ids=str)
def test_round_trip(event_type: Any, event: Any, name: str) -> None:
    """An event comes back equal and of its type, from bytes and from a read-only view of a larger buffer."""
    it = codec(event_type, name)
    assert it.encode is not None
    assert it.decode is not None
    payload = it.encode(event)
    buffer = memoryview(b"abc" + payload + b"xyz")[3:-3]
    for data in (payload, bytearray(payload), buffer):
        assert it.decode(data) == event
    if float not in it.accepts:
        assert type(it.decode(buffer)) is type(event)


def test_pickle_round_trip() -> None:
    """A class unknown to msgspec crosses a pickle topic."""
    it = codec(Shape, "pickle")
    assert it.encode is not None
    assert it.decode is not None
    assert it.decode(memoryview(it.encode(Shape(3)))).side == 3


@pytest.mark.parametrize("name", ["msgpack", "json", "pickle"])
def test_raw(name: str) -> None:
    """Topics of bytes pass payloads through, and are one schema whatever codec was named."""
    it = codec(bytes, name)
    assert it.encode is None
    assert it.decode is None
    assert it.fingerprint == codec(bytes).fingerprint


@pytest.mark.parametrize("event_type", [View, Any, dict[str, msgspec.Raw], list[memoryview], msgspec.Raw])
def test_decoded_owns_its_memory(event_type: Any) -> None:
    """What a decoder returned stays as it was when the buffer is overwritten."""
    samples = {
        View: View(msgspec.Raw(b"\x01"), memoryview(b"view")),
        Any: [b"some bytes", msgspec.msgpack.Ext(5, b"ext")],
        dict[str, msgspec.Raw]: {"a": msgspec.Raw(b"\xc4\x03raw")},
        list[memoryview]: [memoryview(b"view")],
        msgspec.Raw: msgspec.Raw(b"\xc4\x03raw"),
    }
    it = codec(event_type)
    assert it.encode is not None
    assert it.decode is not None
    payload = it.encode(samples[event_type])
    buffer = bytearray(payload)
    event = it.decode(memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    assert it.encode(event) == payload


def test_cached() -> None:
    """Equal topics share one codec."""
    assert codec_of(Topic("t", Paid)) is codec_of(Topic("t", Paid))


def test_fingerprints_tell_schemas_apart() -> None:
    """Fingerprints are non-zero 64-bit numbers, different for each type and each codec."""
    types: list[Any] = [
        Paid,
        PaidMore,
        Left,
        Right,
        Left | Right,
        Row,
        int,
        float,
        str,
        bytes,
        Any,
        list[int],
        set[int],
    ]
    prints = {codec(t, name).fingerprint for t in types for name in ("msgpack", "json", "pickle") if t is not bytes}
    assert len(prints) == 3 * (len(types) - 1)
    assert all(0 < p < 1 << 64 for p in prints)
    assert codec(Left | Right).fingerprint == codec(Right | Left).fingerprint


def test_fingerprint_is_the_same_in_every_process() -> None:
    """Hash randomisation changes no fingerprint, also where sets of values are described."""
    code = (
        "from typing import Literal; import msgspec\n"
        "from shmbus.topic import Topic, codec_of\n"
        "class E(msgspec.Struct):\n"
        "    a: Literal['x', 'y', 'z', 1]; b: frozenset[str] = frozenset({'p', 'q', 'r'})\n"
        "print(codec_of(Topic('t', E | None)).fingerprint)"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1
