"""What the parts of lives.py share: events, children that are forked and watched, looks at the books."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import msgspec

import shmbus
from shmbus.supervisor import run as supervise

GRACE = 60.0  # seconds for what takes one or two: past it, something hangs
STALL = 0.3
PR_SET_PDEATHSIG = 1
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


def stat(pid: int | str) -> list[str]:
    """The fields of /proc/PID/stat from the third on; none where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def born(pid: int) -> int | None:
    """When a process began, in clock ticks since boot."""
    fields = stat(pid)
    return int(fields[19]) if fields else None


def runs(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    return stat(pid)[:1] not in ([], ["Z"], ["X"])


class Voice:
    """How a child says something: one line on a pipe."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __call__(self, what: object) -> None:
        os.write(self.descriptor, f"{what}\n".encode())


class Child:
    """A forked process that runs `body(say, *args)` and ends by os._exit; what it says comes as lines."""

    born: int | None
    status: int | None = None
    all: list[Child] = []  # noqa: RUF012

    def __init__(self, body: Callable[..., object], *args: object) -> None:
        self._ours, theirs = os.pipe()
        faulthandler.cancel_dump_traceback_later()  # its thread and lock would not come along: a child could not set it
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._ours)
            run_child(body, theirs, args)
        os.close(theirs)
        self.born = born(self.pid)
        Child.all.append(self)

    @classmethod
    def program(cls, command: list[str]) -> Child:
        """A program instead of a function: what it says are the lines that it prints."""

        def become(say: Voice) -> None:
            os.dup2(say.descriptor, 1)
            os.execvp(command[0], command)

        return cls(become)

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
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # its children, too, are gone when a part has failed
    faulthandler.dump_traceback_later(GRACE / 2)  # where it hangs, if it does
    code = 1
    try:
        body(Voice(pipe), *args)
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


def take(receiver: Receiver, count: int) -> list[tuple[str, int]]:
    """The next `count` events, waiting for them."""
    return [(note.writer, note.count) for note in (receiver.receive(GRACE) for _ in range(count))]


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


def in_namespaces(options: list[str], setup: str, inside: str, *arguments: str) -> str:
    """What `lives.py --inside INSIDE` says in namespaces of its own; SKIPPED and why where there can be none."""
    if os.geteuid() or shutil.which("unshare") is None:
        return "SKIPPED: namespaces need root and unshare(1)"
    enter = ["unshare", *options, "sh", "-c", f'{setup or "true"} && exec "$@"', "sh"]
    probe = subprocess.run([*enter, "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        return f"SKIPPED: {probe.stderr.strip()}"
    done = subprocess.run([*enter, *lives(inside, *arguments)], stdout=subprocess.PIPE, text=True, check=False)
    require(not done.returncode, f"inside {inside}: exit code {done.returncode}", done.stdout)
    return done.stdout.strip()


def lives(inside: str, *arguments: str) -> list[str]:
    """The command that runs one of lives.py's INSIDE functions."""
    return [sys.executable, str(Path(__file__).with_name("lives.py")), "--inside", inside, *arguments]


def start_supervisor(bus: shmbus.Bus) -> Child:
    child = Child(run_supervisor, bus.name)
    wait(lambda: bus.stats().supervisor.pid == child.pid, "a supervisor in office")
    return child
