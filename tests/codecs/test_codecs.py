"""Codecs that are plugins: each keeps the conformance; schemas travel, are compared, refused and resolved by theirs."""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path
from typing import Any

import codecs_fixtures as fixtures
import msgspec
import pytest
from codecs_fixtures import NEW, OLD, OTHER, PAID, Line, Paid
from events import PATIENT
from support import eventually

import shmbus
from shmbus import inspect
from shmbus.codecs import CodecName
from shmbus.testing import codec_conformance


def test_avro_conforms() -> None:
    """The Avro codec passes the conformance with a derived schema."""
    pytest.importorskip("fastavro")
    from shmbus.codecs.avro import AvroCodec

    codec_conformance(AvroCodec, Paid, PAID, name="avro", stranger=Line("x"), refused=OTHER)
    codec_conformance(AvroCodec, NEW, [NEW(1, 2, "x")], name="avro", stranger=Line("x"), admitted=OLD, refused=OTHER)


def test_avro_takes_a_schema() -> None:
    """A schema of one's own is written as it is: as the type itself, or on the class."""
    fastavro = pytest.importorskip("fastavro")
    from shmbus.codecs.avro import AvroCodec

    schema = {
        "type": "record",
        "name": "shop.Point",
        "fields": [{"name": "x", "type": "int"}, {"name": "tags", "type": {"type": "map", "values": "long"}}],
    }
    events = [{"x": 1, "tags": {}}, {"x": -5, "tags": {"a": 1, "b": 2}}]
    codec_conformance(AvroCodec, schema, events, name="avro", stranger={"x": "no", "tags": {}})
    own: Any = msgspec.defstruct("Point", [("x", int), ("tags", dict[str, int])], namespace={"__avro_schema__": schema})
    made = AvroCodec().coding(own)
    assert made.identity == AvroCodec().coding(schema).identity
    import io

    assert fastavro.schemaless_reader(io.BytesIO(made.encode(own(3, {"z": 4}))), schema) == {"x": 3, "tags": {"z": 4}}


def test_protobuf_conforms() -> None:
    """The protobuf codec passes the conformance, repeated messages and bytes included."""
    pytest.importorskip("google.protobuf")
    from shmbus.codecs.protobuf import ProtobufCodec

    paid = fixtures.proto_paid()
    line = paid.DESCRIPTOR.file.message_types_by_name["Line"]._concrete_class
    events = [
        paid(),
        paid(id=-(1 << 62), cents=5, note="ü", data=b"\0\xff", ratio=1e300, lines=[line(sku="a"), line()], ok=True),
    ]
    newer = fixtures.proto("newer", [("id", fixtures.INT64, 1), ("shop", fixtures.STRING, 9)])
    other = fixtures.proto("other", [("id", fixtures.STRING, 1)])
    codec_conformance(
        ProtobufCodec, paid, events, name="protobuf", stranger=line(sku="b"), admitted=newer, refused=other
    )


@pytest.mark.parametrize(
    ("reader", "writer", "why"),
    [
        ([("id", 3, 1)], [("id", 5, 1)], ""),
        ([("id", 5, 1)], [("id", 3, 1)], "shop.Paid.id: ours int32, theirs int64"),
        ([("id", 12, 1)], [("id", 9, 1)], ""),
        ([("id", 9, 1)], [("id", 12, 1)], "shop.Paid.id: ours string, theirs bytes"),
        ([("id", 3, 1)], [("id", 3, 2)], ""),
        ([("id", 3, 1, 3)], [("id", 3, 1)], "shop.Paid.id: ours repeated int64, theirs int64"),
    ],
)
def test_protobuf_admits_by_number(reader: Any, writer: Any, why: str) -> None:
    """A reader takes what has the same values on the wire under the number of its field, and nothing else."""
    pytest.importorskip("google.protobuf")
    from shmbus.codecs.protobuf import ProtobufCodec

    plugin = ProtobufCodec()
    ours, theirs = (
        plugin.coding(fixtures.proto(name, fields)).schema for name, fields in (("r", reader), ("w", writer))
    )
    assert plugin.admits(ours, theirs) == ([why] if why else [])


def test_arrow_conforms() -> None:
    """The Arrow codec passes the conformance with tables, batches, tables of a schema, rows and lists of them."""
    pa = pytest.importorskip("pyarrow")
    from shmbus.codecs.arrow import ArrowCodec

    table = pa.table({"x": [1, 2, None], "s": ["a", None, "c"]})
    codec_conformance(ArrowCodec, pa.Table, [table, table.slice(1)], name="arrow", stranger=Line("x"))
    batch = table.to_batches()[0]
    codec_conformance(ArrowCodec, pa.RecordBatch, [batch, batch.slice(0, 2)], name="arrow", stranger=table)
    schema = pa.schema([pa.field("x", pa.int32(), nullable=False), ("y", pa.list_(pa.string()))])
    rows = [pa.Table.from_pylist([{"x": 1, "y": ["a"]}, {"x": 2, "y": None}], schema), pa.Table.from_pylist([], schema)]
    wider = pa.schema([pa.field("x", pa.int64(), nullable=False), ("z", pa.string())])
    another = pa.schema([pa.field("x", pa.string(), nullable=False)])
    codec_conformance(
        ArrowCodec,
        schema,
        rows,
        name="arrow",
        stranger=table,
        admitted=schema.append(pa.field("z", pa.string())),
        refused=another,
    )
    assert ArrowCodec().admits(*(ArrowCodec().coding(s).schema for s in (wider, schema))) == []
    codec_conformance(ArrowCodec, Paid, PAID, name="arrow", stranger=Line("x"), refused=OTHER)
    codec_conformance(ArrowCodec, list[Paid], [PAID, []], name="arrow", stranger=PAID[0])
    codec_conformance(ArrowCodec, NEW, [NEW(1, 2, "x")], name="arrow", stranger=Line("x"), admitted=OLD, refused=OTHER)


@pytest.mark.parametrize("codec", ["avro", "arrow"])
def test_evolution(bus_name: str, codec: Any) -> None:
    """With schema="evolve" each side reads and writes by its own definition, whichever made the topic."""
    pytest.importorskip({"avro": "fastavro", "arrow": "pyarrow"}[codec])
    old, new = (shmbus.Topic("paid", t, codec=codec, schema="evolve") for t in (OLD, NEW))
    with shmbus.Bus(bus_name) as bus:
        first, second = bus.subscriber(old), bus.subscriber(new)
        worker = bus.worker(new, group="workers", prefetch=2)
        writer_old, writer_new = bus.publisher(old), bus.publisher(new)
        writer_old.publish(OLD(1, 2))
        writer_new.publish(NEW(3, 4, "here", "now"))
        assert {first.receive(PATIENT) for _ in range(2)} == {OLD(1, 2), OLD(3, 4)}
        assert {second.receive(PATIENT) for _ in range(2)} == {NEW(1, 2), NEW(3, 4)}
        claimed = [worker.receive_message(PATIENT) for _ in range(2)]
        assert {message.event for message in claimed} == {NEW(1, 2), NEW(3, 4)}
        for message in claimed:
            message.ack()
        with pytest.raises(shmbus.SchemaMismatchError, match="cents"):
            bus.subscriber(shmbus.Topic("paid", OTHER, codec=codec, schema="evolve"))
        with pytest.raises(shmbus.SchemaMismatchError, match=r"only in ours.*shop"):
            bus.subscriber(shmbus.Topic("paid", NEW, codec=codec))


def test_protobuf_evolution(bus_name: str) -> None:
    """Two definitions of a message share a topic under "evolve"; a field that the one lacks is at its default there."""
    pytest.importorskip("google.protobuf")
    old = fixtures.proto("old", [("id", 3, 1)])
    new = fixtures.proto("new", [("id", 3, 1), ("shop", 9, 2)])
    other = fixtures.proto("bad", [("id", 1, 1)])
    topics = [shmbus.Topic("paid", t, codec="protobuf", schema="evolve") for t in (old, new, other)]
    with shmbus.Bus(bus_name) as bus:
        first, second, writer = bus.subscriber(topics[0]), bus.subscriber(topics[1]), bus.publisher(topics[1])
        writer.publish(new(id=1, shop="here"))
        assert first.receive(PATIENT).id == 1
        assert second.receive(PATIENT) == new(id=1, shop="here")
        with pytest.raises(shmbus.SchemaMismatchError, match="ours double, theirs int64"):
            bus.subscriber(topics[2])
        with pytest.raises(shmbus.EventTypeError):
            writer.publish(old(id=1))


def test_tools_see_events(bus_name: str) -> None:
    """`tail` shows the fields, `publish` takes JSON by the bus's schema, and refuses what does not fit."""
    pytest.importorskip("fastavro")
    topic = shmbus.Topic("paid", Paid, codec="avro")
    with shmbus.Bus(bus_name) as bus, bus.subscriber(topic) as subscriber, bus.publisher(topic) as publisher:
        with inspect.Tail(bus_name, "paid") as tail:
            publisher.publish(PAID[1])
            item = eventually(tail.read)[0]
            assert item.event["colour"] == "blue"
            assert item.event["lines"] == [{"sku": "a", "count": 1}, {"sku": "b", "count": 2}]
        assert subscriber.receive(PATIENT) == PAID[1]
        shown = msgspec.json.encode(item.event)
        inspect.publish_json(bus_name, "paid", shown)
        assert subscriber.receive(PATIENT) == PAID[1]
        with pytest.raises(shmbus.ConfigError, match="colours"):
            inspect.publish_json(bus_name, "paid", shown.replace(b'"colour"', b'"colours"'))
        assert bus.stats().topics[0].type == "Paid"


def test_an_event_says_what_is_wrong() -> None:
    """What a codec cannot write is refused when the topic is made, or published, with the reason."""
    pytest.importorskip("fastavro")
    with pytest.raises(shmbus.ConfigError, match="array-like"):
        shmbus.Topic("x", msgspec.defstruct("A", [("x", int)], array_like=True), codec="avro")
    with pytest.raises(shmbus.ConfigError, match="no type for"):
        shmbus.Topic("x", tuple[int, str], codec="avro")
    with pytest.raises(shmbus.ConfigError, match="does without"):
        shmbus.Topic("x", Paid, codec="avro", enc_hook=str)
    with pytest.raises(shmbus.ConfigError, match="pool"):
        shmbus.Topic("x", Paid, codec="avro", pool=1 << 20)
    with pytest.raises(shmbus.ConfigError, match=r"codec must be one of .*avro.*protobuf: codec='cbor'"):
        shmbus.Topic("x", Paid, codec=CodecName("cbor"))


def test_times_keep_their_zone(bus_name: str) -> None:
    """A time without a zone is refused when it is published: it would come back as another one."""
    pytest.importorskip("fastavro")
    topic = shmbus.Topic("paid", Paid, codec="avro")
    with shmbus.Bus(bus_name) as bus, bus.publisher(topic) as publisher:
        with pytest.raises(shmbus.EventTypeError, match="without a zone"):
            publisher.publish(msgspec.structs.replace(PAID[0], at=datetime.datetime(2026, 1, 1)))  # noqa: DTZ001
        with pytest.raises(shmbus.EventTypeError):
            publisher.publish(msgspec.structs.replace(PAID[0], id=1 << 70))


def test_a_plugin_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bus_name: str) -> None:
    """A codec of another distribution is found by its name, conforms, and carries events."""
    info = tmp_path / "upper-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: upper\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[shmbus.codecs]\nupper = upper_codec:Upper\n")
    (tmp_path / "upper_codec.py").write_text(
        "from shmbus.codecs import Coding\n"
        "class Upper:\n"
        "    def coding(self, type):\n"
        "        return Coding(lambda e: e.upper().encode(), lambda p: bytes(p).decode(), (str,), 'U', 'u', ('u',))\n"
        "    def bound(self, type, schema): return None\n"
        "    def admits(self, reader, writer): return []\n"
        "    def plain(self, schema): return lambda payload: payload.decode()\n"
        "    def packed(self, schema): return lambda value: value.upper().encode()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    from upper_codec import Upper  # type: ignore[import-not-found]

    codec_conformance(Upper, str, ["A", ""], name="upper", stranger=5)
    topic = shmbus.Topic("shouts", str, codec=CodecName("upper"))
    with shmbus.Bus(bus_name) as bus, bus.subscriber(topic) as subscriber, bus.publisher(topic) as publisher:
        publisher.publish("hey")
        assert subscriber.receive(PATIENT) == "HEY"


def test_the_core_imports_no_plugin() -> None:
    """Neither a topic of a built-in codec nor a look at the list of plugins imports one."""
    code = (
        "import sys, shmbus; from shmbus import _plugins\n"
        "shmbus.Topic('x', int); _plugins.found('shmbus.codecs')\n"
        "assert not {'fastavro', 'pyarrow', 'google.protobuf', 'shmbus.codecs'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
