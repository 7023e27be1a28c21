"""Kills a process at every failpoint of the library, and audits what is left: once for each point and visit.

For every point of `shmbus._failpoint.POINTS`, on a bus of its own: somebody publishes and consumes; a second process
goes through a whole life (or serves as supervisor over somebody else's death, or removes a bus) and dies at the point;
then the first goes on. All of this must hold: no hang, the first one's events arrive complete, in order and once, those
that the dead had published arrive without a hole, the group gets each at least once, the books balance, and nothing is
left in /dev/shm.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

import msgspec

import shmbus
from shmbus._ledger import overdue, policies
from shmbus._shm import failpoint
from shmbus.letters import Letters

GRACE = 60.0  # seconds for a step that takes milliseconds: past it, something hangs
SUPERVISOR = ("reclaim.", "office.", "pool.forg")


class Note(msgspec.Struct, frozen=True):
    writer: str
    count: int


NOTES = shmbus.Topic("notes", Note, capacity=1 << 14)
LARGE_NOTES = shmbus.Topic("notes", Note, capacity=1 << 18)
BLOBS = shmbus.Topic("blobs", memoryview, capacity=1 << 14, pool=1 << 16)
ECHO = shmbus.Service("echo", Note, Note, capacity=1 << 14, reply_capacity=1 << 14)
GROWING_NOTES = shmbus.Topic("notes", Note, capacity=1 << 12, max_capacity=1 << 14)
SCRATCH = shmbus.Topic("scratch", Note, capacity=1 << 14)
NARROW = shmbus.Topic("narrow", Note, capacity=1 << 12)
RESULTS = shmbus.Topic("results", Note, capacity=1 << 14)

context = multiprocessing.get_context("forkserver")


def one_life(bus: str, point: str, visits: int) -> None:
    """Everything that a participant can go through; dies on the way."""
    failpoint.arm(point, visits)
    with shmbus.Bus(bus, supervise=False) as opened:
        opened.group(NOTES, "gone", key="writer")
        with opened.publisher(NOTES, name="mortal") as publisher:
            publisher.publish_many(Note("mortal", count + 1) for count in range(10))
        with opened.publisher(BLOBS) as lender, opened.subscriber(BLOBS) as viewer:
            lender.publish(lender.buffer(5000))
            view = viewer.receive(GRACE)
        del view  # the pool is gone by then: only history is left of its publisher
        with opened.publisher(GROWING_NOTES, name="mortal") as publisher:
            publisher.publish_many(Note("mortal", count + 1) for count in range(100))  # nobody receives: it grows
        opened.publisher(NOTES).close()  # its rings are empty, and swept at once
        opened.subscriber(SCRATCH).close()  # a topic that is made for it, and forgotten with it
        opened.group(NOTES, "late")
        with opened.subscriber(NOTES, name="mortal", start="oldest") as subscriber:
            subscriber.receive_many(5, 0)
            opened.subscriber(NOTES, mode="lossy").close()
        with opened.worker(NOTES, group="pool", name="mortal", prefetch=2) as worker:
            for message in worker.messages():
                message.reject("a failpoint")
                break
            worker.try_receive()
        with opened.server(ECHO) as server, opened.client(ECHO) as client:
            future = client.submit(Note("mortal", 1))
            next(iter(server)).reply(Note("mortal", 2))
            future.result()
        work_of_all_kinds(opened)
        left_behind(opened)
        routed(opened)
        opened.remove_group(NOTES, "gone")


def work_of_all_kinds(bus: shmbus.Bus) -> None:
    """Delays an event, rejects one too large for the rings of letters so far, has no room for a letter, is too slow."""
    with bus.worker(NOTES, group="pool", name="mortal", ack_within=1e-9) as worker:
        messages = worker.messages()
        next(messages).nack(delay=0.001)
        with bus.publisher(LARGE_NOTES, name="mortal") as publisher:
            publisher.publish(Note("l" * 40_000, 1))
            reject_until(messages, lambda message: message.event.writer.startswith("l"))
        letters, worker._letters = worker._letters, Refusing(NOTES, None, None)  # type: ignore[arg-type]
        next(messages).reject("no room")
        worker._letters = letters
        held, seen = next(messages), overdue.Seen()
        with bus._session.locked() as change:
            overdue.look(change.document, bus._session.rings, seen)
            overdue.act(change, bus._session.rings, seen)
        with contextlib.suppress(shmbus.ReclaimedError):
            held.ack()


def left_behind(bus: shmbus.Bus) -> None:
    """A publisher leaves a subscriber in quarantine its ring; the subscriber comes back, and is reliable again."""
    session = bus._session
    policies.change(session.registry, shmbus.Policy("quarantine", 1e6))
    with bus.publisher(NARROW, on_full="raise") as publisher, bus.subscriber(NARROW, name="sleeper") as subscriber:
        with contextlib.suppress(shmbus.Full):
            publisher.publish_many(Note("mortal", count) for count in range(200))
        sleeper = next(c for c in session.document().consumers if c.name == "sleeper")
        policies.act(session.registry, session.rings, sleeper, 10**18, wake=session.wake_publishers)
        publisher.publish_many(Note("mortal", count) for count in range(200))
        while subscriber.try_receive() is not None:
            pass
    policies.change(session.registry, shmbus.Policy())


def routed(bus: shmbus.Bus) -> None:
    """Handles an event by a router: its result is published, then it is acked."""
    router = shmbus.Router()

    @router.worker(SCRATCH, group="routed", to=RESULTS)
    def handle(note: Note) -> Note:
        router.cancel()
        return note

    bus.group(SCRATCH, "routed")
    with bus.publisher(SCRATCH) as publisher:
        publisher.publish(Note("mortal", 1))
    router.run(bus)
    bus.remove_group(SCRATCH, "routed")


def reject_until(messages: Iterator[shmbus.ClaimedMessage[Note]], last: Callable[[Any], bool]) -> None:
    for message in messages:
        if last(message):
            message.reject("too large for what there is")
            return
        message.nack(delay=0.001)


class Refusing(Letters):
    """A dead-letter topic without room."""

    def write(self, letter: shmbus.DeadLetter) -> NoReturn:
        raise shmbus.Full("notes.dead", ("nobody",))


def lone_life(bus: str, point: str, visits: int) -> None:
    """The only participant of a bus, which removes it; dies on the way."""
    failpoint.arm(point, visits)
    with shmbus.Bus(bus, supervise=False) as opened, opened.publisher(NOTES) as publisher:
        publisher.publish(Note("mortal", 1))


def victim(bus: str) -> None:
    """Holds a bit of everything, and is killed from outside."""
    with shmbus.Bus(bus, supervise=False) as opened:
        publisher = opened.publisher(NOTES, name="mortal")
        subscriber = opened.subscriber(NOTES, start="oldest")
        worker = opened.worker(NOTES, group="pool", prefetch=3)
        publisher.publish_many(Note("mortal", count + 1) for count in range(10))
        worker.receive(GRACE)
        subscriber.receive(GRACE)
        lender, viewer = opened.publisher(BLOBS), opened.subscriber(BLOBS)
        lender.publish(lender.buffer(5000))
        views = viewer.receive(GRACE), lender.buffer(5000)
        assert len(views) == 2
        os.kill(os.getpid(), signal.SIGKILL)


def supervise(bus: str, point: str, visits: int) -> None:
    """A supervisor, which dies on the way unless `point` is empty."""
    from shmbus.supervisor import run

    if point:
        failpoint.arm(point, visits)
    with contextlib.suppress(shmbus.BusNotFoundError):
        run(bus, foreground=True)


def wait(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + GRACE
    while not done():
        if time.monotonic() > deadline:
            raise AssertionError(f"hang: {what} takes more than {GRACE:g} s")
        time.sleep(0.002)


def start(target: Callable[..., None], *args: object) -> BaseProcess:
    process = context.Process(target=target, args=args, daemon=True)
    process.start()
    return process


def left(bus: str) -> list[str]:
    return [name for name in os.listdir("/dev/shm") if bus in name]


class Trial:
    """One point, one visit, one bus."""

    def __init__(self, point: str, visits: int) -> None:
        self.point = point
        self.visits = visits
        self.bus = f"points-{os.getpid()}-{point.replace('.', '-')}-{visits}"

    def run(self) -> bool:
        """True if the process died at the point, false if it never came there for that visit."""
        if self.point.startswith("remove."):
            reached = self.dies(start(lone_life, self.bus, self.point, self.visits))
        else:
            reached = self.beside_a_survivor()
        if left(self.bus):  # what a removal cut short left, or a group that the dead made is owed events
            with shmbus.Bus(self.bus, supervise=False) as bus:
                topics = {topic.name: topic for topic in (NOTES, SCRATCH)}
                for topic, group in {(c.topic, c.name) for c in bus.stats().consumers if c.kind == "group"}:
                    with contextlib.suppress(shmbus.ConfigError):  # its removal had begun, and is done by now
                        bus.remove_group(topics[topic], group)
        wait(lambda: not left(self.bus), f"removing {left(self.bus)}")
        return reached

    def dies(self, process: BaseProcess) -> bool:
        process.join(GRACE)
        if process.exitcode not in (0, -signal.SIGKILL):
            raise AssertionError(f"{self.point}, visit {self.visits}: exit code {process.exitcode}")
        return process.exitcode == -signal.SIGKILL

    def beside_a_survivor(self) -> bool:
        with shmbus.Bus(self.bus, supervise=False) as bus:
            auditor = bus.subscriber(NOTES, name="auditor")
            worker = bus.worker(NOTES, group="pool", max_deliver=4000)
            publisher = bus.publisher(NOTES, name="survivor")
            publisher.publish_many(Note("survivor", count + 1) for count in range(20))
            if self.point.startswith(SUPERVISOR):
                reached = self.over_a_death()
            else:
                reached = self.dies(start(one_life, self.bus, self.point, self.visits))
            publisher.publish_many(Note("survivor", count + 21) for count in range(20))
            self.audit(bus, auditor, worker)
            return reached

    def over_a_death(self) -> bool:
        dead = start(victim, self.bus)
        dead.join(GRACE)
        mortal = start(supervise, self.bus, self.point, self.visits)
        if self.visits > 1:  # a second death for the second visit
            wait(lambda: not mortal.is_alive() or len(self.participants()) < 2, "the first reclaim")
            start(victim, self.bus).join(GRACE)
        wait(lambda: not mortal.is_alive() or len(self.participants()) < 2, "the supervisor's end")
        if mortal.is_alive() and len(self.participants()) < 2:
            mortal.join(0.3)
        successor = start(supervise, self.bus, "", 0)
        wait(lambda: len(self.participants()) < 2, "the successor's reclaim")
        reached = not mortal.is_alive()
        mortal.kill()
        successor.terminate()
        successor.join(GRACE)
        return reached

    def participants(self) -> tuple[object, ...]:
        from shmbus import inspect

        return inspect.stats_of(self.bus).participants

    def audit(self, bus: shmbus.Bus, auditor: shmbus.Subscriber[Note], worker: shmbus.Worker[Note]) -> None:
        seen: dict[str, list[int]] = {"survivor": []}

        def all_there() -> bool:
            for note in auditor.receive_many(100, 0.01) if auditor._ready() else ():
                seen.setdefault(note.writer, []).append(note.count)
            return len(seen["survivor"]) == 40

        wait(all_there, "the auditor's events")
        for writer, counts in seen.items():
            # More than one mortal may have lived: each counts from 1.
            pairs = itertools.pairwise(counts)
            if counts[0] != 1 or any(b not in (a + 1, 1) for a, b in pairs):
                raise AssertionError(f"{self.point}: the auditor saw {counts} of {writer}")
        processed: set[tuple[str, int]] = set()

        def all_done() -> bool:
            with contextlib.suppress(shmbus.Empty):
                note = worker.receive(1.2)  # longer than a bounded sleep: it looks after the dead itself
                processed.add((note.writer, note.count))
            group = next(c for c in bus.stats().consumers if c.name == "pool")
            return group.depth <= group.claimed <= 1 and group.depth <= 1

        wait(all_done, "the group's events")
        worker.ack()
        missing = {(w, c) for w, counts in seen.items() for c in counts} - processed
        rejected = next(c for c in bus.stats().consumers if c.name == "pool").rejected
        if len(missing) > rejected:
            raise AssertionError(f"{self.point}: the group never got {missing}, {rejected} were rejected")
        with contextlib.suppress(shmbus.ConfigError):  # the call of the dead is owed to servers that never come
            bus.remove_group(ECHO.requests, "servers", force=True)
        for consumer in bus.stats().consumers:
            if consumer.offered != consumer.delivered + consumer.depth + consumer.dropped:
                raise AssertionError(f"{self.point}: books do not balance: {consumer}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visits", type=int, default=2, help="die at the first, second, ... visit to each point")
    parser.add_argument("--point", choices=failpoint.POINTS, help="one point only")
    arguments = parser.parse_args()
    context.set_forkserver_preload(["shmbus", "shmbus.supervisor"])
    points = [arguments.point] if arguments.point else [p for p in failpoint.POINTS if not p.startswith("journal.")]
    died = 0
    for point in points:
        reached = [Trial(point, visits + 1).run() for visits in range(arguments.visits)]
        if not reached[0]:
            raise AssertionError(f"nobody came to {point}")
        died += sum(reached)
        sys.stdout.write(f"{point:20} {sum(reached)} deaths\n")
        sys.stdout.flush()
    sys.stdout.write(f"{died} deaths at {len(points)} failpoints\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
