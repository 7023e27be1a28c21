"""Topics: the name, type and size of a stream of events.

Pure: a `Topic` is a description that two processes compare; it opens nothing. What must stay true: a topic
that could be constructed is valid, on whatever path it came to be (call, pickle, copy).
"""

from __future__ import annotations

import builtins
import re
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Literal, NoReturn, TypeVar, final

import msgspec

from shmbus import _core
from shmbus._payload.kinds import codec_with_pool
from shmbus._schema.codec import Codec, codec_for
from shmbus._schema.foreign import BUILT_IN, CodecName, Known, require_known
from shmbus.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    # The checkers bring it along; unlike type[T] it takes unions and Annotated.
    from typing_extensions import TypeForm

T = TypeVar("T")

MIN_CAPACITY: Final = _core.MIN_CAPACITY  # one page: less would not save memory
MAX_POOL: Final = _core.MAX_POOL
MAX_CAPACITY: Final = _core.MAX_CAPACITY  # far past any machine's /dev/shm, far below where positions could wrap
DEFAULT_CAPACITY: Final = 1 << 20

DEAD_SUFFIX: Final = ".dead"
_MIN_DEAD_CAPACITY = 1 << 16  # room for the reason and the names beside a small payload

_NAME_MAX = 48
_BUS_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")  # it is part of file names
_TOPIC_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)*")
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
    id: str = ""
    """Its `Message.id`; "" in letters that were not written by a worker."""


def check_name(kind: Literal["bus", "topic"], name: str) -> str:
    """Return the name of a bus or topic (`kind` says which) if it is valid.

    Raises `ConfigError` otherwise. Valid for a bus is `[a-z0-9][a-z0-9._-]{0,47}`. A topic's name may have
    capitals, and parts of that form joined by `/`; it too has 48 characters at most.
    """
    if not isinstance(name, str):
        raise ConfigError(f"{kind} name must be a str: name={name!r}")
    pattern = _BUS_NAME if kind == "bus" else _TOPIC_NAME
    if not pattern.fullmatch(name):
        raise ConfigError(f"{kind} name must match {pattern.pattern}: name={name!r}")
    if len(name) > _NAME_MAX:
        raise ConfigError(f"{kind} name must have at most {_NAME_MAX} characters, not {len(name)}: name={name!r}")
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
class Topic(Generic[T]):
    """A named, typed stream of events; immutable, comparable, hashable, and picklable where its type and hooks are.

    `type` is what msgspec can encode and decode (a Struct, dataclass, TypedDict, builtin, union of tagged
    Structs, ...), or `bytes` for raw payloads. `capacity` is the size of each ring in bytes: a power of two
    from 4096 to 1 << 40; an event may take a quarter of it. With `max_capacity` a ring that a reliable consumer or a
    group fills, or that an event does not fit into, grows up to that, and shrinks when it has been mostly empty for
    a minute. `schema="strict"` demands the same definition of
    every process, "evolve" admits what msgspec can decode. `codec="pickle"` takes any class, but loading a
    pickle runs code of whoever wrote it: payloads are data, never code, unless a topic asks for it by that
    name. `codec="record"` writes a Struct as one row of fixed size, and moves batches as NumPy arrays (`dtype`): an int
    takes the smallest type that its limits leave, str and bytes need a `max_length`, which is their room in bytes.
    `enc_hook` and `dec_hook` are msgspec's: they make builtins of types that it does not know, and the other way
    round. `validate=True` decodes every event before it is published, and refuses one that no receiver would get.
    `pool` is the size in bytes of each publisher's pool, in which NumPy arrays, memoryviews, Arrow batches and tables,
    and with codec="pickle" what pickles out of band, travel beside their events; 0: none does.

    Raises `ConfigError` with the offending value. Opens nothing.

        ORDERS = Topic("orders", OrderPaid)              # Topic[OrderPaid]
        MOVES = Topic("moves", Opened | Closed)          # Topic[Opened | Closed]
    """

    if TYPE_CHECKING:  # read-only, as what lies in the slots is

        @property
        def name(self) -> str:
            """What every process knows it by."""
            ...

        @property
        def type(self) -> TypeForm[T]:
            """What its events are."""
            ...

        @property
        def capacity(self) -> int:
            """Bytes of each ring."""
            ...

        @property
        def max_capacity(self) -> int | None:
            """Bytes that a ring may grow to; None: it is fixed."""
            ...

        @property
        def schema(self) -> Literal["strict", "evolve"]:
            """Whether another definition of the type may take part."""
            ...

        @property
        def codec(self) -> Known | CodecName:
            """How events are written."""
            ...

        @property
        def enc_hook(self) -> Callable[[Any], Any] | None:
            """What makes builtins of a value that msgspec does not know."""
            ...

        @property
        def dec_hook(self) -> Callable[[builtins.type, Any], Any] | None:
            """What makes a value of a type that msgspec does not know of builtins."""
            ...

        @property
        def validate(self) -> bool:
            """Whether every event is decoded before it is published."""
            ...

        @property
        def pool(self) -> int:
            """Bytes of each publisher's pool, 0: there is none."""
            ...

        _wire: Codec
    else:
        __slots__ = (
            "__weakref__",
            "_wire",
            "capacity",
            "codec",
            "dec_hook",
            "enc_hook",
            "max_capacity",
            "name",
            "pool",
            "schema",
            "type",
            "validate",
        )

    _usual: ClassVar[dict[str, object]] = {
        "capacity": DEFAULT_CAPACITY,
        "schema": "strict",
        "codec": "msgpack",
        "enc_hook": None,
        "dec_hook": None,
        "validate": False,
        "pool": 0,
        "max_capacity": None,
    }

    def __init__(
        self,
        name: str,
        type: TypeForm[T],
        *,
        capacity: int = DEFAULT_CAPACITY,
        schema: Literal["strict", "evolve"] = "strict",
        codec: Known | CodecName = "msgpack",
        enc_hook: Callable[[Any], Any] | None = None,
        dec_hook: Callable[[builtins.type, Any], Any] | None = None,
        validate: bool = False,
        pool: int = 0,
        max_capacity: int | None = None,
    ) -> None:
        check_name("topic", name)
        _check_capacity(capacity, max_capacity)
        _check_pool(pool, type, codec, validate)
        if pool and max_capacity is not None:  # what a pool's extents are owed is read off the rings that are written
            raise ConfigError(f"rings beside a pool are fixed: {pool=}, {max_capacity=}")
        _check_choice("schema", schema, ("strict", "evolve"))
        require_known(codec)
        hooks = {"enc_hook": enc_hook, "dec_hook": dec_hook}
        for option, hook in hooks.items():
            if not (hook is None or callable(hook)):
                raise ConfigError(f"{option} is None or a callable: {option}={hook!r}")
            if hook is not None and codec == "pickle":
                raise ConfigError(f"{option} is msgspec's, and codec='pickle' does without: {option}={hook!r}")
            if hook is not None and codec not in BUILT_IN:
                raise ConfigError(f"{option} is msgspec's, and codec={codec!r} does without: {option}={hook!r}")
            if hook is not None and codec == "record":
                raise ConfigError(
                    f"{option} makes values of no fixed size, which codec='record' needs: {option}={hook!r}"
                )
        if not isinstance(validate, bool) or (validate and codec == "pickle"):
            raise ConfigError(f"validate is a bool, and False for codec='pickle', which has no fields: {validate=!r}")
        if name.endswith(DEAD_SUFFIX) and type is not DeadLetter:
            raise ConfigError(f"a topic named *{DEAD_SUFFIX} has the type DeadLetter: name={name!r}, type={type!r}")
        values = {"name": name, "type": type, "capacity": capacity, "schema": schema, "codec": codec}
        wire = (codec_with_pool if pool else codec_for)(type, codec, enc_hook, dec_hook)
        values |= {**hooks, "validate": validate, "pool": pool, "max_capacity": max_capacity, "_wire": wire}
        for field, value in values.items():
            object.__setattr__(self, field, value)

    @property
    def dtype(self) -> np.dtype[np.void]:
        """The NumPy dtype of a topic with `codec="record"`: packed, little-endian, under the names on the wire.

        Raises `ConfigError` under any other codec, and ImportError where NumPy is missing.
        """
        from shmbus._payload import records

        records.require_records(self)
        return records.dtype_of(self._wire.description)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a topic is immutable: {name}={value!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a topic is immutable: {name}")

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if isinstance(other, Topic) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.name, self.capacity, self.schema, self.codec))  # metadata and hooks need not be hashable

    def __repr__(self) -> str:
        shown = [repr(self.name), _shown(self.type)]
        options = {key: getattr(self, key) for key, usual in self._usual.items() if getattr(self, key) != usual}
        return f"Topic({', '.join(shown + [f'{key}={_shown(value)}' for key, value in options.items()])})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, self._values()

    def _values(self) -> tuple[Any, ...]:
        return (self.name, self.type, *(getattr(self, key) for key in self._usual))


def codec_of(topic: Topic[Any]) -> Codec:
    """How the events of a topic become payloads and come back."""
    return topic._wire


def bound_to(topic: Topic[T], description: bytes) -> Topic[T]:
    """The topic as its bus, or a journal, has it: itself, or what a plugin's codec makes of it under that schema."""
    bound = topic._wire.bound
    wire = None if bound is None or description == topic._wire.description else bound(description)
    if wire is None:
        return topic
    held: Topic[T] = object.__new__(Topic)
    for field in ("name", "type", *Topic._usual):
        object.__setattr__(held, field, getattr(topic, field))
    object.__setattr__(held, "_wire", wire)
    return held


def encoded_topic(name: str, capacity: int, codec: Any, max_capacity: int | None = None) -> Topic[Any]:
    """A topic for whoever publishes payloads that are encoded already, as `codec` says."""
    carried = DeadLetter if name.endswith(DEAD_SUFFIX) else bytes
    topic = Topic[Any](name, carried, capacity=capacity, max_capacity=max_capacity)
    object.__setattr__(topic, "codec", codec)
    return topic


def decoder_of(topic: Topic[Any]) -> tuple[Callable[[Any], Any] | None, list[Any] | None]:
    """What a subscriber or worker decodes events with, and the list in which that looks for their buffers, if any."""
    if not topic.pool:
        return topic._wire.decode, None
    from shmbus._payload.packing import Unpacker  # for who has a pool alone

    unpacker = Unpacker(topic)
    return unpacker.decode, unpacker.buffers


def check_dead_name(topic: Topic[Any]) -> None:
    """Raise ConfigError where the topic's name leaves no room for that of its dead letters."""
    room = _NAME_MAX - len(DEAD_SUFFIX)
    if len(topic.name) > room:
        raise ConfigError(
            f"topic name leaves no room for {DEAD_SUFFIX!r}, at most {room} characters: name={topic.name!r}"
        )


def dead_letter_topic(topic: Topic[Any], *, capacity: int = 0) -> Topic[DeadLetter]:
    """The topic `<name>.dead` that takes what workers of `topic` reject or give up on.

    Its rings are twice as large, so that the largest event of `topic` fits into a dead letter. `capacity` is that of
    the largest ring of `topic`, where somebody publishes with a larger one than `topic` has. `ConfigError`
    for a name of more than 43 characters.
    """
    check_dead_name(topic)
    capacity = min(max(2 * topic.capacity, 2 * capacity, _MIN_DEAD_CAPACITY), MAX_CAPACITY)
    largest = topic.max_capacity and min(max(2 * topic.max_capacity, capacity), MAX_CAPACITY)
    return Topic(topic.name + DEAD_SUFFIX, DeadLetter, capacity=capacity, max_capacity=largest)


def _rebuild(name: str, type: Any, *options: Any) -> Topic[Any]:
    return Topic(name, type, **dict(zip(Topic._usual, options, strict=True)))


def _shown(value: Any) -> str:
    """A class or a function by its name, so that a repr can be read and evaluated; anything else by its repr."""
    named = isinstance(value, builtins.type) or hasattr(value, "__code__")
    return str(value.__qualname__) if named else repr(value)


def _check_capacity(capacity: int, most: int | None) -> None:
    _check_size("capacity", capacity, MIN_CAPACITY)
    if most is not None:
        _check_size("max_capacity", most, capacity)


def _check_size(option: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{option} must be an int: {option}={value!r}")
    if not least <= value <= MAX_CAPACITY:
        raise ConfigError(f"{option} must be {least} to {MAX_CAPACITY} bytes: {option}={value}")
    if value & (value - 1):
        raise ConfigError(f"{option} must be a power of two: {option}={value}")


def _check_pool(pool: object, type: object, codec: str, validate: bool) -> None:
    if not isinstance(pool, int) or isinstance(pool, bool) or not 0 <= pool <= MAX_POOL:
        raise ConfigError(f"pool is a number of bytes from 0 to {MAX_POOL}: pool={pool!r}")
    if not pool:
        return
    if codec not in ("msgpack", "pickle"):
        raise ConfigError(f"{codec} cannot refer to a pool; codec is 'msgpack' or 'pickle' for: pool={pool}")
    if type is bytes:
        raise ConfigError(f"bytes lie in the ring; the type of raw buffers in a pool is memoryview: pool={pool}")
    if validate:
        raise ConfigError(f"validate decodes an event from its record, where its buffers are not: pool={pool}")


def _check_choice(option: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{option} must be one of {', '.join(known)}: {option}={value!r}")
