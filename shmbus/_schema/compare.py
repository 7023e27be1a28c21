"""What two schemas have to do with each other: where they part, and whether one reads what the other writes.

Pure. `describe` makes the bytes that are compared here, `wire_form` takes off them what does not matter, `conform`
checks a JSON value against them; all are exported so that the rest of the project imports schemas from one place. What
must stay true: `difference` is never empty for different bytes, and `admits` never says yes where msgspec then refuses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Any, cast

import msgspec

from shmbus._schema import foreign
from shmbus._schema.columns import Column
from shmbus._schema.conform import conform, decode_any, decoder_of, encoder_of
from shmbus._schema.description import (
    BYTES,
    MAPPINGS,
    OBJECTS,
    SEQUENCES,
    Description,
    Field,
    Node,
    describe,
    parse,
    wire_form,
    words,
)

__all__ = ["admits", "conform", "decode_any", "decoder_of", "describe", "difference", "encoder_of", "wire_form"]

# Which other kinds a reader's kind takes, beside itself. JSON has no bytes and no timestamps: there they are
# strings.
_STRINGS = frozenset({"string", "uuid", "decimal", "date", "time", "timedelta"})
_TAKES = {
    "number": frozenset({"integer"}),
    "decimal": frozenset({"integer", "number"}),
    "string": _STRINGS,
    **dict.fromkeys(BYTES, BYTES),
}
_VALUE_KINDS = {bool: "boolean", int: "integer", str: "string", type(None): "null"}


def difference(ours: bytes, theirs: bytes) -> list[str]:
    """Where two descriptions, or their wire forms, part, a line for people each; empty only for equal bytes.

    Raises `CorruptSegmentError` for bytes that are no description.
    """
    if ours == theirs:
        return []
    walk = _Difference(parse(ours), parse(theirs))
    return walk.lines() or [f"ours {ours.decode()}, theirs {theirs.decode()}"]


def admits(reader: bytes, writer: bytes) -> list[str]:
    """Why a decoder of `reader` cannot take what `writer` writes, a line each; empty when it can.

    Follows msgspec: fields that only the reader has need defaults, unknown fields are ignored unless
    forbidden, array-like types grow at the end only and keep their names, integers fit floats, a reader's
    union may be wider. A constraint of the reader must hold for the writer. Where msgspec would decide by the
    value, the answer is no.
    """
    ours, theirs = parse(reader), parse(writer)
    if ours.codec != theirs.codec:
        return [f"codec: ours {ours.codec}, theirs {theirs.codec}"]
    if ours.codec == "pickle":
        return difference(reader, writer)
    if ours.foreign is not None and theirs.foreign is not None:
        return foreign.admits(ours.codec, ours.foreign, theirs.foreign)
    if ours.columns != theirs.columns:
        return _columns_apart(ours.columns, theirs.columns)
    return _Admission(ours, theirs).lines()


class _Difference:
    """Walks two descriptions side by side."""

    def __init__(self, ours: Description, theirs: Description) -> None:
        self.ours, self.theirs = ours, theirs
        self.seen: set[tuple[str | None, str | None]] = set()

    def lines(self) -> list[str]:
        found = [] if self.ours.codec == self.theirs.codec else [_part("codec", self.ours.codec, self.theirs.codec)]
        found += self.nodes("event", self.ours.root, self.theirs.root)
        if not found and self.ours.columns != self.theirs.columns:
            found = _columns_apart(self.ours.columns, self.theirs.columns)
        if self.ours.foreign is not None and self.theirs.foreign is not None:
            found += foreign.apart(self.ours.foreign.identity, self.theirs.foreign.identity)
        return list(dict.fromkeys(found))

    def nodes(self, path: str, a: Node, b: Node) -> Iterator[str]:
        mine, other = self.ours.resolve(a), self.theirs.resolve(b)
        if mine.kind in OBJECTS and other.kind in OBJECTS:
            if (a.title, b.title) not in self.seen:
                self.seen.add((a.title, b.title))
                yield from self.objects(mine, other)
        elif mine.kind == other.kind == "union":
            yield from self.unions(path, mine, other)
        elif mine.kind == other.kind and mine.of and len(mine.of) == len(other.of):
            if mine.limits != other.limits:
                yield _part(path, words(self.ours, mine), words(self.theirs, other))
            for part, x, y in zip(_parts(mine), mine.of, other.of, strict=True):
                yield from self.nodes(path + part, x, y)
        elif mine != other:
            yield _part(path, words(self.ours, mine), words(self.theirs, other))

    def objects(self, a: Node, b: Node) -> Iterator[str]:
        title = a.title or a.kind
        if (a.kind, a.title) != (b.kind, b.title):
            yield _part(title, f"{a.kind} {a.title}", f"{b.kind} {b.title}")
        for name in ("tag_field", "tag", "array_like", "closed"):
            if getattr(a, name) != getattr(b, name):
                yield _part(title, f"{name} {getattr(a, name)!r}", f"{name} {getattr(b, name)!r}")
        mine, other = _by_name(a.fields), _by_name(b.fields)
        for name in dict.fromkeys([*mine, *other]):
            path = f"{title}.{name}"
            if name not in mine or name not in other:
                yield f"{path}: only in {'ours' if name in mine else 'theirs'}"
                continue
            x, y = mine[name], other[name]
            if _presence(x) != _presence(y):
                yield _part(path, _presence(x), _presence(y))
            yield from self.nodes(path, x.type, y.type)
        shared = [name for name in mine if name in other], [name for name in other if name in mine]
        if shared[0] != shared[1]:
            yield _part(f"{title}: field order", ", ".join(mine), ", ".join(other))

    def unions(self, path: str, a: Node, b: Node) -> Iterator[str]:
        mine = {words(self.ours, node): node for node in a.of}
        other = {words(self.theirs, node): node for node in b.of}
        for name in dict.fromkeys([*mine, *other]):
            if name in mine and name in other:
                yield from self.nodes(path, mine[name], other[name])
            else:
                yield f"{path}: {name} only in {'ours' if name in mine else 'theirs'}"


class _Admission:
    """Asks of each of the writer's types whether the reader's type takes it."""

    def __init__(self, reader: Description, writer: Description) -> None:
        self.reader, self.writer = reader, writer
        self.open: list[tuple[str | None, str | None]] = []

    def lines(self) -> list[str]:
        return list(dict.fromkeys(self.nodes("event", self.reader.root, self.writer.root)))

    def nodes(self, path: str, reader: Node, writer: Node, tagged: bool = False) -> list[str]:
        r, w = self.reader.resolve(reader), self.writer.resolve(writer)
        if r.kind in ("any", "raw"):
            return []
        if w.kind == "union":
            return [line for member in w.of for line in self.nodes(path, reader, member)]
        if w.kind == "enum" and r.kind != "enum":
            return self.values(path, reader, w)
        if r.kind == "union":
            return self.union(path, r, w, writer)
        if r.kind in OBJECTS and w.kind in OBJECTS:
            return self.recursive(path, reader, writer, tagged)
        if w.kind in OBJECTS:
            return self.untyped(path, r, w)
        if r.kind in SEQUENCES and w.kind in SEQUENCES | {"tuple"}:
            shrinks = r.kind.endswith("set") and w.kind != r.kind and "min_length" in r.limits
            fits = _limits_hold(r, w) and not shrinks
            return self.parts(path, [(r.of[0], item) for item in w.of]) if fits else self.no(path, r, w)
        if r.kind in MAPPINGS and w.kind in MAPPINGS and _limits_hold(r, w):
            return self.parts(path, list(zip(r.of, w.of, strict=True)))
        if r.kind == w.kind == "tuple" and len(r.of) == len(w.of):
            return self.parts(path, list(zip(r.of, w.of, strict=True)))
        return [] if self.scalar(r, w) else self.no(path, r, w)

    def no(self, path: str, r: Node, w: Node) -> list[str]:
        return [_part(path, words(self.reader, r), words(self.writer, w))]

    def parts(self, path: str, pairs: list[tuple[Node, Node]]) -> list[str]:
        return [line for r, w in pairs for line in self.nodes(f"{path}[]", r, w)]

    def scalar(self, r: Node, w: Node) -> bool:
        if r.kind == "enum":
            # Not `set(...)`: 1 and True are two values.
            return w.kind == "enum" and set(map(repr, w.values)) <= set(map(repr, r.values))
        takes = _TAKES.get(r.kind, frozenset())
        if r.kind == "string" and self.reader.codec == "json":
            takes = takes | BYTES | {"datetime"}
        if r.kind == "custom":
            return w.kind == "custom" and w.title == r.title
        single = r.kind in SEQUENCES | MAPPINGS | {"tuple"}
        return not single and (w.kind == r.kind or w.kind in takes) and _limits_hold(r, w)

    def values(self, path: str, reader: Node, w: Node) -> list[str]:
        # The members of a union may share the writer's values out among them.
        members = self.reader.resolve(reader)
        options = members.of if members.kind == "union" else (reader,)
        for value in w.values:
            literal, plain = Node("enum", values=(value,)), Node(_VALUE_KINDS[type(value)])
            asked = (
                self.nodes(path, option, literal if self.reader.resolve(option).kind == "enum" else plain)
                for option in options
            )
            if [] not in asked:
                return self.no(path, members, w)
        return []

    def union(self, path: str, r: Node, w: Node, writer: Node) -> list[str]:
        # msgspec tells the members apart by wire type and tag, so at most one takes what is written; with
        # several objects in the union the tag must be there.
        objects = [member for member in r.of if self.reader.resolve(member).kind in OBJECTS]
        tries = [self.nodes(path, member, writer, len(objects) > 1) for member in r.of]
        if [] in tries:
            return []
        return tries[r.of.index(objects[0])] if len(objects) == 1 and w.kind in OBJECTS else self.no(path, r, w)

    def recursive(self, path: str, reader: Node, writer: Node, tagged: bool) -> list[str]:
        pair = (reader.title, writer.title)
        if pair in self.open:
            return []  # asked further up; the answer there counts
        self.open.append(pair)
        try:
            r, w = self.reader.resolve(reader), self.writer.resolve(writer)
            if r.array_like != w.array_like:
                return [_part(path, *(f"array_like {node.array_like}" for node in (r, w)))]
            return list(self.arrays(r, w) if r.array_like else self.maps(r, w, tagged))
        finally:
            self.open.pop()

    def maps(self, r: Node, w: Node, tagged: bool) -> Iterator[str]:
        mine, other = _by_name(_wire(r, tag_required=tagged)), _by_name(_wire(w))
        for name, field in mine.items():
            path = f"{r.title}.{name}"
            written = other.get(name)
            if written is not None:
                yield from self.nodes(path, field.type, written.type)
            if field.required and (written is None or written.omissible):
                missing = "lacks it" if written is None else "may leave it out"
                yield f"{path}: ours requires it, theirs {missing}"
        yield from (
            f"{r.title}.{name}: only in theirs, ours forbids it" for name in other if r.closed and name not in mine
        )

    def arrays(self, r: Node, w: Node) -> Iterator[str]:
        for place, (mine, other) in enumerate(zip_longest(_wire(r), _wire(w))):
            path = f"{r.title}[{place}]"
            if mine is None:
                if r.closed:
                    yield f"{path}: only in theirs ({other.name}), ours forbids it"
            elif other is None:
                if mine.required:
                    yield f"{path}: ours requires {mine.name}, theirs lacks it"
            elif mine.name != other.name:
                yield _part(path, mine.name, other.name)
            else:
                yield from self.nodes(f"{r.title}.{mine.name}", mine.type, other.type)

    def untyped(self, path: str, r: Node, w: Node) -> list[str]:
        """An object that is read as a plain dict or list."""
        wire = _wire(w)
        if not r.limits and r.kind in MAPPINGS and not w.array_like:
            key = self.nodes(f"{path}[]", r.of[0], Node("string")) if wire else []
            return key + self.parts(path, [(r.of[1], field.type) for field in wire])
        if not r.limits and r.kind in SEQUENCES and w.array_like:
            return self.parts(path, [(r.of[0], field.type) for field in wire])
        return self.no(path, r, w)


def _columns_apart(ours: tuple[Column, ...], theirs: tuple[Column, ...], within: str = "record") -> list[str]:
    """Where two layouts of records part: rows of the one are no rows of the other, whatever the types admit."""
    found = []
    for place, (mine, other) in enumerate(zip_longest(ours, theirs)):
        shown = [f"{column.name} {column.code}" if column else "nothing" for column in (mine, other)]
        if mine and other and mine.of and other.of and mine.name == other.name:
            found += _columns_apart(mine.of, other.of, f"{within}.{mine.name}")
        elif mine != other:
            found.append(_part(f"{within}[{place}]", *shown))
    return found


def _part(path: str, ours: str, theirs: str) -> str:
    return f"{path}: ours {ours}, theirs {theirs}"


def _parts(node: Node) -> list[str]:
    if node.kind in MAPPINGS:
        return ["{key}", "{}"]
    return [f"[{i}]" for i in range(len(node.of))] if node.kind == "tuple" else ["[]"]


def _by_name(fields: Iterable[Field]) -> dict[str, Field]:
    return {field.name: field for field in fields}


def _presence(field: Field) -> str:
    if field.required:
        state = "required"
    elif field.default is not msgspec.UNSET:
        state = f"default {field.default!r}"
    else:
        state = f"default {field.factory}()" if field.factory else "optional"
    return f"{state}, may be left out" if field.omissible and state != "optional" else state


def _wire(node: Node, tag_required: bool = False) -> tuple[Field, ...]:
    """The fields as they are written, the tag among them; outside a union a map may lack it."""
    if node.tag_field is None or node.tag is None:
        return node.fields
    required = tag_required or node.array_like
    return (Field(node.tag_field, Node("enum", values=(node.tag,)), required), *node.fields)


def _limits_hold(r: Node, w: Node) -> bool:
    theirs = cast("dict[str, Any]", w.limits)
    return all(name in theirs and _as_tight(name, ours, theirs[name]) for name, ours in r.limits.items())


def _as_tight(name: str, ours: Any, theirs: Any) -> bool:
    if name in ("gt", "ge", "min_length"):
        return bool(theirs >= ours)
    return bool(theirs <= ours if name in ("lt", "le", "max_length") else theirs == ours)
