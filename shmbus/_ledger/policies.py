"""Policies: what the bus says is to become of the stalled, and the supervisor's doing it.

May touch: the registry document, under the bus lock; processes, by SIGKILL.

Must stay true: who is killed holds the byte of the very participant that is stalled, and did so after a pidfd held on
to the process: a PID that was given to another meanwhile kills nobody.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from shmbus._ledger import audit
from shmbus.policy import Policy

if TYPE_CHECKING:
    from shmbus._ledger.document import ConsumerEntry, Document
    from shmbus._ledger.registry import Registry
    from shmbus._shm.lives import Lives
    from shmbus._shm.rings import Rings


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


def act(registry: Registry, rings: Rings, stalled: ConsumerEntry, idle_ns: int) -> list[int]:
    """Do what the policy says about a consumer without progress for so long; returns the PIDs of the killed."""
    document = registry.read()
    if document.policy != "kill" or idle_ns < document.policy_ns or stalled.mode == "lossy":
        return []
    killed = []
    for life in sorted(_guilty(document, rings, stalled)):
        pid = _kill(registry.lives, life)
        if pid:
            killed.append(pid)
            topic, seconds = document.topic_at(stalled.topic).name, round(idle_ns / 1e9, 1)
            who = f"{stalled.kind} {stalled.name} of topic {topic} was stalled for {seconds} s"
            fields = {"bus": registry.bus, "role": stalled.kind, "topic": topic, "name": stalled.name, "pid": pid}
            audit.tell("kill", f"bus {registry.bus}: killed process {pid}: {who}", **fields, seconds=seconds)
    return killed


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
