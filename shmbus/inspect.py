"""What tools do with a bus from outside: look at it without a trace, remove it, publish a JSON text.

May touch: segments read-only; `remove` and `publish_json` excepted.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from shmbus import _core
from shmbus._closing import Closing
from shmbus._handles.session import Session
from shmbus._ledger import books, groups, policies, reclaim
from shmbus._ledger.registry import Registry, mark_removed
from shmbus._schema import compare
from shmbus._schema.codec import Codec
from shmbus._shm import schemas, segment
from shmbus._shm.names import PREFIX, object_prefix, parse, segment_name
from shmbus._shm.rings import Rings
from shmbus.bus import Bus
from shmbus.errors import (
    AccessError,
    BusNotFoundError,
    ClosedError,
    ConfigError,
    CorruptSegmentError,
    LayoutMismatchError,
)
from shmbus.message import decode_headers, event_id
from shmbus.topic import check_name, encoded_topic

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmbus._ledger.document import Document, TopicEntry
    from shmbus._shm.lives import Lives
    from shmbus.policy import Policy
    from shmbus.stats import BusStats, Loss


class Found(NamedTuple):
    """A bus that has names in /dev/shm, and the user that it belongs to."""

    bus: str
    uid: int


def found() -> list[Found]:
    """The buses of this user, and for root those of everybody, sorted; also those that cannot be opened."""
    parsed = filter(None, map(parse, segment.names(PREFIX)))
    everybody = os.geteuid() == 0
    return sorted(Found(bus, uid) for bus, uid, what in parsed if not what and (everybody or uid == os.geteuid()))


def buses() -> list[str]:
    """Names of this user's buses on this host, sorted; also of those that cannot be opened."""
    return [bus for bus, uid in found() if uid == os.geteuid()]


def _owner(bus: str, uid: int | None) -> int:
    """Whose bus is meant: this user's, or, for root, that of the only other user who has one of the name."""
    check_name("bus", bus)
    if uid is not None:
        return uid
    owners = [entry.uid for entry in found() if entry.bus == bus]
    own = os.geteuid()
    if own in owners or not owners:
        return own
    if len(owners) > 1:
        raise ConfigError(f"bus {bus!r} exists for several users: say which: uid={', '.join(map(str, owners))}")
    return owners[0]


def stats_of(bus: str, *, uid: int | None = None) -> BusStats:
    """A bus at this moment, attached read-only; root may look at other users'.

    Raises BusNotFoundError, AccessError, LayoutMismatchError, CorruptSegmentError; ConfigError if root does not say
    which of several users' it means.
    """
    registry = Registry.peek(bus, _owner(bus, uid))
    try:
        return books.stats(registry, _rings(registry))
    except ClosedError:  # removed meanwhile
        raise BusNotFoundError(bus) from None
    finally:
        registry.close()


def losses_of(bus: str, *, uid: int | None = None) -> list[Loss]:
    """Every loss on the books of a bus, attached read-only; raises as `stats_of` does."""
    registry = Registry.peek(bus, _owner(bus, uid))
    try:
        return books.losses(registry, _rings(registry))
    except ClosedError:  # removed meanwhile
        raise BusNotFoundError(bus) from None
    finally:
        registry.close()


def policy_of(bus: str, *, uid: int | None = None) -> Policy:
    """What becomes of the stalled on a bus; raises as `stats_of` does."""
    registry = Registry.peek(bus, _owner(bus, uid))
    try:
        return policies.read(registry.read())
    finally:
        registry.close()


def set_policy(bus: str, policy: Policy, *, uid: int | None = None) -> None:
    """Change that, while the bus runs; raises as opening a bus does."""
    registry = Registry.open(bus, create=False, uid=_owner(bus, uid))
    try:
        policies.change(registry, policy)
    finally:
        registry.close()


def _rings(registry: Registry) -> Rings:
    return Rings(registry.prefix, writable=False, owner=registry.uid)


def remove(bus: str, *, force: bool = False, uid: int | None = None) -> None:
    """Remove a bus with everything in it; with `force` also one that is corrupt. Root may remove other users'.

    Without `force` only one that nobody takes part in and that owes no group anything: else ConfigError says who and
    what. Participants of a bus that is removed by force get ClosedError at their next look, a second later at most.
    """
    uid = _owner(bus, uid)
    try:
        _remove_in_order(bus, uid, force=force)
    except BusNotFoundError:
        if not segment.names(object_prefix(bus, uid)):
            raise
        reclaim.unlink_all(bus, uid)
    except (LayoutMismatchError, CorruptSegmentError, AccessError):
        if not force:
            raise
        _mark_removed(bus, uid)
        reclaim.unlink_all(bus, uid)


def _remove_in_order(bus: str, uid: int, *, force: bool) -> None:
    registry = Registry.open(bus, create=False, uid=uid)
    try:
        with registry.locked() as change:
            if not force:
                _require_unused(change.document, Rings(registry.prefix, owner=uid), registry.lives)
            reclaim.remove_bus(change)
    except ClosedError:  # somebody else was quicker
        raise BusNotFoundError(bus) from None
    finally:
        registry.close()


def remove_group(bus: str, label: str, *, force: bool = False, uid: int | None = None) -> int:
    """Remove the group that tools call TOPIC/NAME, as `Bus.remove_group` does, without taking part in the bus.

    Both names may have a slash in them: ConfigError if there is no such group, if two have that label, and, without
    `force`, if it has workers. Raises BusNotFoundError and what opening a bus raises.
    """
    uid = _owner(bus, uid)
    registry, rings = Registry.open(bus, create=False, uid=uid), Rings(object_prefix(bus, uid), owner=uid)
    try:
        with registry.locked() as change:
            if change.died_inside:
                reclaim.repair(change, rings)
            for participant in reclaim.dead_participants(change.document, registry.lives):
                reclaim.reclaim(change, rings, participant.id, dead=True)
            owed = groups.remove(change, rings, group := groups.labelled(change.document, label), force=force)
            session = Session(registry, 0, supervise=False)  # to wake others; it is no participant
            session.wake_workers(group.slot, _core.MAX_WORKERS)
            session.wake_everybody(change.document)
            session.posts.close()
    finally:
        registry.close()
    return owed


def _mark_removed(bus: str, uid: int) -> None:
    """Let the participants of a bus that cannot be read, if it has any, know that it is gone."""
    with suppress(FileNotFoundError, AccessError, CorruptSegmentError):
        found = segment.Segment.attach(segment_name(bus, uid), owner=uid)
        if found.size == _core.BUS_BYTES:
            mark_removed(found.map)
        found.close()


def _require_unused(document: Document, rings: Rings, lives: Lives) -> None:
    live = [p for p in document.participants if lives.alive(p.life)]
    if live:
        who = ", ".join(f"{p.pid} ({p.command})" for p in live)
        raise ConfigError(f"the bus is in use by {who}; --force removes it under them")
    owed = reclaim.owed(document, rings)
    if owed:
        what = ", ".join(f"{name}: {count} events" for name, count in owed.items())
        raise ConfigError(f"groups are owed events ({what}); --force removes them")


def _topic(registry: Registry, name: str) -> TopicEntry:
    entry = registry.read().topic_named(name)
    if entry is None:
        known = ", ".join(t.name for t in registry.read().topics) or "none"
        raise TopicNotFoundError(f"bus {registry.bus!r} has no topic {name!r}; it has {known}")
    return entry


class TopicNotFoundError(BusNotFoundError):
    """The bus exists, and the topic does not."""

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)


class Tailed(msgspec.Struct, frozen=True):
    """One event seen by a Tail, or a gap: then `gap` counts the events overwritten before they were seen."""

    publisher: str
    sequence: int
    time_ns: int
    headers: dict[str, Any] | None
    event: Any
    gap: int = 0
    id: str = ""
    """The `Message.id` of the event."""


class Tail(Closing):
    """Reads a topic without being a consumer: no slot, no books, no trace; read-only.

    A topic that is forgotten and comes back, with another type even, is followed.
    """

    def __init__(self, bus: str, topic: str, *, oldest: bool = False) -> None:
        self._registry: Final = Registry.peek(bus, _owner(bus, None))
        self._rings: Final = _rings(self._registry)
        self._taps: dict[int, tuple[str, str, Callable[[bytes], Any], _core.Tap]] = {}
        self._gone: set[int] = set()
        """Rings that are removed: a tap is let go of once it has read what it still has."""
        self._oldest = oldest
        try:
            self._entry = _topic(self._registry, topic)
            self._decode = compare.decoder_of(_schema(self._registry, self._entry))
            self._tap_new()
        except BaseException:
            self.close()
            raise
        self._oldest = True  # of rings that come from now on, everything

    def _tap_new(self) -> None:
        document = self._registry.read()
        self._gone = self._taps.keys() - {r.id for r in document.rings}
        entry = document.topic_named(self._entry.name)
        if entry is None:
            return
        if entry.id != self._entry.id:
            try:
                self._decode, self._entry = compare.decoder_of(_schema(self._registry, entry)), entry
            except TopicNotFoundError:
                return  # forgotten again; at the next look
        rings = {r.id: r for r in document.rings if r.topic == entry.index and r.group == 0}
        for id in sorted(rings.keys() - self._taps.keys()):  # those of publishers that followed each other in order
            publisher = document.publisher(rings[id].publisher)
            try:
                tap = _core.Tap(self._rings.broadcast(rings[id]), self._oldest)
            except FileNotFoundError:
                continue
            origin = self._registry.origin(rings[id].publisher)
            self._taps[id] = (publisher.name if publisher else "(gone)", origin, self._decode, tap)

    @property
    def removed(self) -> bool:
        """True once the bus is gone."""
        return self._registry.removed

    def read(self, maximum: int = 1000) -> list[Tailed]:
        """Up to about `maximum` events that came since the last call, publisher by publisher."""
        if not self.removed:
            self._tap_new()
        found: list[Tailed] = []
        for id, (publisher, origin, decode, tap) in list(self._taps.items()):
            record = None
            while len(found) < maximum and (record := tap.read()) is not None:
                found.append(_tailed(publisher, origin, decode, record))
            if record is None and len(found) < maximum and id in self._gone:
                del self._taps[id]
        return found

    def close(self) -> None:
        """Let go of the bus. Idempotent."""
        self._taps.clear()
        self._registry.close()


def _tailed(
    publisher: str,
    origin: str,
    decode: Callable[[bytes], Any],
    record: tuple[int, int, bytes | None, bytes | None],
) -> Tailed:
    first, second, headers, payload = record
    if payload is None or headers is None:
        return Tailed(publisher, first, 0, None, None, gap=second - first + 1)
    try:
        event = decode(payload)
    except msgspec.DecodeError:
        event = payload
    return Tailed(publisher, first, second, _headers(headers), event, id=event_id(origin, second))


def _schema(registry: Registry, entry: TopicEntry) -> bytes:
    """The description of a topic's type."""
    try:
        return schemas.read(registry.prefix, entry.id, registry.uid)
    except FileNotFoundError:
        raise TopicNotFoundError(
            f"topic {entry.name!r} of bus {registry.bus!r} is gone, or its schema was removed"
        ) from None


def _headers(data: bytes) -> dict[str, Any] | None:
    try:
        return decode_headers(data) or None
    except msgspec.DecodeError:
        return None


def publish_json(bus: str, topic: str, text: str | bytes, *, headers: dict[str, Any] | None = None) -> int:
    """Publish one event, given as JSON, to a topic whose Python type is not at hand; returns its sequence.

    The value is checked against the schema that the bus has for the topic; bytes are base64. Raises ConfigError with
    the path of what does not fit, BusNotFoundError.
    """
    with Bus.attach(bus) as opened, JsonPublisher(opened, topic) as publisher:
        return publisher.publish(text, headers=headers)


class JsonPublisher(Closing):
    """Publishes JSON texts to a topic of a bus by the schema that the bus has for it."""

    def __init__(self, bus: Bus, topic: str) -> None:
        entry = _topic(bus._session.registry, topic)
        if entry.codec == "pickle":
            raise ConfigError(f"topic {topic!r} carries pickled objects: JSON cannot say what they are")
        self._schema = _schema(bus._session.registry, entry)
        self._encode = compare.encoder_of(self._schema)
        self._publisher = bus._open_publisher(
            encoded_topic(topic, entry.capacity, entry.codec, entry.max_capacity or None),
            Codec(None, None, (bytes,), self._schema, entry.fingerprint),
            None,
            "block",
            None,
        )

    def publish(self, text: str | bytes, *, headers: dict[str, Any] | None = None) -> int:
        """Publish one JSON text; returns its sequence. Raises ConfigError with the path of what does not fit."""
        try:
            value = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise ConfigError(f"not JSON: {error}") from error
        value = compare.conform(value, self._schema)
        try:
            payload = self._encode(value)
        except (OverflowError, UnicodeError, RecursionError) as error:
            raise ConfigError(f"cannot be written as an event of {self._publisher.topic.name!r}: {error}") from error
        return self._publisher.publish(payload, headers=headers) or 0

    def close(self) -> None:
        """Retire the publisher. Idempotent."""
        self._publisher.close()
