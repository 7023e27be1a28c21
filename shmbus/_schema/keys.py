"""Keys: the path of the field by which a group orders its events, and what a publisher finds there.

Pure. Must stay true: two processes find the same of one event, whatever their Python; what cannot be found is None, and
no error: what a group wants is no reason to refuse an event.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import inspect

from shmbus.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_KEY: Final = 128  # characters
_SIMPLE: Final = frozenset({int, str, bytes, type(None)})


def check_key(key: object, type: Any, topic: str) -> str:
    """The path, if an event of the type may have it. Raises ConfigError, which names path and type."""
    if not isinstance(key, str) or not 1 <= len(key) <= MAX_KEY or not all(key.split(".")):
        raise ConfigError(f"key is the path of a field, its parts joined by dots, of {MAX_KEY} characters: key={key!r}")
    try:
        found: list[Any] = [inspect.type_info(type)]
    except TypeError:  # a class that only pickle knows: its events will tell
        return key
    for at, name in enumerate(key.split(".")):
        found = [after for info in found for after in _after(info, name)]
        if not found:
            where = f" in {'.'.join(key.split('.')[:at])!r}" if at else ""
            shown = getattr(type, "__qualname__", type)
            raise ConfigError(f"topic {topic!r} carries {shown}, which has no field {name!r}{where}: key={key!r}")
    return key


def _after(info: Any, name: str) -> Iterator[Any]:
    """What may stand at `name` of a value."""
    if isinstance(info, inspect.Metadata):
        yield from _after(info.type, name)
    elif isinstance(info, inspect.UnionType):
        for one in info.types:
            yield from _after(one, name)
    elif isinstance(info, inspect.StructType | inspect.DataclassType | inspect.NamedTupleType | inspect.TypedDictType):
        yield from (field.type for field in info.fields if field.name == name)
    elif isinstance(info, inspect.DictType):
        yield info.value_type
    elif isinstance(info, inspect.AnyType | inspect.CustomType):
        yield info


def resolver(key: str, enc_hook: Callable[[Any], Any] | None) -> tuple[tuple[str, ...], Callable[[Any], Any]]:
    """A key as a Producer takes it: its path, and what finds the value where that is not plain."""
    names = tuple(key.split("."))
    encode = msgspec.msgpack.Encoder(enc_hook=enc_hook, order="deterministic").encode

    def resolve(event: Any) -> Any:
        value = event
        for name in names:
            value = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
        if type(value) in _SIMPLE and not (type(value) is int and not -(1 << 63) <= value < 1 << 63):
            return value
        try:
            return encode(value)
        except (TypeError, ValueError, OverflowError):  # of no type that msgspec knows; so it is no key
            return None

    return names, resolve
