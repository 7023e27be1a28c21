"""Schema descriptions: what an event type looks like on the wire, as canonical JSON kept in the bus segment.

Pure: reads types through `msgspec.inspect`, touches no OS object. What must stay true: two processes with the
same definition, in whatever module, get the same `wire_form`; every change after which one would read what the other
writes as something else changes it.

    Description   codec, root node, and the named types (`defs`) that nodes of kind "ref" point to
    Node          one type; only "struct", "dataclass", "typeddict" and "namedtuple" nodes have fields
    Field         one field, in wire order

A description read from a segment is untrusted: `parse` validates it, or raises `CorruptSegmentError`.
"""

from __future__ import annotations

import enum
import math
import re
import typing
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import NODEFAULT, UNSET, UnsetType

from shmbus._schema.columns import Column, columns_of
from shmbus._schema.foreign import BUILT_IN, Coding, Foreign
from shmbus.errors import ConfigError, CorruptSegmentError

if TYPE_CHECKING:
    from collections.abc import Callable

OBJECTS = frozenset({"struct", "dataclass", "typeddict", "namedtuple"})
SEQUENCES = frozenset({"list", "set", "frozenset", "vartuple"})
MAPPINGS = frozenset({"dict", "frozendict"})
BYTES = frozenset({"bytes", "bytearray", "memoryview"})

# msgspec.inspect names its nodes after Python types; people are told the words of JSON where there is one.
_WORDS = {"none": "null", "bool": "boolean", "int": "integer", "float": "number", "str": "string"}
_LIMITS = ("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "pattern", "tz")
_MODULE = re.compile(r"(?:\w+|<locals>)\.")


class Node(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One type: its kind, and what the kind needs."""

    kind: str
    title: str | None = None
    """Class name without module; for kind "ref" the key in `Description.defs`."""
    of: tuple[Node, ...] = ()
    """Item of a sequence, items of a tuple, key and value of a dict, members of a union."""
    fields: tuple[Field, ...] = ()
    values: tuple[bool | int | str | None, ...] = ()
    """What an enum or a literal admits."""
    limits: dict[str, bool | int | float | str] = {}
    tag_field: str | None = None
    tag: int | str | None = None
    array_like: bool = False
    closed: bool = False
    """Unknown fields are refused."""

    def __post_init__(self) -> None:
        parts = 1 if self.kind in SEQUENCES else 2 if self.kind in MAPPINGS else len(self.of)
        if len(self.of) != parts:
            raise ValueError(f"{self.kind} of {len(self.of)} types")
        try:
            msgspec.Meta(**typing.cast("dict[str, Any]", self.limits))
        except (TypeError, ValueError, re.error) as error:
            raise ValueError(f"limits that cannot be: {self.limits}") from error


class Field(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One field under its name on the wire."""

    name: str
    type: Node
    required: bool = True
    omissible: bool = False
    """The writer may leave it out: UNSET, a key that is not required, or a default under `omit_defaults`."""
    default: Any = UNSET
    factory: str | None = None
    """What makes the default, or what the default is where JSON has no word for it."""


class Description(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A whole event type under one codec."""

    codec: Annotated[str, msgspec.Meta(max_length=32)]
    root: Node
    defs: dict[str, Node] = {}
    columns: tuple[Column, ...] = ()
    """Where the fields lie, under "record"."""
    pooled: bool = False
    """Buffers travel beside the event."""
    foreign: Foreign | None = None
    """The schema under a plugin's codec; those alone have one."""

    def __post_init__(self) -> None:
        if (self.foreign is None) != (self.codec in (*BUILT_IN, "raw")):
            raise ValueError(f"a description of codec {self.codec!r}, foreign={self.foreign}")

    def resolve(self, node: Node) -> Node:
        """The named type that a "ref" node points to; any other node itself."""
        if node.kind != "ref":
            return node
        found = self.defs.get(node.title or "")
        if found is None or not (found.kind == "enum" or found.kind in OBJECTS):
            raise CorruptSegmentError(f"schema description refers to no type of its own: {node.title!r}")
        return found


_decoder = msgspec.json.Decoder(Description)


def parse(description: bytes) -> Description:
    """Read a stored description; `CorruptSegmentError` when it is none."""
    try:
        return _decoder.decode(description)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise CorruptSegmentError(f"not a schema description ({error}): {description[:80]!r}") from error


def describe(type: Any, codec_name: str, *, hooks: bool = False, pooled: Callable[[Any], bool] | None = None) -> bytes:
    """Describe `type` as canonical JSON: sorted keys, compact, fields in order, no module names, no prose.

    `bytes` gives one fixed description under every codec (its payloads are raw); "pickle" gives the qualified
    class name only, and so does a type that msgspec handles only through `hooks`. `pooled` says of such a type whether
    its values travel beside the event; None: nothing does. Raises `ConfigError` for one where there are none, and
    whatever msgspec raises for one that it cannot handle.
    """
    beside = pooled is not None
    if type is bytes and codec_name != "record":
        return _canonical(Description("raw", Node("bytes")))
    if codec_name == "pickle":
        name = getattr(type, "__qualname__", _title(type))
        return _canonical(Description("pickle", Node("python", title=name), pooled=beside))
    walk = _Describer(hooks, pooled)
    root = walk.node(msgspec.inspect.type_info(type))
    found = Description(typing.cast(Any, codec_name), root, walk.defs, pooled=beside)
    if codec_name == "record":
        found = _as_record(found)
    return _canonical(found)


def describe_foreign(codec: str, coding: Coding) -> bytes:
    """Describe the type of a topic whose codec is a plugin's."""
    foreign = Foreign(coding.identity, coding.schema)
    return _canonical(Description(codec, Node("foreign", title=coding.title), foreign=foreign))


def _as_record(found: Description) -> Description:
    """A record has every field, in its order, and nothing else."""
    columns = columns_of(found.root, found.resolve)
    defs = {
        name: msgspec.structs.replace(
            node,
            fields=tuple(msgspec.structs.replace(field, omissible=False) for field in node.fields),
            array_like=False,
            closed=False,
        )
        for name, node in found.defs.items()
    }
    return Description("record", found.root, defs, columns)


def wire_form(description: bytes) -> bytes:
    """The part of a description that two definitions under `schema="strict"` share: what tells how bytes are read.

    Whoever has the same definition writes every field, so a default is read from the wire and never filled in, and
    neither whether there is one nor which matters; nor whether unknown fields are refused. They do where the writer may
    leave the field out.
    """
    schema = parse(description)
    defs = {name: _as_written(node) for name, node in schema.defs.items()}
    foreign = None if schema.foreign is None else Foreign(schema.foreign.identity)
    return _canonical(Description(schema.codec, _as_written(schema.root), defs, schema.columns, schema.pooled, foreign))


def _as_written(node: Node) -> Node:
    fields = tuple(
        field if field.omissible else Field(field.name, field.type)  # objects lie in `defs`, not in fields
        for field in node.fields
    )
    return msgspec.structs.replace(node, fields=fields, closed=False) if node.kind in OBJECTS else node


def words(schema: Description, node: Node) -> str:
    """A type in the words of a message: "integer (ge 0)", "list of OrderPaid", "integer | null"."""
    node = schema.resolve(node)
    if node.title and (node.kind in OBJECTS or node.kind in ("python", "custom", "foreign")):
        return node.title
    if node.kind == "union":
        return " | ".join(words(schema, member) for member in node.of)
    text = node.title if node.kind == "enum" and node.title else node.kind
    if node.of:
        text += " of " + (" to " if node.kind in MAPPINGS else ", ").join(words(schema, part) for part in node.of)
    notes = [f"{name} {limit!r}" for name, limit in node.limits.items()] or [repr(value) for value in node.values]
    if node.title and node.title != text:
        notes.append(f"title {node.title!r}")
    return f"{text} ({', '.join(notes)})" if notes else text


def _canonical(description: Description) -> bytes:
    return msgspec.json.encode(description, order="sorted")


def _title(cls: Any) -> str:
    return cls.__name__ if isinstance(cls, type) else _MODULE.sub("", str(cls))


class _Describer:
    """Turns `msgspec.inspect` types into nodes; named types are written once, so recursive ones end."""

    def __init__(self, hooks: bool, pooled: Callable[[Any], bool] | None) -> None:
        self._hooks = hooks
        self._pooled = pooled
        self.defs: dict[str, Node] = {}
        self._names: dict[Any, str] = {}

    def node(self, info: Any) -> Node:
        kind = type(info).__name__.removesuffix("Type").lower()
        if kind == "metadata":
            inner = self.node(info.type)
            title = (info.extra_json_schema or {}).get("title")
            return msgspec.structs.replace(inner, title=title) if title and inner.kind != "ref" else inner
        if kind == "custom":
            return self._custom(info.cls)
        if kind == "enum" or kind in OBJECTS:
            return self._named(kind, info)
        if kind == "literal":
            return Node("enum", values=_ordered(info.values))
        if kind == "union":
            return Node("union", of=tuple(sorted(map(self.node, info.types), key=_sort_key)))
        return Node(_WORDS.get(kind, kind), of=tuple(map(self.node, _children(info))), limits=_limits(info))

    def _custom(self, cls: Any) -> Node:
        if cls is object:
            return Node("any")
        if self._hooks or (self._pooled is not None and self._pooled(cls)):
            return Node("custom", title=getattr(cls, "__qualname__", _title(cls)))
        needs = "through enc_hook and dec_hook, or if it is an array or a buffer with a pool (Topic(pool=BYTES))"
        raise ConfigError(f"msgspec knows this type only {needs}: type={cls!r}")

    def _named(self, kind: str, info: Any) -> Node:
        if info.cls in self._names:
            return Node("ref", title=self._names[info.cls])
        title = name = _title(info.cls)
        while name in self._names.values():
            name += "'"  # another class of the same name, told apart by the order of appearance
        self._names[info.cls] = name
        self.defs[name] = self._enum(title, info.cls) if kind == "enum" else self._object(kind, title, info)
        return Node("ref", title=name)

    def _enum(self, title: str, cls: type[enum.Enum]) -> Node:
        return Node("enum", title=title, values=_ordered(member.value for member in cls))

    def _object(self, kind: str, title: str, info: Any) -> Node:
        cls = typing.get_origin(info.cls) or info.cls
        omits = kind == "struct" and cls.__struct_config__.omit_defaults
        unset = _may_be_unset(cls)
        array_like = kind == "namedtuple" or getattr(info, "array_like", False)
        fields = []
        for field in info.fields:
            default, factory = _default(field)
            omitted = default is not UNSET or factory in ("list", "dict", "set") or field.default is not NODEFAULT
            omissible = (
                field.name in unset
                or (kind == "typeddict" and not field.required)
                or (omitted and omits and not array_like)
            )
            fields.append(Field(field.encode_name, self.node(field.type), field.required, omissible, default, factory))
        return Node(
            kind,
            title=title,
            fields=tuple(fields),
            tag_field=getattr(info, "tag_field", None),
            tag=getattr(info, "tag", None),
            array_like=array_like,
            closed=kind == "namedtuple" or getattr(info, "forbid_unknown_fields", False),
        )


def _children(info: Any) -> tuple[Any, ...]:
    if hasattr(info, "item_types"):
        return tuple(info.item_types)
    if hasattr(info, "item_type"):
        return (info.item_type,)
    return (info.key_type, info.value_type) if hasattr(info, "key_type") else ()


def _limits(info: Any) -> dict[str, bool | int | float | str]:
    found = {name: getattr(info, name, None) for name in _LIMITS}
    return {name: limit for name, limit in found.items() if limit is not None}


def _ordered(values: typing.Iterable[Any]) -> tuple[Any, ...]:
    return tuple(sorted(values, key=lambda value: (type(value).__name__, value is not None and value)))


def _sort_key(node: Node) -> bytes:
    # A | B and B | A are one type.
    return msgspec.json.encode(node, order="sorted")


def _default(field: Any) -> tuple[Any, str | None]:
    """The default as JSON would carry it, or the name of what makes it."""
    if field.default_factory is not NODEFAULT:
        return UNSET, getattr(field.default_factory, "__name__", "factory")
    if field.default is NODEFAULT:
        return UNSET, None
    try:
        value = msgspec.to_builtins(field.default, str_keys=True, order="deterministic")
    except (TypeError, ValueError):
        return UNSET, type(field.default).__name__
    return (value, None) if _has_word(value) else (UNSET, repr(value))


def _has_word(value: Any) -> bool:
    """False for NaN and the infinities, for which JSON has no word, and for what holds one."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(_has_word, value.values()))
    return not isinstance(value, list | tuple) or all(map(_has_word, value))


def _may_be_unset(cls: Any) -> set[str]:
    # msgspec.inspect hides UNSET from unions, yet such a field can be missing on the wire.
    try:
        hints = typing.get_type_hints(cls)
    except (NameError, TypeError):
        return set()
    return {name for name, hint in hints.items() if UnsetType in typing.get_args(hint)}
