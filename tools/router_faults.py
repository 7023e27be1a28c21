"""The runner under fault: `shmbus run` of a router of two stages over the standard library, round and round.

Files are parsed by the first stage, their functions counted by the second. Meanwhile, at random: a worker is killed
(SIGKILL), stopped and killed, the runner gets SIGHUP, a file makes its handler hang, leak or crash its process. At the
end SIGTERM. All of this must hold: every file that is no poison was counted, rightly, once at least; each poisoned one
is in the dead letters, with as many causes as it had deliveries; the books balance; the runner ends within its drain,
with exit code 0; nothing is left.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path

import msgspec

import shmbus

STDLIB = Path(sysconfig.get_path("stdlib"))
GROUPS = ("parsers", "counters")
LIMIT = 20
"""Deliveries of a file: one that is no poison may be in the hands of that many workers that are killed."""
DRAIN = 3.0
GRACE = 120.0
"""Seconds without progress: past it, something hangs."""
LEAK = 8 << 20


class Source(msgspec.Struct, frozen=True):
    number: int
    path: str
    kind: str


class Parsed(msgspec.Struct, frozen=True):
    number: int
    path: str
    functions: int


SOURCES = shmbus.Topic("sources", Source)
PARSED = shmbus.Topic("parsed", Parsed)
COUNTED = shmbus.Topic("counted", Parsed)
DEAD = shmbus.dead_letter_topic(SOURCES)

router = shmbus.Router()
kept: list[bytes] = []


@router.worker(SOURCES, group=GROUPS[0], to=PARSED, max_deliver=LIMIT, ack_within=1.0)
def parse(message: shmbus.ClaimedMessage[Source]) -> Parsed:
    source = message.event
    if source.kind == "crash":
        signal.pthread_kill(threading.get_ident(), signal.SIGSEGV)
    if source.kind == "hang" and message.attempt == 1:
        threading.Event().wait()
    if source.kind == "leak":
        kept.append(os.urandom(1) * LEAK)
    return Parsed(source.number, source.path, functions(source.path))


@router.worker(PARSED, group=GROUPS[1], to=COUNTED, max_deliver=4000, concurrency=4)
async def count(parsed: Parsed) -> Parsed:
    return parsed


def functions(path: str) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse((STDLIB / path).read_bytes())
    return sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(tree))


def workers(bus: shmbus.Bus) -> list[int]:
    group = next(c for c in bus.stats().consumers if c.name == GROUPS[0])
    return [worker.pid for worker in group.workers]


def harm(bus: shmbus.Bus, runner: subprocess.Popen[str], chance: random.Random, done: dict[str, int]) -> None:
    """One of the things that happen to processes."""
    what = chance.choice(["kill", "kill", "stop", "hup"])
    done[what] = done.get(what, 0) + 1
    if what == "hup":
        runner.send_signal(signal.SIGHUP)
        return
    pids = workers(bus)
    if pids:
        with suppress(ProcessLookupError):
            pid = chance.choice(pids)
            if what == "stop":
                os.kill(pid, signal.SIGSTOP)
                time.sleep(0.05)
            os.kill(pid, signal.SIGKILL)


def campaign(events: int, count: int, every: float, seed: int, log: Path) -> None:
    chance = random.Random(seed)
    paths = [p.name for p in sorted(STDLIB.glob("*.py")) if p.stat().st_size < 60_000]
    kinds = [chance.choices(["", "hang", "leak"], [1000, 2, 40])[0] for _ in range(events)]
    for third in (1, 2):  # far apart: two at once are more deaths in a row than a runner takes for bad luck
        kinds[events * third // 3] = "crash"
    sources = [Source(n, chance.choice(paths), kind) for n, kind in enumerate(kinds)]
    name = f"router-faults-{os.getpid()}"
    command = [sys.executable, "-m", "shmbus", "run", "router_faults:router", "--bus", name, "--workers", str(count)]
    command += ["--max-rss", "160M", "--drain", f"{DRAIN:g}"]
    with (
        shmbus.Bus(name) as bus,
        bus.subscriber(COUNTED) as counted,
        bus.subscriber(DEAD) as dead,
        log.open("w") as out,
    ):
        bus.group(SOURCES, GROUPS[0])
        bus.group(PARSED, GROUPS[1])
        runner = subprocess.Popen(command, cwd=Path(__file__).parent, stderr=out, text=True)
        try:
            found, letters, harmed = run(bus, runner, counted, dead, sources, chance, every)
            began = time.monotonic()
            runner.send_signal(signal.SIGTERM)
            code = runner.wait(GRACE)
            took = time.monotonic() - began
        finally:
            runner.kill()
            runner.wait()
        audit(bus, sources, found, letters)
        starts = len(re.findall(r" starts$", log.read_text(), re.M))
        print(
            f"{events} files, {len(found)} counted, {len(letters)} dead letters, {starts} processes, harm {harmed};"
            f" ended with {code} in {took:.1f} s"
        )
        assert code == 0
        for topic, group in ((SOURCES, GROUPS[0]), (PARSED, GROUPS[1])):
            bus.remove_group(topic, group)


def run(
    bus: shmbus.Bus,
    runner: subprocess.Popen[str],
    counted: shmbus.Subscriber[Parsed],
    dead: shmbus.Subscriber[shmbus.DeadLetter],
    sources: list[Source],
    chance: random.Random,
    every: float,
) -> tuple[dict[int, Parsed], dict[int, shmbus.DeadLetter], dict[str, int]]:
    """Feed and collect, and do harm; returns what was counted, what was given up, and the harm."""
    found: dict[int, Parsed] = {}
    letters: dict[int, shmbus.DeadLetter] = {}
    harmed: dict[str, int] = {}
    fed, next_harm, progress = 0, time.monotonic() + 2.0, time.monotonic()
    with bus.publisher(SOURCES, on_full="raise") as publisher:
        while len(found.keys() | letters.keys()) < len(sources):
            assert runner.poll() is None, f"the runner ended: {runner.returncode}"
            before = len(found) + len(letters)
            with suppress(shmbus.Full):
                while fed < len(sources):
                    publisher.publish(sources[fed])
                    fed += 1
            with suppress(shmbus.Empty):
                found.update((parsed.number, parsed) for parsed in counted.receive_many(256, 0.05))
            while (letter := dead.try_receive()) is not None:
                letters[msgspec.msgpack.decode(letter.payload, type=Source).number] = letter
            if time.monotonic() >= next_harm:
                next_harm = time.monotonic() + every * chance.uniform(0.5, 1.5)
                harm(bus, runner, chance, harmed)
            if len(found) + len(letters) > before:
                progress = time.monotonic()
            missing = sorted({s.number for s in sources} - found.keys() - letters.keys())
            assert time.monotonic() < progress + GRACE, f"no progress for {GRACE:g} s; missing: {missing[:20]}"
    return found, letters, harmed


def audit(
    bus: shmbus.Bus, sources: list[Source], found: dict[int, Parsed], letters: dict[int, shmbus.DeadLetter]
) -> None:
    expected = {path: functions(path) for path in {source.path for source in sources}}
    poisoned = {source.number for source in sources if source.kind == "crash"}
    assert letters.keys() == poisoned, f"dead letters: {sorted(letters)}, poisoned: {sorted(poisoned)}"
    assert found.keys() == {source.number for source in sources} - poisoned
    for source in sources:
        if source.number in found:
            assert found[source.number].functions == expected[source.path], source
    for letter in letters.values():
        causes = re.findall(r"killed by SIG(?:SEGV|KILL)|died", letter.reason)
        assert "killed by SIGSEGV" in letter.reason, letter.reason
        assert len(causes) <= letter.attempts == LIMIT, letter.reason
    for consumer in bus.stats().consumers:
        assert consumer.offered == consumer.delivered + consumer.depth + consumer.dropped, consumer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two acts of harm, on average")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--log", type=Path, help="where the runner's log goes")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        log = arguments.log or Path(folder) / "runner.log"
        campaign(arguments.events, arguments.workers, arguments.every, arguments.seed, log)
    return 0


if __name__ == "__main__":
    sys.exit(main())
