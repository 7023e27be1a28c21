"""Topics with `codec="record"`, an event a call: layout, round trips, what is refused, evolution, tools."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Optional

import msgspec
import pytest
from events import opened
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta
from records import (
    ALL,
    EVENT,
    TRADES,
    Everything,
    Side,
    Spot,
    Trade,
    columns,
    decode,
    encode,
    everything,
    record,
    row_of,
    trades,
)

import shmbus
from shmbus._schema.columns import integer_code

# -- layout


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ({}, "<i8"),
        ({"ge": 0}, "<u8"),
        ({"gt": -1}, "<u8"),
        ({"ge": 0, "lt": 256}, "<u1"),
        ({"ge": 0, "le": 256}, "<u2"),
        ({"ge": -1, "le": 127}, "<i1"),
        ({"ge": -129, "le": 0}, "<i2"),
        ({"ge": 0, "lt": 1 << 32}, "<u4"),
        ({"ge": 0, "le": 1 << 32}, "<u8"),
        ({"ge": -1, "le": 1 << 31}, "<i8"),
        ({"le": 10}, "<i8"),
        ({"gt": 5, "lt": 7}, "<u1"),
    ],
)
def test_integers(limits: Any, code: str) -> None:
    """An integer takes the smallest type that its limits leave, eight bytes where they leave all."""
    assert columns(record(n=Annotated[int, Meta(**limits)] if limits else int))[0].code == code


@given(st.integers(-(1 << 63), (1 << 64) - 1), st.integers(-(1 << 63), (1 << 64) - 1))
def test_integer_code_holds(a: int, b: int) -> None:
    """The type that is chosen holds both limits, and no smaller one does."""
    low, high = min(a, b), max(a, b)
    if low < 0 and high >= 1 << 63:
        return
    code = integer_code(low, high)
    size, signed = int(code[2:]), code[1] == "i"

    def holds(size: int, signed: bool) -> bool:
        least, most = (-(1 << 8 * size - 1), (1 << 8 * size - 1) - 1) if signed else (0, (1 << 8 * size) - 1)
        return least <= low and high <= most

    assert holds(size, signed)
    assert size == 1 or not any(holds(size // 2, kind) for kind in (True, False))


def test_layout() -> None:
    """Columns lie packed, in the order of the fields, under the names on the wire."""
    found = [(column.name, column.code) for column in columns(ALL)]
    assert found == [
        *(("signed", "<i8"), ("plainFloat", "<f8"), ("flag", "?"), ("tiny", "<u1"), ("small", "<i2"), ("wide", "<u8")),
        *(("name", "S12"), ("raw", "S5"), ("spot", "V9"), ("side", "S4"), ("level", "<i2"), ("kind", "S3")),
        ("number", "<u4"),
    ]


@pytest.mark.parametrize(
    ("type", "named"),
    [
        (str, "R.f: str needs its room"),
        (bytes, "R.f: bytes needs its room"),
        (Annotated[str, Meta(max_length=0)], "R.f: str needs its room"),
        (list[int], "R.f: list"),
        (dict[str, int], "R.f: dict"),
        (Optional[int], "R.f: a union"),  # noqa: UP045 -- as users write it
        (int | str, "R.f: a union"),
        (Any, "R.f: any"),
        (tuple[int, int], "R.f: tuple"),
        (Literal["a", 1], "R.f: an enum or literal"),
        (Annotated[int, Meta(gt=5, lt=6)], "R.f: no integer"),
        (Annotated[bytes, Meta(min_length=1)], "R.f: bytes needs its room"),
    ],
)
def test_no_fixed_size(type: Any, named: str) -> None:
    """A field without a fixed size is a ConfigError that names it."""
    with pytest.raises(shmbus.ConfigError, match=named.replace("(", r"\(")):
        record(n=int, f=type)


def test_nested_field_is_named() -> None:
    """The path goes through the Structs that the field is in."""
    inner = msgspec.defstruct("Inner", [("deep", str)])
    with pytest.raises(shmbus.ConfigError, match=r"R\.inner\.deep"):
        record(inner=inner)


class Ring(msgspec.Struct):
    value: int
    next: Ring


@dataclass
class Point:
    x: int


class Empty(msgspec.Struct):
    pass


class Opened(msgspec.Struct, tag=True):
    id: int


class Closed(msgspec.Struct, tag=True):
    id: int


@pytest.mark.parametrize("type", [int, Point, dict, Opened | Closed, bytes, Empty, Ring, list[Trade], Any])
def test_not_a_struct(type: Any) -> None:
    """A record is of one Struct that has fields and an end; anything else is a ConfigError."""
    with pytest.raises(shmbus.ConfigError):
        shmbus.Topic("t", type, codec="record")


@pytest.mark.parametrize("options", [{"enc_hook": str}, {"dec_hook": lambda cls, value: value}])
def test_no_hooks(options: dict[str, Any]) -> None:
    """Hooks make values of any size, and are refused."""
    with pytest.raises(shmbus.ConfigError, match="hook"):
        shmbus.Topic("t", Trade, codec="record", **options)


# -- round trips


@given(everything())
def test_round_trip(event: Everything) -> None:
    """A row is what Python packs of the fields, and comes back as an equal event of the same class."""
    payload = encode(ALL, event)
    assert payload == row_of(event)
    found = decode(ALL, payload)
    assert found == event
    assert type(found) is Everything
    assert type(found.spot) is Spot
    assert found.side is event.side
    assert math.copysign(1, found.plain_float) == math.copysign(1, event.plain_float)


def test_nan() -> None:
    """NaN and the infinities are floats like any other."""
    topic = record(f=float)
    cls = topic.type
    for value in (math.nan, math.inf, -math.inf, 5e-324):
        found = decode(topic, encode(topic, cls(value))).f
        assert found == value or (math.isnan(value) and math.isnan(found))


@given(st.binary(min_size=29, max_size=29))
def test_any_bytes(payload: bytes) -> None:
    """Any row of the right length is decoded to an event that encodes again, or refused with a ValueError."""
    try:
        event = decode(TRADES, payload)
    except ValueError:
        return
    assert encode(TRADES, event) == payload


@pytest.mark.parametrize("length", [0, 28, 30, 4096])
def test_wrong_length(length: int) -> None:
    """A payload of another length is no row."""
    with pytest.raises(ValueError, match="29 bytes"):
        decode(TRADES, bytes(length))


@pytest.mark.parametrize(
    ("change", "words", "path"),
    [
        ({"size": 1 << 32}, "expected int 0 to 4294967295, got int 4294967296", "$.size"),
        ({"size": -1}, "0 to 4294967295, got int -1", "$.size"),
        ({"time": 1 << 63}, "got int 9223372036854775808", "$.time"),
        ({"time": -(1 << 63) - 1}, "got int -9223372036854775809", "$.time"),
        ({"time": 1.0}, "expected int, got float 1.0", "$.time"),
        ({"time": True}, "expected int, got bool True", "$.time"),
        ({"time": None}, "expected int, got NoneType None", "$.time"),
        ({"price": "1"}, "expected float, got str '1'", "$.price"),
        ({"price": True}, "expected float, got bool", "$.price"),
        ({"price": (1 << 53) + 1}, "an int that one equals", "$.price"),
        ({"price": 10**400}, "an int that one equals", "$.price"),
        ({"symbol": "123456789"}, "at most 8 bytes of UTF-8", "$.symbol"),
        ({"symbol": "ééééé"}, "at most 8 bytes of UTF-8", "$.symbol"),
        ({"symbol": "a\0"}, "NUL", "$.symbol"),
        ({"symbol": "\0"}, "NUL", "$.symbol"),
        ({"symbol": "\ud800"}, "surrogates", "$.symbol"),
        ({"symbol": b"abc"}, "expected str, got bytes", "$.symbol"),
        ({"live": 1}, "expected bool, got int 1", "$.live"),
    ],
)
def test_refused(bus_name: str, change: dict[str, Any], words: str, path: str) -> None:
    """What its column cannot hold is an EventTypeError that names topic, field and value; nothing is written."""
    with opened(bus_name) as bus, bus.publisher(TRADES) as publisher, bus.subscriber(TRADES) as subscriber:
        event = msgspec.structs.replace(trades(1)[0], **change)
        for publish in (publisher.publish, lambda event: publisher.publish_many([trades(1)[0], event])):
            with pytest.raises(shmbus.EventTypeError, match="topic 'trades'") as refusal:
                publish(event)
            assert words in str(refusal.value)
            assert refusal.value.path == path
        assert subscriber.try_receive() is None


@pytest.mark.parametrize(
    ("value", "kept"),
    [("", ""), ("a\0b", "a\0b"), ("12345678", "12345678"), ("éé", "éé"), ("x", "x"), ("\x7f", "\x7f")],
)
def test_text(value: str, kept: str) -> None:
    """Text is kept as it is, NUL inside of it too."""
    event = msgspec.structs.replace(trades(1)[0], symbol=value)
    assert decode(TRADES, encode(TRADES, event)).symbol == value


def test_numbers_that_equal() -> None:
    """An int goes into a float column as the float that it equals; subclasses of the builtins as what they are."""

    class Number(int):
        pass

    class Text(str):
        __slots__ = ()

    event = Trade(Number(5), 3, Number(7), Text("AB"), True)
    found = decode(TRADES, encode(TRADES, event))
    assert found == Trade(5, 3.0, 7, "AB", True)
    assert [type(value) for value in msgspec.structs.astuple(found)] == [int, float, int, str, bool]


@pytest.mark.parametrize(
    ("type", "good", "bad"),
    [
        (Annotated[int, Meta(ge=10, le=20)], 15, 9),
        (Annotated[int, Meta(ge=-20, le=20)], -20, 21),
        (Annotated[int, Meta(multiple_of=5)], -15, 4),
        (Annotated[int, Meta(ge=0, multiple_of=5)], 15, 4),
        (Annotated[float, Meta(gt=0.0)], 5e-324, 0.0),
        (Annotated[float, Meta(ge=0.0, lt=1.0)], 0.5, 1.0),
        (Annotated[float, Meta(le=1.0)], 1.0, math.nan),
        (Annotated[float, Meta(multiple_of=0.5)], 1.5, 1.25),
        (Annotated[str, Meta(min_length=2, max_length=4)], "éé", "a"),
        (Annotated[str, Meta(max_length=4, pattern="^a")], "ab", "b"),
        (Annotated[bytes, Meta(min_length=2, max_length=4)], b"ab", b"a"),
        (Literal["x", "y"], "x", "z"),
        (Literal[1, 2], 2, 3),
        (Literal[1, 2], 2, True),
        (Literal["x", "y"], "x", []),
        (Side, Side.BUY, "hold"),
        (Spot, Spot(1.0, 2), (1.0, 2)),
    ],
)
def test_limits(type: Any, good: Any, bad: Any) -> None:
    """Limits hold on the way in, and on the way out for a row that somebody else wrote."""
    topic = record(f=type)
    event = topic.type(good)
    assert decode(topic, encode(topic, event)) == event
    with pytest.raises(ValueError, match=r"\$\.f"):
        encode(topic, topic.type(bad))
    loose: dict[type, Any] = {str: Annotated[str, Meta(max_length=4)], bytes: Annotated[bytes, Meta(max_length=4)]}
    loose |= {kind: kind for kind in (int, float, bool)}
    unlimited = record(f=loose[bad.__class__]) if bad.__class__ in loose else None
    if unlimited is not None and columns(unlimited)[0].code == columns(topic)[0].code:
        with pytest.raises(ValueError, match=r"\$\.f"):
            decode(topic, encode(unlimited, unlimited.type(bad)))


def test_nested_refusal() -> None:
    """The path of a refusal goes into nested Structs."""
    event = decode(ALL, bytes(row_of(EVENT)))
    event.spot = Spot(1.0, 1000)
    with pytest.raises(ValueError, match=r"-128 to 127, got int 1000 - at `\$\.spot\.y`"):
        encode(ALL, event)
    event.spot = object()
    with pytest.raises(ValueError, match=r"the field's Struct, got object"):
        encode(ALL, event)
