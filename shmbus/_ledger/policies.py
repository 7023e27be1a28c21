"""Policies: who is stalled, what the bus says is to become of them, and the doing of it, by the supervisor, and where
none is at work by whoever waits.

May touch: the registry document, under the bus lock; processes, by SIGKILL.

Must stay true:
- Who is killed holds the byte of the very participant that is stalled, and did so after a pidfd held on to the process:
  a PID that was given to another meanwhile kills nobody.
- Quarantine is one word of the document. Publishers that somebody in quarantine leaves no room go on in another ring
  (`growing.py`); only the subscriber itself ends it, once it is gated in every ring that is written.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from shmbus._ledger import audit
from shmbus._ledger.registry import LOCK_TIMEOUT
from shmbus._log import logger
from shmbus._shm.failpoint import reach
from shmbus.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmbus._ledger.books import Progress
    from shmbus._ledger.document import ConsumerEntry, Document
    from shmbus._ledger.registry import Registry
    from shmbus._shm.lives import Lives
    from shmbus._shm.rings import Rings


_log = logger("shmbus.policy")


def read(document: Document) -> Policy:
    """What holds now."""
    return Policy(document.policy, document.policy_ns / 1e9)


def change(registry: Registry, policy: Policy) -> None:
    """Let it hold from now on, for every process; the supervisor goes by it from its next look."""
    with registry.locked() as held:
        if read(held.document) == policy:
            return
        held.document.policy, held.document.policy_ns = policy.stalled, int(policy.after * 1e9)
        held.commit()
    said = f"bus {registry.bus}: policy for the stalled is {policy.stalled} after {policy.after:g} s"
    audit.tell("policy", said, bus=registry.bus, stalled=policy.stalled, after=policy.after)


class Idle(NamedTuple):
    """A consumer, and for how long it has received nothing though events wait for it."""

    entry: ConsumerEntry
    depth: int
    ns: int
    """0: it makes progress, or has nothing to do, or is a group without a worker."""


class Stalls:
    """What one process has seen of the progress of consumers: it is told of every look, and remembers the changes."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[tuple[int, ...], int]] = {}

    def note(self, document: Document, consumers: list[Progress]) -> list[Idle]:
        """How long everybody has been idle by now."""
        now = time.monotonic_ns()
        groups = {w.group for w in document.workers}
        before, self._seen = self._seen, {}
        found = []
        for entry, done, depth, _ in consumers:
            done_before, since = before.get(entry.id, ((), now))
            if done != done_before or not depth:
                since = now
            self._seen[entry.id] = done, since
            somebody = entry.kind == "subscriber" or entry.id in groups
            found.append(Idle(entry, depth, now - since if somebody else 0))
        return found


def due(document: Document, idle: Idle) -> bool:
    """Whether the policy has something to say of it: it costs no lock to find out."""
    if document.policy == "report" or not idle.ns or idle.ns < document.policy_ns or idle.entry.mode != "reliable":
        return False
    return document.policy == "kill" or (idle.entry.kind == "subscriber" and not idle.entry.quarantined_ns)


def act(
    registry: Registry,
    rings: Rings,
    stalled: ConsumerEntry,
    idle_ns: int,
    *,
    wake: Callable[[int], object] = lambda topic: None,
    timeout: float = LOCK_TIMEOUT,
) -> list[int]:
    """Do what the policy says about a consumer without progress for so long; returns the PIDs of the killed.

    `wake` is called with the topic whose publishers need wait no longer. Raises LockTimeoutError.
    """
    document = registry.read()
    if not due(document, Idle(stalled, 1, idle_ns)):
        return []
    if document.policy == "quarantine":
        if _quarantine(registry, stalled, idle_ns, timeout):
            wake(stalled.topic)
        return []
    killed = []
    for life in sorted(_guilty(document, rings, stalled)):
        pid = _kill(registry.lives, life)
        if pid:
            killed.append(pid)
            fields = _fields(registry, document, stalled, idle_ns)
            audit.tell("kill", f"bus {registry.bus}: killed process {pid}: {_who(fields)}", **fields | {"pid": pid})
        elif registry.lives.holder(life) == 0:
            _log.warning(
                "bus %s: process of %s is of another PID namespace, and cannot be killed from here",
                registry.bus,
                stalled.name,
            )
    return killed


def _quarantine(registry: Registry, stalled: ConsumerEntry, idle_ns: int, timeout: float) -> bool:
    """False if somebody else has done it, or it is gone."""
    with registry.locked(timeout) as change:
        entry = change.document.consumer(stalled.id)
        if registry.removed or entry is None or entry.state != "active" or entry.quarantined_ns:
            return False
        entry.quarantined_ns = time.time_ns()
        change.commit(entry.topic)
        reach("quarantine.committed")
        fields = _fields(registry, change.document, entry, idle_ns)
    audit.tell("quarantine", f"bus {registry.bus}: {_who(fields)}: it holds up nobody any more", **fields)
    _log.warning("bus %s: %s: it holds up nobody any more", registry.bus, _who(fields))
    return True


def release(registry: Registry, document: Document, entry: ConsumerEntry) -> None:
    """A subscriber is reliable again; told by itself, once it is committed."""
    fields = _fields(registry, document, entry, 0)
    audit.tell("rejoin", f"bus {registry.bus}: subscriber {entry.name} is reliable again", **fields)


def _fields(registry: Registry, document: Document, entry: ConsumerEntry, idle_ns: int) -> dict[str, Any]:
    topic = document.topic_at(entry.topic).name
    process = document.participant(entry.participant)
    fields = {"bus": registry.bus, "role": entry.kind, "topic": topic, "name": entry.name}
    return fields | {"pid": process.pid if process else 0, "seconds": round(idle_ns / 1e9, 1)}


def _who(fields: dict[str, Any]) -> str:
    return f"{fields['role']} {fields['name']} of topic {fields['topic']} was stalled for {fields['seconds']} s"


def _guilty(document: Document, rings: Rings, stalled: ConsumerEntry) -> set[int]:
    """The lives of who holds it up: the subscriber's process, or those of workers that hold events."""
    if stalled.kind == "subscriber":
        found = {stalled.participant}
    else:
        held = [rings.work(entry) for entry in document.rings_of(stalled)]
        workers = [w for w in document.workers if w.group == stalled.id]
        found = {w.participant for w in workers if any(ring.held(w.slot, w.generation) for ring in held)}
    return {p.life for p in document.participants if p.id in found}


def _kill(lives: Lives, life: int) -> int:
    """The PID of the process of a life, killed; 0 where it is none of ours to kill."""
    pid = lives.holder(life)
    if not pid or pid == os.getpid():  # gone, of another PID namespace, or we
        return 0
    with suppress(ProcessLookupError, PermissionError):
        descriptor = os.pidfd_open(pid)
        try:
            if lives.holder(life) == pid:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                return pid
        finally:
            os.close(descriptor)
    return 0
