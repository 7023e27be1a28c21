"""Kills the workers of a group with a key, and looks whether each key kept its order.

    python tools/key_kills.py                       the long form: 64 keys, 8 workers, 2,000,000 events
    python tools/key_kills.py --events 50000        a short one
    python tools/key_kills.py --compare             the same events without kills and checks, with the key and without

Every worker writes into a table that all share: who works on a key, and the last event of it from each publisher. One
must be the next one of its publisher, or the last one again, and nobody who lives may be at work on its key. In the end
every event has been there. Exit code 1 says that one was lost, early, or beside another one.
"""

from __future__ import annotations

import argparse
import mmap
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

import shmbus
from shmbus import inspect

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

GROUP = "keyed"


class Event(msgspec.Struct):
    """The `number`-th of its key from one publisher."""

    account: int
    publisher: int
    number: int


class Plan(NamedTuple):
    """What one run does."""

    bus: str
    table: str
    events: int
    keys: int
    publishers: int
    key: str | None
    capacity: int
    max_capacity: int | None
    prefetch: int
    batch: int
    checks: bool

    @property
    def topic(self) -> shmbus.Topic[Event]:
        """Of its events."""
        return shmbus.Topic("accounts", Event, capacity=self.capacity, max_capacity=self.max_capacity)


class Table:
    """For each key: who works on it, whether that was ever wrong, and the last event of each publisher."""

    def __init__(self, plan: Plan, *, create: bool = False) -> None:
        self._wide = 1 + plan.publishers
        size = 8 * (1 + plan.keys * self._wide)
        with open(plan.table, "w+b" if create else "r+b") as file:
            if create:
                file.truncate(size)
            self.words = memoryview(mmap.mmap(file.fileno(), size)).cast("q")

    @property
    def faults(self) -> int:
        """How often something was wrong."""
        return self.words[0]

    def begin(self, event: Event, me: int) -> None:
        """An event is begun; says what is wrong with that."""
        at = 1 + event.account * self._wide
        other, last = self.words[at], self.words[at + 1 + event.publisher]
        if other and other != me and _lives(other):
            self._fault(f"{event} is begun while process {other} works on the same key")
        if event.number not in (last, last + 1):
            self._fault(f"{event} follows number {last}")
        self.words[at], self.words[at + 1 + event.publisher] = me, event.number

    def end(self, event: Event) -> None:
        """It is done."""
        self.words[1 + event.account * self._wide] = 0

    def last(self, account: int, publisher: int) -> int:
        """The last event of a key."""
        return self.words[2 + account * self._wide + publisher]

    def _fault(self, what: str) -> None:
        self.words[0] += 1
        print(f"key order: {what}", file=sys.stderr, flush=True)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def work(plan: Plan) -> None:
    """A worker, until it is killed or terminated."""
    table, me = Table(plan), os.getpid()
    with (
        suppress(shmbus.ClosedError, shmbus.ReclaimedError),
        shmbus.Bus(plan.bus) as bus,
        bus.worker(plan.topic, group=GROUP, key=plan.key, max_deliver=4000, prefetch=plan.prefetch) as worker,
    ):
        signal.signal(signal.SIGTERM, lambda number, frame: worker.cancel())
        for event in worker:
            if plan.checks:
                table.begin(event, me)
                table.end(event)


def publish(plan: Plan, publisher: int) -> None:
    """All events of one publisher, the keys mixed."""
    chance = random.Random(publisher)
    numbers = [0] * plan.keys
    with shmbus.Bus(plan.bus) as bus, bus.publisher(plan.topic) as pub:
        for left in range(plan.events // plan.publishers, 0, -plan.batch):
            events = []
            for _ in range(min(left, plan.batch)):
                account = chance.randrange(plan.keys)
                numbers[account] += 1
                events.append(Event(account, publisher, numbers[account]))
            pub.publish_many(events)


def expected(plan: Plan, publisher: int) -> list[int]:
    """How many events of each key `publish` makes."""
    chance = random.Random(publisher)
    numbers = [0] * plan.keys
    for _ in range(plan.events // plan.publishers):
        numbers[chance.randrange(plan.keys)] += 1
    return numbers


class Crew:
    """Workers, of whom one is killed every now and then and replaced."""

    def __init__(self, plan: Plan, context: Any, size: int, pause: float) -> None:
        self.kills = 0
        self._plan, self._context, self._pause = plan, context, pause
        self._over = threading.Event()
        self._workers = [self._started() for _ in range(size)]
        self._killer = threading.Thread(target=self._kill, daemon=True)
        if pause:
            self._killer.start()

    def _started(self) -> BaseProcess:
        process: BaseProcess = self._context.Process(target=work, args=(self._plan,))
        process.start()
        return process

    def _kill(self) -> None:
        while not self._over.wait(random.uniform(0.2, 1.8) * self._pause):
            victim = random.randrange(len(self._workers))
            self._workers[victim].kill()
            self._workers[victim].join()
            self.kills += 1
            self._workers[victim] = self._started()

    def end(self) -> None:
        """Nobody is killed any more, and all go."""
        self._over.set()
        if self._pause:
            self._killer.join()
        for process in self._workers:
            process.terminate()
        for process in self._workers:
            process.join(20)
            process.kill()


def run(plan: Plan, method: str, workers: int, pause: float) -> tuple[float, int, list[str]]:
    """Seconds from the first event to the last ack, kills, and what was wrong."""
    context: Any = multiprocessing.get_context(method)
    table = Table(plan, create=True)
    with shmbus.Bus(plan.bus) as bus:
        bus.group(plan.topic, GROUP, key=plan.key)
        crew = Crew(plan, context, workers, pause)
        _until(lambda: len(_group(bus).workers) >= workers - 1)
        began = time.perf_counter()
        sources: list[Any] = [context.Process(target=publish, args=(plan, n)) for n in range(plan.publishers)]
        for source in sources:
            source.start()
        for source in sources:
            source.join()
        _until(lambda: _group(bus).depth == 0)
        seconds = time.perf_counter() - began
        crew.end()
        offered = _group(bus).offered
        letters = [c for c in bus.stats().consumers if c.rejected]
    with suppress(shmbus.BusNotFoundError):
        inspect.remove(plan.bus, force=True)
    wrong = [f"{table.faults} events were out of order"] if table.faults else []
    if offered != plan.events // plan.publishers * plan.publishers or letters:
        wrong.append(f"{offered} events were offered, of {plan.events}; rejected by {[c.name for c in letters]}")
    for publisher in range(plan.publishers if plan.checks else 0):
        found = [table.last(account, publisher) for account in range(plan.keys)]
        if found != expected(plan, publisher):
            wrong.append(f"publisher {publisher}: {sum(found)} events arrived")
    return seconds, crew.kills, wrong


def _group(bus: shmbus.Bus) -> Any:
    return next(c for c in bus.stats().consumers if c.name == GROUP)


def _until(condition: Any) -> None:
    while not condition():
        time.sleep(0.02)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--keys", type=int, default=64)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--publishers", type=int, default=1)
    parser.add_argument("--prefetch", type=int, default=1)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--capacity", type=int, default=1 << 20)
    parser.add_argument("--grow", action="store_true", help="rings begin with 4 KiB")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between two kills; 0: nobody is killed")
    parser.add_argument("--method", choices=multiprocessing.get_all_start_methods(), default="fork")
    parser.add_argument("--compare", action="store_true", help="without kills: with the key, and without it")
    args = parser.parse_args()
    with tempfile.NamedTemporaryFile() as file:
        plan = Plan(
            bus=f"key-kills-{os.getpid()}",
            table=file.name,
            events=args.events,
            keys=args.keys,
            publishers=args.publishers,
            key="account",
            capacity=4096 if args.grow else args.capacity,
            max_capacity=args.capacity if args.grow else None,
            prefetch=args.prefetch,
            batch=args.batch,
            checks=not args.compare,
        )
        runs = [(plan, 0.0), (plan._replace(key=None), 0.0)] if args.compare else [(plan, args.pause)]
        status = 0
        for one, pause in runs:
            seconds, kills, wrong = run(one, args.method, args.workers, pause)
            how = f"key={one.key!r}, {one.keys} keys, {args.workers} workers, {kills} kills"
            print(f"{one.events:,} events in {seconds:.1f} s ({one.events / seconds:,.0f} a second); {how}", flush=True)
            for line in wrong:
                print(f"WRONG: {line}")
                status = 1
    return status


if __name__ == "__main__":
    raise SystemExit(main())
