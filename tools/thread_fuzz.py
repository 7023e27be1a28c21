"""Handles of every kind, each used by several threads and event loops at once, under the address sanitizer.

    python tools/thread_fuzz.py               1,000 rounds
    python tools/thread_fuzz.py --short       20
    python tools/thread_fuzz.py --plain       with the extension as it is installed, without the sanitizer
    python tools/thread_fuzz.py --seed N      of what the threads do; the moments stay random

A round opens one bus, a few publishers, subscribers and workers, and lets threads loose on them: they publish, receive
by every way there is, settle in a pool what others received, await in event loops, open and close handles of their own,
look at the books, and cancel and close what the others are using; some close the bus meanwhile. Must hold:

- nothing crashes, and nothing hangs: a round ends within its watchdog;
- nothing but documented errors comes out of the public API;
- no event is torn: a decoder runs Python code in the middle of each, and looks at the whole;
- a reliable subscriber of another participant gets whatever publish() says it has published, in order, once;
- what was acked never comes again, and nothing is lost: a group's books are empty when what is left was acked;
- with NumPy: arrays in a pool are those of their event, and a loan is read-only once it is published (`fuzz_arrays`).

Builds the package with the sanitizer into a temporary directory ($CC, else cc), and plays the rounds in children, so
that a crash costs no more than its child. Exit code 1 when anything of this does not hold; the seed repeats the round.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

ROOT: Final = Path(__file__).resolve().parents[1]
ROUNDS: Final = {"long": 1000, "short": 20}
BATCH: Final = 25
"""Rounds of one child."""
WATCHDOG: Final = 120.0
"""Seconds of a round, on a machine that has other things to do."""
SANITIZE: Final = "-fsanitize=address,undefined -fno-omit-frame-pointer -O1 -g"


# ---- one round


class Event(msgspec.Struct):
    """Looks at itself half-way through its decoding, and lets other threads run."""

    class Pause(msgspec.Struct):
        def __post_init__(self) -> None:
            time.sleep(0)

    source: int
    number: int
    pause: Pause
    tail: str

    def __post_init__(self) -> None:
        if self.tail != chr(65 + self.number % 26) * len(self.tail):
            raise AssertionError(f"torn: {self.tail!r}")


def event(source: int, number: int, chance: random.Random) -> Event:
    return Event(source, number, Event.Pause(), chr(65 + number % 26) * chance.choice((10, 200, 700)))


class Round:
    """The handles of a round, what its threads do with them, and what they saw."""

    def __init__(self, seed: int, name: str) -> None:
        import shmbus

        self.shmbus = shmbus
        self.chance = random.Random(seed)
        self.topic = shmbus.Topic("events", Event, capacity=self.chance.choice((4096, 1 << 14)))
        self.outer = shmbus.Bus(name, supervise=False)
        self.witness = self.outer.subscriber(self.topic, name="witness")
        self.outer.group(self.topic, "g")
        self.bus = shmbus.Bus(name, supervise=False)
        self.expected = (shmbus.ClosedError, shmbus.Full, shmbus.Empty)
        self.wrong: list[str] = []
        self.published: set[tuple[int, int]] = set()
        self.acked: set[tuple[int, int]] = set()
        self.seen: list[tuple[int, int]] = []
        self.sources = 0
        self.over, self.lock = threading.Event(), threading.Lock()
        self.pool = ThreadPoolExecutor(3)
        self.publishers = [self.publisher(policy) for policy in self.chance.choices(("block", "drop", "raise"), k=2)]
        modes: list[Any] = self.chance.choices(("reliable", "lossy"), k=2)
        self.subscribers: list[Any] = [self.bus.subscriber(self.topic, mode=mode) for mode in modes]
        self.workers: list[Any] = [self.worker() for _ in range(2)]
        self.frames: Any = None
        with suppress(ImportError):  # NumPy is not there
            from fuzz_arrays import Frames

            self.frames = Frames(shmbus, self.bus, self.chance)

    def publisher(self, on_full: str) -> tuple[int, Any, list[int]]:
        """A publisher, its number, and how many events it has tried; a lock lets the numbers rise in its ring."""
        self.sources += 1
        options: dict[str, Any] = {"on_full": on_full, "timeout": 0.05 if on_full == "block" else None}
        return self.sources, self.bus.publisher(self.topic, **options), [0]

    def worker(self) -> Any:
        prefetch = self.chance.choice((1, 4))
        return self.bus.worker(self.topic, group="g", max_deliver=4000, prefetch=prefetch)

    # -- what threads do

    def publish(self, chance: random.Random) -> None:
        source, publisher, count = chance.choice(self.publishers)
        count[0] += 1
        number = count[0]
        if publisher.publish(event(source, number, chance), headers=chance.choice((None, {"n": number}))) is not None:
            self.published.add((source, number))

    def publish_many(self, chance: random.Random) -> None:
        source, publisher, count = chance.choice(self.publishers)
        count[0] += 5
        numbers = range(count[0] - 4, count[0] + 1)
        if publisher.publish_many([event(source, number, chance) for number in numbers]) == 5:
            self.published.update((source, number) for number in numbers)

    def receive(self, chance: random.Random) -> None:
        receiver = chance.choice(self.subscribers + self.workers)
        timeout = chance.choice((0, 0.005))
        way = chance.randrange(4)
        if way == 0:
            receiver.receive(timeout=timeout)
        elif way == 1:
            receiver.receive_many(chance.choice((1, 100)), timeout=timeout)
        elif way == 2:
            receiver.try_receive()
        elif receiver in self.workers:
            receiver.ack()

    def take(self, chance: random.Random) -> None:
        worker = chance.choice(self.workers)
        for _ in range(chance.randrange(1, 6)):
            found = worker._poll_message()
            if found is not self.shmbus._core.NOTHING:
                self.settle_later(worker._hold(found), chance)

    def settle_later(self, message: Any, chance: random.Random) -> None:
        how = chance.choice((message.ack, message.ack, message.ack, message.nack, lambda: message.nack(delay=0.01)))
        key = message.event.source, message.event.number

        def settle() -> None:
            how()
            if how == message.ack:
                self.acked.add(key)

        for _ in range(chance.choice((1, 1, 2))):
            self.pool.submit(self.attempt, settle)

    def look(self, chance: random.Random) -> None:
        del chance
        self.bus.stats()
        self.bus.losses()

    def come_and_go(self, chance: random.Random) -> None:
        if chance.random() < 0.5:
            with self.bus.subscriber(self.topic) as sub:
                ending = threading.Timer(0.005, chance.choice((sub.cancel, sub.close)))
                ending.start()
                for _ in sub.messages() if chance.random() < 0.5 else sub:
                    pass
                ending.join()
        else:
            self.bus.publisher(self.topic, on_full="drop").close()

    def replace(self, chance: random.Random) -> None:
        """Close, or cancel, what others use."""
        kind, place = chance.randrange(3), chance.randrange(2)
        if kind == 0:
            new = self.publisher("drop")
            with self.lock:
                old, self.publishers[place] = self.publishers[place], new
            old[1].close()
            return
        handles = self.subscribers if kind == 1 else self.workers
        handle: Any = self.bus.subscriber(self.topic) if kind == 1 else self.worker()
        with self.lock:
            gone, handles[place] = handles[place], handle
        if chance.random() < 0.5:
            gone.cancel()
        gone.close()

    def loop(self, chance: random.Random) -> None:
        asyncio.run(self.tasks(chance))

    async def tasks(self, chance: random.Random) -> None:
        async def one() -> None:
            for _ in range(5):
                with suppress(*self.expected, RuntimeError):
                    if chance.random() < 0.4:
                        source, publisher, count = chance.choice(self.publishers)
                        count[0] += 1
                        number = count[0]
                        if await publisher.apublish(event(source, number, chance)) is not None:
                            self.published.add((source, number))
                    elif chance.random() < 0.5:
                        await chance.choice(self.subscribers + self.workers).areceive(timeout=0.005)
                    else:
                        stream = chance.choice(self.workers).messages()
                        async with asyncio.timeout(0.01):
                            self.settle_later(await anext(stream), chance)
                await asyncio.sleep(0)

        some = [asyncio.create_task(one()) for _ in range(4)]
        done, _ = await asyncio.wait(some, timeout=chance.choice((0.002, WATCHDOG)))
        for task in some:
            task.cancel()
        for task in done:
            task.result()

    # -- the round

    def attempt(self, call: Callable[[], object]) -> None:
        """Make a call; note what it may not raise."""
        try:
            call()
        except (*self.expected, StopIteration, StopAsyncIteration, TimeoutError):
            pass
        except RuntimeError as error:
            if "in use by another thread" not in str(error) and "after shutdown" not in str(error):
                self.wrong.append("".join(traceback.format_exception(error)))
        except BaseException as error:
            self.wrong.append("".join(traceback.format_exception(error)))

    def play(self, seed: int) -> None:
        chance = random.Random(seed)
        ways = [self.publish, self.publish, self.publish_many, self.receive, self.receive, self.take, self.take]
        ways += [self.look, self.come_and_go, self.replace, self.loop]
        if self.frames:
            ways += 2 * [self.frames.publish, self.frames.receive] + [self.frames.replace]
        for _ in range(chance.randrange(5, 40)):
            way = chance.choice(ways)
            self.attempt(lambda w=way: w(chance))  # type: ignore[misc]

    def watch(self) -> None:
        while True:
            with suppress(self.shmbus.Empty):
                found = self.witness.receive(timeout=0.01)
                self.seen.append((found.source, found.number))
                continue
            if self.over.is_set():
                return

    def run(self) -> list[str]:
        """Everything that did not hold."""
        watching = threading.Thread(target=self.watch)
        watching.start()
        players = [threading.Thread(target=self.play, args=(self.chance.random(),)) for _ in range(5)]
        for player in players:
            player.start()
        if self.chance.random() < 0.3:  # the bus goes under the others' hands
            players += [threading.Thread(target=self.attempt, args=(self.bus.close,)) for _ in range(2)]
            for closing in players[-2:]:
                closing.start()
        for player in players:
            player.join()
        self.pool.shutdown()
        self.attempt(self.bus.close)
        self.over.set()
        watching.join()
        self.check()
        self.witness.close()
        self.outer.close()
        return self.wrong

    def check(self) -> None:
        rest: list[tuple[int, int]] = []
        with self.outer.worker(self.topic, group="g", max_deliver=4000) as worker:
            while (claimed := self.books("g").depth) > 0:
                with suppress(self.shmbus.Empty):
                    found = worker.receive(timeout=1.0)
                    rest.append((found.source, found.number))
                worker.ack()
                if self.books("g").depth >= claimed and not rest:
                    self.wrong.append(f"{claimed} events of the group do not come")
                    break
        again = self.acked & set(rest)
        if again:
            self.wrong.append(f"acked, and delivered again: {sorted(again)}")
        missing = self.published - set(self.seen)
        if missing or len(self.seen) != len(set(self.seen)):
            self.wrong.append(f"missed: {sorted(missing)}, twice: {len(self.seen) - len(set(self.seen))}")
        for consumer in self.outer.stats().consumers:
            if consumer.offered != consumer.delivered + consumer.depth + consumer.dropped:
                self.wrong.append(f"books of {consumer.name} do not balance: {consumer}")

    def books(self, name: str) -> Any:
        return next(c for c in self.outer.stats().consumers if c.name == name)


def play_rounds(first: int, count: int) -> int:
    """The rounds of a child."""
    from shmbus import inspect

    sys.setswitchinterval(1e-5)
    failed = 0
    for seed in range(first, first + count):
        faulthandler.dump_traceback_later(WATCHDOG, exit=True)
        name = f"thread-fuzz-{os.getpid()}-{seed}"
        wrong = Round(seed, name).run()
        with suppress(Exception):
            inspect.remove(name, force=True)
        for text in dict.fromkeys(wrong):
            print(f"FAILED round {seed}: {text}", flush=True)
        failed += bool(wrong)
    faulthandler.cancel_dump_traceback_later()
    return failed


# ---- children


def build(scratch: Path) -> dict[str, str] | None:
    """The package with the sanitizer, and the environment to run it in; None where that is not to be had."""
    compiler = shlex.split(os.environ.get("CC") or "cc")
    libraries = [
        subprocess.run(
            [*compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(Path(library).is_absolute() for library in libraries):
        return None
    compiled = shutil.ignore_patterns("_core*.so", "__pycache__")
    shutil.copytree(ROOT / "shmbus", scratch / "shmbus", ignore=compiled)
    shutil.copy(ROOT / "setup.py", scratch)
    flags = {"CFLAGS": SANITIZE, "LDFLAGS": SANITIZE.partition(" ")[0]}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(
        command, cwd=scratch, env={**os.environ, **flags}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")
    return {
        "LD_PRELOAD": ":".join(libraries),
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter itself leaks at its exit
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "PYTHONPATH": str(scratch),
    }


def play(environment: dict[str, str], first: int, count: int) -> bool:
    """A child's rounds; true if all held."""
    command = [sys.executable, __file__, "--inside", str(first), str(count)]
    env = {**os.environ, "PYTHONFAULTHANDLER": "1", **environment}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    bad = done.returncode or "Sanitizer" in done.stdout or "runtime error" in done.stdout
    if bad:
        print(f"{done.stdout[-20000:]}\nFAILED rounds {first} to {first + count - 1}: exit code {done.returncode}")
    return not bad


def main() -> int:
    """Play the rounds in children, batch by batch."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--inside", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        return int(play_rounds(*options.inside) > 0)
    rounds = options.rounds or ROUNDS["short" if options.short else "long"]
    started, failed = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="shmbus-threads-") as directory:
        environment = {} if options.plain else build(Path(directory))
        if environment is None:
            print("SKIPPED: the compiler has no runtime of the address sanitizer")
            return 0
        for first in range(options.seed, options.seed + rounds, BATCH):
            failed += not play(environment, first, min(BATCH, options.seed + rounds - first))
    took = time.monotonic() - started
    print(f"{rounds} rounds, seeds from {options.seed}: {failed} batches failed; {took:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
