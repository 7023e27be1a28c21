"""Starts hundreds of fresh processes that open one bus at the same moment, and times them beside as many that only
import the package.

    python tools/starts.py [--processes 512] [--rounds 3] [--publisher] [--subscriber] [--part open,removed]

All are started, import the package, and wait at a gate; then all go at once. Two parts:

    open      all open the bus, and stay until the last one is in; then all leave. In turns with as many processes that
              import the package, wait at the same gates, and go.
    removed   each opens the bus and closes it at once, with nobody who stays: the last one out removes the bus while
              others enter, again and again.

None may fail, each must find the bus usable, and nothing is left in /dev/shm. With --publisher and --subscriber each
has those too, on one of as many topics as it takes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator

import shmbus
from shmbus import inspect

GRACE = 300.0  # seconds for all of a round; past it, something hangs
A_TOPIC = 32  # processes; a ring has room for 64 subscribers

IMPORTS = """
import os, sys, shmbus
go, through = int(sys.argv[1]), int(sys.argv[2])
say = lambda what: os.write(1, what)
def gate(descriptor):
    os.read(descriptor, 1)
say(b"i")
gate(go)
"""
OPENS = """
topic = shmbus.Topic(f"starts-{int(sys.argv[4]) // int(sys.argv[5])}", int, capacity=4096)
with shmbus.Bus(sys.argv[3]) as bus:
    handles = []
    if "subscriber" in sys.argv:
        handles.append(bus.subscriber(topic))
    if "publisher" in sys.argv:
        handles.append(bus.publisher(topic))
        handles[-1].publish(1)
    bus.stats() if int(sys.argv[4]) % 32 == 0 else None
"""
STAYS = """
    say(b"o")
    gate(through)
"""
PASSES = """
say(b"o")
gate(through)
"""


class Crowd:
    """Processes that run one program and pass two gates together."""

    def __init__(self, program: str, count: int, arguments: list[str]) -> None:
        self.gates = os.pipe(), os.pipe()
        self.said, told = os.pipe()
        inherited = [pair[0] for pair in self.gates]
        self.processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    program,
                    *map(str, inherited),
                    arguments[0],
                    str(n),
                    str(A_TOPIC),
                    *arguments[1:],
                ],
                pass_fds=inherited,
                stdout=told,
                stderr=subprocess.PIPE,
            )
            for n in range(count)
        ]
        os.close(told)

    def pass_gate(self, number: int) -> None:
        os.close(self.gates[number][1])  # end of file for all of them at once

    def hear(self, what: str) -> None:
        """Wait until each has said its letter."""
        missing = len(self.processes)
        deadline = time.monotonic() + GRACE
        while missing:
            ready = select.select([self.said], [], [], max(0.0, deadline - time.monotonic()))[0]
            letters = os.read(self.said, 65536) if ready else b""
            if not letters or any(p.poll() for p in self.processes):
                raise AssertionError(f"{missing} of {len(self.processes)} never came to: {what}\n{self.errors()}")
            missing -= len(letters)

    def errors(self) -> str:
        """What those that failed wrote."""
        failed = [p for p in self.processes if p.poll()]
        told = {p.communicate()[1].decode().strip() for p in failed}
        return f"{len(failed)} failed:\n" + "\n---\n".join(sorted(told)[:5])

    def end(self) -> None:
        """Wait for all; raises when one failed or wrote anything."""
        deadline = time.monotonic() + GRACE
        for process in self.processes:
            try:
                wrote = process.communicate(timeout=max(0.1, deadline - time.monotonic()))[1].decode()
            except subprocess.TimeoutExpired:
                raise AssertionError(f"hang: process {process.pid} does not end") from None
            if process.returncode or wrote:
                raise AssertionError(f"a process ended with {process.returncode}: {wrote}")

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stderr is not None:
                process.stderr.close()
        for descriptor in (self.said, *(d for pair in self.gates for d in pair)):
            with contextlib.suppress(OSError):
                os.close(descriptor)


@contextlib.contextmanager
def crowd(program: str, count: int, arguments: list[str]) -> Iterator[Crowd]:
    started = Crowd(program, count, arguments)
    try:
        yield started
    finally:
        started.close()


def through_gates(program: str, count: int, arguments: list[str]) -> tuple[float, float, float]:
    """Seconds from the first start to the last end, from gate one until all are in, from gate two to the end."""
    began = time.monotonic()
    with crowd(program, count, arguments) as all_:
        all_.hear("the import")
        gate = time.monotonic()
        all_.pass_gate(0)
        all_.hear("the open bus")
        inside = time.monotonic()
        all_.pass_gate(1)
        all_.end()
    ended = time.monotonic()
    return ended - began, inside - gate, ended - inside


def nothing_left(bus: str) -> None:
    deadline = time.monotonic() + 60
    while found := [name for name in os.listdir("/dev/shm") if bus in name]:
        if time.monotonic() > deadline:
            raise AssertionError(f"left in /dev/shm: {found}")
        time.sleep(0.01)


def open_(bus: str, count: int, rounds: int, extras: list[str]) -> Iterator[str]:
    for number in range(rounds):
        whole, entering, leaving = through_gates(IMPORTS + OPENS + STAYS, count, [bus, *extras])
        nothing_left(bus)
        imports, _, _ = through_gates(IMPORTS + PASSES, count, [bus])
        yield (
            f"open      round {number + 1}: {count} opened the bus in {whole:.2f} s ({entering:.2f} s from the "
            f"gate, {leaving:.2f} s to leave); {count} that only import: {imports:.2f} s; {whole / imports:.2f} to 1"
        )


def removed(bus: str, count: int, rounds: int, extras: list[str]) -> Iterator[str]:
    for number in range(rounds):
        whole, entering, _ = through_gates(IMPORTS + OPENS + PASSES, count, [bus, *extras])
        nothing_left(bus)
        yield (
            f"removed   round {number + 1}: {count} processes opened and closed a bus that came and went, in "
            f"{whole:.2f} s ({entering:.2f} s from the gate)"
        )


PARTS = {"open": open_, "removed": removed}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--publisher", action="store_true", help="each opens a publisher and publishes one event")
    parser.add_argument("--subscriber", action="store_true", help="each opens a subscriber")
    parser.add_argument("--part", default="open,removed", help="open, removed, or both")
    arguments = parser.parse_args()
    if not set(arguments.part.split(",")) <= set(PARTS):
        parser.error(f"parts are {', '.join(PARTS)}")
    extras = [extra for extra in ("publisher", "subscriber") if getattr(arguments, extra)]
    bus = f"starts-{os.getpid()}"
    try:
        for part in arguments.part.split(","):
            for told in PARTS[part](f"{bus}-{part}", arguments.processes, arguments.rounds, extras):
                sys.stdout.write(f"{told}\n")
                sys.stdout.flush()
    finally:
        for name in [n for n in inspect.buses() if n.startswith(bus)]:
            with contextlib.suppress(shmbus.ShmbusError):
                inspect.remove(name, force=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
