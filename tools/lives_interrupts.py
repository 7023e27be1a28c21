"""Parts of lives.py that interrupt a process: by a fork between any two lines, by a signal in every wait."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import faulthandler
import itertools
import os
import random
import signal
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from lives_base import (
    GRACE,
    NOTES,
    VISITS,
    Child,
    Note,
    Receiver,
    Say,
    books,
    check_books,
    empty,
    left,
    notes,
    pids,
    require,
    stat,
    wait,
    whole,
)

import shmbus


def forks(bus: str, *, short: bool) -> str:
    child = Child(fork_everywhere, bus, 60 if short else 1000)
    told = child.line()
    require(child.end() == 0, "the forking process failed")
    return told


def fork_everywhere(say: Say, name: str, wanted: int) -> None:  # noqa: C901
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


def waiter(say: Say, name: str, kind: str, how: str, go: int) -> None:
    def leave(number: int, frame: object) -> None:
        raise SystemExit(7)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, leave)
    with shmbus.Bus(name, supervise=False) as bus, bus.publisher(NOTES, name="own") as publisher:
        with bus.subscriber(NOTES) if kind == "subscriber" else bus.worker(NOTES, group="pool") as receiver:
            publisher.publish_many(notes("own", 3))
            if kind == "publisher":
                receiver.close()
            else:
                empty(receiver)
            say("waits")
            os.read(go, 1)  # whoever is to hold the lock has it now
            try:
                say("goes")
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
        go, told = os.pipe()
        child = Child(waiter, name, kind, how, go)
        os.close(go)
        with contextlib.ExitStack() as held, os.fdopen(told, "wb", buffering=0) as pipe:
            require(child.line() == "waits", "the beginning")
            if how == "lock":
                held.enter_context(bus._session.locked())
            pipe.write(b"!")
            require(child.line() == "goes", "the way into the wait")
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
    return all(stat(child.pid)[:1] == ["S"] for _ in range(2))
