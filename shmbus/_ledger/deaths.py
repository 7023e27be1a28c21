"""Deaths: which events dead workers had in their hands, and how these died. Under the bus lock.

For whoever gives up on an event that killed one worker after another, and is to say how: a failed call, a dead letter.

May touch: the table of deaths of the registry document.

Must stay true: a death is noted before what the dead held is given back, so that whoever gets it next can know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shmbus._deaths import cause
from shmbus._ledger.document import HOW, DeathEntry
from shmbus._ledger.retired import unless_unreadable
from shmbus._ledger.slots import MAX_DEATHS
from shmbus._shm import processes
from shmbus._shm.failpoint import reach

if TYPE_CHECKING:
    from shmbus._ledger.document import Document, Participant
    from shmbus._ledger.registry import Change
    from shmbus._shm.rings import Rings

_MOST_EACH: Final = 8
"""Events that one dead worker is noted for, so that one that had claimed many ahead does not push out all others."""


def note(change: Change, rings: Rings, participant: Participant, code: int | None) -> None:
    """Note what a dead participant's workers held. `code` is how it ended, None where nobody saw it."""
    document = change.document
    found: list[DeathEntry] = []
    how = described(participant, code)
    for worker in [w for w in document.workers if w.participant == participant.id]:
        group = document.consumer(worker.group)
        held: list[DeathEntry] = []
        for entry in document.rings_of(group) if group is not None else ():
            with unless_unreadable(entry):
                claims = rings.work(entry).claims(worker.slot, worker.generation)
                held += (DeathEntry(entry.id, sequence, participant.id, how) for sequence, _ in claims)
        found += held[:_MOST_EACH]
    known = {(d.ring, d.sequence, d.participant) for d in document.deaths}  # by whoever began this, and died
    found = [d for d in found if (d.ring, d.sequence, d.participant) not in known]
    if found:
        document.deaths = [*document.deaths, *found][-MAX_DEATHS:]
        change.commit()
        reach("reclaim.noted")


def described(participant: Participant, code: int | None) -> str:
    """How a participant ended, in words: of its own namespace its pid can be looked at, as long as it is a zombie."""
    if code is None and participant.namespace == processes.pid_namespace():
        code = processes.exit_code(participant.pid)
    end = f"process {participant.pid} died" if code is None else f"process {participant.pid}: {cause(code)}"
    return end[:HOW]


def of(document: Document, ring: int, sequence: int) -> tuple[str, ...]:
    """How the workers died that had an event in their hands, in order, as far as that is still known."""
    return tuple(d.how for d in document.deaths if (d.ring, d.sequence) == (ring, sequence))
