"""Puts processes through the lives that tests forget: a reused PID, zombies, SIGSTOP, forks, exits, crowds, signals.

Each part has a bus of its own and ends with an audit: nothing hangs, what was published arrives complete, in order and
once, the books of every consumer balance, the living are left alone, and /dev/shm is as before. One line a part:

    reuse       a dead participant whose PID another process has by now, in a PID namespace of its own (needs root)
    limbo       zombies that nobody reaps; SIGSTOP for longer than `stall_timeout` under load
    forks       a process that forks at any moment, with threads that publish, receive and take the bus lock
    exits       interpreters that end without close()
    crowd       200 participants that publish ten events and go, one in five by SIGKILL
    signals     SIGTERM that raises SystemExit, and Ctrl-C, in every wait
    exec        processes that become another program by exec: in a thread, under the bus lock, after a fork
    undumpable  processes that nobody may look at: PR_SET_DUMPABLE, and setuid (as root)
    hidepid     a /proc that shows no process of others, and one without /proc/sys (needs root)
    timens      a guest whose monotonic clock is a day ahead (needs root)
    pidns       a guest in another PID namespace (needs root)
    lines       signal handlers, collectors and loggers that close or open, between any two lines of a call
    containers  three containers of one pod, publishing and receiving; each is killed as a whole (needs root)
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import itertools
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import shmbus
from shmbus import inspect

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # PYTHONSAFEPATH keeps it out

from lives_base import (
    GRACE,
    NOTES,
    SHM,
    Child,
    Voice,
    books,
    check_books,
    empty,
    left,
    notes,
    pids,
    require,
    wait,
    whole,
)
from lives_containers import container, containers, pod
from lives_images import exec_
from lives_interrupts import forks, signals
from lives_lines import lines
from lives_pids import limbo, reuse, reuse_inside
from lives_views import clocks, guest, hidden, hidepid, namespaces, office, pidns, timens, undumpable

EXIT = """
import os, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
import shmbus
from lives_base import NOTES, notes
bus = shmbus.Bus(sys.argv[2], supervise=sys.argv[3] == "supervised")
publisher, subscriber = bus.publisher(NOTES, name="p"), bus.subscriber(NOTES, name="s")
if sys.argv[4] == "peer":
    worker = bus.worker(NOTES, group="pool")
publisher.publish_many(notes("p", 3))
stream = subscriber.messages()
next(stream)
if sys.argv[4] == "peer":
    held = next(worker.messages())
"""
WAYS = {"": 0, "sys.exit(3)": 3, "raise ValueError('on purpose')": 1, "os._exit(4)": 4}


def exits(bus: str, *, short: bool) -> str:
    rounds = 1 if short else 5
    cases = list(itertools.product(range(rounds), WAYS, ("alone", "supervised"), ("peer", "no peer")))
    for number, (_, way, supervised, peer) in enumerate(cases):
        one_exit(f"{bus}-{number}", way, supervised, peer)
    return f"{len(cases)} interpreters ended without close()"


def one_exit(name: str, way: str, supervised: str, peer: str) -> None:
    def end() -> None:
        command = [sys.executable, "-c", EXIT + way, __file__, name, supervised, peer]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=GRACE)
        require(done.returncode == WAYS[way], f"{way!r} ended with {done.returncode}", done.stderr)
        require(("on purpose" in done.stderr) == way.startswith("raise"), done.stderr)

    if peer == "peer":
        with shmbus.Bus(name, supervise=False) as bus, bus.subscriber(NOTES) as auditor:
            end()
            if supervised == "alone":
                shmbus.Bus(name, supervise=False).close()  # finds what is left of the dead
            wait(lambda: pids(bus) == [os.getpid()], f"the reclaim after {way!r}")
            gone = books(bus, "s")
            expected = ("dead" if "_exit" in way else "closed", 3, 1, 2)
            require((gone.state, gone.offered, gone.delivered, gone.abandoned) == expected, way, gone)
            require(whole(empty(auditor), "p") == 3, "all events arrive")
            with bus.worker(NOTES, group="pool") as worker:
                require(sorted(empty(worker)) == [("p", 1), ("p", 2), ("p", 3)], "the group gets all")
    else:
        end()
        if left(name) and supervised == "alone":
            require("_exit" in way, f"{way!r} left {left(name)}")
            shmbus.Bus(name, supervise=False).close()
    wait(lambda: not left(name), f"removal after {way!r}", lambda: left(name))


def passer(name: str, number: int) -> None:
    """Publishes ten events and goes; one in five by SIGKILL."""
    with shmbus.Bus(name) as bus, bus.publisher(NOTES) as publisher:
        publisher.publish_many(notes(f"passer-{number}", 10))
        if number % 5 == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def crowd(bus: str, *, short: bool) -> str:
    size, at_once = 60 if short else 200, 20
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["shmbus", "lives_base"])
    got: collections.Counter[tuple[str, int]] = collections.Counter()
    with shmbus.Bus(bus) as opened, opened.subscriber(NOTES, name="all") as subscriber:
        worker = opened.worker(NOTES, group="pool")
        heard: list[tuple[str, int]] = []
        present: list[Any] = []
        coming = iter(range(size))

        def over() -> bool:
            for process in [p for p in present if not p.is_alive()]:
                present.remove(process)
                require(process.exitcode in (0, -signal.SIGKILL), f"exit code {process.exitcode}")
            for number in itertools.islice(coming, at_once - len(present)):
                present.append(context.Process(target=passer, args=(bus, number), daemon=True))
                present[-1].start()
            heard.extend(empty(subscriber))
            got.update(empty(worker))
            check_books(opened.stats())
            return not present and len(heard) >= 10 * size

        wait(over, "the crowd", lambda: (len(heard), len(present)))
        wait(lambda: pids(opened) == [os.getpid()], "the reclaim of the crowd")
        got.update(empty(worker))
        require(not empty(subscriber), "too many events")
        wanted = {(f"passer-{n}", c + 1) for n in range(size) for c in range(10)}
        require(got == dict.fromkeys(wanted, 1), "the group got", len(got))
        require(sum(whole(heard, f"passer-{n}") for n in range(size)) == len(wanted), "the subscriber", len(heard))
        for name in ("all", "pool"):
            found = books(opened, name)
            require((found.offered, found.delivered) == (len(wanted), len(wanted)), found)
        worker.close()
    return f"{size} participants came and went, {len(wanted)} events to a subscriber and a group"


PARTS: dict[str, Callable[..., str]] = {
    p.__name__.strip("_"): p
    for p in (reuse, limbo, forks, exits, crowd, signals, exec_, lines, undumpable, hidepid, timens, pidns, containers)
}
INSIDE: dict[str, Callable[..., str | None]] = {
    "reuse": reuse_inside,
    "hidden": hidden,
    "clocks": clocks,
    "namespaces": namespaces,
    "guest": functools.partial(guest, Voice(1)),
    "office": office,
    "pod": pod,
    "container": container,
}
"""What runs in namespaces of its own, by a command of its own."""


def run_part(part: str, *, short: bool) -> str:
    bus = f"lives-{os.getpid()}-{part}"
    try:
        told = PARTS[part](bus, short=short)
        wait(lambda: not left(bus), "cleaning up", lambda: left(bus))
        return told
    finally:
        Child.kill_all()
        for name in [n for n in inspect.buses() if n.startswith(bus)]:
            with contextlib.suppress(shmbus.ShmbusError):
                inspect.remove(name, force=True)
        for entry in left(bus):  # of another PID namespace
            (SHM / entry).unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", help=f"{', '.join(PARTS)}; all of them without")
    parser.add_argument("--short", action="store_true", help="fewer rounds, as in the test suite")
    parser.add_argument("--inside", choices=INSIDE, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        logging.disable()
        try:
            sys.stdout.write(f"{INSIDE[arguments.inside](*arguments.part) or ''}\n")
        finally:
            Child.kill_all()
        return 0
    if not set(arguments.part) <= set(PARTS):
        parser.error(f"parts are {', '.join(PARTS)}")
    logging.disable()  # deaths and losses are what it is here for
    failed = 0
    for part in arguments.part or PARTS:
        began = time.monotonic()
        try:
            told = run_part(part, short=arguments.short)
        except Exception as error:
            failed += 1
            traceback.print_exception(error)
            told = f"FAILED: {error}"
        sys.stdout.write(f"{part:10} {told} ({time.monotonic() - began:.1f} s)\n")
        sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
