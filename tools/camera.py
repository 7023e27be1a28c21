"""A camera, two viewers and two workers that are killed again and again: nothing is lost, nothing leaks, use is flat.

    python tools/camera.py [--seconds 600] [--fps 30] [--every 2]      ten minutes of 720p
    python tools/camera.py --short                                     some seconds

The camera writes each frame into its pool and publishes it. A reliable viewer keeps the last four frames, another one
is lossy, and the workers of a group share the frames, say of each that they have seen it, and ack it. Every other
second one of the four is killed and started again. All of this must hold: every frame shows its own bytes wherever it
is looked at, every frame is seen by a worker, the books balance, of the pool no more is used in the end than what is
looked at, and nothing is left. In a run of a minute or more its use, and the memory in /dev/shm, are as flat in the
last third as in the first.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import multiprocessing
import os
import random
import signal
import statistics
import sys
import time
from multiprocessing.process import BaseProcess
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

import shmbus

SHAPE: Final = (720, 1280, 3)
KEPT: Final = 4  # frames that a viewer looks at
GRACE: Final = 60.0  # seconds for what takes milliseconds
BAD: Final = 3  # exit code of who saw bytes of another frame
LATE: Final = 2.0  # seconds that the camera is held up without a word about it
LOOKED_AT: Final = 2 * KEPT  # frames: what the viewer keeps, what each worker has, and what is on its way
TELLING: Final = 60.0  # seconds of a run whose thirds can be compared


class Frame(msgspec.Struct):
    number: int
    image: npt.NDArray[np.uint8]


class Seen(msgspec.Struct):
    number: int


FRAMES = shmbus.Topic("frames", Frame, pool=128 << 20)
SEEN = shmbus.Topic("seen", Seen)
context = multiprocessing.get_context("forkserver")


def camera(bus_name: str, frames: int, fps: float, told: Any) -> None:
    """Publishes so many frames, each filled with its number, and says how late the latest was."""
    worst, start = 0.0, time.monotonic()
    with shmbus.Bus(bus_name) as bus, bus.publisher(FRAMES, name="camera") as pub:
        for number in range(frames):
            due = start + number / fps
            time.sleep(max(0.0, due - time.monotonic()))
            image = pub.empty(SHAPE, np.uint8)
            image[:] = number % 251
            pub.publish(Frame(number, image))
            worst = max(worst, time.monotonic() - due)
        told.send(worst)
        told.recv()


def require_whole(frames: Any, who: str) -> None:
    """Look at the first, a middle and the last bytes of each."""
    for frame in frames:
        flat = frame.image.reshape(-1)
        if not all((flat[at : at + 4096] == frame.number % 251).all() for at in (0, flat.size // 2, flat.size - 4096)):
            sys.stderr.write(f"{who}: frame {frame.number} shows {np.unique(flat)[:5]}\n")
            os._exit(BAD)


def viewer(bus_name: str, mode: Any) -> None:
    """Keeps the last frames and looks at all of them."""
    kept: collections.deque[Frame] = collections.deque(maxlen=KEPT)
    before = -1
    with shmbus.Bus(bus_name) as bus, bus.subscriber(FRAMES, name=mode, mode=mode) as sub:
        for frame in sub:
            if mode == "reliable" and before >= 0 and frame.number != before + 1:
                sys.stderr.write(f"the viewer got frame {frame.number} after {before}\n")
                os._exit(BAD)
            before = frame.number
            kept.append(frame)
            del frame  # or the loop would keep it until the next
            require_whole(kept, mode)


def worker(bus_name: str, number: int) -> None:
    """Looks at its share of the frames, says so, and acks."""
    with (
        shmbus.Bus(bus_name) as bus,
        bus.publisher(SEEN) as pub,
        bus.worker(FRAMES, group="detect", max_deliver=1000) as frames,
    ):
        for frame in frames:
            require_whole([frame], f"worker {number}")
            pub.publish(Seen(frame.number))


ROLES: Final[tuple[tuple[Any, Any], ...]] = ((viewer, "reliable"), (viewer, "lossy"), (worker, 1), (worker, 2))


def memory(bus_name: str) -> int:
    """Bytes in /dev/shm that are a bus's."""
    total = 0
    for entry in os.scandir("/dev/shm"):
        with contextlib.suppress(FileNotFoundError):
            total += entry.stat().st_blocks * 512 if bus_name in entry.name else 0
    return total


class Studio:
    """The processes of one run, and what was seen of them."""

    def __init__(self, seconds: float, fps: float, every: float, seed: int) -> None:
        self.bus_name = f"camera-{os.getpid()}"
        self.frames, self.fps, self.every = int(seconds * fps), fps, every
        self.telling = seconds >= TELLING
        self.dice = random.Random(seed)
        self.running: list[BaseProcess] = []
        self.kills = 0
        self.seen: collections.Counter[int] = collections.Counter()
        self.use: list[int] = []
        self.memory: list[int] = []

    def start(self, which: int) -> BaseProcess:
        run, argument = ROLES[which]
        process = context.Process(target=run, args=(self.bus_name, argument), daemon=True)
        process.start()
        return process

    def kill(self) -> None:
        which = self.dice.randrange(len(ROLES))
        process = self.running[which]
        if process.exitcode is not None:
            raise AssertionError(f"{ROLES[which]} ended by itself: exit code {process.exitcode}")
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        self.running[which] = self.start(which)
        self.kills += 1

    def run(self) -> float:
        """Seconds that the camera was late at most."""
        ours, theirs = context.Pipe()
        with shmbus.Bus(self.bus_name) as bus, bus.subscriber(SEEN, name="all") as seen:
            self.running = [self.start(which) for which in range(len(ROLES))]
            while len(bus.stats().consumers) < 4:
                time.sleep(0.01)
            maker = context.Process(target=camera, args=(self.bus_name, self.frames, self.fps, theirs), daemon=True)
            maker.start()
            self.running.append(maker)
            next_kill = time.monotonic() + self.every
            while not ours.poll(0.0):
                self.take(seen, 0.1)
                self.look(bus)
                if time.monotonic() >= next_kill:
                    self.kill()
                    next_kill += self.every
                if maker.exitcode is not None:
                    raise AssertionError(f"the camera ended by itself: exit code {maker.exitcode}")
            late: float = ours.recv()
            deadline = time.monotonic() + GRACE
            while len(self.seen) < self.frames:
                self.take(seen, 0.1)
                if time.monotonic() > deadline:
                    missing = sorted(set(range(self.frames)) - set(self.seen))
                    raise AssertionError(f"{len(missing)} frames were never seen: {missing[:10]}")
            self.settle(bus)
            self.audit(bus)
            self.end()
        return late

    def settle(self, bus: shmbus.Bus) -> None:
        """Everything is seen: what is still used is looked at."""
        deadline = time.monotonic() + GRACE
        while (used := max(p.pool_used for p in bus.stats().publishers)) > LOOKED_AT * np.prod(SHAPE):
            if time.monotonic() > deadline:
                raise AssertionError(f"{used} bytes of the pool are used, and nobody is owed a frame")
            time.sleep(0.01)

    def take(self, seen: shmbus.Subscriber[Seen], timeout: float) -> None:
        with contextlib.suppress(shmbus.Empty):
            self.seen[seen.receive(timeout).number] += 1
            while (event := seen.try_receive()) is not None:
                self.seen[event.number] += 1

    def look(self, bus: shmbus.Bus) -> None:
        pools = [publisher.pool_used for publisher in bus.stats().publishers if publisher.pool]
        if pools:
            self.use.append(max(pools))
            self.memory.append(memory(self.bus_name))

    def audit(self, bus: shmbus.Bus) -> None:
        for consumer in bus.stats().consumers:
            if consumer.offered != consumer.delivered + consumer.depth + consumer.dropped or consumer.undecodable:
                raise AssertionError(f"the books do not balance: {consumer}")

    def end(self) -> None:
        for process in self.running:
            process.kill()
            process.join()

    def flat(self) -> list[str]:
        """What is said of the use of pool and memory; raises where it has grown."""
        said = []
        for name, values in (("pool", self.use), ("/dev/shm", self.memory)):
            third = max(1, len(values) // 3)
            first, last = statistics.median(values[:third]), statistics.median(values[-third:])
            said.append(f"{name} {first / 2**20:.1f} MiB then {last / 2**20:.1f}, at most {max(values) / 2**20:.1f}")
            if self.telling and last > 1.5 * first + 4 * np.prod(SHAPE):
                raise AssertionError(f"use grows: {said[-1]}")
        return said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two kills")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--short", action="store_true", help="4 s, a kill every half second")
    options = parser.parse_args()
    seconds, every = (4.0, 0.5) if options.short else (options.seconds, options.every)
    print(f"seed {options.seed}", flush=True)
    studio = Studio(seconds, options.fps, every, options.seed)
    try:
        late = studio.run()
    finally:
        studio.end()
    deadline = time.monotonic() + GRACE
    while left := [name for name in os.listdir("/dev/shm") if studio.bus_name in name]:
        if time.monotonic() > deadline:
            raise AssertionError(f"something is left: {left}")
        time.sleep(0.01)
    twice = sum(studio.seen.values()) - studio.frames
    said = "; ".join(studio.flat())
    print(f"{studio.frames} frames, {studio.kills} kills: all seen, {twice} twice; {said}; at most {late:.2f} s late")
    if late > LATE:
        print(f"the camera was late by more than {LATE:g} s: this machine has no room for it, or somebody held it up")
    return 0


if __name__ == "__main__":
    sys.exit(main())
