"""Arrow: columns by Arrow's IPC.

The type of a topic is `pyarrow.Table` or `pyarrow.RecordBatch` (whose events bring their schema, an IPC stream each), a
`pyarrow.Schema` (tables of that schema, which is said once), or a Struct or a list of one: a row, or rows, whose
columns the fields make.

Must stay true:
- Where the topic has a schema, a payload is one record batch of the schema that the bus has; who knows it by another
  one casts, by names: what is missing is null, or the default of the field.
"""

from __future__ import annotations

import base64
import datetime
import typing
from typing import TYPE_CHECKING, Any, Final

import msgspec

from shmbus._schema.description import SEQUENCES, Description, Node, words
from shmbus._schema.foreign import Coding
from shmbus.codecs import _values
from shmbus.errors import ConfigError

try:
    import pyarrow as pa
except ImportError as error:
    raise ImportError("codec arrow needs pyarrow: pip install 'shmbus[arrow]'") from error

if TYPE_CHECKING:
    from collections.abc import Callable

_SCALARS: Final = {
    "boolean": pa.bool_(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "string": pa.string(),
    "bytes": pa.binary(),
    "bytearray": pa.binary(),
    "datetime": pa.timestamp("us", "UTC"),
    "date": pa.date32(),
    "time": pa.time64("us"),
}
_FREE: Final = "free"
"""The schema of events that bring their own."""


class ArrowCodec:
    """The plugin."""

    def coding(self, type: Any) -> Coding:
        """By the schema, or the columns, of the type."""
        if type in (pa.Table, pa.RecordBatch):
            return Coding(_stream, _reader(type), (type,), type.__name__, _FREE, (type.__name__,))
        ours = _schema_of(type)
        return _coding(type, ours, ours)

    def bound(self, type: Any, schema: str) -> Coding | None:
        """Casts between our columns and those of the bus."""
        return None if schema == _FREE else _coding(type, _schema_of(type), _parsed(schema))

    def admits(self, reader: str, writer: str) -> list[str]:
        """Columns by their names; who brings no schema reads whatever comes only from those that bring theirs."""
        if _FREE in (reader, writer):
            return [] if reader == writer else ["event: one of the two brings its schema with each event"]
        theirs = {field.name: field for field in _parsed(writer)}
        found = []
        for field in _parsed(reader):
            other = theirs.get(field.name)
            if other is None and not (field.nullable or _has_default(field)):
                found.append(f"{field.name}: ours requires it, theirs lacks it")
            elif other is not None and not _widens(other.type, field.type):
                found.append(f"{field.name}: ours {field.type}, theirs {other.type}")
            elif other is not None and other.nullable and not field.nullable:
                found.append(f"{field.name}: theirs may be null")
        return found

    def plain(self, schema: str) -> Callable[[bytes], Any]:
        """A list of rows."""
        if schema == _FREE:
            return lambda payload: pa.ipc.open_stream(payload).read_all().to_pylist()
        parsed = _parsed(schema)
        return lambda payload: _batch(payload, parsed).to_pylist()

    def packed(self, schema: str) -> Callable[[Any], bytes]:
        """Of a list of rows, or one row; bytes are base64, times in ISO 8601."""
        if schema == _FREE:
            return lambda value: _stream(pa.RecordBatch.from_pylist(_rows(value)))
        parsed = _parsed(schema)
        return lambda value: _bytes(_from_rows([_from_json(row, parsed) for row in _rows(value)], parsed))


def _coding(type: Any, ours: pa.Schema, theirs: pa.Schema) -> Coding:
    """What knows the topic by the columns `ours`, and writes and reads `theirs`."""
    text = base64.b64encode(theirs.serialize().to_pybytes()).decode()
    identity = tuple(f"{field.name}: {field.type}{'' if field.nullable else ' not null'}" for field in theirs)
    if isinstance(type, pa.Schema):

        def encode(event: Any) -> bytes:
            if not isinstance(event, pa.Table | pa.RecordBatch):
                raise TypeError(f"expected a pyarrow.Table or RecordBatch, got {event.__class__.__name__}")
            if not event.schema.equals(ours):
                raise TypeError(f"expected columns {_shown(ours)}, got {_shown(event.schema)}")
            return _bytes(_cast(event, theirs))

        def decode(payload: Any) -> Any:
            return pa.Table.from_batches([_cast(_batch(bytes(payload), theirs), ours)], ours)

        return Coding(encode, decode, (pa.Table, pa.RecordBatch), "Table", text, identity)

    row, many = _row_of(type)
    back = _values.back(list[row])  # type: ignore[valid-type]
    known = set(ours.names)

    def encode_rows(event: Any) -> bytes:
        batch = _from_rows(_values.of(event if many else [event]), ours)
        return _bytes(batch if theirs is ours else _cast(batch, theirs))

    def decode_rows(payload: Any) -> Any:
        batch = _batch(bytes(payload), theirs)
        if theirs is not ours:
            batch = _cast(batch, pa.schema([field for field in ours if field.name in theirs.names]))
        rows = back(batch.select([name for name in batch.schema.names if name in known]).to_pylist())
        return rows if many else rows[0]

    title = f"list of {row.__name__}" if many else str(row.__name__)
    return Coding(encode_rows, decode_rows, (list if many else row,), title, text, identity)


# -- schemas


def _schema_of(type: Any) -> pa.Schema:
    if isinstance(type, pa.Schema):
        return type
    row, _ = _row_of(type)
    shape = _values.shape(row)
    root = shape.resolve(shape.root)
    if not _values.is_object(root) or root.tag_field is not None:
        raise ConfigError(f"codec arrow carries tables, batches, and Structs without a tag: type={type!r}")
    _values.require_by_name(root, "arrow")
    return pa.schema([_field(shape, field, ()) for field in root.fields])


def _row_of(type: Any) -> tuple[Any, bool]:
    """The class of a row, and whether an event has several."""
    if typing.get_origin(type) is list:
        return typing.get_args(type)[0], True
    if not isinstance(type, _class_of):
        raise ConfigError(f"codec arrow carries tables, batches, and Structs: type={type!r}")
    return type, False


_class_of = type


def _field(shape: Description, field: Any, above: tuple[str, ...]) -> pa.Field:
    node, nullable = _values.optional(shape, field.type)
    default = [] if field.factory in ("list", "set", "frozenset") else field.default
    known = None if default is msgspec.UNSET else {"default": msgspec.json.encode(default)}
    return pa.field(field.name, _type(shape, node, above), nullable=nullable, metadata=known)


def _type(shape: Description, node: Node, above: tuple[str, ...]) -> pa.DataType:
    found, name = shape.resolve(node), node.title or ""
    if found.kind in _SCALARS:
        return _SCALARS[found.kind]
    if found.kind in ("uuid", "decimal", "timedelta"):
        return pa.string()
    if found.kind == "enum" and found.values:
        kinds = {type(value) for value in found.values}
        if kinds <= {str} or kinds <= {int}:
            return pa.string() if kinds == {str} else pa.int64()
    if found.kind in SEQUENCES:
        item, nullable = _values.optional(shape, found.of[0])
        return pa.list_(pa.field("item", _type(shape, item, above), nullable=nullable))
    if _values.is_object(found) and found.tag_field is None and name not in above:
        _values.require_by_name(found, "arrow")
        return pa.struct([_field(shape, field, (*above, name)) for field in found.fields])
    raise ConfigError(f"Arrow has no column for {words(shape, found)}")


def _parsed(schema: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(schema)))


def _has_default(field: pa.Field) -> bool:
    return b"default" in (field.metadata or {})


def _missing(field: pa.Field, rows: int) -> pa.Array:
    """A column that the writer does not have."""
    if not _has_default(field):
        return pa.nulls(rows, field.type)
    default = _value(msgspec.json.decode(field.metadata[b"default"]), field.type)
    return pa.array([default] * rows, field.type)


def _widens(theirs: pa.DataType, ours: pa.DataType) -> bool:
    """Every value of the one is a value of the other."""
    types = pa.types
    if theirs.equals(ours):
        return True
    if types.is_integer(theirs) and types.is_integer(ours):
        signs = types.is_signed_integer(theirs), types.is_signed_integer(ours)
        return bool(signs != (True, False) and theirs.bit_width < ours.bit_width)
    if types.is_integer(theirs) and types.is_float64(ours):
        return bool(theirs.bit_width <= 32)
    return bool(types.is_floating(theirs) and types.is_floating(ours) and theirs.bit_width <= ours.bit_width)


def _shown(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


# -- events


def _stream(event: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, event.schema) as writer:
        writer.write(event)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _reader(type: Any) -> Callable[[Any], Any]:
    def decode(payload: Any) -> Any:
        table = pa.ipc.open_stream(pa.py_buffer(bytes(payload))).read_all()
        return table if type is pa.Table else _one_batch(table)

    return decode


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], table.schema)


def _cast(event: Any, schema: pa.Schema) -> pa.RecordBatch:
    """Its columns in the order and of the types of a schema."""
    batch = _one_batch(event) if isinstance(event, pa.Table) else event
    columns = []
    for field in schema:
        at = batch.schema.get_field_index(field.name)
        columns.append(_missing(field, batch.num_rows) if at < 0 else batch.column(at).cast(field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _bytes(batch: pa.RecordBatch) -> bytes:
    data: bytes = batch.serialize().to_pybytes()
    return data


def _batch(payload: bytes, schema: pa.Schema) -> pa.RecordBatch:
    batch = pa.ipc.read_record_batch(pa.py_buffer(payload), schema)
    batch.validate(full=True)  # of what came out of a segment
    return batch


def _from_rows(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema)


def _rows(value: Any) -> list[Any]:
    rows = value if isinstance(value, list) else [value]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected a row, an object, or a list of rows")
    return rows


def _from_json(row: dict[str, Any], schema: pa.Schema) -> dict[str, Any]:
    if unknown := row.keys() - set(schema.names):
        raise ValueError(f"no column {', '.join(sorted(unknown))}")
    if missing := [field.name for field in schema if not field.nullable and row.get(field.name) is None]:
        raise ValueError(f"column {', '.join(missing)} is missing")
    return {name: _value(value, schema.field(name).type) for name, value in row.items()}


def _value(value: Any, type: pa.DataType) -> Any:
    types = pa.types
    if isinstance(value, list) and types.is_list(type):
        return [_value(part, type.value_type) for part in value]
    if isinstance(value, dict) and types.is_struct(type):
        return {name: _value(part, type.field(name).type) for name, part in value.items()}
    if not isinstance(value, str):
        return value
    kinds: list[tuple[Any, Any]] = [
        (types.is_binary, bytes),
        (types.is_timestamp, datetime.datetime),
        (types.is_date, datetime.date),
        (types.is_time, datetime.time),
    ]
    return next((msgspec.convert(value, kind) for is_kind, kind in kinds if is_kind(type)), value)
