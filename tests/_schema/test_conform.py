"""JSON values made to fit a stored description, and payloads and descriptions of strangers."""

from __future__ import annotations

import datetime
import json
import uuid
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta
from schemas import (
    CODECS,
    TYPED,
    Closed,
    Colour,
    Data,
    Flat,
    FlatTagged,
    Item,
    Node,
    Opened,
    Pair,
    Row,
    decode,
    encode,
    order,
)

from shmbus._schema.compare import admits, conform, decode_any, describe, difference
from shmbus.errors import ConfigError, CorruptSegmentError


@given(st.data(), st.sampled_from(CODECS))
@settings(max_examples=200, deadline=None)
def test_conform_round_trip(data: st.DataObject, codec: str) -> None:
    """Any event, written as JSON, conforms to its description and is decoded to an equal event."""
    event_type, values = data.draw(TYPED)
    event = data.draw(values)
    schema = describe(event_type, codec)
    value = json.loads(msgspec.json.encode(event))
    made = conform(value, schema)
    again = made if event_type is bytes else decode(codec, encode(codec, made), event_type)
    assert again == event


# --- conform

CONFORMED: list[tuple[Any, Any, Any]] = [  # type, JSON value, event
    (Item, {"sku": "x"}, Item("x")),
    (Opened, {"at": 1}, Opened(1)),
    (Opened | Closed, {"type": "Closed", "at": 1}, Closed(1)),
    (Flat, {"a": 1}, Flat(1)),
    (Flat, {"a": 1, "d": "AP8="}, Flat(1, d=b"\x00\xff")),
    (Flat, [1, "x"], Flat(1, "x")),
    (FlatTagged, {"a": 1, "b": 5}, FlatTagged(1, 5)),
    (FlatTagged, ["F", 1], FlatTagged(1)),
    (Pair, {"a": 1}, Pair(1)),
    (Row, {"a": 1}, {"a": 1}),
    (Data, {"a": 1, "b": [1]}, Data(1, [1])),
    (float, 1, 1.0),
    (dict[int, bytes], {"1": "AP8="}, {1: b"\x00\xff"}),
    (dict[float, int], {"1.5": 1}, {1.5: 1}),
    (int | list[bytes], ["AP8="], [b"\x00\xff"]),
    (Node, {"name": "a", "kids": [{"name": "b"}]}, Node("a", [Node("b")])),
    (datetime.datetime, "2020-01-01T00:00:00Z", datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)),
    (datetime.timedelta, "P1D", datetime.timedelta(1)),
    (set[int], [1, 1], {1}),
    (Any, {"x": [None]}, {"x": [None]}),
]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("event_type", "value", "event"), CONFORMED)
def test_conform(event_type: Any, value: Any, event: Any, codec: str) -> None:
    """A fitting JSON value becomes what the typed decoder of the other end accepts."""
    made = conform(value, describe(event_type, codec))
    assert decode(codec, encode(codec, made), event_type) == event


def test_conform_raw() -> None:
    """For a raw topic a base64 string becomes the payload."""
    assert conform("AP8=", describe(bytes, "msgpack")) == b"\x00\xff"


UNFIT: list[tuple[Any, Any, str]] = [
    (order(("cents", int)), {"cents": "x"}, "$.cents: expected integer, got string 'x'"),
    (order(("cents", int)), {"cents": True}, "$.cents: expected integer, got boolean True"),
    (order(("cents", int)), {"cents": 1.5}, "$.cents: expected integer, got number 1.5"),
    (order(("cents", int)), {}, "$.cents: required, and missing"),
    (order(("cents", int)), {"cent": 1}, "$.cent: no such field, OrderPaid has cents"),
    (order(("cents", int)), [1], "$: expected OrderPaid, got array [1]"),
    (order(("cents", int)), None, "$: expected OrderPaid, got null"),
    (order(("a", list[int])), {"a": [1, None]}, "$.a[1]: expected integer, got null"),
    (order(("a", dict[int, int])), {"a": {"x": 1}}, "$.a.x: expected integer, got string 'x'"),
    (order(("a", Annotated[int, Meta(ge=1)])), {"a": 0}, "$.a: expected integer (ge 1), got integer 0"),
    (order(("a", Annotated[list[int], Meta(max_length=1)])), {"a": [1, 2]}, "$.a: expected list of integer"),
    (order(("a", bytes)), {"a": "?"}, "$.a: expected bytes, got string '?'"),
    (order(("a", uuid.UUID)), {"a": "?"}, "$.a: expected uuid, got string '?'"),
    (order(("a", Colour)), {"a": "green"}, "$.a: expected Colour ('blue', 'red'), got string 'green'"),
    (order(("a", Literal[1])), {"a": True}, "$.a: expected enum (1), got boolean True"),
    (order(("a", int | str)), {"a": []}, "$.a: expected integer | string, got array []"),
    (order(("a", tuple[int, int])), {"a": [1]}, "$.a: expected tuple of integer, integer, got array [1]"),
    (Opened, {"type": "Closed", "at": 1}, "$.type: expected 'Opened', got 'Closed'"),
    (Opened | Closed, {"at": 1}, "$: expected Closed | Opened, got object {'at': 1}"),
    (Opened | Closed, {"type": "Closed", "at": "x"}, "$.at: expected integer, got string 'x'"),
    (FlatTagged, ["G", 1], "$.type: expected 'F', got 'G'"),
    (FlatTagged, ["F", 1, 2, 3], "$: expected FlatTagged, got array ['F', 1, 2, 3]"),
    (msgspec.msgpack.Ext, "x", "$: ext cannot be written as JSON"),
]


@pytest.mark.parametrize(("event_type", "value", "message"), UNFIT)
def test_conform_refuses(event_type: Any, value: Any, message: str) -> None:
    """A value that does not fit is refused with its path, what was expected, and what was there."""
    with pytest.raises(ConfigError) as caught:
        conform(value, describe(event_type, "msgpack"))
    assert str(caught.value).startswith(message)


def test_conform_refuses_pickle() -> None:
    """No pickle is made from JSON."""
    with pytest.raises(ConfigError, match="pickle"):
        conform({}, describe(Item, "pickle"))


def test_conform_refuses_depth() -> None:
    """A value nested past the interpreter's stack is refused, not a crash."""
    value: dict[str, Any] = {"name": "x"}
    for _ in range(100_000):
        value = {"name": "x", "kids": [value]}
    with pytest.raises(ConfigError, match="nested too deeply"):
        conform(value, describe(Node, "msgpack"))
    while value:  # freed from the outside in, as the interpreter's own recursion is bounded too
        value = value.get("kids", [{}])[0]


# --- payloads and descriptions of strangers


def test_decode_any() -> None:
    """Payloads decode to builtins; raw and pickled ones stay bytes."""
    event = Opened(1)
    for codec in CODECS:
        assert decode_any(memoryview(encode(codec, event)), codec) == {"type": "Opened", "at": 1}
    hostile = b"cos\nsystem\n(S'false'\ntR."
    assert decode_any(memoryview(hostile), "pickle") == hostile
    assert decode_any(memoryview(b"\x00"), "raw") == b"\x00"
    with pytest.raises(msgspec.DecodeError):
        decode_any(b"\xc1", "msgpack")


LOOP = b'{"codec":"json","defs":{"A":{"kind":"ref","title":"A"}},"root":{"kind":"ref","title":"A"}}'
HOSTILE = [
    b"",
    b"\xff",
    b"[]",
    b"{}",
    b'{"codec":"msgpack"}',
    b'{"codec":"yaml","root":{"kind":"integer"}}',
    b'{"codec":"json","root":{"kind":"ref","title":"A"}}',
    b'{"codec":"json","root":{"kind":"integer","limits":{"ge":"x"}}}',
    b'{"codec":"json","root":{"kind":"integer","limits":{"nonsense":1}}}',
    b'{"codec":"json","root":{"kind":"list"}}',
    b'{"codec":"json","root":{"kind":"dict","of":[{"kind":"any"}]}}',
    b'{"codec":"json","root":{"kind":"string","limits":{"pattern":"("}}}',
    b'{"codec":"json","root":{"kind":"list","of":[{"kind":"any"}],"limits":{"min_length":"x"}}}',
    LOOP,
    b'{"codec":"json","root":' + b'{"kind":"union","of":[' * 100_000,
]


@pytest.mark.parametrize("description", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("value", [1, [1], {"a": 1}, "a"], ids=repr)
def test_hostile_descriptions(description: bytes, value: Any) -> None:
    """Bytes that are no description are named as corrupt, or give an answer; nothing else is raised."""
    good = describe(Item, "json")
    for ask in (
        lambda: conform(value, description),
        lambda: difference(good, description),
        lambda: difference(description, good),
        lambda: admits(good, description),
        lambda: admits(description, good),
        lambda: admits(description, describe(dict[str, list[int]], "json")),
    ):
        try:
            ask()
        except (CorruptSegmentError, ConfigError):
            continue
