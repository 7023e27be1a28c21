"""Parts of lives.py that are about who lives: PIDs that come again, zombies, stopped processes."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import platform
import signal
import time
from collections.abc import Callable
from pathlib import Path

from lives_base import (
    GRACE,
    NOTES,
    STALL,
    Child,
    Note,
    Say,
    books,
    born,
    check_books,
    empty,
    in_namespaces,
    left,
    notes,
    pids,
    require,
    start_supervisor,
    stat,
    wait,
    whole,
)

import shmbus


def reuse(bus: str, *, short: bool) -> str:
    return in_namespaces(["--pid", "--fork", "--mount-proc", "--kill-child"], "", "reuse", bus)


def reuse_inside(bus: str) -> str:
    """All of `reuse`, as the first process of its namespace."""
    version = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
    if version >= (6, 14):  # before, it is the whole machine's
        Path("/proc/sys/kernel/pid_max").write_text("400")
    elif not os.access("/proc/sys/kernel/ns_last_pid", os.W_OK):
        return "SKIPPED: the kernel has neither a pid_max for each namespace nor ns_last_pid"
    cases = list(itertools.product(("stopped", "successor", "next", "waiter"), (outsider, participant)))
    for number, (finder, innocent) in enumerate(cases):
        one_reuse(f"{bus}-{number}", finder, innocent)
    return f"{len(cases)} PIDs reused, each dead one reclaimed, no innocent one touched"


def victim(say: Say, name: str) -> None:
    bus = shmbus.Bus(name, supervise=False)
    publisher, worker = bus.publisher(NOTES, name="victim"), bus.worker(NOTES, group="pool", prefetch=2)
    subscriber = bus.subscriber(NOTES, name="victim")
    publisher.publish_many(notes("victim", 5))
    say((subscriber.receive(GRACE), worker.receive(GRACE)))
    signal.pause()


def outsider(say: Say, name: str) -> None:
    say("lives")
    signal.pause()


def participant(say: Say, name: str) -> None:
    with shmbus.Bus(name, supervise=False) as bus, bus.subscriber(NOTES, name="innocent") as subscriber:
        say("lives")
        say(subscriber.receive(GRACE).writer)


def fork_as(dead: Child, body: Callable[..., object], bus: str) -> Child:
    """Fork until the new process has the PID of a dead one; with a small pid_max that does not take long."""

    def only_then(say: Say) -> None:
        if os.getpid() == dead.pid:
            body(say, bus)

    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(dead.pid - 1))
        child = Child(only_then)
        if child.pid == dead.pid and child.born != dead.born:
            return child
        child.kill()
        child.end()
    raise AssertionError(f"PID {dead.pid} did not come again")


def one_reuse(name: str, finder: str, innocent: Callable[..., None]) -> None:
    with shmbus.Bus(name, supervise=False) as bus, bus.subscriber(NOTES, name="auditor") as auditor:
        bus.group(NOTES, "pool")
        publisher = bus.publisher(NOTES, name="own")
        helper = start_supervisor(bus) if finder == "stopped" else None
        dead = Child(victim, name)
        dead.line()
        if helper is not None:
            helper.kill(signal.SIGSTOP)
        id = next(p.id for p in bus.stats().participants if p.pid == dead.pid)
        dead.kill()
        dead.end()
        heir = fork_as(dead, innocent, name)
        heir.line()
        if finder == "stopped" and helper is not None:
            require(id in {p.id for p in bus.stats().participants}, "somebody else reclaimed the dead")
            helper.kill(signal.SIGCONT)
        elif finder == "successor":
            helper = start_supervisor(bus)
        elif finder == "next":
            shmbus.Bus(name, supervise=False).close()
        require(whole([(n.writer, n.count) for n in auditor.receive_many(5, GRACE)], "victim") == 5, "5 events")
        if finder == "waiter":
            with contextlib.suppress(shmbus.Empty):
                auditor.receive(2.5)  # longer than a bounded sleep: it looks after the dead itself
        wait(lambda: id not in {p.id for p in bus.stats().participants}, f"the reclaim by {finder}")
        mortal = books(bus, "victim")
        require((mortal.state, mortal.delivered, mortal.abandoned) == ("dead", 1, 4), mortal)
        require(born(heir.pid) == heir.born, "the innocent process is gone")
        require(pids(bus).count(heir.pid) == (innocent is participant), "participants:", pids(bus))
        publisher.publish(Note("own", 1))
        if innocent is participant:
            require(heir.line() == "own", "the innocent participant receives")
        else:
            heir.kill()
        require(heir.end() == (0 if innocent is participant else -signal.SIGKILL), "the innocent process failed")
        with bus.worker(NOTES, group="pool") as worker:
            wanted = [("own", 1), *(("victim", n + 1) for n in range(5))]
            require(sorted(empty(worker)) == wanted, "the group gets all")
        require(books(bus, "pool").delivered == 6, books(bus, "pool"))
        if helper is not None:
            helper.kill(signal.SIGTERM)
            helper.end()
    require(not left(name), "left:", left(name))


def limbo(bus: str, *, short: bool) -> str:
    count, rounds = (5, 1) if short else (50, 5)
    with shmbus.Bus(bus, supervise=False, stall_timeout=STALL) as opened:
        supervisor = start_supervisor(opened)
        zombies = [one_zombie(opened) for _ in range(count)]
        for child in zombies:
            child.end()
        events = sum(halt_all(opened) for _ in range(rounds))
        supervisor.kill(signal.SIGTERM)
        supervisor.end()
    return f"{count} zombies reclaimed; {3 * rounds} stops told and survived, {events} events around them"


def one_zombie(bus: shmbus.Bus) -> Child:
    with bus.subscriber(NOTES, name="auditor") as auditor, bus.worker(NOTES, group="pool") as worker:
        dead = Child(victim, bus.name)
        dead.line()
        dead.kill()
        wait(lambda: dead.pid not in pids(bus), "the reclaim of a zombie")
        require(stat(dead.pid)[:1] == ["Z"], f"the dead is no zombie: {stat(dead.pid)}")
        require(whole(empty(auditor), "victim") == 5, "the auditor gets all")
        require(len(set(empty(worker))) == 5, "the group gets all")
    return dead


def until_term(say: Say, bus: str, role: str) -> None:
    """Publishes, subscribes or works until SIGTERM; then says what it saw."""
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
    seen: list[tuple[str, int]] = []
    with shmbus.Bus(bus, supervise=False) as opened:
        if role == "publisher":
            with opened.publisher(NOTES, name=role) as publisher:
                say("runs")
                while not ended:
                    publisher.publish(Note(role, len(seen) + 1))
                    seen.append((role, len(seen) + 1))
            say(whole(seen, role))
            return
        opening = opened.subscriber(NOTES, name=role) if role == "subscriber" else opened.worker(NOTES, group="pool")
        with opening as receiver:
            say("runs")
            while not ended:
                with contextlib.suppress(shmbus.Empty):
                    note = receiver.receive(0.05)
                    seen.append((note.writer, note.count))
            seen += empty(receiver)
    say(whole(seen, "publisher"))


def is_stopped(bus: shmbus.Bus, pid: int) -> bool:
    return any(p.state == "stopped" for p in bus.stats().participants if p.pid == pid)


def published(bus: shmbus.Bus) -> int:
    return next(p.published for p in bus.stats().publishers if p.name == "publisher" and p.pid)


def has_published(bus: shmbus.Bus, count: int) -> bool:
    return published(bus) >= count


def is_drained(bus: shmbus.Bus, name: str) -> bool:
    found = books(bus, name)
    return found.depth <= found.claimed


def halt_all(bus: shmbus.Bus) -> int:
    """Stop each of three that depend on each other for longer than `stall_timeout`; how many events went by."""
    roles: dict[str, Child] = {}
    for role in ("subscriber", "worker", "publisher"):  # the publisher last: who joins later misses the beginning
        roles[role] = Child(until_term, bus.name, role)
        roles[role].line()
    everybody = pids(bus)

    for role, child in roles.items():
        child.kill(signal.SIGSTOP)
        wait(functools.partial(is_stopped, bus, child.pid), f"the report that the {role} is stopped")
        if role == "subscriber":
            wait(lambda: books(bus, "subscriber").state in ("stopped", "stalled"), "the report of the consumer")
        time.sleep(4 * STALL)  # not a wait: how long it is stopped
        require(pids(bus) == everybody, f"the stopped {role} was reclaimed")
        check_books(bus.stats())
        child.kill(signal.SIGCONT)
        wait(functools.partial(has_published, bus, published(bus) + 500), f"going on after the {role} was stopped")
    counts = {}
    for role in ("publisher", "subscriber", "worker"):
        if role != "publisher":
            wait(functools.partial(is_drained, bus, "pool" if role == "worker" else role), "draining")
        roles[role].kill(signal.SIGTERM)
        counts[role] = int(roles[role].line())
        require(roles[role].end() == 0, f"the {role} failed")
    require(len(set(counts.values())) == 1, "published and received:", counts)
    return counts["publisher"]
