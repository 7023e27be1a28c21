"""Protocol Buffers: the type of a topic is a generated message class, its schema the descriptor.

Must stay true: `admits` never says yes where a reader would get another value than was written; fields that only one
side has are as protobuf wants them, kept unread or at their defaults.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from shmbus.errors import ConfigError

try:
    from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
    from google.protobuf.descriptor import FieldDescriptor
    from google.protobuf.message import Message
except ImportError as error:
    raise ImportError("codec protobuf needs protobuf: pip install 'shmbus[protobuf]'") from error

from shmbus._schema.foreign import Coding

if TYPE_CHECKING:
    from collections.abc import Callable

_class_of = type  # in the methods below `type` is a topic's
_TYPES: Final = {
    getattr(FieldDescriptor, name): name.removeprefix("TYPE_").lower()
    for name in dir(FieldDescriptor)
    if name.startswith("TYPE_")
}
_TAKES: Final = {
    "int64": {"int32", "bool", "enum"},
    "int32": {"bool", "enum"},
    "uint64": {"uint32", "bool"},
    "uint32": {"bool"},
    "sint64": {"sint32"},
    "bytes": {"string"},
}
"""What a reader's type takes beside itself, whatever the value is."""


class ProtobufCodec:
    """The plugin."""

    def coding(self, type: Any) -> Coding:
        """By the descriptor of the class."""
        cls: Any = type
        if not _is_message(type):
            raise ConfigError(f"codec protobuf carries generated message classes: type={type!r}")

        def encode(event: Any) -> bytes:
            if _class_of(event) is not cls:
                raise TypeError(f"expected {cls.DESCRIPTOR.full_name}, got {_class_of(event).__name__}")
            data: bytes = event.SerializeToString(deterministic=True)
            return data

        def decode(payload: Any) -> Any:
            return cls.FromString(bytes(payload))

        descriptor = cls.DESCRIPTOR
        return Coding(encode, decode, (cls,), descriptor.full_name, _text(descriptor), tuple(_facts(descriptor)))

    def bound(self, type: Any, schema: str) -> None:
        """The wire has the numbers of the fields: each reads and writes by its own descriptor."""
        return

    def admits(self, reader: str, writer: str) -> list[str]:
        """Field by field, by number."""
        return list(dict.fromkeys(_apart(_class(reader).DESCRIPTOR, _class(writer).DESCRIPTOR, set())))

    def plain(self, schema: str) -> Callable[[bytes], Any]:
        """As protobuf's JSON, with the names of the .proto file."""
        cls = _class(schema)
        return lambda payload: json_format.MessageToDict(cls.FromString(payload), preserving_proto_field_name=True)

    def packed(self, schema: str) -> Callable[[Any], bytes]:
        """Of the same."""
        cls = _class(schema)
        return lambda value: json_format.ParseDict(value, cls()).SerializeToString(deterministic=True)


def _is_message(type: Any) -> bool:
    return isinstance(type, _class_of) and issubclass(type, Message) and getattr(type, "DESCRIPTOR", None) is not None


def _text(descriptor: Any) -> str:
    """The name of the message, and every file that it needs, each after those that it imports."""
    files = descriptor_pb2.FileDescriptorSet()
    seen: set[str] = set()

    def add(file: Any) -> None:
        if file.name in seen:
            return
        seen.add(file.name)
        for needed in file.dependencies:
            add(needed)
        file.CopyToProto(files.file.add())

    add(descriptor.file)
    return f"{descriptor.full_name} {base64.b64encode(files.SerializeToString(deterministic=True)).decode()}"


def _class(schema: str) -> Any:
    name, _, data = schema.partition(" ")
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(base64.b64decode(data)).file:
        pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def _facts(descriptor: Any, seen: set[str] | None = None) -> Iterator[str]:
    """A line a field of the message and of those in it, by number, and one an enum."""
    seen = set() if seen is None else seen
    if descriptor.full_name in seen:
        return
    seen.add(descriptor.full_name)
    yield f"message {descriptor.full_name}"
    inner = []
    for field in sorted(descriptor.fields, key=lambda field: field.number):
        kind = _TYPES[field.type]
        if field.message_type is not None:
            kind = field.message_type.full_name
            inner.append(field.message_type)
        elif field.enum_type is not None:
            kind = f"{field.enum_type.full_name} ({_values(field.enum_type)})"
        group = f" of {field.containing_oneof.name}" if field.containing_oneof is not None else ""
        yield f"{descriptor.full_name}.{field.name}: {_label(field)}{kind} = {field.number}{group}"
    for message in inner:
        yield from _facts(message, seen)


def _values(enum: Any) -> str:
    return ", ".join(f"{value.name}={value.number}" for value in enum.values)


def _label(field: Any) -> str:
    return "repeated " if field.is_repeated else "required " if field.is_required else ""


def _apart(reader: Any, writer: Any, seen: set[tuple[str, str]]) -> Iterator[str]:
    pair = (reader.full_name, writer.full_name)
    if pair in seen:
        return
    seen.add(pair)
    theirs = {field.number: field for field in writer.fields}
    groups: dict[str, list[Any]] = {}
    for field in reader.fields:
        path, other = f"{reader.full_name}.{field.name}", theirs.get(field.number)
        if field.is_required and (other is None or not other.is_required):
            yield f"{path}: ours requires it, theirs may lack it"
        if other is not None:
            if field.containing_oneof is not None:
                groups.setdefault(field.containing_oneof.name, []).append(other.containing_oneof)
            yield from _field_apart(path, field, other, seen)
    for name, members in groups.items():
        together = {None if member is None else member.full_name for member in members}
        if len(members) > 1 and (None in together or len(together) > 1):
            yield f"{reader.full_name}: {name} holds one of what theirs may send together"


def _field_apart(path: str, field: Any, other: Any, seen: set[tuple[str, str]]) -> Iterator[str]:
    mine, written = _TYPES[field.type], _TYPES[other.type]
    if field.is_repeated != other.is_repeated:
        yield f"{path}: ours {_label(field)}{mine}, theirs {_label(other)}{written}"
    elif field.message_type is not None and other.message_type is not None and mine == written:
        yield from _apart(field.message_type, other.message_type, seen)
    elif mine != written and written not in _TAKES.get(mine, ()):
        yield f"{path}: ours {mine}, theirs {written}"
    elif mine == "enum" == written and not _open(field.enum_type):
        known = {value.number for value in field.enum_type.values}
        if extra := [value.name for value in other.enum_type.values if value.number not in known]:
            yield f"{path}: theirs may be {', '.join(extra)}, which is not in ours"


def _open(enum: Any) -> bool:
    return not enum.is_closed
