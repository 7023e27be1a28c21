"""Pools of processes side by side: empty tasks, and arrays of 1 MiB as arguments.

    python -m bench.pools [--tasks 10000] [--arrays 500] [--workers 2] [--rounds 3]

`ProcessPoolExecutor`, loky, `multiprocessing.Pool` and `shmbus.futures.Executor` by turns in one run, the median of the
rounds. Each pool has run a task on every worker before; all tasks are submitted, then their results taken. The array is
summed where it arrives, so that it has been read, and one number comes back.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Submit = Callable[..., Callable[[], Any]]


def nothing() -> None:
    """An empty task."""


def total(array: Any) -> int:
    """Reads all of an array."""
    return int(array.sum())


@contextmanager
def executor(kind: Callable[..., Any], workers: int) -> Iterator[Submit]:
    """Any `concurrent.futures.Executor`."""
    with kind(max_workers=workers) as pool:
        yield lambda function, *args: pool.submit(function, *args).result


@contextmanager
def multiprocessing_pool(workers: int) -> Iterator[Submit]:
    """`multiprocessing.Pool`."""
    import multiprocessing

    with multiprocessing.Pool(workers) as pool:
        yield lambda function, *args: pool.apply_async(function, args).get


def pools(workers: int) -> dict[str, Callable[[], Any]]:
    """Those that are installed, by name."""
    from concurrent.futures import ProcessPoolExecutor

    from shmbus.futures import Executor

    found: dict[str, Callable[[], Any]] = {
        "shmbus": lambda: executor(Executor, workers),
        "ProcessPoolExecutor": lambda: executor(ProcessPoolExecutor, workers),
        "multiprocessing.Pool": lambda: multiprocessing_pool(workers),
    }
    try:
        loky = importlib.import_module("loky")
    except ImportError:
        return found
    found["loky"] = lambda: executor(loky.ProcessPoolExecutor, workers)
    return found


def measure(submit: Submit, count: int, function: Callable[..., Any], *args: Any) -> float:
    """Seconds a task."""
    began = time.perf_counter()
    for result in [submit(function, *args) for _ in range(count)]:
        result()
    return (time.perf_counter() - began) / count


def warm(submit: Submit, workers: int) -> None:
    """Have every worker run something."""
    for result in [submit(time.sleep, 0.1) for _ in range(workers)]:
        result()


def main(arguments: list[str] | None = None) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.pools", description="pools of processes side by side")
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--arrays", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    try:
        numpy: Any = importlib.import_module("numpy")
    except ImportError:
        numpy = None
    times: dict[str, dict[str, list[float]]] = {name: {"empty": [], "1 MiB": []} for name in pools(options.workers)}
    for _ in range(options.rounds):
        for name, opened in pools(options.workers).items():
            with opened() as submit:
                warm(submit, options.workers)
                times[name]["empty"].append(measure(submit, options.tasks, nothing))
                if numpy is not None:
                    array = numpy.ones(1 << 17)  # float64: 1 MiB
                    times[name]["1 MiB"].append(measure(submit, options.arrays, total, array))
    ours = {case: statistics.median(taken) for case, taken in times["shmbus"].items() if taken}
    for name, cases in times.items():
        row = [f"{name:22}"]
        for case, taken in cases.items():
            if taken:
                median = statistics.median(taken)
                row.append(f"{case}: {median * 1e6:8.1f} µs a task  x {median / ours[case]:.2f}")
        print("   ".join(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
