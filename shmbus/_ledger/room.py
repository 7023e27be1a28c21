"""Room: who enters and finds a table, the document or /dev/shm full gets what nobody needs. Under the bus lock.

May touch: what `departures` touches.

Must stay true:
- What the dead hold goes first, then what is kept for convenience alone: names of closed subscribers, history; the
  oldest first, and no more of it than is asked for. What somebody alive holds, or is owed, is never given away.
- Whoever is refused is told who holds the room.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final, TypeVar

from shmbus._ledger import departures, retired, topics
from shmbus._shm import schemas
from shmbus.errors import CapacityError, ConfigError, NoSpaceError, ResourceLimitError, SchemaMismatchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shmbus._ledger.document import Document, RingEntry
    from shmbus._ledger.registry import Change
    from shmbus._shm.rings import Rings

R = TypeVar("R")

_NAMED: Final = 3  # holders that an error names


def enter(
    change: Change,
    rings: Rings,
    reclaim_dead: Callable[[Change], int],
    attempt: Callable[[Change], R],
    topic: str = "",
) -> R:
    """What `attempt` returns; where it finds no room, or a name or topic taken, it is made again once something has
    been given back. `attempt` takes all that it uses from `change.document`, and undoes what it has committed.

    Raises what the last attempt raises; a lack of room with the names of those who hold it.
    """
    dead_gone = False
    while True:
        known = {t.id for t in change.document.topics}
        try:
            return attempt(change)
        except (CapacityError, NoSpaceError, ConfigError, SchemaMismatchError) as error:
            _abandon(change, known)
            if isinstance(error, ResourceLimitError):
                raise  # of this process: nothing that others hold would help
            if not dead_gone:
                dead_gone = True
                if reclaim_dead(change):
                    continue
            if not _give_back(change, rings, error, topic):
                raise _with_holders(error, change.document, topic) from None
        except BaseException:
            _abandon(change, known)
            raise


def _abandon(change: Change, known: set[int]) -> None:
    """Nothing of a failed attempt is left but what it committed."""
    attempted = {t.id for t in change.document.topics}
    change.revert()
    for id in attempted - known - {t.id for t in change.document.topics}:
        schemas.remove(change.registry.prefix, id)


def _give_back(change: Change, rings: Rings, error: Exception, topic: str) -> bool:
    """Give back a little of what `error` asks for; False if there is none of it."""
    document = change.document
    history = retired.history(document, rings)
    given: list[RingEntry] = []
    if isinstance(error, NoSpaceError):
        if error.size <= error.free + sum(map(rings.bytes, history)):
            given = history[:1]
    elif isinstance(error, CapacityError):
        if error.table == "topics":
            given = next(iter(_history_alone(document, history)), [])
        elif error.table == "registry":
            if any(departures.merge_closed(document, t.index, 1) for t in document.topics):
                change.commit()
                return True
            given = history[:1]
    else:  # the topic is there with another type: it gives way if nothing but history keeps it
        entry = document.topic_named(topic)
        given = next((r for r in _history_alone(document, history) if entry and r[0].topic == entry.index), [])
    if given:
        departures.release(change, rings, given)
        topics.forget_unused(change)
    return bool(given)


def _history_alone(document: Document, history: list[RingEntry]) -> list[list[RingEntry]]:
    """The rings of each topic that only history keeps, the one that was used last at the end."""
    ids = {ring.id for ring in history}
    used = {c.topic for c in document.consumers} | {r.topic for r in document.rings if r.id not in ids}
    found: defaultdict[int, list[RingEntry]] = defaultdict(list)
    for ring in history:
        if ring.topic not in used:
            found[ring.topic].append(ring)
    return sorted(found.values(), key=lambda rings: max(ring.id for ring in rings))


# -- who holds what


def _with_holders(error: Exception, document: Document, topic: str) -> Exception:
    if isinstance(error, NoSpaceError):
        held = _most(_ring_bytes(document))
        return NoSpaceError(error.errno or 0, error.name, error.size, error.free, held)
    if isinstance(error, CapacityError):
        return CapacityError(str(error), table=error.table, held=_most(Counter(_holders(document, error.table, topic))))
    return error


def _most(held: Counter[str]) -> str:
    told = [f"{holder} ({count})" for holder, count in held.most_common(_NAMED)]
    if len(held) > _NAMED:
        told.append(f"{len(held) - _NAMED} others")
    return ", ".join(told)


def _holders(document: Document, table: str, topic: str) -> Iterable[str]:
    """Whose each entry of a table is."""
    if table == "participants":
        return [_process(document, p.id) for p in document.participants]
    if table == "groups":
        return [_group(document, c.id) for c in document.consumers if c.kind == "group"]
    entry = document.topic_named(topic)
    here = -1 if entry is None else entry.index
    publishers = [(p.topic, _process(document, p.participant)) for p in document.publishers if p.state == "active"]
    consumers = [
        (c.topic, _process(document, c.participant) if c.kind == "subscriber" else _group(document, c.id))
        for c in document.consumers
    ]
    if table == "workers":
        topics_of = {c.id: c.topic for c in document.consumers}
        return [_process(document, w.participant) for w in document.workers if topics_of.get(w.group) == here]
    if table == "subscribers":
        return [holder for index, holder in consumers if index == here]
    if table == "topics":
        return [holder for _, holder in {*publishers, *consumers}]
    return [holder for _, holder in [*publishers, *consumers]]


def _ring_bytes(document: Document) -> Counter[str]:
    held: Counter[str] = Counter()
    for ring in document.rings:
        publisher = document.publisher(ring.publisher)
        if ring.state == "active" and publisher is not None:
            held[_process(document, publisher.participant)] += ring.capacity
        else:
            held["events of publishers that are gone"] += ring.capacity
    return held


def _process(document: Document, participant: int) -> str:
    entry = document.participant(participant)
    return f"process {entry.pid} ({entry.command})" if entry else "a process that is gone"


def _group(document: Document, id: int) -> str:
    group = document.consumer(id)
    return f"group {document.topic_at(group.topic).name}/{group.name}" if group else "a group that is gone"
