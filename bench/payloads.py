"""Payloads beside events: `python -m bench.payloads`. What it costs to hand over arrays through a pool.

    W6   1 MiB, copied in, seen in place: microseconds an event, and as a multiple of one memcpy of as many bytes
    W6z  an array from `empty`, not written to, seen in place: 64 KiB to 64 MiB; the cost without the writing
    W6f  frames of 6 MB to one, two and four subscribers, and with a group beside one: how flat the cost is

One process publishes, each receiver is a process. A round is short, and the best of several counts: what else the
machine does only adds to it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

import shmbus

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
FRAME = 6_220_800  # bytes of 1080p in three colours


class Frame(msgspec.Struct):
    """What is sent."""

    number: int
    image: npt.NDArray[np.uint8]


def topic(pool: int) -> shmbus.Topic[Frame]:
    """The topic of one measurement."""
    return shmbus.Topic("frames", Frame, pool=pool)


def receive(bus_name: str, pool: int, group: str, barrier: Any) -> None:
    """One receiver: looks at a byte of each frame, until one has the number -1."""
    with shmbus.Bus(bus_name) as bus:
        receiver: Any = bus.worker(topic(pool), group=group) if group else bus.subscriber(topic(pool))
        barrier.wait()
        while True:
            frame = receiver.receive()
            if frame.number < 0:
                break
            if frame.image[0] != frame.number % 251:
                raise SystemExit("a frame of another number")
            del frame


def measure(size: int, pool: int, groups: list[str], events: int, rounds: int, *, written: bool) -> float:
    """Microseconds an event, in the best round; `groups` has a receiver each, "" for a subscriber."""
    context = multiprocessing.get_context("forkserver")
    barrier = context.Barrier(len(groups) + 1)
    name = f"bench-{os.getpid()}-pool"
    with shmbus.Bus(name) as bus, bus.publisher(topic(pool)) as pub:
        children = [context.Process(target=receive, args=(name, pool, group, barrier)) for group in groups]
        for child in children:
            child.start()
        barrier.wait()
        source = np.zeros(size, np.uint8)
        best = float("inf")
        for _ in range(rounds):
            started = time.perf_counter()
            for number in range(events):
                image = source if written else pub.empty(size)
                image[0] = number % 251
                pub.publish(Frame(number, image))
            best = min(best, (time.perf_counter() - started) / events)
        pub.publish(Frame(-1, source[:1]))
        for child in children:
            child.join()
            if child.exitcode:
                raise SystemExit(f"a receiver ended badly: exit code {child.exitcode}")
    return best * 1e6


def memcpy(size: int, rounds: int) -> float:
    """Microseconds of one copy between two arrays."""
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    best = float("inf")
    for _ in range(rounds * 20):
        started = time.perf_counter()
        target[:] = source
        best = min(best, time.perf_counter() - started)
    return best * 1e6


def main() -> None:
    """Print a line for each measurement."""
    parser = argparse.ArgumentParser(description="payloads beside events")
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    say: Callable[[str], None] = lambda text: print(text, flush=True)  # noqa: E731
    yardstick = memcpy(MIB, options.rounds)
    cost = measure(MIB, 64 * MIB, [""], options.events, options.rounds, written=True)
    say(f"W6   1 MiB, one subscriber        {cost:8.1f} us   memcpy {yardstick:.1f} us, {cost / yardstick:.2f} x")
    for size in (64 << 10, MIB, 8 * MIB, 64 * MIB):
        cost = measure(size, 8 * size, [""], options.events, options.rounds, written=False)
        say(f"W6z  {size >> 10:6} KiB, one subscriber   {cost:8.1f} us")
    first = 0.0
    for label, groups in (("1", [""]), ("2", [""] * 2), ("4", [""] * 4), ("1 and a group", ["", "pool"])):
        cost = measure(FRAME, 256 * MIB, groups, max(options.events // 4, 10), options.rounds, written=True)
        first = first or cost
        say(f"W6f  6 MB, subscribers: {label:14}{cost:8.1f} us   {cost / first:.2f} x")


if __name__ == "__main__":
    main()
