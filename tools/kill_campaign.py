"""Kills processes of a bus under load, hundreds of times, and audits what is left. Long form: --kills 5000.

One bus, one topic with small rings, so that publishers wrap and block all the time. Publishers, reliable and lossy
subscribers, workers of one group and supervisors are SIGKILLed at random moments and replaced; one subscriber, the
auditor, lives through it all. Every process writes down what it saw in a file of its own, so that nothing that is
checked depends on the library alone. At the end, all of this must hold:

- nothing hangs: each phase ends within its time;
- the books of every consumer balance, at every look on the way and at the end;
- each life of a reliable subscriber saw each publisher's events in order, without a hole; a lossy one in order;
- the auditor saw every event that any publisher committed, once; every one of them was processed by the group;
- /dev/shm and the process table are as before.

`--supervisor stopped` keeps each supervisor stopped from its first moment in office, `--supervisor absent` lets nobody
start one: all of this must hold then too, for whoever waits reclaims.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import msgspec
import psutil

import shmbus
from shmbus.stats import BusStats

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # PYTHONSAFEPATH keeps it out

import kill_audit
import kill_offices
from kill_audit import Notes

ROLES = ("publisher", "subscriber", "lossy", "worker", "supervisor")
PRELOAD = [f"shmbus.{module}" for module in ("publisher", "subscriber", "worker", "supervisor")]
GRACE = 120.0  # seconds for a phase that takes one or two: past it, something hangs
AGAIN = 20.0  # seconds until SIGTERM is sent again: what a handler raises in an import or a finaliser, Python may lose


class Load(msgspec.Struct, array_like=True, frozen=True):
    life: int
    count: int
    padding: bytes


TOPIC = shmbus.Topic("load", Load, capacity=1 << 14)


class Stop(BaseException):
    """SIGTERM came."""


@contextlib.contextmanager
def until_told() -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise Stop

    try:
        signal.signal(signal.SIGTERM, stop)
        yield
    except Stop:
        pass


def publisher(bus: str, folder: str, life: int, index: int) -> None:
    notes = Notes(folder, "publisher", life)
    chance = random.Random(life)
    with until_told(), shmbus.Bus(bus) as opened, opened.publisher(TOPIC, name=f"pub-life-{life}") as handle:
        notes.opened.touch()
        count = 0
        while True:
            batch = [
                Load(life, count + i + 1, bytes(chance.randrange(400))) for i in range(chance.choice((1, 1, 1, 8)))
            ]
            if len(batch) == 1:
                handle.publish(batch[0])
            else:
                handle.publish_many(batch)
            count += len(batch)
            notes.add(life, count)
            if chance.random() < 0.05:
                time.sleep(0.001)


def subscriber(bus: str, folder: str, life: int, index: int, mode: Any = "reliable") -> None:
    notes = Notes(folder, "subscriber" if mode == "reliable" else "lossy", life)
    with until_told(), shmbus.Bus(bus) as opened:
        with opened.subscriber(TOPIC, name=f"{mode}-{index}", mode=mode) as handle:
            notes.opened.touch()
            for event in handle:
                notes.add(event.life, event.count)


def lossy(bus: str, folder: str, life: int, index: int) -> None:
    subscriber(bus, folder, life, index, "lossy")


def auditor(bus: str, folder: str, life: int, index: int) -> None:
    notes = Notes(folder, "auditor", life)
    with until_told(), shmbus.Bus(bus) as opened, opened.subscriber(TOPIC, name="auditor") as handle:
        notes.opened.touch()
        for event in handle:
            notes.add(event.life, event.count)


def worker(bus: str, folder: str, life: int, index: int) -> None:
    notes = Notes(folder, "worker", life)
    chance = random.Random(life)
    prefetch = chance.choice((1, 1, 4))
    with until_told(), shmbus.Bus(bus) as opened:
        with opened.worker(TOPIC, group="pool", max_deliver=4000, prefetch=prefetch) as handle:
            notes.opened.touch()
            if chance.random() < 0.5:
                for event in handle:
                    notes.add(event.life, event.count)
            else:
                for message in handle.messages():
                    if chance.random() < 0.02:
                        message.nack()
                        continue
                    notes.add(message.event.life, message.event.count)
                    message.ack()


def supervisor(bus: str, folder: str, life: int, index: int) -> None:
    from shmbus.supervisor import run

    run(bus, foreground=True)


RUN: dict[str, Callable[[str, str, int, int], None]] = {
    "publisher": publisher,
    "subscriber": subscriber,
    "lossy": lossy,
    "worker": worker,
    "supervisor": supervisor,
    "auditor": auditor,
}


def run_role(role: str, bus: str, folder: str, life: int, index: int, supervisor: str) -> None:
    if supervisor == "absent":
        kill_offices.take_python_away(life)
    RUN[role](bus, folder, life, index)


class Campaign:
    def __init__(self, kills: int, seed: int, roles: list[str], folder: str, supervisor: str = "running") -> None:
        self.kills = kills
        self.roles = roles
        self.folder = folder
        self.supervisor = supervisor
        self.chance = random.Random(seed)
        self.bus = f"kill-{os.getpid()}-{seed}"
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOAD)
        self.processes: dict[tuple[str, int], BaseProcess] = {}
        self.lives = 0
        self.killed: collections.Counter[str] = collections.Counter()
        self.looks = 0

    def start(self, role: str, index: int) -> None:
        self.lives += 1
        arguments = (role, self.bus, self.folder, self.lives, index, self.supervisor)
        process = self.context.Process(target=run_role, args=arguments, daemon=True)
        process.start()
        self.processes[role, index] = process

    def is_open(self, life: int) -> bool:
        return Path(self.folder, f"up-{life}").exists()

    def run(self) -> None:
        with shmbus.Bus(self.bus) as bus:
            with self.office(bus):
                self.play(bus)
            self.stop("supervisor")
        self.check_nothing_left()

    def play(self, bus: shmbus.Bus) -> None:
        bus.group(TOPIC, "pool")
        self.start("auditor", 0)
        self.wait(lambda: self.is_open(self.lives), "the auditor's start")
        for role, many in (("publisher", 2), ("subscriber", 1), ("lossy", 1), ("worker", 2), ("supervisor", 1)):
            for index in range(0 if (role, self.supervisor) == ("supervisor", "absent") else many):
                self.start(role, index)
        while sum(self.killed.values()) < self.kills:
            self.kill_one(bus)
            if self.chance.random() < 0.2:
                self.check_books(bus.stats())
        self.finish(bus)

    @contextlib.contextmanager
    def office(self, bus: shmbus.Bus) -> Iterator[None]:
        """What becomes of the supervisor; raises if that was not so."""
        if self.supervisor != "stopped":
            yield
            return
        stopper = kill_offices.Stopper(bus)
        stopper.start()
        try:
            yield
        finally:
            stopper.close()
        if not stopper.stopped:
            raise AssertionError("no supervisor was stopped")

    def kill_one(self, bus: shmbus.Bus) -> None:
        role = self.chance.choice(self.roles)
        index = self.chance.choice([i for r, i in self.processes if r == role])
        process = self.processes[role, index]
        time.sleep(self.chance.expovariate(1 / 0.03))  # not a wait: the moment of the kill
        victim = process.pid
        if role == "supervisor" and self.chance.random() < 0.5:
            victim = bus.stats().supervisor.pid or victim  # whoever is in office, also an automatic one
        if not process.is_alive():
            raise AssertionError(f"{role} {index} ended by itself with exit code {process.exitcode}")
        assert victim is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        self.killed[role] += 1
        if victim == process.pid:
            process.join(GRACE)
            self.start(role, index)

    def finish(self, bus: shmbus.Bus) -> None:
        """Stop the publishers, let everybody drain, stop all but the supervisor, and audit."""
        self.stop("publisher")
        self.wait(lambda: self.drained(bus.stats()), "draining", lambda: describe(bus.stats()))
        for role in ("worker", "subscriber", "lossy", "auditor"):
            self.stop(role)
        self.check_books(stats := bus.stats())
        total = kill_audit.audit(self.folder, stats)
        sys.stdout.write(
            f"{sum(self.killed.values())} kills ({', '.join(f'{n} {r}' for r, n in sorted(self.killed.items()))}), "
            f"{self.lives} lives, {total} events, {self.looks} looks at the books\n"
        )

    def stop(self, role: str) -> None:
        chosen = [process for (r, _), process in self.processes.items() if r == role]
        for process in chosen:
            process.terminate()
        deadline = time.monotonic() + GRACE
        for process in chosen:
            while process.is_alive() and time.monotonic() < deadline:
                process.join(AGAIN)
                process.terminate()
            if process.is_alive():
                raise AssertionError(f"{role} {process.pid} hangs after SIGTERM")
            if process.exitcode not in (0, -signal.SIGTERM):
                raise AssertionError(f"{role} ended with exit code {process.exitcode}")

    def wait(self, done: Callable[[], bool], what: str, why: Callable[[], str] = str) -> None:
        deadline = time.monotonic() + GRACE
        while not done():
            if time.monotonic() > deadline:
                raise AssertionError(f"hang: {what} takes more than {GRACE:g} s {why()}")
            time.sleep(0.02)

    def drained(self, stats: BusStats) -> bool:
        live = [c for c in stats.consumers if c.state not in ("closed", "dead")]
        return all(c.depth == 0 for c in live) and all(p.state != "dead" or not p.pid for p in stats.publishers)

    def check_books(self, stats: BusStats) -> None:
        self.looks += 1
        if self.supervisor == "absent" and stats.supervisor.pid:
            raise AssertionError(f"somebody started a supervisor: {stats.supervisor}")
        for consumer in stats.consumers:
            for books in (consumer, *consumer.publishers):
                if books.offered != books.delivered + books.depth + books.dropped:
                    raise AssertionError(f"books do not balance: {consumer}")
            if min(consumer.delivered, consumer.depth, consumer.dropped) < 0:
                raise AssertionError(f"negative: {consumer}")

    def check_nothing_left(self) -> None:
        def left() -> list[str]:
            return [name for name in os.listdir("/dev/shm") if self.bus in name]

        def running() -> list[int]:
            found = [p for p in psutil.process_iter(["cmdline"]) if self.bus in " ".join(p.info["cmdline"] or [])]
            return [p.pid for p in found if p.pid != os.getpid()]

        self.wait(lambda: not left() and not running(), "cleaning up", lambda: f"{left()} {running()}")

    def clean(self) -> None:
        """After a failure: leave nothing behind all the same."""
        for process in self.processes.values():
            process.kill()
        with contextlib.suppress(shmbus.ShmbusError):
            from shmbus import inspect

            inspect.remove(self.bus, force=True)


def describe(stats: BusStats) -> str:
    """Who is not done, without the histograms."""
    behind = [msgspec.structs.replace(c, latencies=(), publishers=()) for c in stats.consumers if c.depth]
    return "\n".join(map(str, (stats.supervisor, *(p for p in stats.publishers if p.state == "dead"), *behind)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=None, help="of the choices; the moments stay random")
    parser.add_argument("--roles", default=",".join(ROLES), help="whom to kill, comma-separated")
    parser.add_argument("--supervisor", choices=kill_offices.STATES, default="running", help="what becomes of it")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.randrange(1 << 16)
    roles = arguments.roles.split(",")
    if not set(roles) <= set(ROLES):
        parser.error(f"roles are {', '.join(ROLES)}")
    if arguments.supervisor == "absent":
        roles = [role for role in roles if role != "supervisor"]
        multiprocessing.set_executable(sys.executable)  # of the forkserver
        kill_offices.take_python_away(1)
    with tempfile.TemporaryDirectory(prefix="shmbus-kills-") as folder:
        campaign = Campaign(arguments.kills, seed, roles, folder, arguments.supervisor)
        sys.stdout.write(f"bus {campaign.bus}, seed {seed}\n")
        sys.stdout.flush()
        try:
            campaign.run()
        except BaseException:
            campaign.clean()
            raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
