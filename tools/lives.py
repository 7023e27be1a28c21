"""Puts processes through the lives that tests forget: a reused PID, zombies, SIGSTOP, forks, exits, crowds, signals.

Each part has a bus of its own and ends with an audit: nothing hangs, what was published arrives complete, in order and
once, the books of every consumer balance, the living are left alone, and /dev/shm is as before. One line a part:

    reuse     a dead participant whose PID another process has by now, in a PID namespace of its own (needs root)
    limbo     zombies that nobody reaps; SIGSTOP for longer than `stall_timeout` under load
    forks     a process that forks at any moment, with threads that publish, receive and take the bus lock
    exits     interpreters that end without close()
    crowd     200 participants that publish ten events and go, one in five by SIGKILL
    signals   SIGTERM that raises SystemExit, and Ctrl-C, in every wait
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import faulthandler
import itertools
import multiprocessing
import os
import platform
import random
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import msgspec

import shmbus
from shmbus import _liveness, inspect
from shmbus.supervisor import run as supervise

GRACE = 60.0  # seconds for what takes one or two: past it, something hangs
STALL = 0.3
SHM = Path("/dev/shm")


class Note(msgspec.Struct, frozen=True):
    writer: str
    count: int


NOTES = shmbus.Topic("notes", Note, capacity=1 << 12)
VISITS = shmbus.Topic("visits", Note, capacity=1 << 16)
Say = Callable[[object], None]
Receiver = shmbus.Subscriber[Note] | shmbus.Worker[Note]


def notes(writer: str, count: int) -> list[Note]:
    return [Note(writer, n + 1) for n in range(count)]


def require(held: object, *what: object) -> None:
    if not held:
        raise AssertionError(" ".join(map(str, what)))


def wait(done: Callable[[], Any], what: str, why: Callable[[], object] = str) -> None:
    deadline = time.monotonic() + GRACE
    while not done():
        require(time.monotonic() < deadline, f"hang: {what} takes more than {GRACE:g} s", why())
        time.sleep(0.002)


class Child:
    """A forked process that runs `body(say, *args)` and ends by os._exit; what it says comes as lines."""

    born: int | None
    status: int | None = None
    all: list[Child] = []  # noqa: RUF012

    def __init__(self, body: Callable[..., object], *args: object) -> None:
        self._ours, theirs = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._ours)
            run_child(body, theirs, args)
        os.close(theirs)
        self.born = _liveness.start_time(self.pid)
        Child.all.append(self)

    def line(self) -> str:
        text = b""
        while not text.endswith(b"\n"):
            require(select.select([self._ours], [], [], GRACE)[0], f"hang: child {self.pid} says nothing more")
            byte = os.read(self._ours, 1)
            require(byte, f"child {self.pid} ended before its next line")
            text += byte
        return text.decode().strip()

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def end(self) -> int:
        """Wait for the end and reap: the exit code, or minus the signal."""

        def ended() -> bool:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
            return self.status is not None

        if self.status is None:
            wait(ended, f"the end of child {self.pid}")
            os.close(self._ours)
        assert self.status is not None
        return self.status

    @classmethod
    def kill_all(cls) -> None:
        """After a failure: leave nothing behind all the same."""
        for child in cls.all:
            if child.status is None:
                child.kill()
                child.end()
        cls.all.clear()


def run_child(body: Callable[..., object], pipe: int, args: tuple[object, ...]) -> NoReturn:
    faulthandler.dump_traceback_later(GRACE / 2)  # where it hangs, if it does
    code = 1
    try:
        body(lambda what: os.write(pipe, f"{what}\n".encode()), *args)
        code = 0
    except KeyboardInterrupt:
        code = 130
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def check_books(stats: shmbus.BusStats) -> None:
    for consumer in stats.consumers:
        for books in (consumer, *consumer.publishers):
            require(books.offered == books.delivered + books.depth + books.dropped, "books do not balance:", books)


def books(bus: shmbus.Bus, name: str) -> shmbus.ConsumerStats:
    stats = bus.stats()
    check_books(stats)
    return next(c for c in stats.consumers if c.name == name)


def pids(bus: shmbus.Bus) -> list[int]:
    return sorted(p.pid for p in bus.stats().participants)


def empty(receiver: Receiver) -> list[tuple[str, int]]:
    """Everything that is there; what a worker gets is acked."""
    found = [(note.writer, note.count) for note in iter(receiver.try_receive, None)]
    if isinstance(receiver, shmbus.Worker):
        receiver.ack()
    return found


def whole(found: list[tuple[str, int]], writer: str) -> int:
    """How many events of a writer were received; all from the first on, in order and once."""
    counts = [count for name, count in found if name == writer]
    require(counts == list(range(1, len(counts) + 1)), f"events of {writer} came as {counts}")
    return len(counts)


def left(bus: str) -> list[str]:
    return [name for name in os.listdir(SHM) if bus in name]


def run_supervisor(say: Say, bus: str) -> None:
    with contextlib.suppress(shmbus.BusNotFoundError):
        supervise(bus, foreground=True)


def start_supervisor(bus: shmbus.Bus) -> Child:
    child = Child(run_supervisor, bus.name)
    wait(lambda: bus.stats().supervisor.pid == child.pid, "a supervisor in office")
    return child


# -- reuse


def reuse(bus: str, *, short: bool) -> str:
    if os.geteuid() or shutil.which("unshare") is None:
        return "SKIPPED: a PID namespace needs root and unshare(1)"
    enter = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    probe = subprocess.run([*enter, "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        return f"SKIPPED: {probe.stderr.strip()}"
    command = [*enter, sys.executable, __file__, "--inside", bus]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=4 * GRACE)
    require(not done.returncode, done.stdout, done.stderr)
    return done.stdout.strip()


def inside(bus: str) -> str:
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
        group, publisher = bus.group(NOTES, "pool"), bus.publisher(NOTES, name="own")
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
        require(_liveness.alive(heir.pid, heir.born or 0), "the innocent process is gone")
        require(pids(bus).count(heir.pid) == (innocent is participant), "participants:", pids(bus))
        publisher.publish(Note("own", 1))
        if innocent is participant:
            require(heir.line() == "own", "the innocent participant receives")
        else:
            heir.kill()
        require(heir.end() == (0 if innocent is participant else -signal.SIGKILL), "the innocent process failed")
        with bus.worker(NOTES, group="pool") as worker:
            require(collections.Counter(empty(worker)) == dict.fromkeys(
                [("victim", n + 1) for n in range(5)] + [("own", 1)], 1), "the group gets all")
        require(books(bus, "pool").delivered == 6, group, books(bus, "pool"))
        if helper is not None:
            helper.kill(signal.SIGTERM)
            helper.end()
    require(not left(name), "left:", left(name))


# -- limbo


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
        state = Path(f"/proc/{dead.pid}/stat").read_text().rpartition(")")[2].split()[0]
        require(state == "Z", f"the dead is no zombie: {state}")
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


def halt_all(bus: shmbus.Bus) -> int:
    """Stop each of three that depend on each other for longer than `stall_timeout`; how many events went by."""
    roles = {role: Child(until_term, bus.name, role) for role in ("subscriber", "worker", "publisher")}
    for child in roles.values():
        child.line()
    everybody = pids(bus)

    def published() -> int:
        return next(p.published for p in bus.stats().publishers if p.state != "dead" and p.name == "publisher")

    for role, child in roles.items():
        child.kill(signal.SIGSTOP)
        began = time.monotonic()
        wait(lambda child=child: "stopped" in {p.state for p in bus.stats().participants if p.pid == child.pid}, "stop")  # type: ignore[misc]
        if role == "subscriber":
            wait(lambda: books(bus, "subscriber").state in ("stopped", "stalled"), "the report of a stop")
        wait(lambda began=began: time.monotonic() > began + 4 * STALL, "the time of a stop")  # type: ignore[misc]
        require(pids(bus) == everybody, f"the stopped {role} was reclaimed")
        check_books(bus.stats())
        child.kill(signal.SIGCONT)
        before = published()
        wait(lambda before=before: published() > before + 500, f"going on after the {role} was stopped")  # type: ignore[misc]
    counts = {}
    for role in ("publisher", "subscriber", "worker"):
        if role != "publisher":
            name = {"worker": "pool"}.get(role, role)
            wait(lambda name=name: books(bus, name).depth <= books(bus, name).claimed, "draining")  # type: ignore[misc]
        roles[role].kill(signal.SIGTERM)
        counts[role] = int(roles[role].line())
        require(roles[role].end() == 0, f"the {role} failed")
    require(len(set(counts.values())) == 1, "published and received:", counts)
    return counts["publisher"]


# -- forks


def forks(bus: str, *, short: bool) -> str:
    child = Child(fork_everywhere, bus, 60 if short else 1500)
    told = child.line()
    require(child.end() == 0, "the forking process failed")
    return told


def fork_everywhere(say: Say, name: str, wanted: int) -> None:
    """Publish in the main thread, forks in a signal handler and so between any two lines, all else in threads."""
    faulthandler.cancel_dump_traceback_later()
    bus = shmbus.Bus(name, supervise=False)
    visits = bus.subscriber(VISITS, name="visits", start="oldest")
    handles: list[Receiver] = [bus.subscriber(NOTES, name="auditor"), bus.worker(NOTES, group="pool")]
    got: list[list[tuple[str, int]]] = [[], []]
    children: list[int] = []

    def receive(index: int) -> None:
        for note in handles[index]:
            got[index].append((note.writer, note.count))

    def lock() -> None:
        while len(children) < wanted:
            bus.subscriber(VISITS).close()
            with bus._session.locked():
                check_books(bus.stats())

    def fork(number: int, frame: object) -> None:
        if len(children) == wanted:
            return
        pid = os.fork()
        if pid == 0:
            visit(name, len(children))
        children.append(pid)
        signal.setitimer(signal.ITIMER_REAL, random.expovariate(1 / 0.01) + 1e-5)

    threads = [threading.Thread(target=receive, args=(i,)) for i in range(2)] + [threading.Thread(target=lock)]
    for thread in threads:
        thread.start()
    signal.signal(signal.SIGALRM, fork)
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    count = 0
    with bus.publisher(NOTES, name="parent") as publisher:
        while len(children) < wanted:
            publisher.publish_many(Note("parent", count + n + 1) for n in range(5))
            count += 5
    for pid in children:
        reap(pid)
    wait(lambda: all(len(found) >= count for found in got), "receiving", lambda: list(map(len, got)))
    for handle in handles:
        handle.cancel()
    for thread in threads:
        thread.join(GRACE)
    require([whole(found, "parent") for found in got] == [count, count], "published", count, list(map(len, got)))
    guests = len(set(empty(visits)))
    require(guests == wanted // 2, f"{guests} children of {wanted} left a note")
    if isinstance(handles[1], shmbus.Worker):
        handles[1].ack()
    require([books(bus, who).delivered for who in ("auditor", "pool")] == [count, count], bus.stats().consumers)
    require(pids(bus) == [os.getpid()], "participants:", pids(bus))
    bus.close()
    say(f"{wanted} forks amid {count} events, {guests} children with a Bus of their own")


def visit(name: str, number: int) -> NoReturn:
    """What a forked child does, in a copy of whatever its parent was about."""
    code = 1
    faulthandler.dump_traceback_later(GRACE / 2, exit=True)
    try:
        if number % 2:
            with shmbus.Bus(name, supervise=False) as own, own.publisher(VISITS) as publisher:
                publisher.publish(Note("guest", number))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def reap(pid: int) -> None:
    found = 0

    def ended() -> bool:
        nonlocal found
        ended_pid, found = os.waitpid(pid, os.WNOHANG)
        return ended_pid != 0

    wait(ended, f"the end of child {pid}")
    require(found == 0, f"child {pid} ended with {os.waitstatus_to_exitcode(found)}")


# -- exits

EXIT = """
import os, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
import shmbus
from lives import NOTES, notes
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


# -- crowd


def passer(name: str, number: int) -> None:
    """Publishes ten events and goes; one in five by SIGKILL."""
    with shmbus.Bus(name) as bus, bus.publisher(NOTES) as publisher:
        publisher.publish_many(notes(f"passer-{number}", 10))
        if number % 5 == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def crowd(bus: str, *, short: bool) -> str:
    size, at_once = 200, 20
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["shmbus"])
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


# -- signals


async def await_all(receiver: Receiver) -> None:
    async for _ in receiver:
        pass


def publish_for_ever(publisher: shmbus.Publisher[Note], batch: int) -> None:
    for first in itertools.count(4, batch):
        publisher.publish_many([Note("own", first + n) for n in range(batch)])


WAITS: dict[str, Callable[[Any], object]] = {
    "receive": lambda r: r.receive(),
    "iterate": lambda r: collections.deque(r, 0),
    "receive_many": lambda r: r.receive_many(9),
    "messages": lambda r: collections.deque(r.messages(), 0),
    "areceive": lambda r: asyncio.run(r.areceive()),
    "async for": lambda r: asyncio.run(await_all(r)),
}
PUBLISHES: dict[str, Callable[[Any], object]] = {
    "publish": lambda p: collections.deque(map(p.publish, (Note("own", n) for n in itertools.count(4))), 0),
    "publish_many": lambda p: publish_for_ever(p, 7),
}


def waiter(say: Say, name: str, kind: str, how: str) -> None:
    def leave(number: int, frame: object) -> None:
        raise SystemExit(7)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, leave)
    with shmbus.Bus(name, supervise=False) as bus, bus.publisher(NOTES, name="own") as publisher:
        publisher.publish_many(notes("own", 3))
        with bus.subscriber(NOTES) if kind == "subscriber" else bus.worker(NOTES, group="pool") as receiver:
            empty(receiver)
            if kind == "publisher":
                receiver.close()
            say("waits")
            try:
                if how == "lock":
                    bus.group(VISITS, "none")
                else:
                    (PUBLISHES | WAITS)[how](publisher if kind == "publisher" else receiver)
            finally:
                say("left")


def signals(bus: str, *, short: bool) -> str:
    cases = [(kind, how) for kind in ("subscriber", "worker") for how in WAITS]
    cases += [("publisher", how) for how in (*PUBLISHES, "lock")]
    rounds = range(1 if short else 10)
    for _, (kind, how), number in itertools.product(rounds, cases, (signal.SIGTERM, signal.SIGINT)):
        one_signal(bus, kind, how, number)
    return f"{2 * len(rounds) * len(cases)} signals in {len(cases)} waits"


def one_signal(name: str, kind: str, how: str, number: int) -> None:
    with shmbus.Bus(name, supervise=False) as bus, bus.subscriber(NOTES, name="auditor") as auditor:
        child = Child(waiter, name, kind, how)
        with contextlib.ExitStack() as held:
            require(child.line() == "waits", "the beginning")
            if how == "lock":
                held.enter_context(bus._session.locked())
            wait(lambda: asleep(bus, child, how), f"a {kind} in {how}")
            child.kill(number)
            require(child.line() == "left", f"the end of {how}")
        require(child.end() == (7 if number == signal.SIGTERM else 130), f"{how} ended with {child.status}")
        count = whole(empty(auditor), "own")
        found = books(bus, "auditor")
        require((found.delivered, found.depth) == (count, 0) and count >= 3, found)
        require(pids(bus) == [os.getpid()], "participants:", pids(bus))
        if any(c.name == "pool" for c in bus.stats().consumers):
            with bus.worker(NOTES, group="pool") as worker:
                empty(worker)
            pool = books(bus, "pool")
            require(pool.offered == pool.delivered == count, pool)
    require(not left(name), "left:", left(name))


def asleep(bus: shmbus.Bus, child: Child, how: str) -> bool:
    """Whether a child is in its wait, in the kernel: twice in a row, for it sleeps for other reasons as well."""
    if how in PUBLISHES and not any(p.waiting for p in bus.stats().publishers):
        return False
    return all(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "S" for _ in range(2))


# -- all


PARTS: dict[str, Callable[..., str]] = {
    part.__name__: part for part in (reuse, limbo, forks, exits, crowd, signals)
}


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
    parser.add_argument("--inside", metavar="BUS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        sys.stdout.write(inside(arguments.inside) + "\n")
        return 0
    if not set(arguments.part) <= set(PARTS):
        parser.error(f"parts are {', '.join(PARTS)}")
    failed = 0
    for part in arguments.part or PARTS:
        began = time.monotonic()
        try:
            told = run_part(part, short=arguments.short)
        except Exception as error:
            failed += 1
            traceback.print_exception(error)
            told = f"FAILED: {error}"
        sys.stdout.write(f"{part:8} {told} ({time.monotonic() - began:.1f} s)\n")
        sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
