"""Journals as files for others: JSON lines and Parquet; and fed back into a bus.

May touch: the stream that it writes to; a publisher of the bus that it feeds.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import datetime
import heapq
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import msgspec

from shmbus import raw
from shmbus._schema import description
from shmbus.errors import ConfigError
from shmbus.journal.journal import paced
from shmbus.message import decode_headers, event_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import BinaryIO

    from shmbus._schema.description import Node
    from shmbus.bus import Bus
    from shmbus.journal.journal import Journal, Recorded
    from shmbus.raw import Form

_ROWS: Final = 65536  # of one row group
REPLAYED: Final = "replayed-from"
"""Header of an event that was fed back: the id that it had."""


def headers_of(data: bytes) -> dict[str, Any] | None:
    """Headers of an entry; None for none, and for what is none."""
    try:
        return decode_headers(data) or None
    except msgspec.DecodeError:
        return None


def json_line(topic: str, item: Recorded) -> bytes:
    """An event as one JSON object, without the end of the line."""
    entry = item.entry
    line = {
        "id": event_id(entry.origin, entry.time_ns),
        "bus": item.bus,
        "topic": topic,
        "publisher": entry.publisher,
        "sequence": entry.sequence,
        "time_ns": entry.time_ns,
        "headers": headers_of(entry.headers),
        "event": item.event,
    }
    return msgspec.json.encode(line, enc_hook=repr)


def to_json_lines(topic: str, items: Iterable[Recorded], out: BinaryIO) -> int:
    """Write events as JSON lines; returns how many."""
    count = 0
    for count, item in enumerate(items, 1):  # noqa: B007 -- the count is what is returned
        out.write(json_line(topic, item) + b"\n")
    return count


def to_parquet(form: Form, items: Iterable[Recorded], path: Any) -> int:
    """Write events as Parquet: a column for each field of the event, and _bus, _publisher, _sequence, _time, _headers.

    What has no column type of its own (nested values, unions) is JSON text. Returns how many; raises ConfigError
    without pyarrow, and for an integer that no int64 holds.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError("Parquet needs pyarrow: pip install 'shmbus[arrow]'") from error
    fields = _columns(form, pa)
    known = {"_bus": pa.string(), "_publisher": pa.string(), "_sequence": pa.int64()}
    schema = pa.schema({**known, "_time": pa.timestamp("ns", "UTC"), "_headers": pa.string(), **dict(fields)})
    count = 0
    rest = iter(items)
    with pq.ParquetWriter(path, schema) as writer:
        while lot := list(islice(rest, _ROWS)):
            columns: list[Any] = [
                [item.bus for item in lot],
                [item.entry.publisher for item in lot],
                [item.entry.sequence for item in lot],
                [item.entry.time_ns for item in lot],
                [_text(headers_of(item.entry.headers)) for item in lot],
            ]
            for at, (name, kind) in enumerate(fields):
                columns.append([_cell(item.event, name, at, kind, pa) for item in lot])
            try:
                arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            except (pa.ArrowInvalid, OverflowError) as error:
                raise ConfigError(f"topic {form.name!r} does not fit its columns: {error}") from error
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            count += len(lot)
    return count


def feed(
    journal: Journal,
    bus: Bus,
    topics: Iterable[str],
    *,
    since: float | datetime.datetime | None = None,
    until: float | datetime.datetime | None = None,
    publisher: str | None = None,
    speed: float | None = None,
) -> int:
    """Publish what a journal has, by time, with its headers and one more that has its id; returns how many.

    The stamps are new ones. Raises SchemaMismatchError where the bus has another type for a topic, and what publishing
    raises; waits for room.
    """
    found = {name: journal.form(name) for name in topics}
    publishers = {name: bus.publisher(raw.topic_of(form)) for name, form in found.items()}
    streams = [_named(name, journal.recorded(name, since=since, until=until, publisher=publisher)) for name in found]
    items = heapq.merge(*streams, key=lambda pair: pair[1].entry.time_ns)
    count = 0
    for name, item in paced(items, lambda pair: pair[1].entry.time_ns, speed):
        entry = item.entry
        headers = {REPLAYED: event_id(entry.origin, entry.time_ns), **(headers_of(entry.headers) or {})}
        publishers[name].publish(entry.payload, headers=headers)
        count += 1
    for handle in publishers.values():
        handle.close()
    return count


def _named(name: str, items: Iterator[Recorded]) -> Iterator[tuple[str, Recorded]]:
    for item in items:
        yield name, item


def _columns(form: Form, pa: Any) -> list[tuple[str, Any]]:
    """Name and type of each column of an event."""
    schema = description.parse(form.description)
    root = schema.resolve(schema.root)
    if root.kind not in description.OBJECTS:
        return [("event", _type(schema.resolve(root), pa))]
    return [(field.name, _type(schema.resolve(field.type), pa)) for field in root.fields]


def _type(node: Node, pa: Any) -> Any:
    kinds = {
        "integer": pa.int64(),
        "number": pa.float64(),
        "boolean": pa.bool_(),
        "string": pa.string(),
        "bytes": pa.binary(),
    }
    return kinds.get(node.kind, pa.string())


def _cell(event: Any, name: str, at: int, kind: Any, pa: Any) -> Any:
    if isinstance(event, dict):
        event = event.get(name)
    elif isinstance(event, list) and name != "event":
        event = event[at] if at < len(event) else None
    if kind == pa.string() and not (event is None or isinstance(event, str)):
        return _text(event)
    return event


def _text(value: Any) -> str | None:
    return None if value is None else msgspec.json.encode(value, enc_hook=repr).decode()
