"""Event types of the plugins' codecs, in the definitions that two processes may have; children import it by name."""

from __future__ import annotations

import datetime
import enum
import uuid
from decimal import Decimal
from typing import Any

import msgspec


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Line(msgspec.Struct, frozen=True):
    sku: str
    count: int = 1


class Paid(msgspec.Struct, frozen=True):
    id: int
    cents: int
    note: str | None = None
    ratio: float = 0.5
    colour: Colour = Colour.RED
    lines: list[Line] = []
    data: bytes = b""
    at: datetime.datetime = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    day: datetime.date = datetime.date(2026, 1, 1)
    time: datetime.time = datetime.time(1, 2, 3, 4)
    key: uuid.UUID = uuid.UUID(int=7)
    price: Decimal = Decimal("1.50")
    ok: bool = True


PAID = [
    Paid(1, 2),
    Paid(-(1 << 62), 3, "ü \0", -1.5e300, Colour.BLUE, [Line("a"), Line("b", 2)], b"\0\xff", ok=False),
    Paid(2, 4, "", key=uuid.UUID(int=1 << 100), day=datetime.date(1, 1, 1)),
]


def widened(name: str, fields: list[Any]) -> Any:
    """A Struct of another definition under the same name."""
    return msgspec.defstruct(name, fields, frozen=True)


OLD = widened("Paid", [("id", int), ("cents", int)])
NEW = widened("Paid", [("id", int), ("cents", int), ("shop", str, "none"), ("note", str | None, None)])
OTHER = widened("Paid", [("id", int), ("cents", str)])


def proto(package: str, fields: list[tuple[Any, ...]], name: str = "Paid") -> Any:
    """A message class, as protoc would make it of these (name, type, number[, label[, other]])."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package="shop", syntax="proto3")
    line = file.message_type.add(name="Line")
    line.field.add(name="sku", number=1, type=9, label=1)
    message = file.message_type.add(name=name)
    for field, kind, number, *rest in fields:
        made = message.field.add(name=field, number=number, type=kind, label=rest[0] if rest else 1)
        if len(rest) > 1:
            made.type_name = rest[1]
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"shop.{name}"))


INT32, INT64, DOUBLE, STRING, BYTES, MESSAGE, BOOL = 5, 3, 1, 9, 12, 11, 8


def proto_paid() -> Any:
    return proto(
        "paid",
        [
            ("id", INT64, 1),
            ("cents", INT32, 2),
            ("note", STRING, 3),
            ("data", BYTES, 4),
            ("ratio", DOUBLE, 5),
            ("lines", MESSAGE, 6, 3, ".shop.Line"),
            ("ok", BOOL, 7),
        ],
    )
