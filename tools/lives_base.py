"""What the parts of lives.py share: events, children that are forked and watched, looks at the books."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import select
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import msgspec

import shmbus
from shmbus._shm import lives
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
        self.born = lives.start_time(self.pid)
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
    logging.disable()  # deaths and losses are what it is here for
    with contextlib.suppress(shmbus.BusNotFoundError):
        supervise(bus, foreground=True)


def start_supervisor(bus: shmbus.Bus) -> Child:
    child = Child(run_supervisor, bus.name)
    wait(lambda: bus.stats().supervisor.pid == child.pid, "a supervisor in office")
    return child
