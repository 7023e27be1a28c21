"""Topics: made by whoever is first, forgotten once nobody needs them. Always under the bus lock.

May touch: the registry document, schema segments.

Must stay true:
- A topic's schema exists before the document names the topic, and goes after the document has forgotten it.
- A topic without publishers, consumers and rings is forgotten at once: its name, index and type are free. What it lost
  stays in the table of losses, and its totals under its name (`_ledger/past.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shmbus import _core
from shmbus._ledger import past
from shmbus._ledger.document import TYPE_NAME, TopicEntry
from shmbus._schema import compare
from shmbus._schema import description as _description
from shmbus._shm import schemas
from shmbus._shm.failpoint import reach
from shmbus.errors import CapacityError, ConfigError, CorruptSegmentError, SchemaMismatchError
from shmbus.topic import T, bound_to, codec_of

if TYPE_CHECKING:
    from typing import Literal

    from shmbus._ledger.document import Document
    from shmbus._ledger.registry import Change
    from shmbus._schema.codec import Codec
    from shmbus.topic import Topic


def ensure_topic(change: Change, topic: Topic[Any], codec: Codec, role: Literal["reader", "writer"]) -> TopicEntry:
    """The topic's entry, made if need be with its schema: the commit of who joins it makes it real.

    Raises SchemaMismatchError, NoSpaceError, CapacityError, and ConfigError for another codec.
    """
    document = change.document
    entry = document.topic_named(topic.name)
    if entry is None:
        used = {t.index for t in document.topics}
        if len(used) == _core.MAX_TOPICS:
            raise CapacityError(f"no room for more topics: {len(used)} of {_core.MAX_TOPICS} in use", table="topics")
        entry = TopicEntry(
            index=next(index for index in range(_core.MAX_TOPICS) if index not in used),
            id=document.new_id(),
            name=topic.name,
            capacity=topic.capacity,
            codec=topic.codec,
            fingerprint=codec.fingerprint,
            type=_type_name(codec.description),
            max_capacity=topic.max_capacity or 0,
        )
        schemas.create(change.registry.prefix, entry.id, codec.description)
        past.recall(document, entry)
        document.topics.append(entry)
        return entry
    if entry.codec != topic.codec:
        raise ConfigError(f"topic {topic.name!r} exists with codec {entry.codec!r}, not {topic.codec!r}")
    if entry.fingerprint != codec.fingerprint:
        _require_compatible(change.registry.prefix, topic, entry, codec.description, role)
    return entry


def held(change: Change, topic: Topic[T], entry: TopicEntry) -> Topic[T]:
    """The topic as this bus has it: another one only where a plugin's codec goes by the schema that the bus has."""
    wire = codec_of(topic)
    if wire.bound is None or wire.fingerprint == entry.fingerprint:
        return topic
    return bound_to(topic, schemas.read(change.registry.prefix, entry.id))


def _require_compatible(prefix: str, topic: Topic[Any], entry: TopicEntry, ours: bytes, role: str) -> None:
    try:
        theirs = schemas.read(prefix, entry.id)
    except FileNotFoundError:
        raise SchemaMismatchError(topic.name, ["the bus's own description of it was removed"]) from None
    if topic.schema == "strict":
        forms = map(compare.wire_form, (ours, theirs))
        raise SchemaMismatchError(topic.name, compare.difference(*forms))
    reasons = compare.admits(ours, theirs) if role == "reader" else compare.admits(theirs, ours)
    if reasons:
        raise SchemaMismatchError(topic.name, reasons)


def end_history(change: Change, name: str) -> None:
    """Keep nothing of this topic for `start="oldest"`: of calls and replies nobody wants what others had."""
    entry = change.document.topic_named(name)
    if entry is not None and entry.history:
        entry.history = False
        change.commit(entry.index)


def forget_unused(change: Change) -> None:
    """Forget the topics that nobody needs."""
    document = change.document
    unused = unneeded(document)
    if not unused:
        return
    gone = {t.index for t in unused}
    for topic in unused:
        past.remember(document, topic)
    document.topics = [t for t in document.topics if t.index not in gone]
    document.closed = [c for c in document.closed if c.topic not in gone]
    change.commit(*gone)
    reach("forget.committed")
    for topic in unused:
        schemas.remove(change.registry.prefix, topic.id)


def unneeded(document: Document) -> list[TopicEntry]:
    """Topics that nothing but closed subscribers' totals names."""
    needed = {entry.topic for table in (document.publishers, document.consumers, document.rings) for entry in table}
    return [t for t in document.topics if t.index not in needed]


def _type_name(description: bytes) -> str:
    try:
        schema = _description.parse(description)
        name = _description.words(schema, schema.root)
    except CorruptSegmentError:  # of whoever gave a description of its own making
        return "?"
    return name if len(name) <= TYPE_NAME else name[: TYPE_NAME - 1] + "…"
