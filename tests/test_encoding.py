"""What is written of an event: types that only hooks know, what an encoder refuses, what no receiver would get."""

from __future__ import annotations

import dataclasses
import math
import pickle
from typing import Any, NamedTuple

import msgspec
import pytest

import shmbus
from shmbus import Bus, EventTypeError, Topic
from shmbus.errors import ConfigError

# -- hooks


class Vector:
    def __init__(self, x: float, y: float) -> None:
        self.x, self.y = x, y


class Placed(msgspec.Struct):
    at: Vector
    note: str | None = None


def to_builtins(value: Any) -> Any:
    if isinstance(value, Vector):
        return [value.x, value.y]
    raise NotImplementedError(f"not a Vector: {type(value).__name__}")


def from_builtins(cls: type, value: Any) -> Any:
    return Vector(*value) if cls is Vector else value


HOOKS: Any = {"enc_hook": to_builtins, "dec_hook": from_builtins}


@pytest.mark.parametrize("codec", ["msgpack", "json"])
def test_hooks(bus_name: str, codec: Any) -> None:
    """A type that only the hooks know crosses the bus, in a field and as the event itself."""
    with Bus(bus_name) as bus:
        placed = Topic("placed", Placed, codec=codec, **HOOKS)
        with bus.subscriber(placed) as sub, bus.publisher(placed) as pub:
            pub.publish(Placed(Vector(1, 2)))
            at = sub.receive(timeout=5).at
            assert (type(at), at.x, at.y) == (Vector, 1, 2)
        vectors = Topic("vectors", Vector, codec=codec, validate=True, **HOOKS)
        with bus.subscriber(vectors) as whole, bus.publisher(vectors) as one:
            one.publish(Vector(3, 4))
            assert whole.receive(timeout=5).y == 4


def test_hooks_are_part_of_the_topic() -> None:
    """Hooks are compared, shown, pickled by name; without both of them a type that only they know is refused."""
    topic = Topic("placed", Placed, **HOOKS)
    assert pickle.loads(pickle.dumps(topic)) == topic
    assert topic != Topic("placed", Placed, enc_hook=print, dec_hook=from_builtins)
    assert repr(topic) == "Topic('placed', Placed, enc_hook=to_builtins, dec_hook=from_builtins)"
    assert eval(repr(topic)) == topic
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(Topic("placed", Placed, enc_hook=to_builtins, dec_hook=lambda cls, value: value))
    for hooks in ({}, {"enc_hook": to_builtins}, {"dec_hook": from_builtins}):
        with pytest.raises(ConfigError, match=r"enc_hook and dec_hook.*: type=.*Vector"):
            Topic("placed", Placed, **hooks)
    wrong: Any = 5
    with pytest.raises(ConfigError, match="enc_hook=5"):
        Topic("placed", int, enc_hook=wrong)
    with pytest.raises(ConfigError, match=r"^dec_hook is msgspec's, and codec='pickle'"):
        Topic("placed", Placed, codec="pickle", dec_hook=from_builtins)


def test_hooked_types_go_by_name(bus_name: str) -> None:
    """On the bus a type that only the hooks know is its qualified name, and another name is another schema."""

    class Matrix(Vector):
        pass

    with Bus(bus_name) as bus, bus.subscriber(Topic("t", Vector, **HOOKS)):
        bus.publisher(Topic("t", Vector, enc_hook=to_builtins, dec_hook=lambda cls, value: value)).close()
        with pytest.raises(shmbus.SchemaMismatchError, match=r"ours .*Matrix, theirs Vector"):
            bus.publisher(Topic("t", Matrix, **HOOKS))


# -- what an encoder refuses


class Line(msgspec.Struct):
    price: Any


class Cart(msgspec.Struct, rename={"lines": "items"}):
    lines: list[Line]
    notes: dict[Any, Any] = {}
    point: Any = None


class Point(NamedTuple):
    x: Any
    y: Any


@dataclasses.dataclass
class Spot:
    z: Any


def circle() -> Cart:
    cart = Cart([])
    cart.lines.append(Line(cart))
    return cart


REFUSED: list[tuple[str, Any, str, str]] = [
    ("msgpack", Cart([Line(1), Line(1 << 64)]), "$.items[1].price", "can't serialize ints"),
    ("msgpack", Cart([], {"a": {"b": -(1 << 63) - 1}}), "$.notes['a']['b']", "can't serialize ints"),
    ("json", Cart([Line(object())]), "$.items[0].price", "Encoding objects of type object is unsupported"),
    ("json", Cart([], {(1, 2): 3}), "$.notes[tuple]", "Only dicts with str-like"),
    ("msgpack", Cart([], {"a": "\ud800"}), "$.notes['a']", "surrogates not allowed"),
    ("msgpack", Cart([], point=Point(1, Spot([object()]))), "$.point.y.z[0]", "unsupported"),
    ("msgpack", circle(), "$.items[0].price", "recursion"),
    ("pickle", Cart([Line(lambda: 0)]), "$.items[0].price", "pickle"),
]


@pytest.mark.parametrize(("codec", "event", "path", "message"), REFUSED)
def test_encoder_refuses(bus_name: str, codec: Any, event: Any, path: str, message: str) -> None:
    """What an encoder refuses is an EventTypeError with topic, path and the encoder's words, and nothing is written."""
    topic = Topic("carts", Cart, codec=codec)
    with Bus(bus_name) as bus, bus.publisher(topic) as pub:
        for publish in (pub.publish, lambda event: pub.publish_many([Cart([]), event])):
            with pytest.raises(EventTypeError, match=message) as caught:
                publish(event)
            assert caught.value.path.startswith(path)
            assert caught.value.path in str(caught.value)
            assert str(caught.value).startswith("topic 'carts': ")
            assert isinstance(caught.value.__cause__, Exception)
        assert bus.stats().publishers[0].published == 0
        assert pub.publish(Cart([])) == 1


def test_hook_refuses(bus_name: str) -> None:
    """What a hook raises is told in the same way; what is no error passes through."""

    def interrupted(value: Any) -> Any:
        raise KeyboardInterrupt

    with Bus(bus_name) as bus:
        with bus.publisher(Topic("lines", Line, **HOOKS)) as pub:
            with pytest.raises(EventTypeError, match=r"not a Vector: object - at `\$\.price`"):
                pub.publish(Line(object()))
        with bus.publisher(Topic("broken", Line, enc_hook=interrupted)) as pub:
            with pytest.raises(KeyboardInterrupt):
                pub.publish(Line(object()))


class Reading(msgspec.Struct):
    value: float
    more: Any = None


NOT_JSON: list[tuple[Any, str]] = [
    (Reading(math.nan), "$.value"),
    (Reading(1.0, [None, "null", {"a": (1.0, -math.inf)}]), "$.more[2]['a'][1]"),
    (Reading(1.0, {math.inf: 1}), "$.more[inf]"),
    (Reading(1.0, [1 << 70, math.nan]), "$.more[1]"),
    (Reading(1.0, Spot(math.nan)), "$.more.z"),
]


@pytest.mark.parametrize(("event", "path"), NOT_JSON)
def test_json_has_no_nan(bus_name: str, event: Any, path: str) -> None:
    """NaN and infinities are refused on a JSON topic, where msgspec would write null."""
    with Bus(bus_name) as bus, bus.publisher(Topic("readings", Reading, codec="json")) as pub:
        with pytest.raises(EventTypeError, match=r"^topic 'readings': JSON has no (nan|-?inf) - at ") as caught:
            pub.publish(event)
        assert caught.value.path == path
        assert bus.stats().publishers[0].published == 0


@pytest.mark.parametrize("event", [Reading(1.0, None), Reading(1.0, ["null", {"inf": b"null"}]), Reading(1.0, 1 << 70)])
def test_json_has_null(bus_name: str, event: Any) -> None:
    """A null that is one, or the word in a text, is no reason to refuse."""
    topic = Topic("readings", Reading, codec="json")
    with Bus(bus_name) as bus, bus.subscriber(topic) as sub, bus.publisher(topic) as pub:
        pub.publish(event)
        assert sub.receive(timeout=5).value == 1.0


def test_msgpack_has_nan(bus_name: str) -> None:
    """NaN is a number on every other topic."""
    with Bus(bus_name) as bus:
        for codec in ("msgpack", "pickle"):
            topic = Topic(codec, Reading, codec=codec)
            with bus.subscriber(topic) as sub, bus.publisher(topic) as pub:
                pub.publish(Reading(math.nan))
                assert math.isnan(sub.receive(timeout=5).value)


# -- validate


class Order(msgspec.Struct):
    cents: int
    lines: list[Reading] = []


@pytest.mark.parametrize("codec", ["msgpack", "json"])
def test_validate(bus_name: str, codec: Any) -> None:
    """With `validate=True` a field of the wrong type is refused before it is written, with topic and path."""
    topic = Topic("orders", Order, codec=codec, validate=True)
    wrong: Any = "12"
    with Bus(bus_name) as bus, bus.subscriber(topic) as sub, bus.publisher(topic) as pub:
        for event, path in ((Order(wrong), "$.cents"), (Order(1, [Reading(wrong)]), "$.lines[0].value")):
            for publish in (pub.publish, lambda event: pub.publish_many([Order(1), event])):
                with pytest.raises(EventTypeError, match=r"^topic 'orders': Expected .* - at ") as caught:
                    publish(event)
                assert caught.value.path == path
        assert pub.publish(Order(2)) == 1
        assert sub.receive(timeout=5) == Order(2)


def test_validate_is_asked_for(bus_name: str) -> None:
    """Without it the receiver finds out; the option is part of the topic, and pickle topics have none."""
    wrong: Any = "12"
    topic = Topic("orders", Order)
    with Bus(bus_name) as bus, bus.subscriber(topic) as sub, bus.publisher(topic) as pub:
        pub.publish(Order(wrong))
        with pytest.raises(shmbus.DecodeError):
            sub.receive(timeout=5)
    strict = Topic("orders", Order, validate=True)
    assert strict != topic
    assert pickle.loads(pickle.dumps(strict)) == strict
    assert repr(strict) == "Topic('orders', Order, validate=True)"
    for options in ({"codec": "pickle", "validate": True}, {"validate": 1}):
        with pytest.raises(ConfigError, match="validate="):
            Topic("orders", Order, **options)


def test_validate_raw(bus_name: str) -> None:
    """Bytes are what they are."""
    topic = Topic("raw", bytes, validate=True)
    with Bus(bus_name) as bus, bus.subscriber(topic) as sub, bus.publisher(topic) as pub:
        pub.publish(b"x")
        assert sub.receive(timeout=5) == b"x"
