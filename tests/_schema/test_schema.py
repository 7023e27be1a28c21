"""Schemas beside each other: where two differ, and who can read what the other writes."""

from __future__ import annotations

import itertools
import uuid
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET, Meta, UnsetType
from schemas import (
    CODECS,
    CORNERS,
    TYPED,
    Closed,
    Colour,
    Data,
    Item,
    Node,
    Opened,
    Pair,
    Row,
    Typed,
    decode,
    encode,
    order,
    structs,
)

from shmbus._schema.compare import admits, describe, difference

# --- difference


def test_difference_reads_well() -> None:
    """Each line names the class, the field, and what either side has there."""
    ours = order(("order_id", int), ("cents", int), ("item", Item), ("tags", list[str], []))
    other_item = order(("sku", int), ("weight", float), name="Item")
    theirs = order(("order_id", int), ("cents", str), ("item", other_item), ("note", str), tag="paid")
    assert difference(describe(ours, "msgpack"), describe(theirs, "json")) == [
        "codec: ours msgpack, theirs json",
        "OrderPaid: ours tag_field None, theirs tag_field 'type'",
        "OrderPaid: ours tag None, theirs tag 'paid'",
        "OrderPaid.cents: ours integer, theirs string",
        "Item.sku: ours string, theirs integer",
        "Item.weight: ours default 1.0, theirs required",
        "OrderPaid.tags: only in ours",
        "OrderPaid.note: only in theirs",
    ]


@pytest.mark.parametrize(
    ("ours", "theirs", "line"),
    [
        (int, str, "event: ours integer, theirs string"),
        (list[int], list[str], "event[]: ours integer, theirs string"),
        (dict[str, int], dict[str, str], "event{}: ours integer, theirs string"),
        (tuple[int, int], tuple[int, str], "event[1]: ours integer, theirs string"),
        (list[int], dict[str, int], "event: ours list of integer, theirs dict of string to integer"),
        (int | None, int | str, "event: null only in ours"),
        (Opened | Closed, Opened | None, "event: Closed only in ours"),
        (Colour, Literal["red"], "event: ours Colour ('blue', 'red'), theirs enum ('red')"),
        (Annotated[int, Meta(ge=0)], int, "event: ours integer (ge 0), theirs integer"),
        (
            order(("a", int), ("b", int)),
            order(("b", int), ("a", int)),
            "OrderPaid: field order: ours a, b, theirs b, a",
        ),
        (
            Item,
            order(("sku", str), ("weight", float, 1.0)),
            "Item: ours struct Item, theirs struct OrderPaid",
        ),
    ],
)
def test_difference_lines(ours: Any, theirs: Any, line: str) -> None:
    """Every kind of difference has its line."""
    assert line in difference(describe(ours, "msgpack"), describe(theirs, "msgpack"))


# --- admits


ADMITTED: list[tuple[Any, Any, Any]] = [  # reader, writer, sample of the writer
    (order(("a", int), ("b", int, 0)), order(("a", int)), (1,)),
    (order(("a", int)), order(("a", int), ("b", int)), (1, 2)),
    (order(("b", int), ("a", int)), order(("a", int), ("b", int)), (1, 2)),
    (order(("a", int)), order(("a", int), name="Renamed"), (1,)),
    (order(("a", float)), order(("a", int)), (1,)),
    (order(("a", int | None)), order(("a", int)), (1,)),
    (order(("a", int | str)), order(("a", Literal["x", 1])), ("x",)),
    (order(("a", Literal["x"] | int)), order(("a", Literal["x", 1])), ("x",)),
    (order(("a", str)), order(("a", Colour)), (Colour.RED,)),
    (order(("a", str)), order(("a", uuid.UUID)), (uuid.UUID(int=1),)),
    (order(("a", set[int])), order(("a", list[int])), ([1, 1],)),
    (order(("a", list[float])), order(("a", tuple[int, int])), ((1, 2),)),
    (order(("a", Any)), order(("a", Item)), (Item("x"),)),
    (order(("a", dict[str, Any])), order(("a", Item)), (Item("x"),)),
    (order(("a", int), ("b", int, 0), array_like=True), order(("a", int), array_like=True), (1,)),
    (order(("a", int), array_like=True), order(("a", int), ("b", int), array_like=True), (1, 2)),
    (order(("a", int, 0)), order(("a", int, 0), omit_defaults=True), (0,)),
    (order(("a", int)), order(("a", int), tag=True), (1,)),
    (order(("a", int), tag=True), order(("a", int)), (1,)),
    (order(("a", Opened | Closed)), order(("a", Closed)), (Closed(1),)),
    (order(("a", Annotated[int, Meta(ge=0)])), order(("a", Annotated[int, Meta(ge=1)])), (1,)),
    (order(("a", Row)), order(("a", order(("a", int)))), (order(("a", int))(1),)),
    (order(("a", Data)), order(("a", order(("a", int), name="Data"))), (order(("a", int))(1),)),
    (dict, order(("a", int), tag=True), (1,)),
    (list, order(("a", int), tag=True, array_like=True), (1,)),
    (Node, Node, ("x", [Node("y")])),
]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("reader", "writer", "sample"), ADMITTED)
def test_admits(reader: Any, writer: Any, sample: tuple[Any, ...], codec: str) -> None:
    """What is admitted decodes, shown by writing with the one and reading with the other."""
    assert admits(describe(reader, codec), describe(writer, codec)) == []
    decode(codec, encode(codec, writer(*sample)), reader)


REFUSED: list[tuple[Any, Any, Any, str]] = [  # reader, writer, sample of the writer that does not decode, line
    (
        order(("a", int), ("b", int)),
        order(("a", int)),
        (1,),
        "OrderPaid.b: ours requires it, theirs lacks it",
    ),
    (order(("a", int)), order(("a", str)), ("x",), "OrderPaid.a: ours integer, theirs string"),
    (order(("a", int)), order(("a", float)), (1.5,), "OrderPaid.a: ours integer, theirs number"),
    (order(("a", int)), order(("a", int | None)), (None,), "OrderPaid.a: ours integer, theirs null"),
    (order(("a", int)), order(("a", Any)), ("x",), "OrderPaid.a: ours integer, theirs any"),
    (
        order(("a", int), forbid_unknown_fields=True),
        order(("a", int), ("b", int)),
        (1, 2),
        "OrderPaid.b: only in theirs, ours forbids it",
    ),
    (
        order(("a", int), forbid_unknown_fields=True),
        order(("a", int), tag=True),
        (1,),
        "OrderPaid.type: only in theirs, ours forbids it",
    ),
    (
        order(("a", int)),
        order(("a", int, 0), omit_defaults=True),
        (0,),
        "OrderPaid.a: ours requires it, theirs may leave it out",
    ),
    (
        order(("a", int)),
        order(("a", int | UnsetType, UNSET)),
        (),
        "OrderPaid.a: ours requires it, theirs may leave it out",
    ),
    (
        order(("a", int), tag="x"),
        order(("a", int), tag="y"),
        (1,),
        "OrderPaid.type: ours enum ('x'), theirs enum ('y')",
    ),
    (
        order(("a", str), ("b", int), array_like=True),
        order(("b", int), ("a", str), array_like=True),
        (1, "x"),
        "OrderPaid[0]: ours a, theirs b",
    ),
    (
        order(("a", int), ("b", int), array_like=True),
        order(("a", int), array_like=True),
        (1,),
        "OrderPaid[1]: ours requires b, theirs lacks it",
    ),
    (
        order(("a", int)),
        order(("a", int), array_like=True),
        (1,),
        "event: ours array_like False, theirs array_like True",
    ),
    (
        order(("p", Pair)),
        order(("p", tuple[int, int, int])),
        ((1, 2, 3),),
        "OrderPaid.p: ours Pair, theirs tuple",
    ),
    (
        Opened | Closed,
        order(("at", int)),
        (1,),
        "event: ours Closed | Opened, theirs OrderPaid",
    ),
    (
        order(("a", Annotated[int, Meta(ge=1)])),
        order(("a", int)),
        (0,),
        "OrderPaid.a: ours integer (ge 1), theirs integer",
    ),
    (
        order(("a", Literal["x"])),
        order(("a", Colour)),
        (Colour.RED,),
        "OrderPaid.a: ours enum ('x'), theirs Colour",
    ),
    (Node, order(("name", int), ("kids", list[Node])), (1, []), "Node.name: ours string, theirs integer"),
]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("reader", "writer", "sample", "line"), REFUSED)
def test_refuses(reader: Any, writer: Any, sample: tuple[Any, ...], line: str, codec: str) -> None:
    """What is refused fails to decode for some event, and the line says where."""
    lines = admits(describe(reader, codec), describe(writer, codec))
    assert any(found.startswith(line) for found in lines), lines
    with pytest.raises(msgspec.ValidationError):
        decode(codec, encode(codec, writer(*sample)), reader)


def test_array_like_names_must_stay() -> None:
    """Swapped names in an array-like type are refused even where msgspec would mistake one for the other."""
    ours, theirs = (
        order(("a", int), ("b", int), array_like=True),
        order(("b", int), ("a", int), array_like=True),
    )
    assert admits(describe(ours, "msgpack"), describe(theirs, "msgpack"))


def test_codecs_do_not_mix() -> None:
    """No schema of one codec admits one of another, and a pickle topic admits its own class only."""
    assert admits(describe(Item, "json"), describe(Item, "msgpack")) == ["codec: ours json, theirs msgpack"]
    assert admits(describe(Item, "pickle"), describe(Item, "pickle")) == []
    assert admits(describe(Item, "pickle"), describe(Node, "pickle"))


@given(st.data(), st.sampled_from(CODECS))
@settings(max_examples=60, deadline=None)
def test_admitted_types_decode(data: st.DataObject, codec: str) -> None:
    """For any two types, if the one admits the other then it decodes every event of it."""
    typed = data.draw(st.lists(st.tuples(*[structs(TYPED)] * 2).map(list), min_size=2, max_size=4))
    drawn = [(event_type, data.draw(values)) for pair in typed for event_type, values in pair]
    described = [(event_type, describe(event_type, codec), event) for event_type, event in drawn]
    for (reader, ours, _), (_, theirs, event) in itertools.permutations(described, 2):
        if not admits(ours, theirs):
            decode(codec, encode(codec, event), reader)


@pytest.mark.parametrize("codec", CODECS)
def test_admitted_leaves_decode(codec: str) -> None:
    """Among simple types and their unions, what is admitted decodes at the ends of the value range too."""
    typed = [*CORNERS, *((t | None, [*v, None]) for t, v in CORNERS if t is not None and t is not Any)]
    for (reader, _), (writer, values) in itertools.product(typed, typed):
        if not admits(describe(reader, codec), describe(writer, codec)):
            for value in values:
                decode(codec, encode(codec, value), reader)


@given(TYPED, TYPED)
@settings(max_examples=100, deadline=None)
def test_difference_is_never_silent(ours: Typed, theirs: Typed) -> None:
    """Two descriptions differ exactly when there is a line that says so."""
    one, other = describe(ours[0], "msgpack"), describe(theirs[0], "msgpack")
    assert bool(difference(one, other)) == (one != other)
