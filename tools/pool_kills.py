"""Kills processes with views in hand, loans open, and acks behind them, at random moments, and audits the pool.

Publishers write frames whose every byte is their number, some into loans, some of which they never publish. Viewers,
lossy viewers and workers keep what they receive for a while, and look at all of it again and again. All of this must
hold: no view ever shows another byte (P1, P4), a lossy copy is whole (P3), everybody goes on after every kill, and in
the end all is free (P2, P5), the books balance, and nothing is left in /dev/shm.
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
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

import shmbus

GRACE = 60.0  # seconds for what takes milliseconds: past it, something hangs
SIZES = (3_000, 60_000, 250_000, 1 << 20)


class Frame(msgspec.Struct):
    number: int
    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8] | None = None


FRAMES = shmbus.Topic("frames", Frame, capacity=1 << 16, pool=8 << 20)
BAD = 3  # exit code of who saw bytes of another event
context = multiprocessing.get_context("forkserver")


def require_whole(frames: Any, who: str) -> None:
    for frame in frames:
        if not (frame.image == frame.number % 251).all():
            sys.stderr.write(f"{who}: frame {frame.number} shows {np.unique(frame.image)[:5]}\n")
            sys.stderr.flush()
            os._exit(BAD)


def publish(bus_name: str, seed: int, beat: Any) -> None:
    dice = random.Random(seed)
    loans: list[Any] = []
    with shmbus.Bus(bus_name) as bus, bus.publisher(FRAMES, timeout=0.5) as pub:
        while True:
            with contextlib.suppress(shmbus.Full):
                number = dice.randrange(1 << 30)
                size = dice.choice(SIZES)
                if dice.random() < 0.5:
                    image = pub.empty(size)
                    image[:] = number % 251
                else:
                    image = np.full(size, number % 251, np.uint8)
                pub.publish(Frame(number, image, image[:100]))
                if dice.random() < 0.2:
                    loans.append(pub.empty(50_000))
                del loans[:-3]
            beat.value += 1


def view(bus_name: str, seed: int, beat: Any, mode: Any = "reliable") -> None:
    dice = random.Random(seed)
    kept: collections.deque[Frame] = collections.deque()
    with shmbus.Bus(bus_name) as bus, bus.subscriber(FRAMES, name=f"{mode}-{seed}", mode=mode) as sub:
        while True:
            with contextlib.suppress(shmbus.Empty):
                kept.append(sub.receive(timeout=0.5))
            while len(kept) > dice.randrange(1, 4):
                del kept[dice.randrange(len(kept))]
            require_whole(kept, mode)
            beat.value += 1


def glance(bus_name: str, seed: int, beat: Any) -> None:
    view(bus_name, seed, beat, "lossy")


def work(bus_name: str, seed: int, beat: Any) -> None:
    dice = random.Random(seed)
    kept: collections.deque[Frame] = collections.deque()
    with shmbus.Bus(bus_name) as bus, bus.worker(FRAMES, group="pool", max_deliver=4000) as worker:
        while True:
            with contextlib.suppress(shmbus.Empty):
                kept.append(worker.receive(timeout=0.5))
                if dice.random() < 0.5:
                    worker.ack()  # and the view stays
            while len(kept) > dice.randrange(1, 3):
                kept.popleft()
            require_whole(kept, "worker")
            beat.value += 1


ROLES: dict[str, Callable[..., None]] = {"publisher": publish, "viewer": view, "lossy": glance, "worker": work}


class Campaign:
    """Two of each role, of which one is killed again and again."""

    def __init__(self, kills: int, seed: int) -> None:
        self.bus = f"pools-{os.getpid()}"
        self.kills = kills
        self.dice = random.Random(seed)
        self.running: dict[tuple[str, int], tuple[BaseProcess, Any]] = {}

    def start(self, role: str, number: int) -> None:
        beat = context.Value("Q", 0)
        process = context.Process(target=ROLES[role], args=(self.bus, self.dice.randrange(1 << 30), beat), daemon=True)
        process.start()
        self.running[role, number] = process, beat

    def check(self) -> None:
        for (role, _), (process, _) in self.running.items():
            if process.exitcode is not None:
                raise AssertionError(f"a {role} ended by itself: exit code {process.exitcode}")

    def beats(self) -> dict[tuple[str, int], int]:
        return {key: beat.value for key, (_, beat) in self.running.items()}

    def all_go_on(self) -> None:
        before, deadline = self.beats(), time.monotonic() + GRACE
        while any(now <= before[key] for key, now in self.beats().items()):
            self.check()
            if time.monotonic() > deadline:
                raise AssertionError(f"hang: {before} and {GRACE:g} s later {self.beats()}")
            time.sleep(0.005)

    def run(self) -> None:
        with shmbus.Bus(self.bus) as bus:
            for role in ROLES:
                for number in range(2):
                    self.start(role, number)
            self.all_go_on()
            for kill in range(self.kills):
                key = self.dice.choice(list(self.running))
                process, _ = self.running[key]
                time.sleep(self.dice.random() * 0.02)  # a random moment
                self.check()
                os.kill(process.pid or 0, signal.SIGKILL)
                process.join()
                self.start(*key)
                if kill % 4 == 0:
                    self.all_go_on()
            self.end()
            self.audit(bus)
        deadline = time.monotonic() + GRACE
        while [name for name in os.listdir("/dev/shm") if self.bus in name]:
            if time.monotonic() > deadline:
                raise AssertionError("something is left in /dev/shm")
            time.sleep(0.01)

    def end(self) -> None:
        for process, _ in self.running.values():
            process.kill()
            process.join()

    def audit(self, bus: shmbus.Bus) -> None:
        """All that is owed is received, whole; then nothing is used, and no pool is left."""
        with bus.worker(FRAMES, group="pool", max_deliver=4000) as worker:
            deadline = time.monotonic() + GRACE
            while True:
                with contextlib.suppress(shmbus.Empty):
                    frame = worker.receive(timeout=0)
                    require_whole([frame], "auditor")
                    del frame
                    continue
                worker.ack()
                stats = bus.stats()
                if not any(publisher.pool for publisher in stats.publishers):
                    break
                if time.monotonic() > deadline:
                    raise AssertionError(f"not free: {stats.publishers}")
                bus._session.care()
                time.sleep(0.01)
        for consumer in bus.stats().consumers:
            terms = consumer.delivered + consumer.depth + consumer.overrun + consumer.refused
            terms += consumer.abandoned + consumer.undecodable + consumer.rejected
            if consumer.offered != terms or consumer.undecodable:
                raise AssertionError(f"the books do not balance: {consumer}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    campaign = Campaign(options.kills, options.seed)
    started = time.monotonic()
    try:
        campaign.run()
    finally:
        campaign.end()
    seconds = time.monotonic() - started
    print(f"{options.kills} kills in {seconds:.0f} s: P1 to P5 held, the books balance, nothing is left")
    return 0


if __name__ == "__main__":
    sys.exit(main())
