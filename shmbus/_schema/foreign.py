"""Foreign codecs: the contract of a plugin of `shmbus.codecs`, and what the floors above know of its schemas.

Pure but for the import of a plugin, which only a topic with such a codec is worth.

Must stay true:
- What lies in the rings of a topic is written by the schema that its bus has for it, whoever publishes: one who knows
  the topic by another one, which the codec admits, writes and reads through `bound`.
- `identity` says all that two strict definitions share, so nobody needs the plugin to compare two of them.
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, NewType, Protocol, TypeAlias

import msgspec

from shmbus.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

CodecName = NewType("CodecName", str)
"""The name of somebody else's codec, for checkers: `codec=CodecName("cbor")`."""
Known: TypeAlias = Literal["msgpack", "json", "pickle", "record", "arrow", "avro", "protobuf"]
BUILT_IN: Final = ("msgpack", "json", "pickle", "record")
"""Codecs that need no plugin."""


class Coding(NamedTuple):
    """What a plugin makes of the type of a topic."""

    encode: Callable[[Any], bytes]
    """Event to payload; raises what it likes for an event that is none."""
    decode: Callable[[Any], Any]
    """Payload, in any contiguous buffer, to an event that owns its memory; raises what it likes for what is none."""
    accepts: tuple[type, ...]
    """Exact types an event may have; empty: `encode` says."""
    title: str
    """What people are told the type is."""
    schema: str
    """The whole schema as text, from which the plugin, in any process, makes `plain` and the rest."""
    identity: tuple[str, ...]
    """What two strict definitions share, a fact a line; order counts."""


class CodecPlugin(Protocol):
    """A codec; made once a process, without arguments. `shmbus.testing.codec_conformance` says whether one is right."""

    def coding(self, type: Any) -> Coding:
        """What a topic of this type does. Raises ConfigError for a type that the codec cannot carry."""
        ...

    def bound(self, type: Any, schema: str) -> Coding | None:
        """The same for a topic whose payloads are of another schema, one that `admits` lets in; None: no difference."""
        ...

    def admits(self, reader: str, writer: str) -> list[str]:
        """Why who knows the schema `reader` cannot read what is written by `writer`, a line each; empty: it can."""
        ...

    def plain(self, schema: str) -> Callable[[bytes], Any]:
        """What makes builtins of a payload, for tools that lack the type."""
        ...

    def packed(self, schema: str) -> Callable[[Any], bytes]:
        """What makes a payload of a JSON value; raises ValueError or TypeError for one that does not fit."""
        ...


class Foreign(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a description holds of a plugin's schema."""

    identity: tuple[str, ...]
    schema: str = ""
    """Not in a wire form."""


@functools.cache
def plugin(name: str) -> CodecPlugin:
    """The codec of that name. Raises ConfigError where there is none, or one that lacks what it needs."""
    from shmbus import _plugins

    made: CodecPlugin = _plugins.load("shmbus.codecs", name)()
    return made


def require_known(name: str) -> None:
    """Raise ConfigError for the name of a codec that nobody has; imports no plugin."""
    if isinstance(name, str) and name in BUILT_IN:
        return
    from shmbus import _plugins

    found = _plugins.found("shmbus.codecs")
    if not isinstance(name, str) or name not in found:
        known = ", ".join([*BUILT_IN, *sorted(found)])
        raise ConfigError(f"codec must be one of {known}: codec={name!r}")


def apart(ours: tuple[str, ...], theirs: tuple[str, ...]) -> list[str]:
    """Where two identities part, a line each; empty only for equal ones."""
    mine, other = Counter(ours), Counter(theirs)
    found = [f"only in ours: {line}" for line in (mine - other).elements()]
    found += [f"only in theirs: {line}" for line in (other - mine).elements()]
    if not found and ours != theirs:
        place = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        found.append(f"order: ours {ours[place]}, theirs {theirs[place]}")
    return found


def admits(codec: str, reader: Foreign, writer: Foreign) -> list[str]:
    """What the plugin says, or why it cannot."""
    if reader.identity == writer.identity:
        return []
    try:
        return plugin(codec).admits(reader.schema, writer.schema)
    except Exception as error:  # of a schema that came out of a segment, or of a plugin that is not here
        return [f"{codec} cannot compare the two schemas: {error}"]


def plain(codec: str, schema: str) -> Callable[[bytes], Any]:
    """Payload to builtins; to bytes in a process that lacks the plugin. What it returns raises msgspec.DecodeError."""
    try:
        decode = plugin(codec).plain(schema)
    except Exception:  # shown as what it is: bytes
        return bytes

    def decoded(payload: bytes) -> Any:
        try:
            return decode(bytes(payload))
        except Exception as error:
            raise msgspec.DecodeError(f"{codec}: {error}") from error

    return decoded


def packed(codec: str, schema: str) -> Callable[[Any], bytes]:
    """JSON value to payload. What it returns raises ConfigError."""
    try:
        encode = plugin(codec).packed(schema)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{codec} cannot use the schema of the topic: {error}") from error

    def encoded(value: Any) -> bytes:
        try:
            return encode(value)
        except Exception as error:
            raise ConfigError(f"$: {error}") from error

    return encoded
