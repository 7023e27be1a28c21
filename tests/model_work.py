"""The work ring in executable Python: the specification that `_core` is tested against. Imports nothing of
the project.

The same rules as in `model`: one thread, no memory, no clock.

    K1  a record has at most one holder
    K2  the gate passes records that are DONE and no other, and the publisher never passes the gate
    K3  a record is READY again only by give_back, delay, take_back or reclaim

What is delayed is due when the test says so, by `pass_time`.
"""

from __future__ import annotations

import queue
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from model import Loss, Message, Record, add_loss, body, check_size, decodes, padding, span

MAX_ATTEMPT = 4095
LAPS, GENERATIONS = 1 << 25, 1 << 16


@dataclass
class Job:
    """A descriptor: the record, and the word that says who holds it."""

    record: Record
    state: Literal["READY", "CLAIMED", "DONE", "DELAYED"] = "READY"
    attempt: int = 0
    holder: tuple[int, int] | None = None
    due: bool = False
    spared: int = 0
    """Claims that were given back before anybody saw the event."""


class Claim(NamedTuple):
    """`word` is what the claim word was when the claim was made: a settlement expects it unchanged. `failure`
    says why it must not be handed out ("exhausted", "undecodable"); its headers stay unread then."""

    sequence: int
    headers: bytes
    payload: bytes
    attempt: int
    word: object
    failure: str = ""


@dataclass
class ModelWorkRing:
    """One publisher, one group, each event to one of its workers, at least once."""

    capacity: int
    sequence: int = 1
    position: int = 0
    max_deliver: int = 5
    jobs: dict[int, Job] = field(default_factory=dict)
    refused: Loss = (0, 0, 0)
    rejected: Loss = (0, 0, 0)
    undecodable: Loss = (0, 0, 0)
    abandoned: Loss = (0, 0, 0)

    def __post_init__(self) -> None:
        self.first = self.gate = self.sequence
        self.head = self.position
        self.descriptors = self.capacity // 64

    # ---- the publisher ----

    def start(self) -> int:
        """The position that may not be overwritten: of the record at the gate."""
        return self.jobs[self.gate].record.start if self.gate < self.sequence else self.head

    def publish(self, payload: bytes, headers: bytes = b"", drop: bool = False) -> bool:
        """Whether it got in. K2: never over a record that is not DONE, in bytes or in descriptors."""
        check_size(self.capacity, headers, payload)
        size = span(body(headers, payload))
        start = self.head + padding(self.capacity, self.head, size)
        full = start + size - self.start() > self.capacity or self.sequence - self.gate >= self.descriptors
        if full and not drop:
            raise queue.Full
        if full:
            self.refused = add_loss(self.refused, self.sequence)
            return False
        message = Message(self.sequence, headers, payload)
        self.jobs[self.sequence] = Job(Record(start, start + size, message))
        self.head, self.sequence = start + size, self.sequence + 1
        return True

    # ---- workers ----

    def claim(self, owner: int, generation: int = 1) -> Claim | None:
        """K1: the first READY record becomes the worker's; the attempt counts from 1. A claim whose attempts
        are used up, or whose payload does not decode, is held all the same until it is settled."""
        for job in self.jobs.values():
            if job.state == "DELAYED" and job.due:
                job.state = "READY"
        for sequence, job in sorted(self.jobs.items()):
            if job.state != "READY":
                continue
            job.state, job.holder = "CLAIMED", (owner, generation % GENERATIONS)
            job.attempt = min(job.attempt + 1, MAX_ATTEMPT)
            _, headers, payload = job.record.message
            word = (self.lap(sequence), job.attempt, job.holder)
            attempt = job.attempt - job.spared
            failure = "" if decodes(payload) else "undecodable"
            failure = "exhausted" if attempt > self.max_deliver else failure
            return Claim(sequence, b"" if failure else headers, payload, attempt, word, failure)
        return None

    def mine(self, claim: Claim) -> Job | None:
        """The job if the claim word is unchanged: same lap, CLAIMED, same attempt, same holder."""
        job = self.jobs.get(claim.sequence)
        return job if job and claim.word == (self.lap(claim.sequence), job.attempt, job.holder) else None

    def lap(self, sequence: int) -> int:
        return sequence // self.descriptors % LAPS

    def ack(self, claim: Claim) -> bool:
        """False if the claim is no longer the worker's. The gate moves over DONE records as far as they
        go."""
        job = self.mine(claim)
        if job is None:
            return False
        job.state, job.holder = "DONE", None
        self.advance()
        return True

    def advance(self) -> None:
        while self.gate < self.sequence and self.jobs[self.gate].state == "DONE":
            del self.jobs[self.gate]
            self.gate += 1

    def reject(self, claim: Claim, undecodable: bool = False) -> bool:
        """DONE, but on the books of the losses; not counted if the claim is no longer the worker's."""
        if self.mine(claim) is None:
            return False
        if undecodable:
            self.undecodable = add_loss(self.undecodable, claim.sequence)
        else:
            self.rejected = add_loss(self.rejected, claim.sequence)
        return self.ack(claim)

    def give_back(self, claim: Claim, unseen: bool = False) -> bool:
        """READY again, the attempt kept, so that no claim word ever comes back; but one of an `unseen` claim is
        not told. False if it is no longer held."""
        job = self.mine(claim)
        if job is not None:
            job.state, job.holder = "READY", None
            job.spared += unseen
        return job is not None

    def delay(self, claim: Claim, unseen: bool = False) -> bool:
        """The same, but it is READY only once time has passed."""
        job = self.mine(claim)
        if job is None or not self.give_back(claim, unseen):
            return False
        job.state, job.due = "DELAYED", False
        return True

    def pass_time(self) -> None:
        """Whatever is delayed is due: the next worker that looks makes it READY."""
        for job in self.jobs.values():
            job.due = True

    def claims(self, owner: int, generation: int) -> list[int]:
        """Sequences that a worker holds, lowest first."""
        who = (owner, generation % GENERATIONS)
        return sorted(sequence for sequence, job in self.jobs.items() if job.holder == who)

    def take_back(self, claim: Claim) -> bool:
        """From outside, of a worker that holds it for too long: as if that had given it back."""
        return self.give_back(claim)

    def abandon(self) -> int:
        """Nobody gets what is left: it is DONE, and on the books as abandoned."""
        left = [sequence for sequence, job in sorted(self.jobs.items()) if job.state != "DONE"]
        for sequence in left:
            self.jobs[sequence].state, self.jobs[sequence].holder = "DONE", None
            self.abandoned = add_loss(self.abandoned, sequence)
        self.advance()
        return len(left)

    def held(self, owner: int, generation: int) -> int:
        who = (owner, generation % GENERATIONS)
        return sum(job.holder == who for job in self.jobs.values())

    def reclaim(self, owner: int, generation: int) -> int:
        """What a dead worker held is READY again, and first in line, since claims begin with the lowest
        sequence."""
        who = (owner, generation % GENERATIONS)
        jobs = [job for job in self.jobs.values() if job.holder == who]
        for job in jobs:
            job.state, job.holder = "READY", None
        return len(jobs)

    # ---- books ----

    def terms(self) -> dict[str, int]:
        """offered = delivered + depth + refused + rejected + undecodable + abandoned; `claimed` and `delayed` are
        parts of depth."""
        open_jobs = [job for job in self.jobs.values() if job.state != "DONE"]
        done = self.sequence - self.first - len(open_jobs)
        free = self.capacity - (self.head - self.start())
        return {
            "offered": self.sequence - self.first + self.refused[0],
            "delivered": done - self.rejected[0] - self.undecodable[0] - self.abandoned[0],
            "depth": len(open_jobs),
            "claimed": sum(job.state == "CLAIMED" for job in open_jobs),
            "delayed": sum(job.state == "DELAYED" for job in open_jobs),
            "next": min((n for n, job in self.jobs.items() if job.state != "DONE"), default=self.sequence),
            "refused": self.refused[0],
            "rejected": self.rejected[0],
            "undecodable": self.undecodable[0],
            "abandoned": self.abandoned[0],
            "room": free if self.sequence - self.gate < self.descriptors else 0,
        }

    def losses(self) -> dict[str, Loss]:
        return {
            "rejected": self.rejected,
            "undecodable": self.undecodable,
            "abandoned": self.abandoned,
            "refused": self.refused,
        }
