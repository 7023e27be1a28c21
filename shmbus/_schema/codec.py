"""Codecs: how the events of a topic become payloads and come back.

Pure; built once for each topic and cached. What must stay true: whatever a decoder returns owns its memory,
since the payload it was decoded from lies in a ring that will be overwritten.
"""

from __future__ import annotations

import functools
import re
import types
import typing
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from shmbus._schema import foreign
from shmbus._schema.description import describe, describe_foreign, parse, wire_form
from shmbus.errors import ConfigError

try:  # what hashlib would hand out, without the OpenSSL that it loads
    from _blake2 import blake2b
except ImportError:  # an interpreter that was built without it
    from hashlib import blake2b

if TYPE_CHECKING:
    from collections.abc import Callable

    Hook = Callable[[Any], Any]
    DecodeHook = Callable[[type, Any], Any]

_PICKLE_PROTOCOL: Final = 5  # the newest that every supported Python reads
_ABSTRACT: Final = 1 << 20  # Py_TPFLAGS_IS_ABSTRACT
_NULL: Final = (b"null",)
_NULL_KEYS: Final = (b"null", b'"nan"', b'"inf"', b'"-inf"')
_FLOAT: Final = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]")  # NaN and the infinities in msgpack, and little else


class Codec(NamedTuple):
    """What publishers and consumers of a topic need to know about its type."""

    encode: Callable[[Any], bytes] | None
    """Event to payload; None when the payload is the event."""
    decode: Callable[[Any], Any] | None
    """Payload, in any contiguous buffer, to event; None when the event is the payload."""
    accepts: tuple[type, ...]
    """Exact types an event may have when it is published; empty when any may."""
    description: bytes
    """The schema, as `description.describe` writes it."""
    fingerprint: int
    """64 bits of the codec and of what two strict definitions share (`description.wire_form`); never 0."""
    encode_into: Callable[[Any, bytearray], None] | None = None
    """The same as `encode`, into a bytearray that is resized; None where the codec has no such thing."""
    enc_hook: Hook | None = None
    """What makes builtins of the values that msgspec does not know."""
    suspects: tuple[bytes, ...] = ()
    """What msgspec writes into JSON for NaN; a payload with any of it is of an event that `finite` must look at."""
    finite: Callable[[Any], bool] = bool
    """False for an event that may hold NaN or an infinity."""
    bound: Callable[[bytes], Codec | None] | None = None
    """Under a plugin's codec: what writes and reads a topic whose bus has another description of it; None: this."""


def pooled_codec(
    event_type: Any,
    codec: str,
    enc_hook: Hook | None,
    dec_hook: DecodeHook | None,
    is_array: Callable[[Any], bool],
    tried: Callable[[Any], Any],
) -> Codec:
    """What a topic with a pool shows of itself: its schema, and an `encode` for who looks for what is wrong.

    Its events are written by a Packer and read by an Unpacker. `tried` stands in for the values that msgspec does not
    know.
    """
    try:
        if codec == "pickle" and not _is_type(event_type):
            raise TypeError("not a type")
        hooks = enc_hook is not None and dec_hook is not None
        description = describe(event_type, codec, hooks=hooks, pooled=is_array)
        if codec != "pickle":
            msgspec.msgpack.Decoder(event_type, dec_hook=dec_hook or (lambda expected, value: value))
    except ConfigError:
        raise
    except Exception as error:  # msgspec reads annotations, so anything may come out of them
        raise ConfigError(f"no {codec} decoder for type={event_type!r}: {error}") from error
    encode = msgspec.msgpack.Encoder(enc_hook=tried).encode
    if codec == "pickle":
        import pickle

        encode = functools.partial(pickle.dumps, protocol=_PICKLE_PROTOCOL)
    accepts = (memoryview, bytes, bytearray) if event_type is memoryview else accepted(event_type)
    return Codec(encode, None, accepts, description, fingerprint_of(description), None, enc_hook)


def codec_for(event_type: Any, codec: str, enc_hook: Hook | None = None, dec_hook: DecodeHook | None = None) -> Codec:
    """The codec of a type, built once for each class that needs no hooks.

    Raises `ConfigError` naming the type and msgspec's reason when no decoder can be built for it.
    """
    if codec not in foreign.BUILT_IN:
        return _of_plugin(event_type, codec)
    plain = type(event_type) is type(msgspec.Struct) or type(event_type) is type  # a class is equal to itself alone
    if plain and enc_hook is None and dec_hook is None:
        return _of_class(event_type, codec)
    return _build(event_type, codec, enc_hook, dec_hook)


def _of_plugin(event_type: Any, codec: str) -> Codec:
    plugin = foreign.plugin(codec)
    try:
        made = plugin.coding(event_type)
        return _of_coding(event_type, codec, made, describe_foreign(codec, made))
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"codec {codec} cannot carry type={event_type!r}: {error}") from error


def _of_coding(event_type: Any, codec: str, made: foreign.Coding, description: bytes) -> Codec:
    def bound(theirs: bytes) -> Codec | None:
        found = parse(theirs).foreign
        made = None if found is None else foreign.plugin(codec).bound(event_type, found.schema)
        return None if made is None else _of_coding(event_type, codec, made, theirs)

    return Codec(made.encode, made.decode, made.accepts, description, fingerprint_of(description), bound=bound)


def _build(event_type: Any, codec: str, enc_hook: Hook | None = None, dec_hook: DecodeHook | None = None) -> Codec:
    try:
        description = describe(event_type, codec, hooks=enc_hook is not None and dec_hook is not None)
        encode, decode = _functions(event_type, codec, description, enc_hook, dec_hook)
    except ConfigError:
        raise
    except Exception as error:  # msgspec reads annotations, so anything may come out of them
        raise ConfigError(f"no {codec} decoder for type={event_type!r}: {error}") from error
    owner = getattr(encode, "__self__", None)  # msgspec's Encoder
    into = getattr(owner, "encode_into", None)
    suspects: tuple[bytes, ...] = ()
    if codec == "json" and encode is not None:
        keyed = any(b'"kind":"%b"' % kind in description for kind in (b"dict", b"frozendict", b"any", b"custom"))
        suspects = _NULL_KEYS if keyed else _NULL
    fingerprint = fingerprint_of(description)
    accepts = accepted(event_type)
    return Codec(encode, decode, accepts, description, fingerprint, into, enc_hook, suspects, _finite(enc_hook))


_of_class = functools.lru_cache(maxsize=512)(_build)


def _functions(
    event_type: Any, codec: str, description: bytes, enc_hook: Hook | None, dec_hook: DecodeHook | None
) -> tuple[Callable[[Any], bytes] | None, Callable[[Any], Any] | None]:
    if codec == "record":
        from shmbus._schema.record import record_codec

        rows = record_codec(event_type, description)
        return rows.encode, rows.decode
    if event_type is bytes:
        return None, None
    if codec == "pickle":
        import pickle  # 5 ms, which only such a topic is worth

        if not _is_type(event_type):
            raise TypeError("not a type")
        return functools.partial(pickle.dumps, protocol=_PICKLE_PROTOCOL), pickle.loads
    module = msgspec.json if codec == "json" else msgspec.msgpack
    decode = module.Decoder(event_type, dec_hook=dec_hook).decode
    return module.Encoder(enc_hook=enc_hook).encode, _owning(decode, description)


def _finite(enc_hook: Hook | None) -> Callable[[Any], bool]:
    encode = msgspec.msgpack.Encoder(enc_hook=enc_hook).encode

    def finite(event: Any) -> bool:
        try:
            return _FLOAT.search(encode(event)) is None
        except Exception:  # JSON has larger integers, for one
            return False

    return finite


def _is_type(hint: Any) -> bool:
    alias = hasattr(hint, "__supertype__") or hasattr(hint, "__value__") or typing.get_origin(hint) is not None
    return alias or isinstance(hint, type) or hint is Any or hint is None


def _owning(decode: Callable[[Any], Any], description: bytes) -> Callable[[Any], Any]:
    # Raw and memoryview fields are views of the payload; a hook may be given one too. Quotes inside a JSON string are
    # escaped, so these bytes can occur in no title; in a default they would cost a copy and nothing else.
    if any(b'"kind":"%b"' % kind in description for kind in (b"raw", b"memoryview", b"custom")):
        return lambda payload: decode(bytes(payload))
    return decode


def fingerprint_of(description: bytes) -> int:
    """What two strict definitions share, in 64 bits. Raises CorruptSegmentError for what is no description."""
    # The description names the codec. 0 means "no schema" in a segment.
    return int.from_bytes(blake2b(wire_form(description), digest_size=8).digest(), "little") or 1


def accepted(event_type: Any) -> tuple[type, ...]:
    """The exact types that an event of this type may have; empty: any."""
    if event_type is bytes:
        return (bytes, bytearray, memoryview)
    members = dict.fromkeys(cls for hint in alternatives(event_type) for cls in _instances(hint))
    return () if object in members else tuple(members)


def alternatives(hint: Any) -> list[Any]:
    """The members of a union, and what stands behind aliases and annotations; of anything else the one that it is."""
    if hasattr(hint, "__supertype__"):  # NewType
        return alternatives(hint.__supertype__)
    if hasattr(hint, "__value__"):  # type X = ...
        return alternatives(hint.__value__)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Annotated, typing.Final):
        return alternatives(args[0])
    if origin in (typing.Union, types.UnionType):
        return [member for arg in args for member in alternatives(arg)]
    return [hint]


def _instances(hint: Any) -> list[type]:
    """The exact types of the values that `hint` admits; `object` among them stands for "cannot tell"."""
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return [type(value) for value in typing.get_args(hint)]
    cls = type(None) if hint is None else origin or hint
    if cls is Any or not isinstance(cls, type):
        return [object]
    if cls is float:
        return [float, int]  # an int is received as the float it equals
    if issubclass(cls, dict) and hasattr(cls, "__total__"):  # TypedDict
        return [dict]
    abstract = cls.__flags__ & _ABSTRACT or getattr(cls, "_is_protocol", False)
    return [object] if abstract else [cls]
