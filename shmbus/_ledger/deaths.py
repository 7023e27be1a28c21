"""Deaths: what dead processes held of a group's events, and how they died, for the dead letters of those events.

Reclaim notes what a dead process held, in the commit that begins it. How it died only its parent knows, who has the
exit status: `tell` puts it to what was noted. A process may be *promised* to be told of; then a dead letter waits for
that, a moment at most. So it does not matter whether the parent or the supervisor is faster.

May touch: the document, under the bus lock; claim words, to read them.

Must stay true:
- All of it is bounded (`slots.reserve`): the oldest are forgotten first, and only the words of a dead letter with them.
- Nothing waits for a parent that does not come: what was promised is waited for two seconds after the death.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shmbus import _core
from shmbus._deaths import cause
from shmbus._ledger.document import HOW, Death, HeldRun
from shmbus._ledger.retired import unless_unreadable
from shmbus._ledger.slots import MAX_DEATHS, MAX_HELD
from shmbus._shm import processes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shmbus._ledger.document import Document, Participant, WorkerEntry
    from shmbus._ledger.registry import Change
    from shmbus._shm.rings import Rings

PATIENCE_NS: Final = 2_000_000_000
"""After so long a promise is not waited for: whoever made it is dead, or stopped."""


def note(change: Change, rings: Rings, participant: Participant, code: int | None) -> None:
    """Before its claims go back: what a dead process held. Committed by the caller. `code` is how it ended, as `Popen`
    has it, where the caller knows.
    """
    document = change.document
    held: list[HeldRun] = []
    for worker in document.workers:
        group = document.consumer(worker.group) if worker.participant == participant.id else None
        for entry in document.rings_of(group) if group is not None else ():
            with unless_unreadable(entry):
                sequences = [s for s, _ in rings.work(entry).claims(worker.slot, worker.generation)]
                held += _runs(entry.id, sequences)
    if held and code is None and participant.namespace == processes.pid_namespace():
        code = processes.exit_code(participant.pid)  # as long as it is a zombie
    if held:
        _add(document, participant, "" if code is None else cause(code), held, told=False)


def note_slow(document: Document, worker: WorkerEntry, ring: int, sequence: int) -> None:
    """An event was taken from a worker that held it for too long. Committed by the caller."""
    participant = document.participant(worker.participant)
    if participant is not None:
        how = f"held it for more than {worker.ack_within_ns / 1e9:g} s"
        _add(document, participant, how, [HeldRun(ring, sequence, sequence)], told=True)


def tell(change: Change, pid: int, namespace: int, how: str) -> int:
    """Say how a process died whose end was noted; returns how many events it held, 0 where nothing was noted."""
    words = "".join(char if char.isascii() and char.isprintable() else "?" for char in how)[:HOW]
    found = [d for d in change.document.deaths if (d.pid, d.namespace, d.told) == (pid, namespace, False)]
    for death in found:
        death.how, death.told = words, True
    if found:
        change.commit()
    return sum(run.last - run.first + 1 for death in found for run in death.held)


def of(document: Document, ring: int, sequence: int) -> tuple[str, ...]:
    """How the workers ended that had an event in their hands, in order, as far as that is still known."""
    return tuple(f"process {d.pid}{f': {d.how}' if d.how else ' died'}" for d in _holders(document, ring, sequence))


def pending(document: Document, ring: int, sequence: int) -> bool:
    """Whether there is more to be told of them in a moment."""
    now = _core.host_ns()
    return any(
        d.promised and not d.told and 0 <= now - d.at_ns < PATIENCE_NS for d in _holders(document, ring, sequence)
    )


def _holders(document: Document, ring: int, sequence: int) -> list[Death]:
    return [d for d in document.deaths if any(r.ring == ring and r.first <= sequence <= r.last for r in d.held)]


def _add(document: Document, participant: Participant, how: str, held: list[HeldRun], *, told: bool) -> None:
    there = {ring.id for ring in document.rings}
    kept = [d for d in document.deaths if any(run.ring in there for run in d.held)]
    fresh = Death(
        participant=participant.id,
        pid=participant.pid,
        namespace=participant.namespace,
        at_ns=_core.host_ns(),
        promised=participant.promised,
        told=told,
        how=how[:HOW],
        held=held[:MAX_HELD],
    )
    document.deaths = [*kept, fresh][-MAX_DEATHS:]


def _runs(ring: int, sequences: Iterable[int]) -> list[HeldRun]:
    """Sequences as runs without holes: what lies in between may have been another worker's."""
    runs: list[HeldRun] = []
    for sequence in sorted(sequences):
        if runs and runs[-1].last == sequence - 1:
            runs[-1] = HeldRun(ring, runs[-1].first, sequence)
        else:
            runs.append(HeldRun(ring, sequence, sequence))
    return runs
