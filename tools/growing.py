"""Rings that begin at 64 KiB under stalled consumers, grow to their maximum and shrink; publishers die on the way.

    python tools/growing.py [--rounds N] [--short]

Each round is a bus of its own with a reliable subscriber and a group that receive nothing. A publisher fills its rings
to 64 MiB (`--short`: 1 MiB), and is killed at the next visit to a named line of growing, in turn, or not at all. Then
all is received: every event that the publisher was told it had published, once, in order, from both; the books balance,
and nothing is left. Where the publisher lived its rings shrink to where they began. Exit code 1 when any of it fails.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from typing import Final

import shmbus
from shmbus._handles import growing
from shmbus._shm import failpoint

POINTS: Final = (
    "",
    "ring.created",
    "grow.ring",
    "commit.written",
    "commit.stored",
    "grow.committed",
    "sweep.committed",
)
GRACE: Final = 120.0  # seconds for a step that takes milliseconds
EVENT: Final = 16_000  # bytes; the largest that a ring of 64 KiB takes is a little more

context = multiprocessing.get_context("spawn")


def topic(largest: int) -> shmbus.Topic[bytes]:
    return shmbus.Topic("load", bytes, capacity=1 << 16, max_capacity=largest)


def publish(bus: str, largest: int, point: str, visits: int, told: Connection) -> None:
    """Fill the rings, dying on the way; then publish slowly until they have shrunk."""
    growing.Growing._shrink_ns = 50_000_000
    with shmbus.Bus(bus, supervise=False) as opened, opened.publisher(topic(largest), on_full="raise") as pub:
        if point:
            failpoint.arm(point, visits)
        count = 0
        try:
            while True:
                pub.publish(count.to_bytes(8, "little") + bytes(EVENT))
                count += 1
                told.send(count)
        except shmbus.Full:
            told.send(-1)
        failpoint.arm(failpoint.POINTS[0], 1 << 40)
        told.recv()
        while any(r.capacity > 1 << 16 for r in opened._session.document().rings):
            pub.publish(bytes(8))
            time.sleep(0.01)
        told.send(-2)
        told.recv()


def receive(handle: shmbus.Subscriber[bytes] | shmbus.Worker[bytes], count: int) -> None:
    for expected in range(count):
        number = int.from_bytes(handle.receive(GRACE)[:8], "little")
        if number != expected:
            raise AssertionError(f"{handle!r} got event {number} instead of {expected}")


def one_round(number: int, largest: int) -> str:
    bus, point = f"growing-{os.getpid()}-{number}", POINTS[number % len(POINTS)]
    ours, theirs = context.Pipe()
    with shmbus.Bus(bus) as opened:
        load = topic(largest)
        with opened.subscriber(load, name="s") as sub, opened.worker(load, group="g") as worker:
            child = context.Process(target=publish, args=(bus, largest, point, 1 + number // len(POINTS) % 5, theirs))
            child.start()
            theirs.close()
            count, alive = read_count(ours)
            receive(sub, count)
            receive(worker, count)
            worker.ack()
            if alive:
                ours.send(None)
                while not ours.poll(0.001):
                    sub.try_receive()
                    worker.try_receive()
                ours.recv()
                ours.send(None)
            child.join(GRACE)
            if child.exitcode != (0 if alive else -signal.SIGKILL):
                raise AssertionError(f"the publisher ended with {child.exitcode}")
            for consumer in opened.stats().consumers:
                if consumer.offered != consumer.delivered + consumer.depth + consumer.dropped:
                    raise AssertionError(f"books do not balance: {consumer}")
            while sub.try_receive() is not None or worker.try_receive() is not None:
                pass
    return f"{point or 'nobody dies':16} {count:6} events, {'shrunk again' if alive else 'killed'}"


def read_count(told: Connection) -> tuple[int, bool]:
    """How many events the publisher says are in, and whether it lives."""
    count = 0
    try:
        while True:
            said = told.recv()
            if said == -1:
                return count, True
            count = said
    except EOFError:
        return count, False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=70)
    parser.add_argument("--short", action="store_true", help="rings of 1 MiB at most")
    arguments = parser.parse_args()
    for number in range(arguments.rounds):
        sys.stdout.write(f"{one_round(number, 1 << 20 if arguments.short else 1 << 26)}\n")
        sys.stdout.flush()
    left = [name for name in os.listdir("/dev/shm") if f"growing-{os.getpid()}-" in name]
    sys.stdout.write(f"{arguments.rounds} rounds, {len(left)} names left\n")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
