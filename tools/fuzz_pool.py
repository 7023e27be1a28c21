"""Builds tests/native/fuzz_pool.c with the address sanitizer and runs it: mutations of the words of a pool and of the
records that refer to it. `--mutations 1000000` is the long form.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NATIVE = ROOT / "shmbus" / "_native"
SOURCES = (
    ROOT / "tests" / "native" / "fuzz_pool.c",
    *(NATIVE / f"{name}.c" for name in ("pool", "extents", "ring", "reader", "work", "delay")),
)
FLAGS = (
    *("-std=c11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fno-omit-frame-pointer", f"-I{NATIVE}"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
)


def main() -> int:
    """Build and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mutations", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    compiler = shlex.split(os.environ.get("CC") or "cc")
    with tempfile.TemporaryDirectory(prefix="shmbus-fuzz-") as directory:
        program = Path(directory) / "fuzz_pool"
        done = subprocess.run([*compiler, *FLAGS, *SOURCES, "-o", program], capture_output=True, text=True, check=False)
        if any(word in done.stderr for word in ("cannot find -l", "libasan", "libubsan")):
            print(f"SKIPPED: {shlex.join(compiler)} has no runtime for the sanitizers")
            return 0
        if done.returncode:
            raise SystemExit(done.stderr)
        environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
        command = [str(program), str(arguments.mutations), str(arguments.seed)]
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
