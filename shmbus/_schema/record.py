"""The codec of a topic with `codec="record"`: a table of the columns of a Struct, for `_core.RecordCodec`.

Pure; built once for each topic. What must stay true: what the encoder takes, the decoder gives back equal; the limits
of a field hold on both sides.
"""

from __future__ import annotations

import math
import re
import types
import typing
from typing import Any, Final

import msgspec

from shmbus import _core
from shmbus._schema.columns import Column, bounds, width
from shmbus._schema.description import parse

BOOL, INT, UINT, FLOAT, STR, BYTES, STRUCT = range(7)
"""As in record.h."""
_KINDS: Final = {"?": BOOL, "<i": INT, "<u": UINT, "<f": FLOAT}


def record_codec(event_type: Any, description: bytes) -> _core.RecordCodec:
    """The encoder and decoder of a type that `describe` has described."""
    return _struct(msgspec.inspect.type_info(event_type), parse(description).columns)


def _struct(info: Any, columns: tuple[Column, ...]) -> _core.RecordCodec:
    info = _bare(info)
    cls = typing.get_origin(info.cls) or info.cls
    table, offset = [], 0
    for field, column in zip(info.fields, columns, strict=True):
        table.append((_slot(cls, field.name), field.encode_name, offset, column.size, *_entry(field.type, column)))
        offset += column.size
    return _core.RecordCodec(cls, width(columns), table, getattr(cls, "__post_init__", None))


def _bare(info: Any) -> Any:
    while isinstance(info, msgspec.inspect.Metadata):
        info = info.type
    return info


def _slot(cls: type, name: str) -> types.MemberDescriptorType:
    """What reads the field from its place in the object, whatever a subclass has put over the name."""
    found = (base.__dict__.get(name) for base in cls.__mro__)
    return next(one for one in found if isinstance(one, types.MemberDescriptorType))


def _entry(info: Any, column: Column) -> tuple[Any, ...]:
    """kind, low, high, multiple, shortest, pattern, choices, class of the choices, codec of what is nested."""
    info = _bare(info)
    if isinstance(info, msgspec.inspect.StructType):
        return STRUCT, 0, 0, 0, 0, None, None, None, _struct(info, column.of)
    kind = (STR if column.text else BYTES) if column.code[0] == "S" else _KINDS[column.code[:2]]
    if isinstance(info, msgspec.inspect.EnumType):
        return _choice(kind, {member.value: member for member in info.cls}, info.cls)
    if isinstance(info, msgspec.inspect.LiteralType):
        return _choice(kind, {value: value for value in info.values}, None)
    limits = {name: getattr(info, name, None) for name in ("ge", "gt", "le", "lt", "multiple_of")}
    given = {name: limit for name, limit in limits.items() if limit is not None}
    multiple = given.pop("multiple_of", 0)
    if kind in (INT, UINT):
        return kind, *bounds(column.name, given), multiple, 0, None, None, None, None
    if kind == FLOAT:
        return kind, *_between(given), float(multiple), 0, None, None, None, None
    pattern = getattr(info, "pattern", None)
    shortest = getattr(info, "min_length", None) or 0
    return kind, 0, 0, 0, shortest, re.compile(pattern).search if pattern else None, None, None, None


def _choice(kind: int, choices: dict[Any, Any], cls: type | None) -> tuple[Any, ...]:
    low, high = (min(choices), max(choices)) if kind in (INT, UINT) else (0, 0)
    return kind, low, high, 0, 0, None, choices, cls, None


def _between(limits: dict[str, float]) -> tuple[float, float]:
    """The limits of a float, both inclusive."""
    lows = [float(limits[name]) for name in ("ge",) if name in limits]
    lows += [math.nextafter(limits[name], math.inf) for name in ("gt",) if name in limits]
    highs = [float(limits[name]) for name in ("le",) if name in limits]
    highs += [math.nextafter(limits[name], -math.inf) for name in ("lt",) if name in limits]
    return max(lows, default=-math.inf), min(highs, default=math.inf)
