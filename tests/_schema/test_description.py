"""Descriptions: the same for the same definition, another for every change that a receiver could notice."""

from __future__ import annotations

import datetime
import decimal
import itertools
import json
import uuid
from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import UNSET, Meta, UnsetType
from schemas import (
    CODECS,
    Box,
    Closed,
    Colour,
    Data,
    Item,
    Node,
    Opened,
    Pair,
    Row,
    order,
)

from shmbus._schema.compare import admits, describe, difference

SOURCE = '''
import msgspec
class Item(msgspec.Struct):
    """{doc}"""
    sku: str
    tags: list[str] = []
class OrderPaid(msgspec.Struct, tag=True):
    items: list[Item]
    box: dict[str, Item] = {{}}
    made: tuple[Item, ...] = msgspec.field(default_factory=tuple)
    cents: int = 0
'''


def from_module(name: str, doc: str) -> Any:
    module: dict[str, Any] = {"__name__": name}
    exec(compile(SOURCE.format(doc=doc), name, "exec", dont_inherit=True), module)
    return module["OrderPaid"]


@pytest.mark.parametrize("codec", [*CODECS, "pickle"])
def test_description_is_the_same_in_every_module(codec: str) -> None:
    """The same definition in two modules, with other docstrings, gives the same bytes."""
    assert describe(from_module("shop.a", "One."), codec) == describe(from_module("main", "Other."), codec)


def test_description_is_canonical_json() -> None:
    """A description is compact JSON with sorted keys that names no module."""
    for event_type in (Item, Node, Box[Item], Opened | Closed, dict[int, Colour]):
        text = describe(event_type, "msgpack").decode()
        assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert __name__ not in text


VARIANTS: list[Any] = [
    order(("a", int), ("b", str)),
    order(("b", str), ("a", int)),
    order(("a", int), ("c", str)),
    order(("a", int), ("b", int)),
    order(("a", int), ("b", str, "")),
    order(("a", int), ("b", str, "x")),
    order(("a", int), ("b", str, None)),
    order(("a", int), ("b", str, msgspec.field(default_factory=str))),
    order(("a", int), ("b", str | None)),
    order(("a", int), ("b", str | UnsetType, UNSET)),
    order(("a", int)),
    order(("a", int), ("b", str), name="Order"),
    order(("a", int), ("b", str), tag=True),
    order(("a", int), ("b", str), tag=1),
    order(("a", int), ("b", str), tag=True, tag_field="kind"),
    order(("a", int), ("b", str), array_like=True),
    order(("a", int), ("b", str), forbid_unknown_fields=True),
    order(("a", int), ("b", str, ""), omit_defaults=True),
    order(("a", int), ("b", str), rename={"b": "B"}),
    order(("a", Annotated[int, Meta(ge=0)]), ("b", str)),
    order(("a", Annotated[int, Meta(ge=1)]), ("b", str)),
    order(("a", Annotated[int, Meta(title="A")]), ("b", str)),
    list[int],
    set[int],
    frozenset[int],
    tuple[int, ...],
    tuple[int],
    tuple[int, int],
    dict[str, int],
    dict[int, int],
    int,
    float,
    str,
    bool,
    None,
    Any,
    bytes,
    bytes | None,
    bytearray,
    datetime.datetime,
    Annotated[datetime.datetime, Meta(tz=True)],
    datetime.date,
    datetime.timedelta,
    uuid.UUID,
    decimal.Decimal,
    Literal[1],
    Literal[True],
    Literal["1"],
    Literal[1, 2],
    Colour,
    Opened,
    Opened | Closed,
    Opened | Closed | None,
    Row,
    Data,
    Pair,
    Box[int],
    Box[str],
    Box,
    Node,
]


@pytest.mark.parametrize("codec", CODECS)
def test_every_change_counts(codec: str) -> None:
    """Types that differ in what a receiver could notice differ in description, and each difference told."""
    described = [describe(variant, codec) for variant in VARIANTS]
    assert len(set(described)) == len(described)
    for ours, theirs in itertools.permutations(described, 2):
        lines = difference(ours, theirs)
        assert lines
        assert all(lines)
    assert all(difference(one, one) == [] for one in described)


def test_prose_does_not_count() -> None:
    """Descriptions, examples and extra data in annotations change nothing."""
    plain = Annotated[int, Meta(ge=1)]
    spoken = Annotated[int, Meta(ge=1, description="cents", examples=[1], extra={"unit": "EUR"})]
    assert describe(order(("a", plain)), "msgpack") == describe(order(("a", spoken)), "msgpack")


def test_order_of_a_union_does_not_count() -> None:
    """A | B and B | A are one schema."""
    assert describe(Opened | Closed | None, "json") == describe(None | Closed | Opened, "json")


def test_two_classes_of_one_name() -> None:
    """Two classes of the same name within one type stay apart."""
    inner = order(("a", int), name="Item")
    text = describe(order(("x", inner), ("y", Item)), "msgpack").decode()
    assert len(json.loads(text)["defs"]) == 3


def test_pickle_and_raw_descriptions() -> None:
    """Pickle is described by the qualified class name alone, and raw bytes are the same under every codec."""
    assert json.loads(describe(Item, "pickle")) == {
        "codec": "pickle",
        "root": {"kind": "python", "title": "Item"},
    }
    assert len({describe(bytes, codec) for codec in (*CODECS, "pickle")}) == 1


@pytest.mark.parametrize("codec", CODECS)
def test_admits_itself(codec: str) -> None:
    """Every type reads itself."""
    for variant in VARIANTS:
        assert admits(describe(variant, codec), describe(variant, codec)) == []
