"""Runs the plain C strata through every schedule of small scenes, and kills an actor at every step.

    python tools/explore.py                       short form: smaller bounds, then the seeded faults
    python tools/explore.py --long                the bounds of the documented figures; minutes
    python tools/explore.py --scene NAME          one scene, no seeded faults
    python tools/explore.py --scene NAME --replay P12R3P!     one schedule, printed access by access
    python tools/explore.py --list                the scenes and what they show

Builds tests/native/ with the C compiler ($CC, else cc) into a temporary directory. What is modelled is
sequential consistency; the seeded faults that need weaker memory run under the thread sanitizer. Exit code 1
when an invariant is violated or a seeded fault (tests/native/mutants.toml) goes unnoticed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NATIVE = ROOT / "shmbus" / "_native"
HARNESS = ROOT / "tests" / "native"

STRATA = [
    NATIVE / name for name in ("ring.c", "reader.c", "work.c", "delay.c", "lane.c", "retire.c", "pool.c", "extents.c")
]
PARTS = ("explore", "sched", "memory", "names", "world_ring", "world_work")
SCENES = (
    "scenes_ring",
    "scenes_join",
    "scenes_park",
    "scenes_work",
    "scenes_chain",
    "scenes_retire",
    "scenes_delay",
    "scenes_pool",
    "scenes_rows",
    "scenes_lane",
)
SOURCES = [*STRATA, *(HARNESS / f"{name}.c" for name in PARTS + SCENES)]
STRESS = [*STRATA, HARNESS / "stress.c"]

WARNINGS = ["-Wall", "-Wextra", "-Werror"]
# longjmp between stacks is what the coroutines are made of: neither guard has a place here.
EXPLORER = [
    *("-std=gnu11", "-O2", "-g", "-fno-stack-protector", "-U_FORTIFY_SOURCE"),
    *('-DSHMBUS_HOOKS="hooks.h"', "-DLANE_BITS=1", "-DLANE_MEMORY=2u", f"-I{NATIVE}", f"-I{HARNESS}"),
]
THREAD = ["-std=gnu11", "-O1", "-g", "-fsanitize=thread", f"-I{NATIVE}", "-pthread"]

VIOLATION = 1  # exit code of the explorer
WATCHDOG = 3600.0  # seconds
STRESS_ROUNDS = 40  # of a seeded fault that must race, at most: on a busy machine threads rarely meet
CPUS = os.cpu_count() or 1


@dataclass(frozen=True)
class Mutant:
    """One seeded fault; `scene` is what catches it, or None for the thread sanitizer."""

    name: str
    file: Path
    find: str
    replace: str
    scene: str | None

    def apply(self) -> str:
        """The changed text; ValueError if `find` does not occur exactly once."""
        text = self.file.read_text(encoding="utf-8")
        if text.count(self.find) != 1:
            raise ValueError(f"the text occurs {text.count(self.find)} times in {self.file.name}: {self.name}")
        return text.replace(self.find, self.replace)


@dataclass
class Totals:
    """Sums over all scenes."""

    schedules: int = 0
    kills: int = 0
    kill_points: int = 0
    failed: list[str] = field(default_factory=list)


def load_mutants() -> list[Mutant]:
    """What mutants.toml lists."""
    entries = tomllib.loads((HARNESS / "mutants.toml").read_text(encoding="utf-8"))["mutant"]
    return [
        Mutant(
            name=entry["name"],
            file=ROOT / entry["file"],
            find=entry["find"],
            replace=entry["replace"],
            scene=None if entry.get("thread") else entry["scene"],
        )
        for entry in entries
    ]


class Builder:
    """Compiles into one directory; an object is made once for each source and set of flags."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.compiler = shlex.split(os.environ.get("CC") or "cc")

    def run(self, arguments: Sequence[str | Path]) -> None:
        """Call the compiler; its message is the exception's."""
        done = subprocess.run(
            [*self.compiler, *arguments], capture_output=True, text=True, check=False, timeout=WATCHDOG
        )
        if done.returncode:
            raise SystemExit(f"{shlex.join(self.compiler)}: {done.stderr}")

    def compile(self, source: Path, flags: Sequence[str], output: str) -> Path:
        """One object file."""
        target = self.scratch / output
        self.run(["-c", *flags, source, "-o", target])
        return target

    def link(self, objects: Sequence[Path], flags: Sequence[str], output: str) -> Path:
        """One program."""
        target = self.scratch / output
        self.run([*flags, *objects, "-o", target])
        return target

    def objects(self, sources: Sequence[Path], flags: Sequence[str], kind: str) -> dict[Path, Path]:
        """An object for each source."""
        strict = [*flags, *WARNINGS]
        with ThreadPoolExecutor(CPUS) as pool:
            made = pool.map(lambda path: self.compile(path, strict, f"{kind}-{path.stem}.o"), sources)
            return dict(zip(sources, made, strict=True))

    def mutate(self, mutant: Mutant, index: int, objects: dict[Path, Path], flags: Sequence[str]) -> Path:
        """The program with one source changed."""
        source = self.scratch / f"mutant-{index}.c"
        source.write_text(mutant.apply(), encoding="utf-8")
        changed = self.compile(source, flags, f"mutant-{index}.o")
        linked = [changed if path == mutant.file else made for path, made in objects.items()]
        return self.link(linked, flags, f"mutant-{index}")


def call(program: Path, *arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code and output."""
    done = subprocess.run(
        [program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=WATCHDOG,
        env={**os.environ, **(env or {})},
    )
    return done.returncode, done.stdout


def scene_names(program: Path) -> list[tuple[str, str]]:
    """Name and meaning of each scene."""
    _, output = call(program, "--list")
    rows = [line.partition("\t") for line in output.splitlines()]
    return [(name, what) for name, _, what in rows]


def run_scenes(program: Path, names: Sequence[str], *, full: bool) -> Totals:
    """Run scenes side by side; print a line for each, and the trace of what fails."""
    totals = Totals()
    print(f"{'scene':22}{'bound':>6}{'schedules':>12}{'kill points':>12}{'with a kill':>12}{'accesses':>9}")
    with ThreadPoolExecutor(CPUS) as pool:
        arguments = ["--long"] if full else []
        for name, (code, output) in zip(
            names, pool.map(lambda name: call(program, "--scene", name, *arguments), names), strict=True
        ):
            *trace, last = output.splitlines() or [""]
            columns = last.split("\t")
            if code or len(columns) != 8:
                print(*trace, last, sep="\n")
                print(f"{name}: FAILED (exit code {code})", flush=True)
                totals.failed.append(name)
                continue
            schedules, kills, points, longest, bound, with_kill = map(int, columns[1:7])
            bounds = f"{bound}/{with_kill}" if with_kill >= 0 else str(bound)
            print(f"{name:22}{bounds:>6}{schedules:12,}{points:12,}{kills:12,}{longest:9,}", flush=True)
            totals.schedules += schedules
            totals.kills += kills
            totals.kill_points += points
    return totals


def catches(program: Path, mutant: Mutant) -> tuple[bool, str]:
    """Whether the fault was noticed, and by what message."""
    if mutant.scene is not None:
        code, output = call(program, "--scene", mutant.scene)
        found = [line for line in output.splitlines() if line.startswith("VIOLATION")]
        return code == VIOLATION and bool(found), found[0] if found else f"exit code {code}"
    for _ in range(STRESS_ROUNDS):
        code, output = call(program, "--short", env={"TSAN_OPTIONS": "halt_on_error=1"})
        if code:
            return "data race" in output, "data race" if "data race" in output else f"exit code {code}"
    return False, "no data race"


def run_mutants(builder: Builder, objects: dict[Path, Path], known: Sequence[str]) -> tuple[int, int]:
    """Apply each seeded fault to a copy and see whether it is caught: (caught, all)."""
    mutants = load_mutants()
    thread = builder.objects(STRESS, THREAD, "thread")

    def judge(index: int) -> tuple[bool, str]:
        mutant = mutants[index]
        if mutant.scene is not None and mutant.scene not in known:
            return False, f"no scene {mutant.scene}"
        base, flags = (objects, EXPLORER) if mutant.scene is not None else (thread, THREAD)
        try:
            return catches(builder.mutate(mutant, index, base, flags), mutant)
        except ValueError as error:
            return False, str(error)

    caught = 0
    print("\nseeded faults")
    with ThreadPoolExecutor(CPUS) as pool:
        for mutant, (good, message) in zip(mutants, pool.map(judge, range(len(mutants))), strict=True):
            caught += good
            by = mutant.scene or "thread sanitizer"
            print(f"{'caught' if good else 'NOT CAUGHT':12}{by:22}{mutant.name}: {message}", flush=True)
    return caught, len(mutants)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--short", action="store_true", help="smaller bounds (the default)")
    form.add_argument("--long", action="store_true", help="the bounds of the documented figures")
    parser.add_argument("--scene", "--scenario", metavar="NAME", help="one scene only")
    parser.add_argument("--replay", metavar="SCHEDULE", help="one schedule of --scene, printed")
    parser.add_argument("--mutants", action="store_true", help="the seeded faults only")
    parser.add_argument("--list", action="store_true", help="name the scenes")
    options = parser.parse_args()
    if options.replay and not options.scene:
        parser.error("--replay needs --scene")
    return options


def main() -> int:
    """Build, explore, report."""
    options = parse()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="shmbus-explore-") as name:
        builder = Builder(Path(name))
        objects = builder.objects(SOURCES, EXPLORER, "explore")
        program = builder.link(list(objects.values()), EXPLORER, "explore")
        scenes = scene_names(program)
        known = [scene for scene, _ in scenes]
        if options.list:
            print(*(f"{scene:22}{what}" for scene, what in scenes), sep="\n")
            return 0
        if options.scene and options.scene not in known:
            print(f"no scene {options.scene}; there are {', '.join(known)}")
            return 2
        if options.replay:
            code, output = call(program, "--scene", options.scene, "--replay", options.replay)
            print(output, end="")
            return code
        chosen = [options.scene] if options.scene else [] if options.mutants else known
        totals = run_scenes(program, chosen, full=options.long) if chosen else Totals()
        caught, mutants = (0, 0) if options.scene else run_mutants(builder, objects, known)
    print(
        f"\n{totals.schedules:,} schedules without a kill, {totals.kills:,} with one at {totals.kill_points:,} "
        f"kill points, {len(totals.failed)} of {len(chosen)} scenes failed; "
        f"mutants caught {caught}/{mutants}; {time.monotonic() - started:.0f} s"
    )
    return int(bool(totals.failed) or caught != mutants)


if __name__ == "__main__":
    sys.exit(main())
