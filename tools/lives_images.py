"""Part of lives.py: a process that becomes another program by exec, and what its old image held.

PID and start time stay through an exec, and nothing that runs at exit runs: only what the kernel takes from the old
image says that it is gone.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from lives_base import (
    GRACE,
    NOTES,
    VISITS,
    Child,
    Note,
    Say,
    books,
    check_books,
    empty,
    left,
    notes,
    require,
    runs,
    start_supervisor,
    take,
    wait,
    whole,
)

import shmbus

STAYS = "import signal; signal.pause()  # a program that knows no bus"
AGAIN = """
import os, signal, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
import shmbus
from lives_base import NOTES, notes
bus = shmbus.Bus(sys.argv[2], supervise=False)
subscriber, worker = bus.subscriber(NOTES, name="image"), bus.worker(NOTES, group="pool", name="image")
bus.publisher(NOTES, name="image").publish_many(notes("image", 8)[5:])
signal.pause()
"""
FINDERS = ("supervisor", "waiter", "newcomer", "namesake")


def become(code: str = STAYS, *arguments: str) -> NoReturn:
    os.execv(sys.executable, [sys.executable, "-c", code, *arguments])


def plain(say: Say, bus: shmbus.Bus) -> None:
    become()


def again(say: Say, bus: shmbus.Bus) -> None:
    become(AGAIN, __file__, bus.name)


def in_thread(say: Say, bus: shmbus.Bus) -> None:
    with bus.subscriber(VISITS) as nothing_comes:
        threading.Timer(0.05, become).start()
        nothing_comes.receive(GRACE)


def under_lock(say: Say, bus: shmbus.Bus) -> None:
    with bus._session.locked():
        become()


def forked_execs(say: Say, bus: shmbus.Bus) -> None:
    """A child that closed nothing becomes another program; its parent is killed."""
    child = os.fork()
    if child == 0:
        become()
    wait(lambda: is_program(child), "the exec of the child's child")
    say(child)
    signal.pause()


def forked_stays(say: Say, bus: shmbus.Bus) -> None:
    """A child that closed nothing lives on; its parent is killed."""
    child = os.fork()
    if child == 0:
        signal.pause()
    say(child)
    signal.pause()


WAYS: dict[str, Callable[[Say, shmbus.Bus], None]] = {
    way.__name__: way for way in (plain, again, in_thread, under_lock, forked_execs, forked_stays)
}


def holder(say: Say, name: str, way: str) -> None:
    bus = shmbus.Bus(name, supervise=False)
    publisher = bus.publisher(NOTES, name="image")
    subscriber = bus.subscriber(NOTES, name="image")
    worker = bus.worker(NOTES, group="pool", name="image", prefetch=2)
    publisher.publish_many(notes("image", 5))
    subscriber.receive(GRACE)
    worker.receive(GRACE)
    say("holds")
    WAYS[way](say, bus)


def is_program(pid: int) -> bool:
    """Whether a process runs another image than this one."""
    return Path(f"/proc/{pid}/cmdline").read_bytes() != Path("/proc/self/cmdline").read_bytes()


def exec_(bus: str, *, short: bool) -> str:
    cases = list(itertools.product(range(1 if short else 10), WAYS, FINDERS))
    for number, (_, way, finder) in enumerate(cases):
        one_exec(f"{bus}-{number}", way, finder)
    return f"{len(cases)} images replaced or forked from, what each held reclaimed, its names free"


def one_exec(name: str, way: str, finder: str) -> None:
    strays: list[int] = []
    with shmbus.Bus(name, supervise=False) as bus, bus.subscriber(NOTES, name="auditor") as auditor:
        bus.group(NOTES, "pool")
        helper = start_supervisor(bus) if finder == "supervisor" else None
        old = Child(holder, name, way)
        require(old.line() == "holds", "the beginning")
        before = {p.id for p in bus.stats().participants if p.pid == old.pid}
        try:
            if way.startswith("forked"):
                strays.append(int(old.line()))
                require(before <= {p.id for p in bus.stats().participants}, "the living parent was buried")
                old.kill()
                old.end()
            else:
                wait(lambda: is_program(old.pid), f"the exec ({way})")
            find(bus, auditor, finder, f"{way}, {finder}", before)
            audit(bus, auditor, way)
            require(runs(strays[0] if strays else old.pid), "the new image was touched")
        finally:
            for pid in strays:
                os.kill(pid, signal.SIGKILL)
            if old.status is None:
                old.kill()
                old.end()
            if helper is not None:
                helper.kill(signal.SIGTERM)
                helper.end()
    if left(name):  # of the image that opened it again, and was killed
        shmbus.Bus(name, supervise=False).close()
        with shmbus.Bus(name, supervise=False) as bus, bus.worker(NOTES, group="pool") as worker:
            empty(worker)
    wait(lambda: not left(name), "removal", lambda: left(name))


def find(bus: shmbus.Bus, auditor: shmbus.Subscriber[Note], finder: str, what: str, before: set[int]) -> None:
    """Let one kind of peer notice, and wait until what the old image held is free."""

    def reclaimed() -> bool:
        if finder == "newcomer":
            shmbus.Bus(bus.name, supervise=False).close()
        elif finder == "namesake":
            try_name(bus)
        elif finder == "waiter":
            with bus.subscriber(VISITS) as nothing_comes:
                with contextlib.suppress(shmbus.Empty):
                    nothing_comes.receive(1.2)  # longer than a bounded sleep: it looks after the dead itself
        return not before & {p.id for p in bus.stats().participants}

    wait(reclaimed, f"the reclaim of an image ({what})", lambda: bus.stats().participants)


def try_name(bus: shmbus.Bus) -> None:
    """Ask for the name; not after the new image of `again` has taken it, which is alive and may keep it."""
    with contextlib.suppress(shmbus.ConfigError):
        bus.publisher(NOTES, name="image").close()


def audit(bus: shmbus.Bus, auditor: shmbus.Subscriber[Note], way: str) -> None:
    """The old image's events arrive, its books are closed, its names are somebody else's, its claims are free."""
    seen = take(auditor, 8 if way == "again" else 5)
    if way == "again":
        require(whole(seen, "image") == 8, "both images' events")
        found = books(bus, "image")
        require(found.state in ("ok", "slow") and found.abandoned == 4, "the new image goes on with its totals", found)
        return
    require(whole(seen, "image") == 5, "the old image's events")
    found = books(bus, "image")
    require((found.state, found.offered, found.delivered, found.abandoned) == ("dead", 5, 1, 4), found)
    bus.publisher(NOTES, name="image").close()
    bus.subscriber(NOTES, name="image").close()
    with bus.worker(NOTES, group="pool", name="image") as worker:
        require(sorted(empty(worker)) == [("image", n + 1) for n in range(5)], "the group gets all")
    pool = books(bus, "pool")
    require((pool.offered, pool.delivered, pool.depth) == (5, 5, 0), pool)
    check_books(bus.stats())
