"""Notes: what a participant says of itself, for those who look at the bus. Always under the bus lock.

May touch: the registry document.

Must stay true:
- Notes are few and short, and go with their participant: nobody says anything after its death.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec

from shmbus.errors import CapacityError
from shmbus.stats import NoteStats

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shmbus._ledger.registry import Change
    from shmbus.stats import ConsumerStats


NOTE: Final = 200
NOTE_WHO: Final = 64
"""Characters of a note, and of the name of who says it."""
MAX_NOTES: Final = 16
"""Of one participant."""

_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


class Note(msgspec.Struct, frozen=True, array_like=True):
    """What a participant says of a part of itself."""

    who: Annotated[str, msgspec.Meta(max_length=NOTE_WHO)]
    state: Literal["ok", "away", "failing"]
    text: Annotated[str, msgspec.Meta(max_length=NOTE)]
    since_ns: _Count
    """Of the state."""
    group: Annotated[str, msgspec.Meta(max_length=NOTE_WHO)] = ""
    """What is owed to the group of that name waits for it."""
    held: _Count = 0
    """Events that wait elsewhere."""


def put(change: Change, participant: int, who: str, state: Any, text: str, group: str = "", held: int = 0) -> None:
    """Say something as `who`, in the place of what `who` said before. Raises CapacityError."""
    entry = change.document.participant(participant)
    if entry is None:  # given up for dead
        return
    who, text = who[:NOTE_WHO], text if len(text) <= NOTE else text[: NOTE - 1] + "…"
    before = next((note for note in entry.notes if note.who == who), None)
    since = before.since_ns if before is not None and before.state == state else time.time_ns()
    entry.notes = [note for note in entry.notes if note.who != who]
    if len(entry.notes) == MAX_NOTES:
        raise CapacityError(f"participant {participant} says {MAX_NOTES} things already", table="notes")
    entry.notes.append(Note(who, state, text, since, group[:NOTE_WHO], held))
    change.commit(entering=True)


def drop(change: Change, participant: int, who: str) -> None:
    """Say it no more."""
    entry = change.document.participant(participant)
    if entry is not None and any(note.who == who[:NOTE_WHO] for note in entry.notes):
        entry.notes = [note for note in entry.notes if note.who != who[:NOTE_WHO]]
        change.commit()


def waiting(consumers: Iterable[ConsumerStats]) -> Mapping[str, int]:
    """What the groups of each name are owed, over all topics."""
    found: defaultdict[str, int] = defaultdict(int)
    for consumer in consumers:
        if consumer.kind == "group":
            found[consumer.name] += consumer.depth
    return found


def told(notes: Iterable[Note], depths: Mapping[str, int]) -> tuple[NoteStats, ...]:
    """Notes for who looks at the bus."""
    return tuple(
        NoteStats(
            who=note.who,
            state=note.state,
            text=note.text,
            since_ns=note.since_ns,
            waiting=note.held + (depths.get(note.group, 0) if note.group else 0),
        )
        for note in notes
    )
