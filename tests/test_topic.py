"""Topics: what is admitted, how they compare, and the names that the whole bus uses."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Annotated, Any, NewType, TypedDict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmbus.errors import ConfigError
from shmbus.topic import DeadLetter, Topic, check_label, check_name, codec_of, dead_letter_topic


class OrderPaid(msgspec.Struct, frozen=True):
    order_id: int
    cents: int


class Opened(msgspec.Struct, tag=True):
    at: int


class Closed(msgspec.Struct, tag=True):
    at: int


class Untagged(msgspec.Struct):
    at: int


class Row(TypedDict):
    a: int


class Plain:
    pass


Price = NewType("Price", int)

TYPES: list[Any] = [
    OrderPaid,
    Opened | Closed,
    Row,
    dict,
    dict[str, int],
    int,
    bytes,
    None,
    Any,
    object,
    Price,
    Annotated[int, "cents"],
    list[OrderPaid],
]


@pytest.mark.parametrize("event_type", TYPES, ids=repr)
@pytest.mark.parametrize("codec", ["msgpack", "json", "pickle"])
def test_survives_pickle(event_type: Any, codec: Any) -> None:
    """A topic equals its pickled and its copied self, in hash, fields and fingerprint."""
    topic: Topic[Any] = Topic("orders", event_type, capacity=1 << 14, schema="evolve", codec=codec)
    for again in (pickle.loads(pickle.dumps(topic)), copy.deepcopy(topic)):
        assert again == topic
        assert hash(again) == hash(topic)
        assert codec_of(again).fingerprint == codec_of(topic).fingerprint


def test_hashes_whatever_annotates_its_type() -> None:
    """A topic is hashable although the metadata of its type is not."""
    unhashable: Any = Annotated[int, ["cents"]]
    assert len({Topic("orders", unhashable), Topic("orders", unhashable)}) == 1


def test_defaults() -> None:
    """A topic of a name and a type is 1 MiB a ring, strict, and msgpack."""
    topic = Topic("orders", OrderPaid)
    assert (topic.capacity, topic.schema, topic.codec) == (1 << 20, "strict", "msgpack")


def test_compares_by_everything() -> None:
    """Topics that differ in name, type or any option are different."""
    variants: list[Topic[Any]] = [
        Topic("orders", OrderPaid),
        Topic("orders2", OrderPaid),
        Topic("orders", Opened),
        Topic("orders", OrderPaid, capacity=4096),
        Topic("orders", OrderPaid, schema="evolve"),
        Topic("orders", OrderPaid, codec="json"),
    ]
    assert len(set(variants)) == len(variants)
    assert Topic("orders", OrderPaid) == variants[0]


@pytest.mark.parametrize("field", ["name", "type", "capacity", "schema", "codec", "other"])
def test_is_immutable(field: str) -> None:
    """No field of a topic can be set or deleted."""
    topic = Topic("orders", OrderPaid)
    with pytest.raises((AttributeError, TypeError)):
        setattr(topic, field, 1)
    with pytest.raises((AttributeError, TypeError)):
        delattr(topic, field)


def test_repr_builds_it_again() -> None:
    """The repr names every option that is not the default and evaluates to an equal topic."""
    assert repr(Topic("orders", OrderPaid)) == "Topic('orders', OrderPaid)"
    topic = Topic("orders", OrderPaid, capacity=4096, schema="evolve", codec="json")
    assert repr(topic) == "Topic('orders', OrderPaid, capacity=4096, schema='evolve', codec='json')"
    assert eval(repr(topic)) == topic


@pytest.mark.parametrize("name", ["a", "0", "orders.eu-1_x", "a" * 48])
def test_good_names(name: str) -> None:
    """Names of the documented form are taken as they are."""
    assert Topic(name, int).name == name
    assert check_name("bus", name) == name


@pytest.mark.parametrize("name", ["AAPL", "md.AAPL", "camera/front", "a/b/C-1_x.y", "A" * 48, "a/" * 23 + "ab"])
def test_topic_names_have_capitals_and_slashes(name: str) -> None:
    """The name of a topic may have capitals and parts, that of a bus, which is part of file names, has neither."""
    assert Topic(name, int).name == name
    with pytest.raises(ConfigError, match="bus name must match"):
        check_name("bus", name)


@pytest.mark.parametrize("name", ["/a", "a/", "a//b", "/", "a/.b", "a/../b", "a/-b", "a/ b", "a:b", "A" * 49])
def test_bad_parts(name: str) -> None:
    """No part of a topic's name is empty, and each begins with a letter or a digit."""
    with pytest.raises(ConfigError, match=r"^topic name .*name=" + re.escape(repr(name))):
        Topic(name, int)


def test_capitals_tell_topics_apart() -> None:
    """Names that differ in capitals are two topics, with two dead-letter topics."""
    assert Topic("AAPL", int) != Topic("aapl", int)
    assert dead_letter_topic(Topic("camera/Front", int)).name == "camera/Front.dead"


BAD_NAMES: list[Any] = [
    "",
    ".a",
    "-a",
    "_a",
    "a" * 49,
    "a\n",
    "ä",
    "a b",
    "\ud800",
    "٣",
    b"a",
    None,
    3,
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_bad_names(name: Any) -> None:
    """Any other name is refused with the value and what it was for."""
    with pytest.raises(ConfigError, match=r"^topic name .*name=" + re.escape(repr(name))):
        Topic(name, int)
    with pytest.raises(ConfigError, match=r"^bus name "):
        check_name("bus", name)


@given(st.text(max_size=60) | st.text("aZ0/._-", max_size=60))
def test_names_are_what_the_regex_says(name: str) -> None:
    """Exactly the names that the documented expression matches in full are admitted."""
    part = "[A-Za-z0-9][A-Za-z0-9._-]*"
    forms: dict[Any, str] = {"bus": "[a-z0-9][a-z0-9._-]{0,47}", "topic": f"(?=.{{1,48}}$){part}(/{part})*"}
    for kind, form in forms.items():
        if re.fullmatch(form, name):
            assert check_name(kind, name) == name
        else:
            with pytest.raises(ConfigError):
                check_name(kind, name)


@pytest.mark.parametrize("capacity", [4096, 1 << 20, 1 << 40])
def test_good_capacities(capacity: int) -> None:
    """Powers of two from 4096 to 1 << 40 are capacities, and nothing is allocated for them."""
    assert Topic("t", int, capacity=capacity).capacity == capacity


BAD_CAPACITIES: list[Any] = [0, -4096, 1, 1000, 2048, 4097, 1 << 41, True, 4096.0, "4096", None]


@pytest.mark.parametrize("capacity", BAD_CAPACITIES)
def test_bad_capacities(capacity: Any) -> None:
    """Every other capacity is refused with its value."""
    with pytest.raises(ConfigError, match=re.escape(f"capacity={capacity!r}")):
        Topic("t", int, capacity=capacity)


@pytest.mark.parametrize(("option", "value"), [("schema", "lax"), ("schema", None), ("codec", "yaml"), ("codec", [])])
def test_bad_options(option: str, value: Any) -> None:
    """Unknown schemas and codecs are refused with the value and the known ones."""
    options: dict[str, Any] = {option: value}
    with pytest.raises(ConfigError, match=re.escape(f"{option}={value!r}")):
        Topic("t", int, **options)


NOWHERE: Any = "Nowhere"
BAD_TYPES: list[Any] = [
    Plain,
    complex,
    Opened | Untagged,
    5,
    "OrderPaid",
    list[Plain],
    list[NOWHERE],
    str | bytes,
]


@pytest.mark.parametrize("event_type", BAD_TYPES, ids=repr)
@pytest.mark.parametrize("codec", ["msgpack", "json"])
def test_bad_types(event_type: Any, codec: Any) -> None:
    """A type without a decoder is refused by name, before anything is opened."""
    with pytest.raises(ConfigError, match="type="):
        Topic("t", event_type, codec=codec)


def test_pickle_takes_any_class() -> None:
    """The codec pickle, asked for by name, admits a class unknown to msgspec, but nothing that is no type."""
    assert Topic("t", Plain, codec="pickle").type is Plain
    bad: Any = 5
    with pytest.raises(ConfigError, match="type=5"):
        Topic("t", bad, codec="pickle")


def test_dead_names_are_taken() -> None:
    """A name that ends in .dead is for dead letters only."""
    with pytest.raises(ConfigError, match=r"name='orders\.dead'"):
        Topic("orders.dead", OrderPaid)
    assert Topic("orders.dead", DeadLetter).type is DeadLetter


@pytest.mark.parametrize("capacity", [4096, 1 << 16, 1 << 20, 1 << 22])
def test_dead_letter_holds_the_largest_event(capacity: int) -> None:
    """The largest event of a topic, a quarter of its ring, fits in an event of its dead-letter topic."""
    dead = dead_letter_topic(Topic("orders", bytes, capacity=capacity))
    assert (dead.name, dead.type) == ("orders.dead", DeadLetter)
    letter = DeadLetter("r" * 256, 2**63, "p" * 63, 2**63, b"x" * (capacity // 4), "t" * 48, "g" * 63, 2**63)
    encode = codec_of(dead).encode
    assert encode is not None
    assert len(encode(letter)) + 256 <= dead.capacity // 4


def test_dead_letter_names_need_room() -> None:
    """A base name of 43 characters has a dead-letter topic, one of 44 has none and says so."""
    assert dead_letter_topic(Topic("a" * 43, int)).name == "a" * 43 + ".dead"
    with pytest.raises(ConfigError, match="at most 43"):
        dead_letter_topic(Topic("a" * 44, int))
    assert dead_letter_topic(Topic("a", int, capacity=1 << 40)).capacity == 1 << 40


@pytest.mark.parametrize("label", ["a", "Audit 2", "ä" * 31, "x" * 63, "eu/west:1"])
def test_good_labels(label: str) -> None:
    """Printable labels of at most 63 bytes are taken as they are."""
    assert check_label("group", label) == label


BAD_LABELS: list[Any] = [
    "",
    " a",
    "a ",
    "a\n",
    "a\0b",
    "x" * 64,
    "ä" * 32,
    "\ud800",
    "\x1b[0m",
    b"a",
    None,
    1,
]


@pytest.mark.parametrize("label", BAD_LABELS, ids=repr)
def test_bad_labels(label: Any) -> None:
    """Any other label is refused with the value and what it was for."""
    with pytest.raises(ConfigError, match=r"^group name .*name=" + re.escape(repr(label))):
        check_label("group", label)
