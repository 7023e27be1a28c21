"""Runs the stress programs over the plain C strata under the thread, address and undefined-behaviour sanitizers.

    python tools/sanitize.py              short form: under a minute
    python tools/sanitize.py --long       twenty times the events, each build three times

Builds tests/native/stress.c (rings, work) and stress_pool.c (pools, rows, latest) with the C compiler ($CC, else cc)
into a temporary directory, once for each sanitizer. A sanitizer whose runtime is not installed is skipped, and said
so. Exit code 1 when contents, order or books are wrong, or a sanitizer reports anything.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NATIVE = ROOT / "shmbus" / "_native"
RINGS = [NATIVE / name for name in ("ring.c", "reader.c", "work.c", "delay.c", "retire.c")]
PROGRAMS = {
    "stress": [*RINGS, ROOT / "tests" / "native" / "stress.c"],
    "stress_pool": [*RINGS, NATIVE / "pool.c", NATIVE / "extents.c", ROOT / "tests" / "native" / "stress_pool.c"],
}

FLAGS = ["-std=gnu11", "-O1", "-g", "-fno-omit-frame-pointer", "-Wall", "-Wextra", "-Werror", "-pthread"]
SANITIZERS = {
    "thread": ["-fsanitize=thread"],
    "address": ["-fsanitize=address"],
    "undefined": ["-fsanitize=undefined", "-fno-sanitize-recover=all"],
}
ENVIRONMENT = {
    "TSAN_OPTIONS": "halt_on_error=1 second_deadlock_stack=1",
    "ASAN_OPTIONS": "detect_leaks=0",  # LeakSanitizer traces processes, which containers forbid
    "UBSAN_OPTIONS": "print_stacktrace=1",
}
ROUNDS = {"short": 3, "long": 3}
WATCHDOG = 3600.0  # seconds


def compiler() -> list[str]:
    """The C compiler and what always goes with it."""
    return shlex.split(os.environ.get("CC") or "cc")


def has_runtime(flags: list[str], scratch: Path) -> bool:
    """Whether a program made with `flags` links and starts."""
    source, program = scratch / "probe.c", scratch / "probe"
    source.write_text("int main(void) { return 0; }\n", encoding="utf-8")
    built = subprocess.run([*compiler(), *flags, source, "-o", program], capture_output=True, check=False)
    return built.returncode == 0 and subprocess.run([program], capture_output=True, check=False).returncode == 0


def build(flags: list[str], sources: list[Path], program: Path) -> None:
    """Compile the strata and a stress program."""
    command = [*compiler(), *FLAGS, *flags, f"-I{NATIVE}", *map(str, sources), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)}\n{done.stderr}")


def run(name: str, program: Path, form: str) -> bool:
    """Run one build a few times; print what it did, or what it found."""
    for _ in range(ROUNDS[form]):
        started = time.monotonic()
        done = subprocess.run(
            [program, f"--{form}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            timeout=WATCHDOG,
            env={**os.environ, **ENVIRONMENT},
        )
        print(f"{name:10} {done.stdout.strip()}; {time.monotonic() - started:.1f} s", flush=True)
        if done.returncode:
            print(f"{name:10} FAILED (exit code {done.returncode})", flush=True)
            return False
    return True


def main() -> int:
    """Build and run under each sanitizer."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--short", action="store_const", dest="form", const="short", default="short")
    parser.add_argument("--long", action="store_const", dest="form", const="long")
    form: str = parser.parse_args().form
    failed: list[str] = []
    skipped: list[str] = []
    with tempfile.TemporaryDirectory(prefix="shmbus-sanitize-") as directory:
        scratch = Path(directory)
        for name, flags in SANITIZERS.items():
            if not has_runtime(flags, scratch):
                print(f"{name:10} SKIPPED: {shlex.join(compiler())} has no runtime for {flags[0]}", flush=True)
                skipped.append(name)
                continue
            for program, sources in PROGRAMS.items():
                build(flags, sources, scratch / f"{program}-{name}")
                if not run(name, scratch / f"{program}-{name}", form):
                    failed.append(name)
                    break
    passed = [name for name in SANITIZERS if name not in failed + skipped]
    print(f"\npassed: {', '.join(passed) or 'none'}; failed: {', '.join(failed) or 'none'}; skipped: {len(skipped)}")
    return int(bool(failed) or not passed)


if __name__ == "__main__":
    sys.exit(main())
