"""JSON values for a topic known only by its stored description, and payloads of a topic of unknown type.

Pure; used by tools that never saw the event's class. What must stay true: what `conform` returns, encoded by
the topic's codec, is accepted by the typed decoder at the other end; no pickle is ever loaded here.
"""

from __future__ import annotations

import datetime
import decimal
import functools
import uuid
from typing import TYPE_CHECKING, Annotated, Any, cast

import msgspec

from shmbus._schema import columns, foreign
from shmbus._schema.description import MAPPINGS, OBJECTS, SEQUENCES, Description, Field, Node, parse, words
from shmbus.errors import ConfigError, CorruptSegmentError

if TYPE_CHECKING:
    from collections.abc import Callable

_SCALARS: dict[str, Any] = {
    "null": None,
    "boolean": bool,
    "integer": int,
    "number": float,
    "string": str,
    "bytes": bytes,
    "bytearray": bytes,
    "memoryview": bytes,
    "datetime": datetime.datetime,
    "date": datetime.date,
    "time": datetime.time,
    "timedelta": datetime.timedelta,
    "uuid": uuid.UUID,
    "decimal": decimal.Decimal,
}
_JSON_WORDS = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number"}
_EMPTY: dict[str, Any] = {"list": [], "set": [], "frozenset": [], "tuple": [], "dict": {}}


def conform(value: Any, description: bytes) -> Any:
    """Check a JSON value against a stored description and return what to encode in its place.

    Strings become bytes (from base64), timestamps, UUIDs and the like where the schema says so; keys of a
    dict get their type; array-like objects, given by field name or in order, become lists; a tag that is left
    out is filled in. Unknown fields are errors, since here they are misspellings. Raises `ConfigError` with
    the path, e.g. "$.cents: expected integer, got string 'x'", and `CorruptSegmentError` for bytes that are
    no description.
    """
    schema = parse(description)
    if schema.codec == "pickle":
        raise ConfigError(f"events of a pickle topic cannot be made from JSON: type={schema.root.title}")
    if schema.foreign is not None:
        return value  # its encoder checks it
    try:
        return _Conformer(schema).node("$", schema.root, value)
    except RecursionError as error:
        raise ConfigError("$: nested too deeply") from error


def decode_any(payload: bytes | memoryview, codec_name: str) -> Any:
    """Decode a payload to builtins for display; raw and pickle payloads come back as bytes, never loaded.

    Raises `msgspec.DecodeError` for a payload that is not of that codec.
    """
    try:
        if codec_name == "msgpack":
            return msgspec.msgpack.decode(payload)
        return msgspec.json.decode(payload) if codec_name == "json" else bytes(payload)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error


def decoder_of(description: bytes) -> Callable[[bytes], Any]:
    """What `decode_any` does, for the payloads of one topic, records by their columns."""
    schema = parse(description)
    if schema.codec == "record":
        return functools.partial(columns.unpack, schema.columns)
    if schema.foreign is not None:
        return foreign.plain(schema.codec, schema.foreign.schema)
    return functools.partial(decode_any, codec_name=schema.codec)


def encoder_of(description: bytes) -> Callable[[Any], bytes]:
    """What makes a payload of what `conform` returns."""
    schema = parse(description)
    if schema.codec == "record":
        return functools.partial(columns.pack, schema.columns)
    if schema.foreign is not None:
        return foreign.packed(schema.codec, schema.foreign.schema)
    if schema.codec == "raw":
        return lambda value: cast("bytes", value)
    return msgspec.json.encode if schema.codec == "json" else msgspec.msgpack.encode


class _Conformer:
    """Walks a value and its schema together."""

    def __init__(self, schema: Description) -> None:
        self.schema = schema

    def node(self, path: str, node: Node, value: Any) -> Any:
        node = self.schema.resolve(node)
        if node.kind in ("any", "raw"):
            return value
        if node.kind == "union":
            return self.union(path, node, value)
        if node.kind == "enum":
            if not any(type(value) is type(known) and value == known for known in node.values):
                raise self.refusal(path, node, value)
            return value
        if node.kind in OBJECTS:
            return self.object(path, node, value)
        if node.kind in SEQUENCES or node.kind == "tuple":
            return self.array(path, node, value)
        if node.kind in MAPPINGS:
            return self.mapping(path, node, value)
        return self.scalar(path, node, value)

    def refusal(self, path: str, node: Node, value: Any) -> ConfigError:
        got = "null" if value is None else f"{_JSON_WORDS.get(type(value), type(value).__name__)} {value!r}"
        return ConfigError(f"{path}: expected {words(self.schema, node)}, got {got}")

    def scalar(self, path: str, node: Node, value: Any) -> Any:
        if node.kind not in _SCALARS:
            raise ConfigError(f"{path}: {node.kind} cannot be written as JSON")
        kind, limits = _SCALARS[node.kind], cast("dict[str, Any]", node.limits)
        try:
            return msgspec.convert(value, Annotated[kind, msgspec.Meta(**limits)] if limits else kind)
        except msgspec.ValidationError as error:
            raise self.refusal(path, node, value) from error
        except (TypeError, ValueError) as error:
            raise CorruptSegmentError(f"schema description with limits that cannot be: {node.limits}") from error

    def union(self, path: str, node: Node, value: Any) -> Any:
        members = [member for member in map(self.schema.resolve, node.of) if _same_shape(member, value)]
        if len(members) > 1 and isinstance(value, dict | list):
            members = [member for member in members if _has_tag(member, value)]
        if len(members) == 1:
            return self.node(path, members[0], value)  # its own complaint says more than the union's
        for member in members:
            try:
                return self.node(path, member, value)
            except ConfigError:
                continue
        raise self.refusal(path, node, value)

    def array(self, path: str, node: Node, value: Any) -> list[Any]:
        if not isinstance(value, list) or not _length_fits(node, value):
            raise self.refusal(path, node, value)
        items = node.of if node.kind == "tuple" else node.of[:1] * len(value)
        return [self.node(f"{path}[{i}]", item, one) for i, (item, one) in enumerate(zip(items, value, strict=True))]

    def mapping(self, path: str, node: Node, value: Any) -> dict[Any, Any]:
        if not isinstance(value, dict) or not _length_fits(node, value):
            raise self.refusal(path, node, value)
        key, item = node.of
        return {self.key(f"{path}.{k}", key, k): self.node(f"{path}.{k}", item, v) for k, v in value.items()}

    def key(self, path: str, node: Node, text: str) -> Any:
        """JSON writes every key as a string: take it as one, or as the number that it spells."""
        try:
            return self.node(path, node, text)
        except ConfigError:
            try:
                return self.node(path, node, msgspec.json.decode(text))
            except msgspec.DecodeError:
                pass
            raise

    def object(self, path: str, node: Node, value: Any) -> Any:
        if isinstance(value, list) and node.array_like:
            value = self.named(path, node, value)
        if not isinstance(value, dict):
            raise self.refusal(path, node, value)
        fields = {field.name: field for field in node.fields}
        tag = {} if node.tag_field is None else {node.tag_field: node.tag}
        if unknown := [name for name in value if name not in fields and name not in tag]:
            raise ConfigError(f"{path}.{unknown[0]}: no such field, {node.title} has {', '.join([*tag, *fields])}")
        for name, known in tag.items():
            if value.get(name, known) != known:
                raise ConfigError(f"{path}.{name}: expected {known!r}, got {value[name]!r}")
        for name, field in fields.items():
            if field.required and name not in value:
                raise ConfigError(f"{path}.{name}: required, and missing")
        found = {name: self.node(f"{path}.{name}", f.type, value[name]) for name, f in fields.items() if name in value}
        if self.schema.codec == "record":
            found |= {f.name: self.default(f"{path}.{f.name}", f) for f in node.fields if f.name not in found}
        return self.listed(path, node, found) if node.array_like else tag | found

    def named(self, path: str, node: Node, value: list[Any]) -> dict[str, Any]:
        names = [field.name for field in node.fields]
        if node.tag_field is not None:
            names.insert(0, node.tag_field)
        if len(value) > len(names) or (node.tag_field is not None and not value):
            raise self.refusal(path, node, value)
        return dict(zip(names, value, strict=False))

    def listed(self, path: str, node: Node, found: dict[str, Any]) -> list[Any]:
        """The fields in order up to the last one given; defaults fill the holes before it."""
        last = max((i for i, field in enumerate(node.fields) if field.name in found), default=-1)
        head = [] if node.tag_field is None else [node.tag]
        given = node.fields[: last + 1]
        return head + [found[f.name] if f.name in found else self.default(f"{path}.{f.name}", f) for f in given]

    def default(self, path: str, field: Field) -> Any:
        if field.default is not msgspec.UNSET:
            return self.node(path, field.type, field.default)
        if field.factory not in _EMPTY:
            raise ConfigError(f"{path}: missing, and a later field is given")
        return _EMPTY[field.factory]


def _same_shape(node: Node, value: Any) -> bool:
    named = node.kind in OBJECTS
    if isinstance(value, dict):
        return named or node.kind in MAPPINGS
    if isinstance(value, list):
        return (named and node.array_like) or node.kind in SEQUENCES or node.kind == "tuple"
    return not named


def _has_tag(node: Node, value: dict[str, Any] | list[Any]) -> bool:
    if isinstance(value, list):
        return bool(value) and value[0] == node.tag
    return node.tag_field is None or value.get(node.tag_field) == node.tag


def _length_fits(node: Node, value: list[Any] | dict[str, Any]) -> bool:
    if node.kind == "tuple":
        return len(value) == len(node.of)
    limits = cast("dict[str, int]", node.limits)
    return limits.get("min_length", 0) <= len(value) <= limits.get("max_length", len(value))
