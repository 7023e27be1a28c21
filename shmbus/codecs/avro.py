"""Avro: binary datums without a header, the schema derived from the type, or given.

The type of a topic is what msgspec can describe (a Struct, a dataclass, ...), with its own schema in `__avro_schema__`
or one derived from its fields; or a schema itself, a dict: then events are builtins.

Must stay true:
- A payload is of the schema that the bus has for the topic; who has another one resolves it when it reads, and before
  it writes, as Avro says: by names, aliases, defaults and promotions.
"""

from __future__ import annotations

import io
import json
import uuid
from typing import TYPE_CHECKING, Any

from shmbus._schema.codec import accepted
from shmbus.codecs import _avro, _values
from shmbus.codecs._avro import Schema
from shmbus.errors import ConfigError

try:
    import fastavro
except ImportError as error:
    raise ImportError("codec avro needs fastavro: pip install 'shmbus[avro]'") from error

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmbus._schema.foreign import Coding


class AvroCodec:
    """The plugin."""

    def coding(self, type: Any) -> Coding:
        """By the schema of the type."""
        schema = _schema_of(type)
        return _coding(type, schema, _writer(schema), lambda data: _read(data, schema, None))

    def bound(self, type: Any, schema: str) -> Coding | None:
        """Writes what `schema` reads of our datums, and reads what is written by it as ours."""
        ours, theirs = _schema_of(type), _parsed(schema)
        write, rewrite = _writer(ours), _writer(theirs)

        def encode(datum: Any) -> bytes:
            return rewrite(_read(write(datum), ours, theirs))

        return _coding(type, theirs, encode, lambda data: _read(data, theirs, ours))

    def admits(self, reader: str, writer: str) -> list[str]:
        """By the rules of schema resolution."""
        return _avro.refusals(_parsed(reader), _parsed(writer))

    def plain(self, schema: str) -> Callable[[bytes], Any]:
        """Datums are builtins."""
        parsed = _parsed(schema)
        return lambda data: _read(data, parsed, None)

    def packed(self, schema: str) -> Callable[[Any], bytes]:
        """Of JSON; bytes are base64, times in ISO 8601."""
        parsed = _parsed(schema)
        write = _writer(parsed)
        return lambda value: write(_avro.from_json(parsed, value))


def _coding(type: Any, schema: Schema, write: Callable[[Any], bytes], read: Callable[[bytes], Any]) -> Coding:
    from shmbus.codecs import Coding

    text, title = json.dumps(_avro.bare(schema), sort_keys=True), _avro.title(schema)
    identity = _avro.facts(schema)
    if isinstance(type, dict):
        return Coding(write, read, (), title, text, identity)
    back = _values.back(type, uuid.UUID)

    def encode(event: Any) -> bytes:
        return write(_values.of(event, uuid.UUID))

    return Coding(encode, lambda data: back(read(data)), accepted(type), title, text, identity)


def _schema_of(type: Any) -> Schema:
    given: Any = type if isinstance(type, dict) else getattr(type, "__avro_schema__", None)
    if given is None:
        given = _avro.derived(_values.shape(type))
    try:
        return fastavro.parse_schema(json.loads(given) if isinstance(given, str) else given)
    except Exception as error:
        raise ConfigError(f"not an Avro schema ({type!r}): {error}") from error


def _parsed(schema: str) -> Schema:
    return fastavro.parse_schema(json.loads(schema))


def _writer(schema: Schema) -> Callable[[Any], bytes]:
    def write(datum: Any) -> bytes:
        stream = io.BytesIO()
        fastavro.schemaless_writer(stream, schema, datum, strict_allow_default=True)
        return stream.getvalue()

    return write


def _read(payload: Any, writer: Schema, reader: Schema | None) -> Any:
    stream = io.BytesIO(payload)
    datum = fastavro.schemaless_reader(stream, writer, reader)
    if left := len(stream.getbuffer()) - stream.tell():
        raise ValueError(f"{left} bytes more than an event of {_avro.title(writer)}")
    return datum
