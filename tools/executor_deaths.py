"""10,000 tasks of which one in ten kills its worker: exactly those fail, each with its cause; with retries none does.

    python tools/executor_deaths.py [--tasks 10000] [--workers 4] [--method fork|spawn|forkserver]

Deaths are by SIGKILL, SIGSEGV and os._exit(7), by turns. Then with `retries=3` tasks that die twice. Prints what was
seen, and exits with 1 where it is not what it must be.
"""

from __future__ import annotations

import argparse
import faulthandler
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from shmbus.futures import Executor, WorkerDied

CAUSES = ("killed by SIGKILL", "killed by SIGSEGV", "exit code 7")


def work(number: int) -> int:
    """Every tenth ends its process."""
    if number % 10 == 3:
        end(number // 10 % 3)
    return number


def end(how: int) -> None:
    """End this process in one of three ways."""
    faulthandler.disable()
    if how == 2:
        os._exit(7)
    os.kill(os.getpid(), (signal.SIGKILL, signal.SIGSEGV)[how])


def dies_twice(number: int, folder: str) -> int:
    """Ends its process the first two times."""
    path = Path(folder, str(number))
    with path.open("ab") as stream:
        stream.write(b"x")
    begun = path.stat().st_size
    if begun <= 2:
        end(number % 3)
    return begun


def died(future: Future[Any]) -> str | None:
    """The cause of death of its worker; None if it was done."""
    error = future.exception()
    if error is None:
        return None
    return error.cause if isinstance(error, WorkerDied) else repr(error)


def main() -> int:
    """Both parts."""
    parser = argparse.ArgumentParser(description="tasks that kill their workers")
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--method", choices=("fork", "spawn", "forkserver"), default="fork")
    options = parser.parse_args()
    context = multiprocessing.get_context(options.method)

    began = time.monotonic()
    with Executor(options.workers, context) as pool:
        futures = [pool.submit(work, number) for number in range(options.tasks)]
        causes = [died(future) for future in futures]
        done = sum(cause is None and future.result() == n for n, (cause, future) in enumerate(zip(causes, futures)))  # noqa: B905
    expected = [CAUSES[n // 10 % 3] if n % 10 == 3 else None for n in range(options.tasks)]
    wrong = [(n, was, is_) for n, (was, is_) in enumerate(zip(expected, causes, strict=True)) if was != is_]
    counts = Counter(cause for cause in causes if cause)
    print(f"{options.tasks} tasks, {options.method}: {done} done, {dict(counts)}, {len(wrong)} wrong {wrong[:3]}")
    print(f"{time.monotonic() - began:.1f} s")

    with tempfile.TemporaryDirectory() as folder, Executor(options.workers, context, retries=3) as pool:
        count = max(1, options.tasks // 100)
        begun = Counter(pool.map(dies_twice, range(count), [folder] * count))
    print(f"{count} tasks that die twice, retries=3: {dict(begun)} (begun: tasks)")
    return int(bool(wrong) or begun != {3: count})


if __name__ == "__main__":
    sys.exit(main())
