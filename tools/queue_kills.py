"""Kills users of a queue, multiprocessing's and ours side by side, and counts the rounds that left the others wedged.

    python tools/queue_kills.py [--rounds 200] [--seed N] [--only ours|theirs]

A round has two putters, two getters and one death, by turns of
    a getter that waits, with nothing in the queue
    a getter under load, at a random moment
    a putter under load, at a random moment
Then those that are left must get and put on: a round in which nothing is got, and all of their threads sleep, for some
seconds is wedged. What they get must be each putter's objects in order, but for the one that a dead getter had in hand,
which comes late, and no object twice. Exit code 1 if a round with our queue was not well.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import multiprocessing
import os
import random
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

from shmbus.queues import Queue

VICTIMS = ("a getter that waits", "a getter under load", "a putter under load")
PATIENCE = 3.0  # seconds in which nothing is got and everybody sleeps; a healthy round needs milliseconds
LONGEST = 120.0  # seconds in which somebody always runs, and yet too little is got
ENOUGH = 50  # objects that are got after the death

fork = multiprocessing.get_context("fork")


class Counters:
    """A word for each of some processes, which outlives them: how many objects it got, or -1: out of order."""

    def __init__(self, count: int) -> None:
        self._memory = mmap.mmap(-1, 8 * count)

    def __getitem__(self, index: int) -> int:
        return int(struct.unpack_from("<q", self._memory, 8 * index)[0])

    def __setitem__(self, index: int, value: int) -> None:
        struct.pack_into("<q", self._memory, 8 * index, value)


def put(queue: Any, go: Any, name: int) -> None:
    go.wait()
    number = 0
    while True:
        queue.put((name, number))
        number += 1


def get(queue: Any, counters: Counters, index: int) -> None:
    last: dict[int, int] = {}
    got: set[tuple[int, int]] = set()
    late = 0
    while True:
        name, number = queue.get()
        late += number < last.get(name, -1)
        if late > 1 or (name, number) in got:
            counters[index] = -1
            return
        got.add((name, number))
        last[name] = max(number, last.get(name, -1))
        counters[index] += 1


def waits(process: Any) -> bool:
    """Whether all of its threads sleep: it has nothing to get or to put, and does not wait for a processor."""
    tasks = f"/proc/{process.pid}/task"
    with contextlib.suppress(OSError):  # a thread has ended meanwhile
        return all(state(f"{tasks}/{task}/stat") == "S" for task in os.listdir(tasks))
    return False


def state(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read().rpartition(")")[2].split()[0]


def progress(counters: Counters, index: int, more: int, left: list[Any]) -> bool | None:
    """Whether a getter got so many more, while those that are left run; None: it got something out of order."""
    start = last = counters[index]
    began = asleep_since = time.monotonic()
    while True:
        count, now = counters[index], time.monotonic()
        if count < 0:
            return None
        if count >= start + more:
            return True
        if count != last or not all(map(waits, left)):
            last, asleep_since = count, now
        if now - asleep_since > PATIENCE or now - began > LONGEST:
            return False
        time.sleep(0.001)


def one_round(make: Callable[[], Any], victim: str, chance: random.Random) -> str:
    """What became of it: "well", "wedged" or "wrong"."""
    queue, go, counters = make(), fork.Event(), Counters(2)
    putters = [fork.Process(target=put, args=(queue, go, name), daemon=True) for name in range(2)]
    getters = [fork.Process(target=get, args=(queue, counters, index), daemon=True) for index in range(2)]
    everybody = putters + getters
    try:
        dies = putters[0] if victim == VICTIMS[2] else getters[0]
        getters[0].start()
        while victim == VICTIMS[0] and not waits(getters[0]):  # the first: it has what the others wait for
            time.sleep(0.001)
        for process in everybody:
            if process is not getters[0]:
                process.start()
        if victim == VICTIMS[0]:
            while not all(map(waits, getters)):
                time.sleep(0.001)
            time.sleep(0.02)
        else:
            go.set()
            time.sleep(0.02 + chance.random() * 0.03)
        dies.kill()
        dies.join()
        go.set()
        found = progress(counters, 1, ENOUGH, [process for process in everybody if process is not dies])
        return "wrong" if found is None else "well" if found else "wedged"
    finally:
        for process in everybody:
            if process.pid is not None:
                process.kill()
                process.join()
        queue.close()
        if hasattr(queue, "cancel_join_thread"):
            queue.cancel_join_thread()


MAKERS: dict[str, Callable[[], Any]] = {
    "theirs": lambda: multiprocessing.Queue(100),
    "ours": lambda: Queue(100),
}
NAMES = {"theirs": "multiprocessing.Queue", "ours": "shmbus.queues.Queue"}


def campaign(rounds: int, seed: int, kinds: list[str]) -> dict[tuple[str, str], dict[str, int]]:
    """How the rounds went, by queue and victim; the two queues in turns."""
    chance = random.Random(seed)
    found: dict[tuple[str, str], dict[str, int]] = {}
    for number in range(rounds):
        victim = VICTIMS[number % len(VICTIMS)]
        for kind in kinds:
            outcomes = found.setdefault((kind, victim), {"well": 0, "wedged": 0, "wrong": 0})
            outcomes[one_round(MAKERS[kind], victim, chance)] += 1
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=list(MAKERS))
    options = parser.parse_args()
    found = campaign(options.rounds, options.seed, [options.only] if options.only else list(MAKERS))
    print(f"{'queue':24}{'killed':24}{'rounds':>8}{'wedged':>8}{'wrong':>8}")
    for (kind, victim), outcomes in sorted(found.items()):
        print(f"{NAMES[kind]:24}{victim:24}{sum(outcomes.values()):8}{outcomes['wedged']:8}{outcomes['wrong']:8}")
    return any(kind == "ours" and outcomes["well"] < sum(outcomes.values()) for (kind, _), outcomes in found.items())


if __name__ == "__main__":
    sys.exit(main())
