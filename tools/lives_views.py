"""Parts of lives.py in which processes of one bus see different machines: hidden processes, other clocks, other PIDs.

In each, a guest lives in another view than this process. It is never taken for dead while it lives, sleeps and beats
mean the same to both, and when all of it is killed whoever is left reclaims what it held.
"""

from __future__ import annotations

import contextlib
import ctypes
import inspect as introspection
import itertools
import os
import signal
import threading
import time

import psutil  # noqa: F401  (before an unprivileged process could not read it any more)
from lives_base import (
    GRACE,
    NOTES,
    STALL,
    VISITS,
    Child,
    Note,
    Say,
    books,
    check_books,
    empty,
    in_namespaces,
    left,
    lives,
    notes,
    require,
    run_supervisor,
    start_supervisor,
    take,
    wait,
    whole,
)

import shmbus
from shmbus.message import ClaimedMessage

NOBODY = 65534
PR_SET_DUMPABLE = 4
ALONE = 4.0  # seconds for which a living guest must be left alone: longer than any beat is waited for
DAY = "86400"
CLOCKS = ["unshare", "--time", "--monotonic", DAY, "--boottime", DAY, "--fork", "--kill-child"]
PIDS = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
DELAYS = "delay" in introspection.signature(ClaimedMessage.nack).parameters


def hidepid(bus: str, *, short: bool) -> str:
    told: list[str] = []
    for options in ("hidepid=2", "hidepid=2,subset=pid"):
        mount = f"mount -t proc -o {options} proc /proc"
        told.append(in_namespaces(["--mount"], mount, "hidden", f"{bus}-{len(told)}", "short" if short else "long"))
    return told[0] if told[0] == told[1] else " / ".join(told)


def undumpable(bus: str, *, short: bool) -> str:
    """Processes that may not be looked at: by prctl, and, as root, by a change of user."""
    child = Child(undumpable_inside, bus, "short" if short else "long")
    told = child.line()
    require(child.end() == 0, "the process that cannot be dumped failed")
    return told


def undumpable_inside(say: Say, bus: str, length: str) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    said = hidden(bus, length) if os.geteuid() == 0 else all_offices(bus, length, [], ("here", "none"))
    say(said)


def hidden(bus: str, length: str) -> str:
    """As a user without privileges, who may look at no other process; each process came from root by setuid."""
    shmbus.Bus(f"{bus}-warm", supervise=False).close()  # whatever is imported late; afterwards it may not be readable
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    return all_offices(bus, length, [], ("none", "here"))


def timens(bus: str, *, short: bool) -> str:
    return in_namespaces([], "unshare --time true", "clocks", bus, "short" if short else "long")


def clocks(bus: str, length: str) -> str:
    return all_offices(bus, length, CLOCKS, ("here", "there", "none", "third"))


def pidns(bus: str, *, short: bool) -> str:
    return in_namespaces([], "unshare --pid --fork true", "namespaces", bus, "short" if short else "long")


def namespaces(bus: str, length: str) -> str:
    return all_offices(bus, length, PIDS, ("here", "there", "none", "third"))


def all_offices(bus: str, length: str, enter: list[str], offices: tuple[str, ...]) -> str:
    cases = list(itertools.product(offices, ("killed", "closed")))
    if length == "short":
        cases = list(zip(offices, itertools.cycle(("killed", "closed")), strict=False))
    for number, (office, end) in enumerate(cases):
        one_guest(f"{bus}-{number}", enter, office, end)
    return f"{len(cases)} guests of another view left alone while they lived, and reclaimed"


def guest(say: Say, name: str, office: str) -> None:
    """Holds a bit of everything, answers to each event, and ends when told."""
    bus = shmbus.Bus(name, supervise=False)
    if office == "there":
        start_supervisor(bus)
    publisher, idle = bus.publisher(NOTES, name="guest"), bus.subscriber(NOTES, name="idle")
    worker = bus.worker(NOTES, group="pool", prefetch=2)
    with bus.subscriber(VISITS) as nothing_comes:
        began = time.perf_counter()
        with contextlib.suppress(shmbus.Empty):
            nothing_comes.receive(0.5)
        say(f"slept {time.perf_counter() - began}")
    subscriber = bus.subscriber(NOTES, name="guest")
    publisher.publish_many(notes("guest", 5))
    claims = worker.messages()
    held = next(claims)
    say("holds")
    for note in subscriber:
        if note.writer != "own":
            continue
        say(f"own {note.count} {bus.stats().supervisor.state}")
        if note.count == 100:  # told to nack, and to go on
            held.nack(delay=1.0)  # type: ignore[call-arg, unused-ignore]
            say("nacked")
        if note.count == 101:
            break
    del idle
    bus.close()
    if office == "there":
        Child.kill_all()
    say("closed")


def start_guest(enter: list[str], name: str, office: str) -> Child:
    if not enter:
        return Child(guest, name, office)
    return Child.program([*enter, *lives("guest", name, office)])


def start_office(bus: shmbus.Bus, enter: list[str], office: str) -> Child | None:
    if office == "here":
        return start_supervisor(bus)
    if office != "third":
        return None
    child = Child.program([*enter, *lives("office", bus.name)])
    wait(lambda: bus.stats().supervisor.pid != 0, "a supervisor of another view in office")
    return child


def one_guest(name: str, enter: list[str], office: str, end: str) -> None:
    with shmbus.Bus(name, supervise=False, stall_timeout=STALL) as bus:
        auditor, own = bus.subscriber(NOTES, name="auditor"), bus.publisher(NOTES, name="own")
        bus.group(NOTES, "pool")
        helper = start_office(bus, enter, office)
        child = start_guest(enter, name, office)
        slept = float(child.line().split()[1])
        require(0.4 < slept < GRACE / 2, f"a sleep of 0.5 s took {slept:g} s in the guest's view")
        require(child.line() == "holds", "the beginning")
        others = {p.id for p in bus.stats().participants}
        sent = leave_alone(bus, own, child, office, others)
        if end == "closed":
            sent += bid_farewell(own, child, bus, sent)
            require(child.end() == 0, "the guest's end")
        else:
            child.kill()
            child.end()
        with bus.subscriber(VISITS) as nothing_comes:
            wait(lambda: len(bus.stats().participants) == 1 or look_after(nothing_comes), f"the reclaim ({office})")
        seen = take(auditor, 5 + len(sent))
        require(whole([n for n in seen if n[0] == "guest"], "guest") == 5, "the guest's events")
        with bus.worker(NOTES, group="pool") as worker:
            require(len(set(empty(worker))) == 5 + len(sent), "the group gets all")
        found = books(bus, "idle")
        wanted = ("dead" if end == "killed" else "closed", 0, 5 + len(sent))
        require((found.state, found.delivered, found.abandoned) == wanted, found, wanted)
        for one in bus.stats().consumers:
            require(one.lag_ns < 600e9, "an event of some seconds is old:", one)
            require(one.latency is None or one.latency.max_ns < 600e9, "a latency of days:", one)
        if helper is not None:
            helper.kill(signal.SIGTERM if office == "here" else signal.SIGKILL)
            helper.end()
        auditor.close()
        own.close()
    wait(lambda: not left(name), "removal", lambda: left(name))


def look_after(nothing_comes: shmbus.Subscriber[Note]) -> bool:
    """Wait for longer than a bounded sleep: who waits looks after the dead."""
    with contextlib.suppress(shmbus.Empty):
        nothing_comes.receive(1.2)
    return False


def leave_alone(bus: shmbus.Bus, own: shmbus.Publisher[Note], child: Child, office: str, others: set[int]) -> list[int]:
    """For a while, events go to the guest and back, newcomers come, waiters wait; nobody is buried meanwhile."""
    sent: list[int] = []
    first = bus.stats().supervisor
    until = time.monotonic() + ALONE
    with bus.subscriber(VISITS) as nothing_comes:
        while time.monotonic() < until:
            sent.append(len(sent) + 1)
            own.publish(Note("own", sent[-1]))
            answer = child.line().split()
            require(answer[:2] == ["own", str(sent[-1])], "the guest says", answer)
            require(answer[2] == ("none" if office == "none" else "ok"), f"to the guest the supervisor is {answer[2]}")
            shmbus.Bus(bus.name, supervise=False).close()
            look_after(nothing_comes)
            stats = bus.stats()
            check_books(stats)
            require(others <= {p.id for p in stats.participants}, "the living guest was buried:", stats.participants)
            require(stats.supervisor == first, "the supervisor changed:", first, stats.supervisor)
    if office != "none":
        wait(lambda: books(bus, "idle").state == "stalled", "the report of who is stalled", lambda: books(bus, "idle"))
    return sent


def bid_farewell(own: shmbus.Publisher[Note], child: Child, bus: shmbus.Bus, sent: list[int]) -> list[int]:
    """Ask the guest for a nack with a delay, where there is one, and to close."""
    told: list[int] = []
    if DELAYS:
        own.publish(Note("own", 100))
        told.append(100)
        child.line()
        require(child.line() == "nacked", "the nack")
        began = time.perf_counter()
        with bus.worker(NOTES, group="pool") as worker:
            watchdog = threading.Timer(GRACE, worker.cancel)
            watchdog.start()
            for message in worker.messages():  # all of them held, until the one that was nacked comes again
                if message.attempt > 1 and message.event == Note("guest", 1):
                    break
            else:
                raise AssertionError(f"hang: an event that was to come a second later did not within {GRACE:g} s")
            watchdog.cancel()
        require(time.perf_counter() - began > 0.5, "an event that was to come a second later came at once")
    own.publish(Note("own", 101))
    told.append(101)
    child.line()
    require(child.line() == "closed", "the farewell")
    return told


def office(name: str) -> str:
    run_supervisor(print, name)
    return "gone"
