"""Damages every field of a bus's segments while everything runs on it. Short form: --short; long form: --rounds 2000.

    python tools/fuzz_segments.py [--short | --rounds N] [--seed N] [--area AREA]

Two publishers (one blocks, one drops), a reliable and a lossy subscriber, two workers, a supervisor and the readers of
the command line (`stat`, `ls`, `doctor`, `tail`) run as processes on a real bus with small rings. Each round damages
fields of one area (or of all), one or several at a time, with structured and with random values (tools/fuzz_fields.py).
Meanwhile every process goes on, or meets a documented error and starts anew on the damaged bus. Must hold:

- nobody dies of a signal; nobody hangs: each reacts to SIGTERM within seconds;
- nothing but documented errors comes out of the public API; no traceback out of the command line or the supervisor;
- `shmbus rm --force` removes the bus, whatever it has become, and /dev/shm is as before.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = str(Path(__file__).resolve().parent)
sys.path.insert(0, HERE)  # PYTHONSAFEPATH keeps it out
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [HERE, os.environ.get("PYTHONPATH", "")]))

import fuzz_roles  # noqa: E402
from fuzz_document import bus_fields, intact, read_document  # noqa: E402
from fuzz_fields import Field, Memory, ring_fields, schema_fields  # noqa: E402

from shmbus._shm.names import object_prefix, segment_name  # noqa: E402

REACTS = 15.0  # seconds that a process may take to react to SIGTERM, on a loaded machine
STARTS = 30.0  # seconds for a round to get going
SHORT = 60
MORE = ("document", "document", "document", "all")  # rounds that every tenth area adds
BURSTS = 12  # damages of a round, of one to three fields each


class Player:
    """One process of the cast."""

    def __init__(self, role: str, seed: int, folder: str) -> None:
        self.role, self.seed = role, seed
        self.errors = Path(folder, f"{role}.stderr".replace(" ", "-"))
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        self.errors.write_text("")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=fuzz_roles.serve, args=(theirs, self.role, self.seed, str(self.errors)), daemon=True
        )
        self.process.start()
        theirs.close()

    def order(self, *words: str) -> None:
        self.pipe.send(words)

    def answer(self, seconds: float) -> Any:
        """What it sends next; raises EOFError if it is dead, TimeoutError if it stays silent."""
        if not self.pipe.poll(seconds):
            raise TimeoutError
        return self.pipe.recv()

    def stop(self) -> tuple[fuzz_roles.Reactions, list[str]]:
        """End its part in the round: how it reacted, and what must not have been."""
        seen: fuzz_roles.Reactions = collections.Counter()
        try:
            deadline = time.monotonic() + REACTS
            self.pipe.send("stop")
            while True:
                os.kill(self.process.pid or 0, signal.SIGTERM)
                if self.pipe.poll(3.0):
                    seen, failures = self.pipe.recv()
                    break
                if time.monotonic() > deadline:
                    return seen, [self.bury("hangs: no reaction to SIGTERM")]
        except (EOFError, ConnectionError, ProcessLookupError):
            return seen, [self.bury("died")]
        text = fuzz_roles.STOPPED.sub("", self.errors.read_text(errors="replace"))
        os.truncate(self.errors, 0)
        if text:
            failures = [*failures, f"stderr: {text[-6000:]}"]
        return seen, failures

    def bury(self, what: str) -> str:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid or 0, signal.SIGUSR1)  # faulthandler: where it is
            time.sleep(0.2)
        self.process.kill()
        self.process.join()
        text = f"{what}, exit code {self.process.exitcode}\n{self.errors.read_text(errors='replace')[-6000:]}"
        self.start()
        return text


class Campaign:
    def __init__(self, rounds: int, seed: int, area: str | None, folder: str) -> None:
        self.rounds, self.seed, self.area = rounds, seed, area
        self.chance = random.Random(seed)
        self.players = {role: Player(role, seed + i, folder) for i, role in enumerate(fuzz_roles.ROLES)}
        self.tried: collections.Counter[tuple[str, str]] = collections.Counter()
        self.reactions: collections.defaultdict[tuple[str, str], fuzz_roles.Reactions]
        self.reactions = collections.defaultdict(collections.Counter)
        self.failures: collections.Counter[str] = collections.Counter()

    def run(self) -> None:
        for number in range(self.rounds):
            self.round(f"fuzz-{os.getpid()}-{number}")
            if sum(self.failures.values()) >= 200:
                break

    def round(self, bus: str) -> None:
        for player in self.players.values():
            player.order("play", bus)
        for player in self.players.values():
            player.answer(STARTS)
        log: list[str] = []
        area = "all"
        try:
            fields = self.fields(bus)
            areas = sorted({field.area for field in fields})
            area = self.area or self.chance.choice([*areas, *MORE])
            chosen = [field for field in fields if area in ("all", field.area)] or fields
            self.damage(chosen, log)
        finally:
            intact.clear()
            found: list[str] = []
            for role, player in self.players.items():
                seen, failures = player.stop()
                self.reactions[area, role].update(seen)
                found += [f"{role}: {failure}" for failure in failures]
            found += self.clean(bus)
            self.report(bus, log, found)

    def fields(self, bus: str) -> list[Field]:
        """Everything that can be damaged, once everybody is there and events flow."""
        memory, document = self.wait(lambda: self.complete(bus), f"bus {bus} to be in use")
        fields = list(bus_fields(memory, document))
        for topic in document["topics"]:
            fields += schema_fields(Memory(f"{object_prefix(bus)}schema-{topic['id']}"))
        used = [c["slot"] for c in document["consumers"] if c["kind"] == "subscriber"]
        for ring in document["rings"]:
            with contextlib.suppress(FileNotFoundError):  # drained and removed since
                fields += ring_fields(Memory(f"{object_prefix(bus)}ring-{ring['id']}"), ring["group"] != 0, used)
        return fields

    def complete(self, bus: str) -> tuple[Memory, dict[str, Any]] | None:
        try:
            memory = Memory(segment_name(bus))
            document = read_document(memory) or {}
            rings = [Memory(f"{object_prefix(bus)}ring-{ring['id']}") for ring in document.get("rings", ())]
        except (FileNotFoundError, ValueError):
            return None
        there = len(document.get("consumers", ())) >= 3 and len(document.get("workers", ())) >= 2
        flowing = len(rings) >= 4 and all(ring.load(64) > 1 for ring in rings[:4])
        return (memory, document) if there and flowing else None

    def damage(self, fields: list[Field], log: list[str]) -> None:
        for _ in range(BURSTS):
            for field in self.chance.sample(fields, k=min(len(fields), self.chance.choice((1, 1, 2, 3)))):
                self.tried[field.area, field.name] += 1
                log.append(f"{field.name}: {field.damage(self.chance)}")
            time.sleep(self.chance.choice((0.0, 0.005, 0.01, 0.03)))  # not a wait: the moment of the next one
        time.sleep(0.05)  # not a wait: the last one shall be met

    def clean(self, bus: str) -> list[str]:
        """Remove the bus by force: what went wrong with that."""
        remover = self.players["reader"]
        try:
            remover.order("rm", "--force", bus)
            seen, failures = remover.answer(60.0)
        except (TimeoutError, EOFError, ConnectionError):
            return [f"rm: {remover.bury('hangs or died')}"]
        if not seen["rm exit 0"] and not seen["rm exit 3"]:
            failures = [*failures, f"rm --force: {dict(seen)}"]
        left = [name for name in os.listdir("/dev/shm") if bus in name]
        for name in left:
            os.unlink(f"/dev/shm/{name}")
        return [f"rm: {failure}" for failure in failures] + ([f"left in /dev/shm: {left}"] if left else [])

    def report(self, bus: str, log: list[str], found: list[str]) -> None:
        for failure in found:
            key = "\n".join(failure.strip().splitlines()[-3:])
            self.failures[key] += 1
            if self.failures[key] == 1:
                sys.stdout.write(f"\nFAILED {bus}: {failure}\n  after " + "\n        ".join(log) + "\n")
                sys.stdout.flush()

    def wait(self, look: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + STARTS
        while not (found := look()):
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {STARTS:g} s: {what}")
            time.sleep(0.005)
        return found

    def close(self) -> list[str]:
        """End all processes; those that do not go by themselves are named."""
        stuck = []
        for player in self.players.values():
            with contextlib.suppress(ConnectionError):
                player.pipe.send(None)
        for role, player in self.players.items():
            player.process.join(10.0)
            if player.process.exitcode != 0:
                stuck.append(f"{role} ended with exit code {player.process.exitcode}")
                player.process.kill()
                player.process.join()
        return stuck

    def summary(self) -> str:
        areas = sorted({area for area, _ in self.tried})
        lines = [f"{sum(self.tried.values())} corruptions of {len(self.tried)} fields, in {self.rounds} rounds"]
        for area in areas:
            names = {name: count for (a, name), count in self.tried.items() if a == area}
            lines.append(
                f"  {area} ({sum(names.values())}): " + ", ".join(f"{n} {c}" for n, c in sorted(names.items()))
            )
        lines.append("reactions, by what was damaged:")
        for (area, role), seen in sorted(self.reactions.items()):
            lines.append(f"  {area} / {role}: " + ", ".join(f"{n} {c}" for n, c in sorted(seen.items())))
        return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_const", dest="rounds", const=SHORT, default=SHORT)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seed", type=int, default=None, help="of the damage; the moments stay random")
    parser.add_argument("--area", help="damage this area alone, as the report names it")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.randrange(1 << 16)
    sys.stdout.write(f"seed {seed}\n")
    sys.stdout.flush()
    multiprocessing.get_context("forkserver").set_forkserver_preload(["fuzz_roles", "shmbus.supervisor", "psutil"])
    with tempfile.TemporaryDirectory(prefix="shmbus-fuzz-") as folder:
        campaign = Campaign(arguments.rounds, seed, arguments.area, folder)
        try:
            campaign.run()
        finally:
            stuck = campaign.close()
    sys.stdout.write(f"{campaign.summary()}\n")
    failed = sum(campaign.failures.values()) + len(stuck)
    sys.stdout.write(f"{failed} failures, {len(campaign.failures)} kinds{''.join(f'; {s}' for s in stuck)}\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
