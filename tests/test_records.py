"""Topics with `codec="record"`, an event a call: layout, round trips, what is refused, evolution, tools."""

from __future__ import annotations

import copy
import gc
import math
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, Optional, TypeVar

import msgspec
import pytest
from events import drain, opened
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta
from records import ALL, TRADES, Everything, Level, Side, Spot, Trade, everything, row_of, trades

import shmbus
from shmbus import inspect
from shmbus._schema.columns import Column, integer_code
from shmbus._schema.description import parse
from shmbus.topic import codec_of

T = TypeVar("T")

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


# -- what classes may do


class Checked(msgspec.Struct, frozen=True):
    n: int

    def __post_init__(self) -> None:
        if self.n < 0:
            raise ValueError("below zero")


class Weak(msgspec.Struct, weakref=True, dict=True, frozen=True, cache_hash=True):
    n: int
    s: Annotated[str, Meta(max_length=4)] = "x"


class Light(msgspec.Struct, gc=False):
    n: int


class Box(msgspec.Struct, Generic[T]):
    item: T


class Derived(Light, kw_only=True):
    m: int = 4


class Shadowed(Light):
    if not TYPE_CHECKING:

        @property
        def n(self) -> int:
            return 99


@pytest.mark.parametrize(
    "event", [Weak(1), Light(2), Derived(3, m=5), Checked(6)], ids=lambda event: type(event).__name__
)
def test_classes(event: Any) -> None:
    """Whatever a Struct is made with, what is decoded is one that works as any other, and is freed."""
    topic = shmbus.Topic("t", type(event), codec="record")
    found = decode(topic, encode(topic, event))
    assert found == event
    assert repr(found) == repr(event)
    assert copy.copy(found) == event
    assert pickle.loads(pickle.dumps(found)) == event
    assert gc.is_tracked(found) in (False, type(event) is Weak)
    if isinstance(event, Weak):
        assert hash(found) == hash(event)
        found.__dict__["extra"] = found  # a cycle, which the collector finds
    del found
    gc.collect()


def test_post_init() -> None:
    """`__post_init__` runs, and what it raises says that there is no such event."""
    topic = shmbus.Topic("t", Checked, codec="record")
    with pytest.raises(ValueError, match="below zero"):
        decode(topic, (-1).to_bytes(8, "little", signed=True))


def test_generic() -> None:
    """A generic Struct is a record once its parameter is known."""
    topic = shmbus.Topic("t", Box[int], codec="record")
    assert decode(topic, encode(topic, Box(5))) == Box(5)


def test_shadowed_slot() -> None:
    """A property over a field's name does not get in the way of the field's slot."""
    topic = shmbus.Topic("t", Shadowed, codec="record")
    assert encode(topic, decode(topic, (7).to_bytes(8, "little"))) == (7).to_bytes(8, "little")


def test_deleted_field() -> None:
    """A field that was deleted is refused, not read."""
    event = Light(1)
    try:
        del event.n
    except AttributeError:
        pytest.skip("this msgspec does not delete fields")
    with pytest.raises(ValueError, match=r"\$\.n"):
        encode(shmbus.Topic("t", Light, codec="record"), event)


def test_same_definition(bus_name: str) -> None:
    """An event of the same definition in another class object is published, one of another class is refused."""

    def define(extra: bool) -> Any:
        fields: list[Any] = [("n", int), ("s", Annotated[str, Meta(max_length=4)])]
        return msgspec.defstruct("Local", fields + [("more", int)] * extra)

    ours, same, other = define(False), define(False), define(True)
    topic = shmbus.Topic("t", ours, codec="record")
    with opened(bus_name) as bus, bus.publisher(topic) as publisher, bus.subscriber(topic) as subscriber:
        publisher.publish(same(1, "a"))
        assert subscriber.receive(0) == ours(1, "a")
        with pytest.raises(shmbus.EventTypeError):
            publisher.publish(other(1, "a", 2))


def test_memory_is_given_back() -> None:
    """Encoding and decoding, and their refusals, keep no reference."""
    event = decode(ALL, row_of(EVENT))
    bad = copy.copy(event)
    bad.name = "thirteen chars"
    payload = encode(ALL, event)
    broken = payload[:16] + b"\2" + payload[17:]

    def once() -> None:
        decode(ALL, encode(ALL, event))
        with pytest.raises(ValueError, match="name"):
            encode(ALL, bad)
        with pytest.raises(ValueError, match="flag"):
            decode(ALL, broken)

    for _ in range(10):
        once()
    gc.collect()
    before = [sys.getrefcount(value) for value in (Everything, Side.SELL, event.name, event)]
    for _ in range(100):
        once()
    gc.collect()
    assert [sys.getrefcount(value) for value in (Everything, Side.SELL, event.name, event)] == before


# -- on a bus


def test_every_way(bus_name: str) -> None:
    """Subscribers, lossy ones, workers, messages and headers take records as they take any event."""
    with opened(bus_name) as bus, bus.publisher(TRADES) as publisher:
        reliable, lossy = bus.subscriber(TRADES), bus.subscriber(TRADES, mode="lossy")
        worker = bus.worker(TRADES, group="g")
        events = trades(30)
        for event in events[:10]:
            publisher.publish(event, headers={"a": event.time})
        assert publisher.publish_many(events[10:]) == 20
        message = next(reliable.messages())
        assert (message.event, message.headers) == (events[0], {"a": 1})
        assert drain(reliable) == events[1:]
        assert lossy.receive_many(50, 0) == events
        assert drain(worker) == events


def test_validate(bus_name: str) -> None:
    """`validate=True` has a look at what `__post_init__` says."""
    topic = shmbus.Topic("t", Checked, codec="record", validate=True)
    with opened(bus_name) as bus, bus.publisher(topic) as publisher, bus.subscriber(topic) as subscriber:
        assert publisher.publish(Checked(5)) == 1
        low = decode(shmbus.Topic("t", Light, codec="record"), (1).to_bytes(8, "little"))
        assert low == Light(1)
        bad = Checked(5)
        msgspec.structs.force_setattr(bad, "n", -5)
        with pytest.raises(shmbus.EventTypeError, match="below zero"):
            publisher.publish(bad)
        assert drain(subscriber) == [Checked(5)]


def test_undecodable(bus_name: str) -> None:
    """A row that somebody wrote past the encoder is a DecodeError with its path, is counted, and the stream goes on."""
    from shmbus.topic import encoded_topic

    with opened(bus_name) as bus, bus.subscriber(TRADES, name="s") as subscriber:
        worker = bus.worker(TRADES, group="g", max_deliver=1)
        letters = bus.subscriber(shmbus.dead_letter_topic(TRADES))
        codec = codec_of(TRADES)._replace(encode=None, decode=None, accepts=(bytes,))
        raw = bus._open_publisher(encoded_topic("trades", 1 << 20, "record"), codec, None, "block", None)
        good = encode(TRADES, trades(1)[0])
        for payload in (good[:-1] + b"\7", good[:-1], good):
            raw.publish(payload)
        for receiver in (subscriber, worker):
            with pytest.raises(shmbus.DecodeError, match=r"0 or 1, got int 7 - at `\$\.live`"):
                receiver.receive(0)
            with pytest.raises(shmbus.DecodeError, match="29 bytes, not 28"):
                receiver.receive(0)
            assert receiver.receive(0) == trades(1)[0]
        worker.ack()
        assert [letter.payload for letter in letters.receive_many(9, 1)] == [good[:-1] + b"\7", good[:-1]]
        books = next(c for c in bus.stats().consumers if c.name == "s")
        assert (books.delivered, books.undecodable) == (1, 2)


def test_another_layout(bus_name: str) -> None:
    """Another layout is another schema, under "evolve" as well, and the message says which columns part."""
    narrow = msgspec.defstruct("Trade", [("time", Annotated[int, Meta(ge=0, lt=256)]), ("more", int, 0)])
    wide = msgspec.defstruct("Trade", [("time", Annotated[int, Meta(ge=0, lt=512)]), ("more", int, 0)])
    with opened(bus_name) as bus:
        first = bus.publisher(shmbus.Topic("t", narrow, codec="record", schema="evolve"))
        for schema in ("strict", "evolve"):
            with pytest.raises(shmbus.SchemaMismatchError, match="u1" if schema == "evolve" else "lt 512"):
                bus.subscriber(shmbus.Topic("t", wide, codec="record", schema=schema))
        with pytest.raises(shmbus.ConfigError, match="codec"):
            bus.subscriber(shmbus.Topic("t", narrow))
        first.close()


def test_evolves_within_a_layout(bus_name: str) -> None:
    """Under "evolve" a reader whose limits are wider takes the rows of the same layout; a narrower one does not."""

    def topic(limit: int) -> shmbus.Topic[Any]:
        cls = msgspec.defstruct("Trade", [("n", Annotated[int, Meta(ge=0, le=limit)])])
        return shmbus.Topic("t", cls, codec="record", schema="evolve")

    with opened(bus_name) as bus, bus.publisher(topic(100)) as publisher:
        subscriber = bus.subscriber(topic(200))
        publisher.publish(topic(100).type(7))
        assert subscriber.receive(0).n == 7
        with pytest.raises(shmbus.SchemaMismatchError):
            bus.subscriber(topic(50))


def test_tail_and_pub(bus_name: str) -> None:
    """Tools that never saw the class show records by name, and publish them from JSON, defaults filled in."""
    with opened(bus_name) as bus, bus.subscriber(ALL) as subscriber, bus.publisher(ALL) as publisher:
        with inspect.Tail(bus_name, "all") as tail:
            publisher.publish(EVENT)
            shown = tail.read()[0].event
            assert shown["plainFloat"] == 2.0
            assert (shown["name"], shown["raw"], shown["spot"]) == ("six", b"seven", {"x": 8.0, "y": 9})
            text = msgspec.json.encode(EVENT)
            assert inspect.publish_json(bus_name, "all", text) == 1
            short = {key: value for key, value in msgspec.json.decode(text).items() if key not in ("kind", "type")}
            inspect.publish_json(bus_name, "all", msgspec.json.encode(short))
            assert subscriber.receive_many(9, 1) == [EVENT] * 3
            with pytest.raises(shmbus.ConfigError, match="tiny"):
                inspect.publish_json(bus_name, "all", msgspec.json.encode({**short, "tiny": 256}))


def test_pickles_and_compares() -> None:
    """A topic of records is a topic: it pickles, and equals itself."""
    assert pickle.loads(pickle.dumps(TRADES)) == TRADES
    assert shmbus.Topic("trades", Trade) != TRADES
    assert "codec='record'" in repr(TRADES)


def test_without_numpy(bus_name: str) -> None:
    """An event a call needs no NumPy; whatever needs it says what to install."""
    code = """
import sys
sys.modules["numpy"] = None
import shmbus, records
with shmbus.Bus(sys.argv[1], supervise=False) as bus:
    pub, sub = bus.publisher(records.TRADES), bus.subscriber(records.TRADES)
    pub.publish(records.trades(1)[0])
    assert sub.receive(0) == records.trades(1)[0]
    for call in (lambda: records.TRADES.dtype, lambda: next(sub.arrays()), lambda: pub.publish_array([])):
        try:
            call()
        except ImportError as error:
            assert "shmbus[numpy]" in str(error)
        else:
            raise AssertionError
"""
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    subprocess.run([sys.executable, "-c", code, bus_name], check=True, env=environment, timeout=60)
