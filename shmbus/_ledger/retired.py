"""Retired rings: what publishers that are gone have left, which of it is still needed, and what goes.

May touch: retired rings, whose oldest, intent and slots the holder of the bus lock changes; the memory of their files.
Decides; the books and the document are changed by `departures`.

Must stay true:
- A ring goes when nobody is owed anything of it, or only lossy subscribers that never opened it and are too far behind.
- What anybody may still look at stays where it is; the rest of the memory goes back (retire.h).
- A look costs as much as there are retired rings, or less; whoever looks under the lock stops early.
"""

from __future__ import annotations

from collections import defaultdict, deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from shmbus._log import logger
from shmbus.errors import AccessError, CorruptSegmentError, LayoutMismatchError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmbus._ledger.document import Document, RingEntry
    from shmbus._shm.rings import Rings

HISTORY: Final = 4
"""Rings of gone publishers that a topic keeps for `start="oldest"`, the newest; each costs what it holds."""
BACKLOG: Final = 64
"""Rings of gone publishers that a topic keeps for lossy subscribers alone, which may never come; and no more of them
than hold what `HISTORY` full ones do."""
PATIENCE: Final = 16
"""Rings with events left at which a sweep stops to look for drained ones: consumers receive the oldest first."""
_LOOSE: Final = 8
"""Part of a retired ring that is worth the two system calls of giving it back."""

UNREADABLE: Final = (AccessError, CorruptSegmentError, LayoutMismatchError, FileNotFoundError)
"""What becomes of an attempt to read a ring that is not there, or is not what it should be."""

_log = logger("shmbus.loss")


class Leftovers(NamedTuple):
    """Retired rings that something is to be done with."""

    gone: list[RingEntry]
    """Nobody has anything left to receive from them, or is waited for any longer."""
    loose: list[RingEntry]
    """They hold a good deal that nobody will read any more."""
    history: set[int]
    """Rings that are kept for `start="oldest"`, drained or not."""


def leftovers(document: Document, rings: Rings, patience: int | None = None) -> Leftovers:
    """What there is to sweep: a look at each retired ring, the oldest first.

    Consumers receive in that order too, so whoever has met `patience` rings that they have yet to come to need look no
    further.
    """
    found = Leftovers([], [], set())
    brief = {topic.index for topic in document.topics if not topic.history}
    going = {p.id for p in document.publishers if p.state == "active"}
    queues: defaultdict[tuple[int, int], list[RingEntry]] = defaultdict(list)
    for entry in document.rings:
        if entry.state == "retired":
            queues[entry.topic, entry.group].append(entry)
    for (topic, group), queue in queues.items():
        queue.sort(key=lambda entry: entry.id)
        if group:
            _look_at_work(found, rings, queue, patience)
        else:
            _look_at_broadcast(found, rings, queue, patience, subscribed(document, topic), topic not in brief, going)
    return found


def _look_at_work(found: Leftovers, rings: Rings, queue: list[RingEntry], patience: int | None) -> None:
    left = 0
    for entry in queue:
        if left == patience:
            break
        depth = unclaimed = 0
        with unless_unreadable(entry):
            ring = rings.work(entry)
            terms = ring.terms()
            depth, unclaimed = terms["depth"], terms["depth"] - terms["claimed"] - terms["delayed"]
            if depth and ring.slack() > entry.capacity // _LOOSE:
                found.loose.append(entry)
        left += unclaimed > 0  # of what is claimed others may be done with younger rings
        if not depth:
            found.gone.append(entry)


def _look_at_broadcast(
    found: Leftovers,
    rings: Rings,
    queue: list[RingEntry],
    patience: int | None,
    subscribed: int,
    history: bool,
    going: set[int],
) -> None:
    """Of the rings that only lossy subscribers have not received the newest are kept, of the others the history: but
    for those that a publisher has grown out of, whose history is in the ring that it writes.
    """
    kept: list[RingEntry] = []
    drained: list[RingEntry] = []
    waiting: list[tuple[RingEntry, int]] = []  # for lossy subscribers that have not come; bytes
    owed = 0
    for at, entry in enumerate(queue):
        if owed == patience:
            kept.extend(entry for entry in queue[at:] if entry.publisher not in going)
            break
        reliable = attached = unopened = held = slack = 0
        with unless_unreadable(entry):
            ring = rings.broadcast(entry)
            reliable, attached, unopened = ring.owed(subscribed)
            info = ring.info()
            held, slack = info["tail"] - info["oldest"], ring.slack()
        if not (reliable or attached or unopened or (held and history and entry.publisher not in going)):
            found.gone.append(entry)
            continue
        if entry.publisher not in going:
            kept.append(entry)
        if slack > entry.capacity // _LOOSE:
            found.loose.append(entry)
        if reliable:
            owed += 1
        elif unopened and not attached:
            waiting.append((entry, held))
        elif not attached:
            drained.append(entry)
    found.history.update(entry.id for entry in kept[-HISTORY:] if history)
    found.loose[:] = [entry for entry in found.loose if entry.id not in found.history]
    found.gone.extend(entry for entry in drained if entry.id not in found.history)
    size = 0
    for count, (entry, held) in enumerate(reversed(waiting)):
        size += held
        if count >= BACKLOG or size > HISTORY * entry.capacity:
            found.gone.append(entry)


def history(document: Document, rings: Rings) -> list[RingEntry]:
    """Rings that are kept for `start="oldest"` alone, the oldest first."""
    found = []
    for entry in sorted(document.rings, key=lambda entry: entry.id):
        if entry.state == "retired" and not entry.group:
            with unless_unreadable(entry):
                if not any(rings.broadcast(entry).owed(subscribed(document, entry.topic))):
                    found.append(entry)
    return found


def take_back(document: Document, rings: Rings, entry: RingEntry) -> bool:
    """Take the ring from every lossy subscriber that has something left in it; False if one has come meanwhile."""
    if entry.group:
        return True
    with suppress(*UNREADABLE):
        ring = rings.broadcast(entry)
        reliable, attached, unopened = ring.owed(subscribed(document, entry.topic))
        if reliable or attached:
            return False
        return all(ring.give_up(slot) for slot in range(unopened.bit_length()) if unopened >> slot & 1)
    return True


def shrink(rings: Rings, entry: RingEntry, *, history: bool) -> None:
    """Give back memory; a ring that stays as large as it is does no harm."""
    with suppress(OSError, *UNREADABLE):
        rings.shrink(entry, history=history)


def subscribed(document: Document, topic: int) -> int:
    """Bitmap of the slots of a topic's subscribers that are whole."""
    bits = 0
    for consumer in document.consumers:
        if consumer.topic == topic and consumer.kind == "subscriber" and consumer.state == "active":
            bits |= 1 << consumer.slot
    return bits


_told: Final[deque[str]] = deque(maxlen=1000)
"""What was said of rings that cannot be read."""


@contextmanager
def unless_unreadable(entry: RingEntry) -> Iterator[None]:
    """A ring that cannot be read must not keep the dead from being buried: its books are lost, and that is said."""
    try:
        yield
    except UNREADABLE as error:
        if str(error) not in _told:  # a reclaim comes by more than once
            _told.append(str(error))
            _log.error("the books of ring %d are lost: %s", entry.id, error)
