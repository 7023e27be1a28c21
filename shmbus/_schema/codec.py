"""Codecs: how the events of a topic become payloads and come back.

Pure; built once for each topic and cached. What must stay true: whatever a decoder returns owns its memory,
since the payload it was decoded from lies in a ring that will be overwritten.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import pickle
import types
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from shmbus._schema.compare import describe
from shmbus.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

_PICKLE_PROTOCOL = 5  # the newest that every supported Python reads


@dataclass(frozen=True, slots=True)
class Codec:
    """What publishers and consumers of a topic need to know about its type."""

    encode: Callable[[Any], bytes] | None
    """Event to payload; None when the payload is the event."""
    decode: Callable[[Any], Any] | None
    """Payload, in any contiguous buffer, to event; None when the event is the payload."""
    accepts: tuple[type, ...]
    """Exact types an event may have when it is published; empty when any may."""
    description: bytes
    """The schema, as `compare.describe` writes it."""
    fingerprint: int
    """64 bits of the schema and the codec; never 0."""
    encode_into: Callable[[Any, bytearray], None] | None = None
    """The same as `encode`, into a bytearray that is resized; None where the codec has no such thing."""


def codec_for(event_type: Any, codec: str) -> Codec:
    """The codec of a type, built once for each class.

    Raises `ConfigError` naming the type and msgspec's reason when no decoder can be built for it.
    """
    if type(event_type) is type(msgspec.Struct) or type(event_type) is type:  # a class is equal to itself alone
        return _of_class(event_type, codec)
    return _build(event_type, codec)


def _build(event_type: Any, codec: str) -> Codec:
    try:
        description = describe(event_type, codec)
        encode, decode = _functions(event_type, codec, description)
    except ConfigError:
        raise
    except Exception as error:  # msgspec reads annotations, so anything may come out of them
        raise ConfigError(f"no {codec} decoder for type={event_type!r}: {error}") from error
    owner = getattr(encode, "__self__", None)  # msgspec's Encoder
    into = getattr(owner, "encode_into", None)
    return Codec(encode, decode, _accepts(event_type), description, _fingerprint(description), into)


_of_class = functools.lru_cache(maxsize=512)(_build)


def _functions(
    event_type: Any, codec: str, description: bytes
) -> tuple[Callable[[Any], bytes] | None, Callable[[Any], Any] | None]:
    if event_type is bytes:
        return None, None
    if codec == "pickle":
        if not _is_type(event_type):
            raise TypeError("not a type")
        return functools.partial(pickle.dumps, protocol=_PICKLE_PROTOCOL), pickle.loads
    if codec == "json":
        return msgspec.json.Encoder().encode, _owning(msgspec.json.Decoder(event_type).decode, description)
    return msgspec.msgpack.Encoder().encode, _owning(msgspec.msgpack.Decoder(event_type).decode, description)


def _is_type(hint: Any) -> bool:
    alias = hasattr(hint, "__supertype__") or hasattr(hint, "__value__") or typing.get_origin(hint) is not None
    return alias or inspect.isclass(hint) or hint is Any or hint is None


def _owning(decode: Callable[[Any], Any], description: bytes) -> Callable[[Any], Any]:
    # Raw and memoryview fields are views of the payload. Quotes inside a JSON string are escaped, so these
    # bytes can occur in no title; in a default they would cost a copy and nothing else.
    if b'"kind":"raw"' in description or b'"kind":"memoryview"' in description:
        return lambda payload: decode(bytes(payload))
    return decode


def _fingerprint(description: bytes) -> int:
    # The description names the codec. 0 means "no schema" in a segment.
    return int.from_bytes(hashlib.blake2b(description, digest_size=8).digest(), "little") or 1


def _accepts(event_type: Any) -> tuple[type, ...]:
    if event_type is bytes:
        return (bytes, bytearray, memoryview)
    members = dict.fromkeys(_members(event_type))
    return () if object in members else tuple(members)


def _members(hint: Any) -> list[type]:
    """The exact types of the values that `hint` admits; `object` among them stands for "cannot tell"."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return [object]
    if hint is None:
        return [type(None)]
    if hasattr(hint, "__supertype__"):  # NewType
        return _members(hint.__supertype__)
    if hasattr(hint, "__value__"):  # type X = ...
        return _members(hint.__value__)
    if origin in (typing.Annotated, typing.Final):
        return _members(args[0])
    if origin is typing.Literal:
        return [type(value) for value in args]
    if origin in (typing.Union, types.UnionType):
        return [member for arg in args for member in _members(arg)]
    if origin is not None:
        return _members(origin)
    return _instances(hint) if inspect.isclass(hint) else [object]


def _instances(cls: type) -> list[type]:
    if cls is float:
        return [float, int]  # an int is received as the float it equals
    if issubclass(cls, dict) and hasattr(cls, "__total__"):  # TypedDict
        return [dict]
    abstract = inspect.isabstract(cls) or getattr(cls, "_is_protocol", False)
    return [object] if abstract else [cls]
