"""Fuzzes the plain C readers of the ring segments under the address and undefined-behaviour sanitizers.

    python tools/fuzz_readers.py [--runs N] [--seed N]        mutations of healthy images; needs a C compiler alone
    python tools/fuzz_readers.py --libfuzzer [--seconds N]    the same target under libFuzzer; needs clang

Builds tests/native/fuzz_readers.c with the C compiler ($CC, else cc) into a temporary directory. A compiler without
the runtimes of the sanitizers is said so, and is no failure. Exit code 1 when a reader touches memory outside of its
segment, does something undefined, does not end, or makes books that do not balance; --keep FOLDER then has the input.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NATIVE = ROOT / "shmbus" / "_native"
SOURCES = (
    ROOT / "tests" / "native" / "fuzz_readers.c",
    *(NATIVE / name for name in ("ring.c", "reader.c", "work.c", "delay.c", "retire.c", "latency.c")),
)
FLAGS = ("-std=c11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fno-omit-frame-pointer", f"-I{NATIVE}")
SANITIZE = "address,undefined"
ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_leaks=0",  # LeakSanitizer traces processes, which containers forbid
    "UBSAN_OPTIONS": "print_stacktrace=1",
}
RUNS = 200_000
LARGEST = 32_768  # bytes; the largest segment of the smallest capacity


def build(compiler: list[str], sanitizers: str, program: Path, *more: str) -> str:
    """Compile the target; what the compiler says if it cannot."""
    flags = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", *more]
    done = subprocess.run(
        [*compiler, *FLAGS, *flags, *SOURCES, "-o", program], capture_output=True, text=True, check=False
    )
    return done.stderr if done.returncode else ""


def run(*command: str | Path) -> int:
    """Run a built program to its end; its exit code."""
    return subprocess.run([*command], env={**os.environ, **ENVIRONMENT}, check=False).returncode


def main() -> int:
    """Build, and run one of the two forms."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--libfuzzer", action="store_true")
    parser.add_argument("--seconds", type=int, default=60, help="of libFuzzer")
    parser.add_argument("--keep", type=Path, help="folder for libFuzzer's corpus and for inputs that fail")
    arguments = parser.parse_args()
    compiler = shlex.split(os.environ.get("CC") or "cc")
    with tempfile.TemporaryDirectory(prefix="shmbus-fuzz-") as directory:
        scratch = Path(directory)
        plain = scratch / "fuzz_readers"
        problem = build(compiler, SANITIZE, plain)
        if "cannot find -l" in problem or "libasan" in problem or "libubsan" in problem:
            print(f"SKIPPED: {shlex.join(compiler)} has no runtime for -fsanitize={SANITIZE}")
            return 0
        if problem:
            raise SystemExit(problem)
        if not arguments.libfuzzer:
            return int(run(plain, "--runs", str(arguments.runs), "--seed", str(arguments.seed)) != 0)
        if shutil.which("clang") is None:
            raise SystemExit("libFuzzer comes with clang, and there is none here (on Debian: apt-get install clang)")
        fuzzer = scratch / "libfuzzer"
        problem = build(["clang"], f"fuzzer,{SANITIZE}", fuzzer, "-DLIBFUZZER")
        if problem:
            raise SystemExit(problem)
        corpus: Path = arguments.keep or scratch / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        run(plain, "--write", corpus)
        limits = (
            f"-max_len={LARGEST}",
            f"-max_total_time={arguments.seconds}",
            "-timeout=20",
            f"-seed={arguments.seed}",
        )
        return int(run(fuzzer, *limits, f"-artifact_prefix={corpus}/", "-print_final_stats=1", corpus) != 0)


if __name__ == "__main__":
    sys.exit(main())
