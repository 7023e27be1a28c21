"""Topics: the name, type and size of a stream of events.

Pure: a `Topic` is a description that two processes compare; it opens nothing. What must stay true: a topic
that could be constructed is valid, on whatever path it came to be (call, pickle, copy).
"""

from __future__ import annotations

import builtins
import dataclasses
import re
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar, final

import msgspec

from shmbus import _core
from shmbus._schema.codec import Codec, codec_for
from shmbus.errors import ConfigError

if TYPE_CHECKING:
    # The checkers bring it along; unlike type[T] it takes unions and Annotated.
    from typing_extensions import TypeForm

T = TypeVar("T")

MIN_CAPACITY: Final = _core.MIN_CAPACITY  # one page: less would not save memory
MAX_CAPACITY: Final = _core.MAX_CAPACITY  # far past any machine's /dev/shm, far below where positions could wrap
DEFAULT_CAPACITY: Final = 1 << 20

DEAD_SUFFIX: Final = ".dead"
_MIN_DEAD_CAPACITY = 1 << 16  # room for the reason and the names beside a small payload

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,47}")
_NAME_MAX = 48
_LABEL_MAX = 63  # UTF-8 bytes; an entry of 64 holds it with an end mark


class DeadLetter(msgspec.Struct, frozen=True):
    """An event that a group gave up on, as the dead-letter topic of its topic carries it."""

    reason: str
    """Why: what `reject` was given, or that `max_deliver` was exceeded."""
    attempts: int
    """How often it had been handed to a worker."""
    publisher: str
    sequence: int
    """Its sequence in the ring of that publisher."""
    payload: bytes
    """The event as it was encoded."""
    topic: str
    group: str
    time_ns: int
    """When it was published, in ns since the epoch."""
    truncated: int = 0
    """Bytes that are missing at the end of `payload`, because no ring for dead letters could hold it; 0: none."""


def check_name(kind: str, name: str) -> str:
    """Return the name of a bus or topic (`kind` says which) if it is valid.

    Raises `ConfigError` otherwise. Valid is `[a-z0-9][a-z0-9._-]{0,47}`.
    """
    if not isinstance(name, str):
        raise ConfigError(f"{kind} name must be a str: name={name!r}")
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{kind} name must match {_NAME.pattern}: name={name!r}")
    return name


def check_label(kind: str, name: str) -> str:
    """Return the name of a consumer, group or publisher (`kind` says which) if it is valid.

    Raises `ConfigError` otherwise. Valid is a str of 1 to 63 UTF-8 bytes, printable, with no space at either
    end.
    """
    if not isinstance(name, str):
        raise ConfigError(f"{kind} name must be a str: name={name!r}")
    if not name.isprintable() or name != name.strip():
        raise ConfigError(f"{kind} name must be printable, without space at either end: name={name!r}")
    if not 1 <= len(name.encode()) <= _LABEL_MAX:
        raise ConfigError(
            f"{kind} name must have 1 to {_LABEL_MAX} UTF-8 bytes, not {len(name.encode())}: name={name!r}"
        )
    return name


@final
@dataclasses.dataclass(frozen=True, init=False, repr=False)
class Topic(Generic[T]):
    """A named, typed stream of events; immutable, comparable, hashable, and picklable where its type is.

    `type` is what msgspec can encode and decode (a Struct, dataclass, TypedDict, builtin, union of tagged
    Structs, ...), or `bytes` for raw payloads. `capacity` is the size of each ring in bytes: a power of two
    from 4096 to 1 << 40; an event may take a quarter of it. `schema="strict"` demands the same definition of
    every process, "evolve" admits what msgspec can decode. `codec="pickle"` takes any class, but loading a
    pickle runs code of whoever wrote it: payloads are data, never code, unless a topic asks for it by that
    name.

    Raises `ConfigError` with the offending value. Opens nothing.

        ORDERS = Topic("orders", OrderPaid)              # Topic[OrderPaid]
        MOVES = Topic("moves", Opened | Closed)          # Topic[Opened | Closed]
    """

    name: str
    type: TypeForm[T] = dataclasses.field(hash=False)  # Annotated metadata need not be hashable
    capacity: int
    schema: Literal["strict", "evolve"]
    codec: Literal["msgpack", "json", "pickle"]
    _wire: Codec = dataclasses.field(init=False, compare=False)

    def __init__(
        self,
        name: str,
        type: TypeForm[T],
        *,
        capacity: int = DEFAULT_CAPACITY,
        schema: Literal["strict", "evolve"] = "strict",
        codec: Literal["msgpack", "json", "pickle"] = "msgpack",
    ) -> None:
        check_name("topic", name)
        _check_capacity(capacity)
        _check_choice("schema", schema, ("strict", "evolve"))
        _check_choice("codec", codec, ("msgpack", "json", "pickle"))
        if name.endswith(DEAD_SUFFIX) and type is not DeadLetter:
            raise ConfigError(f"a topic named *{DEAD_SUFFIX} has the type DeadLetter: name={name!r}, type={type!r}")
        wire = codec_for(type, codec)
        values = {"name": name, "type": type, "capacity": capacity, "schema": schema, "codec": codec, "_wire": wire}
        for field, value in values.items():
            object.__setattr__(self, field, value)

    def __repr__(self) -> str:
        shown = self.type.__qualname__ if isinstance(self.type, builtins.type) else repr(self.type)
        defaults = {"capacity": DEFAULT_CAPACITY, "schema": "strict", "codec": "msgpack"}
        options = [f", {key}={getattr(self, key)!r}" for key, usual in defaults.items() if getattr(self, key) != usual]
        return f"Topic({self.name!r}, {shown}{''.join(options)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.name, self.type, self.capacity, self.schema, self.codec)


def codec_of(topic: Topic[Any]) -> Codec:
    """How the events of a topic become payloads and come back."""
    return topic._wire


def dead_letter_topic(topic: Topic[Any], *, capacity: int = 0) -> Topic[DeadLetter]:
    """The topic `<name>.dead` that takes what workers of `topic` reject or give up on.

    Its rings are twice as large, so that the largest event of `topic` fits into a dead letter. `capacity` is that of
    the largest ring of `topic`, where somebody publishes with a larger one than `topic` has. `ConfigError`
    for a name of more than 43 characters.
    """
    room = _NAME_MAX - len(DEAD_SUFFIX)
    if len(topic.name) > room:
        raise ConfigError(
            f"topic name leaves no room for {DEAD_SUFFIX!r}, at most {room} characters: name={topic.name!r}"
        )
    capacity = min(max(2 * topic.capacity, 2 * capacity, _MIN_DEAD_CAPACITY), MAX_CAPACITY)
    return Topic(topic.name + DEAD_SUFFIX, DeadLetter, capacity=capacity)


def _rebuild(name: str, type: Any, capacity: int, schema: Any, codec: Any) -> Topic[Any]:
    return Topic(name, type, capacity=capacity, schema=schema, codec=codec)


def _check_capacity(capacity: object) -> None:
    if not isinstance(capacity, int) or isinstance(capacity, bool):
        raise ConfigError(f"capacity must be an int: capacity={capacity!r}")
    if not MIN_CAPACITY <= capacity <= MAX_CAPACITY:
        raise ConfigError(f"capacity must be {MIN_CAPACITY} to {MAX_CAPACITY} bytes: capacity={capacity}")
    if capacity & (capacity - 1):
        raise ConfigError(f"capacity must be a power of two: capacity={capacity}")


def _check_choice(option: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{option} must be one of {', '.join(known)}: {option}={value!r}")
