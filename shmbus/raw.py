"""Raw: the events of a topic as they are on the wire, for those who carry them elsewhere, journals and bridges.

May touch: a worker's claims, by the ways that its own messages take; the schema that a bus has for a topic.

Must stay true:
- A raw topic is its topic to every bus: same name, codec, schema and fingerprint; it is never a second definition.
- What was claimed and not acked goes back to the group when its worker closes or dies, and has cost an attempt.
"""

from __future__ import annotations

import functools
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

import msgspec

from shmbus import _core
from shmbus._ledger import notes
from shmbus._schema import compare
from shmbus._schema.codec import Codec
from shmbus._schema.description import parse
from shmbus._shm import schemas
from shmbus.errors import (
    CapacityError,
    ClosedError,
    ConfigError,
    LockTimeoutError,
    ReclaimedError,
    SchemaMismatchError,
)
from shmbus.message import ACK, event_id
from shmbus.topic import Topic, codec_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shmbus.bus import Bus
    from shmbus.worker import Worker


State: TypeAlias = Literal["ok", "away", "failing"]
"""Of a bridge or a journal: it works; what it talks to is not there; or does not do what it is asked for."""


class Form(msgspec.Struct, frozen=True):
    """What a topic is on the wire, whatever its Python type."""

    name: str
    codec: str
    capacity: int
    fingerprint: int
    description: bytes
    """Its schema, as `_schema.description` writes it."""

    def require(self, theirs: Form, where: str) -> None:
        """Raise SchemaMismatchError, with what parts them, unless the other form is this one's; `where` it was met."""
        if self.fingerprint == theirs.fingerprint:
            return
        lines = compare.difference(*map(compare.wire_form, (self.description, theirs.description)))
        raise SchemaMismatchError(self.name, [f"in {where}", *lines])


class Claimed(NamedTuple):
    """One event that a worker of a raw topic holds."""

    payload: bytes
    sequence: int
    publisher: str
    time_ns: int
    headers: bytes
    attempt: int
    ring_id: int
    word: int
    origin: str

    @property
    def id(self) -> str:
        """`Message.id`."""
        return event_id(self.origin, self.time_ns)


def form_of(topic: Topic[Any]) -> Form:
    """The form of a topic that was written down in Python."""
    codec = codec_of(topic)
    return Form(topic.name, topic.codec, topic.capacity, codec.fingerprint, codec.description)


def topic_of(form: Form) -> Topic[bytes]:
    """A topic of that form whose events are payloads: what a raw publisher, subscriber or worker is opened on.

    Raises ConfigError for a topic with a pool: what lies in there is no part of a payload.
    """
    if parse(form.description).pooled:
        raise ConfigError(f"topic {form.name!r} has a pool, and arrays do not travel out of the host yet")
    topic: Topic[bytes] = object.__new__(Topic)
    wire = Codec(None, None, (bytes, bytearray, memoryview), form.description, form.fingerprint)
    values = {**Topic._usual, "name": form.name, "type": bytes, "capacity": form.capacity, "codec": form.codec}
    for field, value in {**values, "_wire": wire}.items():
        object.__setattr__(topic, field, value)
    return topic


def require_size(capacity: int) -> None:
    """Raise ConfigError for the capacity of a ring that no topic may have."""
    Topic("size", bytes, capacity=capacity)


def find(bus: Bus, name: str) -> Form | None:
    """The form that a bus has for the topic of that name; None: it has no such topic, or not any more."""
    entry = bus._session.document().topic_named(name)
    if entry is None:
        return None
    try:
        description = schemas.read(bus._session.prefix, entry.id)
    except FileNotFoundError:
        return None
    return Form(entry.name, entry.codec, entry.capacity, entry.fingerprint, description)


def decode(form: Form, payload: bytes) -> Any:
    """A payload as builtins; raw and pickled ones stay bytes. Raises msgspec.DecodeError."""
    return _decoder_of(form.description)(payload)


_decoder_of = functools.lru_cache(maxsize=256)(compare.decoder_of)


def claim(worker: Worker[bytes], most: int, timeout: float | None) -> list[Claimed] | None:
    """Up to `most` events that are there, waiting up to `timeout` seconds for the first; None: cancelled or closed."""
    found = worker._take_messages(most, timeout)
    if found is _core.NOTHING:
        return None if worker.cancelled or worker.closed else []
    return [Claimed._make(event) for event in found]


def ack(worker: Worker[bytes], events: Iterable[Claimed]) -> int:
    """Ack events; returns how many were no longer this worker's."""
    settle = worker._settle
    return sum(not settle(event.ring_id, event.sequence, event.word, ACK) for event in events)


def note(bus: Bus, who: str, state: State, text: str, *, group: str = "", held: int = 0) -> None:
    """Say what a part of this process does, or what is wrong with it, to whoever looks at the bus (`NoteStats`).

    It takes the place of what `who` said before, and ends with the process, or with `unsay`. What is owed to the groups
    named `group`, and `held` more events, wait for it. Where there is no room for it, nobody is told.
    """
    with suppress(CapacityError, ClosedError, ReclaimedError, LockTimeoutError), bus._session.locked() as change:
        notes.put(change, bus._session.participant, who, state, text, group, held)


def unsay(bus: Bus, who: str) -> None:
    """Take back what `who` said."""
    with suppress(ClosedError, ReclaimedError, LockTimeoutError), bus._session.locked() as change:
        notes.drop(change, bus._session.participant, who)


_LOOK: Final = 0.05  # seconds between two looks at a group whose last worker has died


def require_alone(bus: Bus, topic: str, group: str, what: str) -> None:
    """Wait until what the dead workers of a group held is back in it; raise ConfigError if a live one has it.

    So a lone worker claims the events of each publisher in order. `what` needs to be alone, for the message.
    """
    while True:
        found = next((c for c in bus.stats().consumers if (c.topic, c.kind, c.name) == (topic, "group", group)), None)
        workers = found.workers if found else ()
        alive = [worker for worker in workers if worker.state != "dead"]
        if alive:
            raise ConfigError(f"{what} is being run by process {alive[0].pid}: group={group!r}")
        if not workers:
            return
        bus._session.care()  # without a supervisor it is for us to reclaim
        time.sleep(_LOOK)
