"""Columns: where the fields of a record lie, as its schema says.

Pure; asked by whoever describes a type, and read back by tools that never saw it. What must stay true: the columns of a
description depend on nothing but its fields, so that two processes that agree on these agree on every byte; records are
packed, little-endian, and as long as their columns together.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, cast

import msgspec

from shmbus.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shmbus._schema.description import Node

MAX_RECORD: Final = 1 << 24  # bytes; a ring that admits more is larger than any that holds a batch of them
_DEEPEST: Final = 16  # Structs inside of Structs; a recursive one has no end
_INT_LIMIT: Final = 1 << 64
_PACKED: Final = {
    "?": "?",
    "<f8": "<d",
    **{f"<i{size}": f"<{letter}" for size, letter in zip((1, 2, 4, 8), "bhiq", strict=True)},
    **{f"<u{size}": f"<{letter}" for size, letter in zip((1, 2, 4, 8), "BHIQ", strict=True)},
}
"""What `struct` calls the columns that are numbers."""


class Column(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One field of a record, under its name on the wire."""

    name: str
    code: str
    """As NumPy writes it: "<i8", "<u4", "<f8", "?", "S8"; "V29" for a record inside of a record."""
    of: tuple[Column, ...] = ()
    text: bool = False
    """What an S column holds is UTF-8."""

    def __post_init__(self) -> None:
        known = self.code in _PACKED or self.code in (f"S{self.size}", f"V{self.size}")
        if not known or (self.code[0] == "V") != bool(self.of) or not 1 <= self.size <= MAX_RECORD:
            raise ValueError(f"no such column: {self.code!r}")
        if self.of and width(self.of) != self.size:
            raise ValueError(f"columns of {width(self.of)} bytes in {self.code!r}")

    @property
    def size(self) -> int:
        """Bytes."""
        digits = self.code.lstrip("<>=|SVfiu")
        return int(digits) if digits.isascii() and digits.isdigit() else int(self.code == "?")


class Bounds(NamedTuple):
    """The smallest and the largest integer that a column takes."""

    low: int
    high: int


def width(columns: tuple[Column, ...]) -> int:
    """Bytes of a record."""
    return sum(column.size for column in columns)


def columns_of(root: Node, resolve: Callable[[Node], Node]) -> tuple[Column, ...]:
    """The columns of a Struct. Raises `ConfigError` that names the first field that has no fixed size."""
    node = resolve(root)
    if node.kind != "struct":
        raise ConfigError(f"codec='record' takes the fields of one msgspec.Struct: type={node.title or node.kind}")
    found = _fields(node.title or "event", node, resolve, 0)
    if width(found) > MAX_RECORD:
        raise ConfigError(f"a record has at most {MAX_RECORD} bytes, not {width(found)}: type={node.title}")
    return found


def _fields(path: str, node: Node, resolve: Callable[[Node], Node], depth: int) -> tuple[Column, ...]:
    if not node.fields:
        raise ConfigError(f"a record has at least one field, and {path} has none")
    return tuple(_column(f"{path}.{field.name}", field.name, field.type, resolve, depth) for field in node.fields)


def _column(path: str, name: str, given: Node, resolve: Callable[[Node], Node], depth: int) -> Column:
    node = resolve(given)
    if node.kind == "struct":
        if depth == _DEEPEST:
            _refuse(path, "it is nested without an end, or too deeply")
        inner = _fields(path, node, resolve, depth + 1)
        return Column(name, f"V{width(inner)}", inner)
    if node.kind == "enum":
        return _choice(path, name, node)
    if node.kind == "boolean":
        return Column(name, "?")
    if node.kind == "number":
        return Column(name, "<f8")
    if node.kind == "integer":
        return Column(name, integer_code(*bounds(path, node.limits)))
    if node.kind in ("string", "bytes"):
        room = node.limits.get("max_length")
        if not isinstance(room, int) or room < 1:
            kind = "str" if node.kind == "string" else "bytes"
            _refuse(path, f"{kind} needs its room in bytes: Annotated[{kind}, Meta(max_length=...)], at least 1")
        return Column(name, f"S{room}", text=node.kind == "string")
    _refuse(path, f"{'a union, as X | None,' if node.kind == 'union' else node.kind} has none")


def _choice(path: str, name: str, node: Node) -> Column:
    """An enum or a literal is as wide as its widest value."""
    values = node.values
    if values and all(type(value) is int for value in values):
        numbers = cast("tuple[int, ...]", values)
        return Column(name, integer_code(*_within(path, min(numbers), max(numbers))))
    if values and all(type(value) is str for value in values):
        texts = cast("tuple[str, ...]", values)
        if bad := next((text for text in texts if text.endswith("\0")), None):
            _refuse(path, f"{bad!r} ends with the character that fills a column")
        return Column(name, f"S{max(1, *(len(text.encode()) for text in texts))}", text=True)
    _refuse(path, "an enum or literal is of integers or of strings alone")


def bounds(path: str, limits: Mapping[str, Any]) -> Bounds:
    """What the limits of an integer leave of 64 bits, of signed ones where nothing says that none is below 0."""
    lows = [int(limits["ge"])] if "ge" in limits else []
    lows += [int(limits["gt"]) + 1] if "gt" in limits else []
    highs = [int(limits["le"])] if "le" in limits else []
    highs += [int(limits["lt"]) - 1] if "lt" in limits else []
    low = max(lows, default=-(1 << 63))
    high = min(highs, default=(_INT_LIMIT if low >= 0 else _INT_LIMIT >> 1) - 1)
    if low > high:
        _refuse(path, f"no integer is within its limits, {low} to {high}")
    return _within(path, low, high)


def _within(path: str, low: int, high: int) -> Bounds:
    if low < -(1 << 63) or high >= (_INT_LIMIT if low >= 0 else _INT_LIMIT >> 1):
        _refuse(path, f"no integer of 64 bits holds {low} to {high}")
    return Bounds(low, high)


def integer_code(low: int, high: int) -> str:
    """The smallest integer type that holds both; the unsigned one of two that are as small."""
    for size in (1, 2, 4, 8):
        if low >= 0 and high < 1 << 8 * size:
            return f"<u{size}"
        if -(1 << 8 * size - 1) <= low and high < 1 << 8 * size - 1:
            return f"<i{size}"
    raise ValueError(f"no integer type holds {low} to {high}")


def _refuse(path: str, why: str) -> NoReturn:
    raise ConfigError(f"codec='record' needs fields of a fixed size: {path}: {why}")


# -- for tools that have no class to make of it


def unpack(columns: tuple[Column, ...], payload: bytes | memoryview) -> dict[str, Any]:
    """A record as builtins, by name. Raises `msgspec.DecodeError` for a payload of another length."""
    if len(payload) != width(columns):
        raise msgspec.DecodeError(f"a record of {width(columns)} bytes, and the payload has {len(payload)}")
    found, at = {}, 0
    for column in columns:
        found[column.name] = _value(column, bytes(payload[at : at + column.size]))
        at += column.size
    return found


def _value(column: Column, cell: bytes) -> Any:
    if column.of:
        return unpack(column.of, cell)
    if column.code[0] == "S":
        cell = cell.rstrip(b"\0")
        return cell.decode("utf-8", "replace") if column.text else cell
    return struct.unpack(_PACKED[column.code], cell)[0]


def pack(columns: tuple[Column, ...], value: Mapping[str, Any]) -> bytes:
    """The record of builtins, by name. Raises `ConfigError` for what has no place in it."""
    return b"".join(_cell(column, value) for column in columns)


def _cell(column: Column, values: Mapping[str, Any]) -> bytes:
    if column.name not in values:
        raise ConfigError(f"a record has every field, and {column.name} is missing")
    value = values[column.name]
    if column.of:
        return pack(column.of, value)
    if column.code[0] != "S":
        try:
            return struct.pack(_PACKED[column.code], value)
        except (struct.error, OverflowError) as error:
            raise ConfigError(f"{column.name}: {value!r} does not fit {column.code}: {error}") from error
    cell = value.encode() if isinstance(value, str) else bytes(value)
    if len(cell) > column.size or cell.endswith(b"\0"):
        raise ConfigError(f"{column.name}: {value!r} has no room in {column.size} bytes, or ends with NUL")
    return cell.ljust(column.size, b"\0")
