"""Event types for the tests of schemas, and strategies that make types together with their values."""

from __future__ import annotations

import datetime
import decimal
import enum
import uuid
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, NamedTuple, NotRequired, TypedDict, TypeVar

import msgspec
from hypothesis import strategies as st
from msgspec import Meta, Struct, defstruct

CODECS = ["msgpack", "json"]
T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Item(Struct):
    sku: str
    weight: float = 1.0


class Node(Struct):
    name: str
    kids: list[Node] = []


class Pair(NamedTuple):
    a: int
    b: int = 3


class Row(TypedDict):
    a: int
    b: NotRequired[str]


@dataclass
class Data:
    a: int
    b: list[int] = field(default_factory=list)


class Box(Struct, Generic[T]):
    value: T


class Flat(Struct, array_like=True):
    a: int
    b: str = "b"
    c: list[int] = []
    d: bytes = b"d"


class FlatTagged(Struct, array_like=True, tag="F"):
    a: int
    b: int = 2


class Opened(Struct, tag=True):
    at: int


class Closed(Struct, tag=True):
    at: int
    why: str = ""


def order(*fields: Any, name: str = "OrderPaid", **config: Any) -> Any:
    return defstruct(name, fields, **config)


def encode(codec: str, value: Any) -> bytes:
    return msgspec.json.encode(value) if codec == "json" else msgspec.msgpack.encode(value)


def decode(codec: str, payload: bytes, event_type: Any) -> Any:
    if codec == "json":
        return msgspec.json.decode(payload, type=event_type)
    return msgspec.msgpack.decode(payload, type=event_type)


Typed = tuple[Any, "st.SearchStrategy[Any]"]

LIST: Any = list  # made of types that only the run knows
TUPLE: Any = tuple
DICT: Any = dict

SMALL = st.integers(-5, 5)
LEAVES: list[Typed] = [
    (int, SMALL),
    (Annotated[int, Meta(ge=0)], st.integers(0, 5)),
    (float, st.floats(allow_nan=False, allow_infinity=False)),
    (str, st.text(max_size=3)),
    (Annotated[str, Meta(max_length=1)], st.text(max_size=1)),
    (bool, st.booleans()),
    (None, st.none()),
    (bytes, st.binary(max_size=3)),
    (datetime.date, st.dates()),
    (datetime.datetime, st.datetimes(timezones=st.just(datetime.UTC))),
    (uuid.UUID, st.uuids()),
    (decimal.Decimal, st.decimals(allow_nan=False, allow_infinity=False, places=2)),
    (Colour, st.sampled_from(Colour)),
    (Literal["red"], st.just("red")),
    (Literal[1, 2], st.sampled_from([1, 2])),
    (Any, st.one_of(SMALL, st.text(max_size=2), st.none())),
]
CORNERS: list[tuple[Any, list[Any]]] = [
    (int, [0, -(2**63), 2**64 - 1]),
    (Annotated[int, Meta(ge=0, lt=10)], [0, 9]),
    (Annotated[int, Meta(ge=1, le=9)], [1, 9]),
    (Annotated[int, Meta(multiple_of=2)], [0, 2]),
    (float, [0.0, -0.0, 1e300, 5e-324]),
    (Annotated[float, Meta(gt=0)], [5e-324]),
    (str, ["", "\0", "1", "x" * 1000, "\U0001f600"]),
    (Annotated[str, Meta(pattern="^a")], ["a"]),
    (Annotated[str, Meta(min_length=1)], ["\0"]),
    (bool, [False, True]),
    (None, [None]),
    (bytes, [b"", b"\xff"]),
    (bytearray, [bytearray(b"\xff")]),
    (datetime.date, [datetime.date.min, datetime.date.max]),
    (datetime.time, [datetime.time.min, datetime.time(1, tzinfo=datetime.UTC)]),
    (datetime.datetime, [datetime.datetime(1, 1, 1), datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)]),  # noqa: DTZ001
    (Annotated[datetime.datetime, Meta(tz=True)], [datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)]),
    (datetime.timedelta, [datetime.timedelta(-1, 1), datetime.timedelta.max]),
    (uuid.UUID, [uuid.UUID(int=0)]),
    (decimal.Decimal, [decimal.Decimal("1e100"), decimal.Decimal("NaN"), decimal.Decimal("-0.10")]),
    (Colour, list(Colour)),
    (Literal["red"], ["red"]),
    (Literal["red", 1], ["red", 1]),
    (Literal[True, 1], [True, 1]),
    (Any, [1, "x", None, b"", [], {}]),
    (list[int], [[], [1, 1]]),
    (Annotated[list[int], Meta(min_length=2)], [[1, 1]]),
    (Annotated[set[int], Meta(min_length=2)], [{1, 2}]),
    (set[float], [set(), {1.5}]),
    (tuple[int, int], [(1, 1)]),
    (tuple[()], [()]),
    (Pair, [Pair(1), Pair(1, 2)]),
    (FlatTagged, [FlatTagged(1)]),
    (dict[str, int], [{}, {"a": 1}]),
    (dict[int, int], [{}, {1: 1}]),
    (dict[Colour, int], [{Colour.RED: 1}]),
    (dict[str, Any], [{"a": None}]),
    (Row, [{"a": 1}, {"a": 1, "b": "x"}]),
    (Data, [Data(1), Data(1, [2])]),
    (Opened, [Opened(1)]),
    (Opened | Closed, [Opened(1), Closed(1)]),
]
KEYS: list[Typed] = [
    (str, st.text(max_size=3)),
    (int, SMALL),
    (uuid.UUID, st.uuids()),
    (Colour, st.sampled_from(Colour)),
]


@st.composite
def structs(draw: st.DrawFn, inner: st.SearchStrategy[Typed]) -> Typed:
    names = draw(st.lists(st.sampled_from("abc"), unique=True, max_size=3))
    optional = draw(st.integers(0, len(names)))
    config: dict[str, Any] = {
        "array_like": draw(st.integers(0, 3)) == 0,
        "omit_defaults": draw(st.integers(0, 3)) == 0,
        "forbid_unknown_fields": draw(st.integers(0, 5)) == 0,
        "tag": draw(st.sampled_from([None, None, None, "x", "y"])),
    }
    fields: list[Any] = []
    values: list[st.SearchStrategy[Any]] = []
    for place, name in enumerate(names):
        event_type, value = draw(inner)
        given_default = place >= optional
        fields.append((name, event_type, _default(draw(value))) if given_default else (name, event_type))
        values.append(value)
    made: Any = defstruct(draw(st.sampled_from(["Item", "Order"])), fields, **config)
    return made, st.tuples(*values).map(lambda given: made(*given))


def _default(value: Any) -> Any:
    return msgspec.field(default_factory=lambda: value) if isinstance(value, list | dict | set | Struct) else value


def _containers(inner: st.SearchStrategy[Typed]) -> st.SearchStrategy[Typed]:
    pairs = st.tuples(inner, inner)
    return st.one_of(
        inner.map(lambda t: (LIST[t[0]], st.lists(t[1], max_size=3))),
        inner.map(lambda t: (t[0] and t[0] | None, st.none() | t[1])),
        pairs.map(lambda p: (TUPLE[p[0][0], p[1][0]], st.tuples(p[0][1], p[1][1]))),
        st.tuples(st.sampled_from(KEYS), inner).map(
            lambda p: (DICT[p[0][0], p[1][0]], st.dictionaries(p[0][1], p[1][1], max_size=2))
        ),
        structs(inner),
        structs(inner),
    )


TYPED: st.SearchStrategy[Typed] = st.recursive(st.sampled_from(LEAVES), _containers, max_leaves=4)
