"""Events as the plain values that a library of another format takes, and back.

Pure. What must stay true: what `of` makes of an event, `back` makes into an equal one, or `of` refuses it.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from shmbus._schema.description import OBJECTS, Description, Node, describe, parse
from shmbus.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

_TIMES: Final = (bytes, bytearray, datetime.datetime, datetime.date, datetime.time)
"""What goes as it is: the formats have types of their own for these; one of them has for UUIDs too."""


def shape(type: Any) -> Description:
    """What a type looks like. Raises ConfigError for one that msgspec does not know."""
    try:
        return parse(describe(type, "msgpack"))
    except ConfigError:
        raise
    except Exception as error:  # msgspec reads annotations, so anything may come out of them
        raise ConfigError(f"no schema for type={type!r}: {error}") from error


def of(event: Any, *kept: Any) -> Any:
    """An event as dicts, lists and scalars. Raises ValueError for a time without a zone: it would come back in UTC."""
    return _zoned(msgspec.to_builtins(event, builtin_types=(*_TIMES, *kept)))


def back(type: Any, *kept: Any) -> Callable[[Any], Any]:
    """What makes events of such values; raises msgspec.ValidationError."""
    return lambda value: msgspec.convert(value, type, builtin_types=(*_TIMES, *kept))


def require_by_name(node: Node, codec: str) -> None:
    """Raise ConfigError for an object whose fields are known by their places, or may be missing."""
    if node.array_like:
        raise ConfigError(f"codec {codec} knows fields by their names: {node.title} is array-like")
    for field in node.fields:
        if field.omissible:
            raise ConfigError(f"codec {codec} writes every field: {node.title}.{field.name} may be left out")


def optional(schema: Description, node: Node) -> tuple[Node, bool]:
    """The one type that a union with None has beside it, and True; of anything else itself, and False."""
    members = [member for member in node.of if schema.resolve(member).kind != "null"]
    if node.kind == "union" and len(members) == 1:
        return members[0], True
    return node, False


def is_object(node: Node) -> bool:
    """It has fields."""
    return node.kind in OBJECTS


def _zoned(value: Any) -> Any:
    if isinstance(value, datetime.datetime | datetime.time):
        if isinstance(value, datetime.datetime) and value.tzinfo is None:
            raise ValueError(f"a time without a zone would come back in UTC: {value!r}")
        if isinstance(value, datetime.time) and value.tzinfo is not None:
            raise ValueError(f"a time of day has no zone in this format: {value!r}")
    elif isinstance(value, dict):
        for part in value.values():
            _zoned(part)
    elif isinstance(value, list):
        for part in value:
            _zoned(part)
    return value
