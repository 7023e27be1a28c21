"""What a queue writes without pickle comes back as pickle would have it."""

from __future__ import annotations

import math
import pickle
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmbus import _core
from shmbus.errors import CorruptSegmentError

_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()))  # half a surrogate pair is text too
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.frozensets(st.integers())
)
_keys = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.tuples(st.integers(), st.text())
_trees = st.recursive(
    _leaves,
    lambda inner: (
        st.lists(inner) | st.dictionaries(_keys, inner) | st.lists(inner).map(tuple) | st.tuples(inner, inner)
    ),
    max_leaves=30,
)


def _same(one: Any, other: Any) -> bool:
    """Equal, and of the same types in the same order all through."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        pairs = zip(one.items(), other.items(), strict=True)
        return len(one) == len(other) and all(_same(a, c) and _same(b, d) for (a, b), (c, d) in pairs)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float):
        return (one == other and math.copysign(1, one) == math.copysign(1, other)) or (one != one and other != other)
    return bool(one == other)


@settings(max_examples=400, deadline=None)
@given(_trees)
def test_as_pickle_has_it(tree: Any) -> None:
    """What is written comes back with the very types, in order; what is not is for pickle."""
    tree = pickle.loads(pickle.dumps(tree))  # each container once, but those that pickle has found to be one
    written = _core.plain(tree)
    if written is not None:
        assert _same(_core.unplain(written), tree)


@pytest.mark.parametrize(
    "tree",
    [{"a": [1, -2, 2**63 - 1, -(2**63)], "b": ({}, (), [], b"", "")}, "x", 0, 127, 128, None, True, -0.0, {1: 2}],
)
def test_what_is_plain(tree: Any) -> None:
    """What people put, mostly, is written without pickle."""
    written = _core.plain(tree)
    assert written is not None
    assert _same(_core.unplain(written), tree)


def _shared() -> list[Any]:
    inner: list[Any] = []
    return [inner, inner]


def _within_itself() -> list[Any]:
    outer: list[Any] = []
    outer.append(outer)
    return outer


def _deep() -> Any:
    tree: Any = 1
    for _ in range(40):
        tree = [tree]
    return tree


class _Text(str):
    pass


@pytest.mark.parametrize(
    "tree",
    [
        _shared(),
        _within_itself(),
        _deep(),
        2**63,
        _Text("x"),
        bytearray(b"x"),
        {1, 2},
        1j,
        "\ud800",
        "x" * 5000,
        [b"x" * 50] * 100,
        {"a": _Text("b")},
    ],
    ids=repr,
)
def test_what_is_for_pickle(tree: Any) -> None:
    """Subclasses, what is there twice or within itself, and what is large is left to pickle."""
    assert _core.plain(tree) is None


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=60) | _trees.map(lambda tree: _core.plain(tree) or b""), st.integers(0, 60), st.binary())
def test_damage_is_told(written: bytes, at: int, more: bytes) -> None:
    """Bytes that nobody wrote are refused, or are some value; never more than that."""
    damaged = b"\1" + written[1:at] + more + written[at + 1 :]
    for bytes_ in (damaged, damaged[:at] or b"\1", damaged + b"\0"):
        with suppress(CorruptSegmentError, TypeError, UnicodeDecodeError):
            _core.unplain(b"\1" + bytes_[1:])
