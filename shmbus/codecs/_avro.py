"""Avro schemas: derived from types, told apart, resolved. Pure, and without fastavro.

A schema here is what `fastavro.parse_schema` returns: named types have full names, and are defined where they come
first.
"""

from __future__ import annotations

import base64
import datetime
import json
import re
import uuid
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

from shmbus._schema.description import MAPPINGS, SEQUENCES, Description, Field, Node, words
from shmbus.codecs import _values
from shmbus.errors import ConfigError

Schema: TypeAlias = "dict[str, Any] | list[Any] | str"

_NAME: Final = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_NAMED: Final = ("record", "error", "enum", "fixed")
_SCALARS: Final[dict[str, Any]] = {
    "null": "null",
    "boolean": "boolean",
    "integer": "long",
    "number": "double",
    "string": "string",
    "bytes": "bytes",
    "bytearray": "bytes",
    "decimal": "string",
    "timedelta": "string",
    "datetime": {"type": "long", "logicalType": "timestamp-micros"},
    "time": {"type": "long", "logicalType": "time-micros"},
    "date": {"type": "int", "logicalType": "date"},
    "uuid": {"type": "string", "logicalType": "uuid"},
}
_PROMOTED: Final = {
    "long": {"int"},
    "float": {"int", "long"},
    "double": {"int", "long", "float"},
    "string": {"bytes"},
    "bytes": {"string"},
}
_OURS: Final = ("__fastavro_parsed__", "__named_schemas")


def derived(shape: Description) -> Schema:
    """The schema of a type that was written for msgspec. Raises ConfigError for what Avro has no words for."""
    return _Deriving(shape).node(shape.root)


class _Deriving:
    def __init__(self, shape: Description) -> None:
        self.shape = shape
        self.defined: set[str] = set()

    def node(self, node: Node) -> Schema:
        name = node.title if node.kind == "ref" else None
        found = self.shape.resolve(node)
        if name in self.defined:
            return str(name)
        if _values.is_object(found):
            return self.record(str(name), found)
        if found.kind == "enum":
            return self.enum(name, found)
        if found.kind == "union":
            members = [self.node(member) for member in found.of]
            return sorted(members, key=lambda member: member != "null")  # which a default of None needs first
        if found.kind in SEQUENCES:
            return {"type": "array", "items": self.node(found.of[0])}
        if found.kind in MAPPINGS and self.shape.resolve(found.of[0]).kind == "string":
            return {"type": "map", "values": self.node(found.of[1])}
        if found.kind in _SCALARS:
            scalar: Schema = _SCALARS[found.kind]
            return scalar
        raise ConfigError(f"Avro has no type for {words(self.shape, found)}")

    def record(self, name: str, node: Node) -> Schema:
        _values.require_by_name(node, "avro")
        self.defined.add(_word(name))
        fields = [self.field(field) for field in node.fields]
        if node.tag_field is not None:
            tag = {"type": "enum", "name": f"{_word(name)}_{_word(node.tag_field)}", "symbols": [_word(str(node.tag))]}
            fields.insert(0, {"name": _word(node.tag_field), "type": tag})
        return {"type": "record", "name": name, "fields": fields}

    def field(self, field: Field) -> dict[str, Any]:
        found = {"name": _word(field.name), "type": self.node(field.type)}
        kind = self.shape.resolve(field.type).kind
        if field.factory in ("list", "set", "frozenset") and kind in SEQUENCES:
            return {**found, "default": []}
        if field.factory == "dict" and kind in MAPPINGS:
            return {**found, "default": {}}
        first = "null" if kind == "union" and "null" in found["type"] else kind
        if first in ("null", "boolean", "integer", "number", "string") and _is(field.default, first):
            return {**found, "default": field.default}
        return found

    def enum(self, name: str | None, node: Node) -> Schema:
        values = node.values
        if all(type(value) is int for value in values):
            return "long"
        if not all(isinstance(value, str) for value in values):
            raise ConfigError(f"Avro has no type for {words(self.shape, node)}")
        if name is None or not all(_NAME.fullmatch(str(value)) for value in values):
            return "string"
        self.defined.add(name)
        return {"type": "enum", "name": _word(name), "symbols": list(values)}


def _word(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"not a name in Avro: {name!r}")
    return name


def _is(value: Any, kind: str) -> bool:
    kinds: dict[str, type] = {"null": type(None), "boolean": bool, "integer": int, "number": float, "string": str}
    return type(value) is kinds[kind]


def bare(schema: Any) -> Any:
    """Without what the parser left in it."""
    if isinstance(schema, dict):
        return {key: bare(value) for key, value in schema.items() if key not in _OURS}
    return [bare(part) for part in schema] if isinstance(schema, list) else schema


def title(schema: Schema) -> str:
    """A schema in a few words."""
    if isinstance(schema, list):
        return " | ".join(map(title, schema))
    if isinstance(schema, str):
        return schema.rpartition(".")[2]
    name = schema.get("name") or schema.get("logicalType") or schema["type"]
    return title(name)


def facts(schema: Schema) -> tuple[str, ...]:
    """What two definitions share that write the same bytes: fields in order, symbols, branches, meanings."""
    return tuple(_facts("event", schema))


def _facts(path: str, schema: Schema) -> Iterator[str]:
    if isinstance(schema, list):
        yield f"{path}: {title(schema)}"
        for branch in schema:
            if isinstance(branch, dict):
                yield from _facts(path, branch)
        return
    if isinstance(schema, str) or (isinstance(schema["type"], str) and schema["type"] in _SCALARS.values()):
        logical = "" if isinstance(schema, str) else f" ({schema.get('logicalType', '')})".replace(" ()", "")
        yield f"{path}: {schema if isinstance(schema, str) else schema['type']}{logical}"
        return
    kind = schema["type"]
    if kind in ("record", "error"):
        yield f"{path}: record {schema['name']}"
        for field in schema["fields"]:
            yield from _facts(f"{title(schema)}.{field['name']}", field["type"])
    elif kind == "enum":
        yield f"{path}: enum {schema['name']} ({', '.join(schema['symbols'])})"
    elif kind == "fixed":
        yield f"{path}: fixed {schema['name']} ({schema['size']} bytes)"
    elif kind in ("array", "map"):
        yield f"{path}: {kind}"
        yield from _facts(f"{path}[]", schema["items" if kind == "array" else "values"])
    else:
        yield f"{path}: {json.dumps(bare(schema), sort_keys=True)}"


def refusals(reader: Schema, writer: Schema) -> list[str]:
    """Why schema resolution fails for what the writer may write, a line each; empty: it never does."""
    return list(dict.fromkeys(_Resolution(reader, writer).nodes("event", reader, writer)))


def _named(schema: Any, found: dict[str, Any]) -> dict[str, Any]:
    if isinstance(schema, list):
        for branch in schema:
            _named(branch, found)
    elif isinstance(schema, dict):
        if schema.get("type") in _NAMED:
            found[schema["name"]] = schema
        for key in ("type", "items", "values"):
            _named(schema.get(key), found)
        for field in schema.get("fields", ()):
            _named(field["type"], found)
    return found


class _Resolution:
    def __init__(self, reader: Schema, writer: Schema) -> None:
        self.reader, self.writer = _named(reader, {}), _named(writer, {})
        self.open: set[tuple[str, str]] = set()

    def nodes(self, path: str, reader: Schema, writer: Schema) -> list[str]:
        w: Any = self.writer.get(writer, writer) if isinstance(writer, str) else writer
        r: Any = self.reader.get(reader, reader) if isinstance(reader, str) else reader
        if isinstance(w, list):
            return [line for branch in w for line in self.nodes(path, r, branch)]
        if isinstance(r, list):
            tries = [self.nodes(path, branch, w) for branch in r]
            return [] if [] in tries else [f"{path}: ours {title(r)}, theirs {title(w)}"]
        mine, other = _kind(r), _kind(w)
        if mine != other or _logical(r) != _logical(w):
            fits = other in _PROMOTED.get(mine, ()) and _logical(r) == _logical(w) == ""
            return [] if fits else [f"{path}: ours {_logical(r) or title(r)}, theirs {_logical(w) or title(w)}"]
        if mine in _NAMED and title(r) != title(w) and title(w) not in map(title, r.get("aliases", ())):
            return [f"{path}: ours {r['name']}, theirs {w['name']}"]
        if mine in ("record", "error"):
            return self.records(r, w)
        if mine == "enum" and "default" not in r and (extra := set(w["symbols"]) - set(r["symbols"])):
            return [f"{path}: theirs may be {', '.join(sorted(extra))}, which is not in ours"]
        if mine == "fixed" and r["size"] != w["size"]:
            return [f"{path}: ours {r['size']} bytes, theirs {w['size']}"]
        if mine in ("array", "map"):
            key = "items" if mine == "array" else "values"
            return self.nodes(f"{path}[]", r[key], w[key])
        return []

    def records(self, r: dict[str, Any], w: dict[str, Any]) -> list[str]:
        pair = (r["name"], w["name"])
        if pair in self.open:
            return []
        self.open.add(pair)
        written = {field["name"]: field for field in w["fields"]}
        found = []
        for field in r["fields"]:
            path = f"{title(r)}.{field['name']}"
            names = [name for name in (field["name"], *field.get("aliases", ())) if name in written]
            if names:
                found += self.nodes(path, field["type"], written[names[0]]["type"])
            elif "default" not in field:
                found.append(f"{path}: ours requires it, theirs lacks it")
        return found


def _kind(schema: Any) -> str:
    return schema if isinstance(schema, str) else str(schema["type"])


def _logical(schema: Any) -> str:
    return str(schema.get("logicalType", "")) if isinstance(schema, dict) else ""


def from_json(schema: Schema, value: Any) -> Any:
    """A JSON value as a datum of the schema; what fits nowhere is left for the writer to refuse."""
    return _FromJson(_named(schema, {})).node(schema, value)


class _FromJson:
    def __init__(self, named: dict[str, Any]) -> None:
        self.named = named

    def node(self, schema: Schema, value: Any) -> Any:
        found: Any = self.named.get(schema, schema) if isinstance(schema, str) else schema
        if isinstance(found, list):
            return value if value is None else self.branch([b for b in found if b != "null"], value)
        kind = _kind(found)
        if kind in ("record", "error") and isinstance(value, dict):
            fields = {field["name"]: field["type"] for field in found["fields"]}
            if unknown := value.keys() - fields.keys():
                raise ValueError(f"{title(found)} has no field {', '.join(sorted(unknown))}")
            return {name: self.node(fields[name], part) for name, part in value.items()}
        if kind == "array" and isinstance(value, list):
            return [self.node(found["items"], part) for part in value]
        if kind == "map" and isinstance(value, dict):
            return {name: self.node(found["values"], part) for name, part in value.items()}
        return _scalar(kind, _logical(found), value) if isinstance(value, str) else value

    def branch(self, branches: list[Any], value: Any) -> Any:
        for branch in branches:
            try:
                return self.node(branch, value)
            except ValueError:
                if branch is branches[-1]:
                    raise
        return value


def _scalar(kind: str, logical: str, value: str) -> Any:
    if logical.startswith("timestamp"):
        return datetime.datetime.fromisoformat(value)
    if logical.startswith("time"):
        return datetime.time.fromisoformat(value)
    if logical == "date":
        return datetime.date.fromisoformat(value)
    if logical == "uuid":
        return uuid.UUID(value)
    return base64.b64decode(value, validate=True) if kind in ("bytes", "fixed") else value
