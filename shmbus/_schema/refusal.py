"""Why an event is not published: what its class has against the topic's type, and where in it lies what no codec
writes.

Pure, and off the path of events: asked once about a class that is not the topic's own, and after an encoder refused.
What must stay true: a class is admitted only if its instances are written as the topic's schema says.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import os
import re
import sys
import typing
from typing import TYPE_CHECKING, Any, Final

import msgspec

from shmbus._schema.codec import alternatives
from shmbus._schema.compare import difference
from shmbus._schema.description import describe, wire_form
from shmbus._schema.foreign import BUILT_IN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shmbus._schema.codec import Codec

_DEEPEST: Final = 100  # steps of a path
_AT: Final = re.compile(r" - at `(?:key in )?(.*)`$", re.DOTALL)


def against(event_type: Any, cls: type, codec: str, *, hooks: bool) -> list[str]:
    """What keeps instances of a class from being events of a type, a line each; empty if it is the same definition.

    A union takes what one of its members takes. Under "pickle" a definition is the module and the name that a receiver
    looks up.
    """
    tries = [
        _against(member, cls, codec, hooks) for member in alternatives(event_type) if isinstance(_origin(member), type)
    ]
    return min(tries, key=len, default=["it is of no class of the topic"]) if [] not in tries else []


def _origin(hint: Any) -> Any:
    return typing.get_origin(hint) or hint


def _against(member: Any, cls: type, codec: str, hooks: bool) -> list[str]:
    if codec not in BUILT_IN:
        return [f"ours {getattr(_origin(member), '__qualname__', member)}, theirs {cls.__qualname__}"]
    if codec == "pickle":
        known, given = _looked_up(_origin(member)), _looked_up(cls)
        return [] if known == given else [f"ours {'.'.join(known)}, theirs {'.'.join(given)}"]
    arguments: Any = typing.get_args(member)
    try:
        ours = describe(member, codec, hooks=hooks)
        hint: Any = cls[arguments] if arguments else cls  # type: ignore[index]
        theirs = describe(hint, codec, hooks=hooks)
    except Exception as error:  # msgspec reads annotations, so anything may come out of them
        return [str(error)]
    if b'"root":{"kind":"custom"' in ours:
        return _against(member, cls, "pickle", hooks)  # only its name is known
    if (
        b'"root":{"kind":"ref"' not in theirs
    ):  # no class of fields and no enum: what a subclass is written as, who knows
        return [f"event: ours {_origin(member).__qualname__}, theirs {cls.__qualname__}"]
    return difference(wire_form(ours), wire_form(theirs))


def _looked_up(cls: type) -> tuple[str, str]:
    """Module and name of a class, the module that runs as `__main__` under the name that others import it by."""
    module = cls.__module__
    main = sys.modules.get("__main__")
    if module == "__main__" and main is not None:
        spec = getattr(main, "__spec__", None)
        path = getattr(main, "__file__", None)
        module = spec.name if spec else os.path.splitext(os.path.basename(path))[0] if path else module
    return module, cls.__qualname__


def where(event: Any, error: Exception, codec: Codec, name: str) -> tuple[str, str]:
    """The path of what an encoder, or a decoder that validates, raised for an event; and the message with it."""
    if isinstance(error, msgspec.DecodeError) or name == "record":
        found = _AT.search(str(error))  # a decoder knows where it was
        return (found[1] if found else "$"), str(error)
    if name not in BUILT_IN:  # no part of an event is one
        return "$", str(error) or type(error).__name__
    path = blame(event, codec.encode, codec.enc_hook, opened=name == "pickle") if codec.encode else "$"
    return path, f"{str(error) or type(error).__name__} - at `{path}`"


def blame(
    event: Any, encode: Callable[[Any], object], enc_hook: Callable[[Any], Any] | None, *, opened: bool = False
) -> str:
    """The path of the value that an encoder refuses: `$.lines[3].price`, `$` for the event itself.

    Whatever holds the value refuses too, so the way down is by trying. `opened`: the attributes of any object are parts
    of it.
    """
    path, above = "$", [event]
    while len(above) < _DEEPEST:
        parts = _parts(above[-1], enc_hook, opened=opened)
        found = next(((part, value) for part, value in parts if _refused(encode, value)), None)
        if found is None:
            return path + _key(above[-1], encode)
        path += found[0]
        if any(found[1] is value for value in above):
            return path  # it holds itself
        above.append(found[1])
    return f"{path}..."


def _refused(encode: Callable[[Any], object], value: Any) -> bool:
    try:
        encode(value)
    except Exception:
        return True
    return False


def _key(value: Any, encode: Callable[[Any], object]) -> str:
    """The key that makes a dict impossible, as the end of a path; nothing if there is none."""
    bad = [key for key in value if _refused(encode, {key: None})] if isinstance(value, dict) else []
    return _subscript(bad[0]) if bad else ""


def nonfinite(event: Any, enc_hook: Callable[[Any], Any] | None) -> tuple[str, float] | None:
    """The path of a NaN or an infinity in an event that an encoder took, and the value; None if there is none."""
    open_ = [("$", event)]
    while open_:
        path, value = open_.pop()
        if isinstance(value, float) and not math.isfinite(value):
            return path, value
        if isinstance(value, dict):
            open_ += [(path + _subscript(key), key) for key in value if isinstance(key, float)]
        open_ += [(path + part, child) for part, child in _parts(value, enc_hook)]
    return None


def _parts(value: Any, enc_hook: Callable[[Any], Any] | None, *, opened: bool = False) -> Iterator[tuple[str, Any]]:
    """What a value holds, each with its step of the path; of what only a hook knows, what the hook makes of it.

    `opened`: the attributes of any object are its parts.
    """
    if isinstance(value, msgspec.Struct):
        names = zip(value.__struct_fields__, value.__struct_encode_fields__, strict=True)
        yield from ((f".{shown}", getattr(value, name)) for name, shown in names)
    elif isinstance(value, dict):
        yield from ((_subscript(key), child) for key, child in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        names_of: Any = getattr(value, "_fields", None)
        yield from ((f".{names_of[i]}" if names_of else f"[{i}]", child) for i, child in enumerate(value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        names_of = [field.name for field in dataclasses.fields(value)]
        yield from ((f".{name}", getattr(value, name)) for name in names_of if hasattr(value, name))
    elif isinstance(value, enum.Enum):
        yield "", value.value
    elif hasattr(value, "__attrs_attrs__") or (opened and hasattr(value, "__dict__")):
        yield from ((f".{name}", child) for name, child in vars(value).items())
    elif enc_hook is not None and not isinstance(value, str | bytes | int | float | None):
        try:
            yield "", enc_hook(value)
        except Exception:
            return


def _subscript(key: Any) -> str:
    shown = repr(key) if isinstance(key, str | bytes | int | float | None) else type(key).__name__
    return f"[{shown if len(shown) <= 48 else shown[:45] + '...'}]"
