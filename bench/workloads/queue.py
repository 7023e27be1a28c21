"""Queue: Python objects of about 256 bytes as pickles, one to one and four to four, beside what it stands in for.

    python -m bench.workloads.queue [--objects 400000] [--rounds 5] [--bound 1000]

shmbus.queues.Queue, multiprocessing.Queue and faster-fifo (with pickle, as it comes) take turns; the median of rounds
counts. Objects are got in the order of each putter, which is checked. Unlike the workloads beside it this one pickles:
what an object costs is what a program pays that changes nothing but the import.
"""

from __future__ import annotations

import argparse
import multiprocessing
import pickle
import resource
import statistics
import time
from typing import TYPE_CHECKING, Any, Final

import shmbus.queues

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPES: Final = (1, 4)
"""Putters, and as many getters."""
_NOTE: Final = "n" * 170
_PATIENCE: Final = 120.0


def _thing(putter: int, number: int) -> dict[str, Any]:
    return {"putter": putter, "number": number, "symbol": "EURUSD", "price": 1.0825, "note": _NOTE}


def _put(queue: Any, barrier: Any, putter: int, objects: int) -> None:
    barrier.wait(_PATIENCE)
    for number in range(objects):
        queue.put(_thing(putter, number))


def _get(queue: Any, barrier: Any, objects: int, ends: Any) -> None:
    last: dict[int, int] = {}
    barrier.wait(_PATIENCE)
    for _ in range(objects):
        thing = queue.get(timeout=_PATIENCE)
        if thing["number"] <= last.get(thing["putter"], -1):
            raise SystemExit(f"out of order: {thing['putter']} {thing['number']}")
        last[thing["putter"]] = thing["number"]
    ends.put(time.monotonic_ns())


def run(make: Callable[[], Any], pairs: int, objects: int) -> tuple[float, float]:
    """Nanoseconds an object, and those of CPU of all processes together."""
    context = multiprocessing.get_context("fork")
    queue, ends, barrier = make(), context.SimpleQueue(), context.Barrier(2 * pairs + 1)
    share = objects // pairs
    children = [context.Process(target=_put, args=(queue, barrier, n, share), daemon=True) for n in range(pairs)]
    children += [context.Process(target=_get, args=(queue, barrier, share, ends), daemon=True) for _ in range(pairs)]
    for child in children:
        child.start()
    barrier.wait(_PATIENCE)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic_ns()
    end: int = max(ends.get() for _ in range(pairs))
    for child in children:
        child.join(_PATIENCE)
        if child.exitcode != 0:
            raise SystemExit(f"a process ended badly: exit code {child.exitcode}")
    queue.close()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (end - start) / (share * pairs), cpu * 1e9 / (share * pairs)


def peers(bound: int) -> dict[str, Callable[[], Any]]:
    """What is here, by name; `bound` is for those that count objects."""
    found: dict[str, Callable[[], Any]] = {
        "shmbus.queues": lambda: shmbus.queues.Queue(bound),
        "multiprocessing": lambda: multiprocessing.Queue(bound),
    }
    try:
        from faster_fifo import Queue
    except ImportError:
        return found
    found["faster-fifo"] = lambda: Queue(1 << 20, loads=pickle.loads, dumps=pickle.dumps)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=400_000, help="of a round, of all putters together")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bound", type=int, default=0, help="maxsize of the queues that have one; 0: none")
    options = parser.parse_args()
    kinds = peers(options.bound)
    for pairs in SHAPES:
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
        for _ in range(options.rounds):
            for name, make in kinds.items():
                times[name].append(run(make, pairs, options.objects))
        middle = {name: [statistics.median(column) for column in zip(*v, strict=True)] for name, v in times.items()}
        ours = middle["shmbus.queues"][0]
        for name, (wall, cpu) in middle.items():
            print(f"{pairs} to {pairs}  {name:16}{wall:9,.0f} ns an object {wall / ours:6.2f} x  CPU {cpu:9,.0f} ns")


if __name__ == "__main__":
    main()
