"""The processes of tools/fuzz_segments.py: each plays one role on one bus after another, and tells how it reacted.

A process outlives its rounds: told a bus, it plays its role on it, again from the start after every documented error,
until SIGTERM. Whatever else comes out of the library, the command line or the supervisor goes back as a failure, with
its traceback; so does what the interpreter writes to stderr when an error is lost in a destructor or at exit.
"""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import functools
import io
import itertools
import logging
import os
import random
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import msgspec

import shmbus
from shmbus import cli
from shmbus.cli import stat
from shmbus.errors import DecodeError, Empty, Full, GapError, ReclaimedError, ShmbusError

Reactions = collections.Counter[str]

LARGEST_FILE = 64 << 20
"""Bytes of any segment made here: a damaged capacity must not fill the host's memory."""
LARGEST_PROCESS = 4 << 30
PAUSE = 0.002
STOPPED = re.compile(
    r"Exception ignored in((?!Exception ignored in).)*?\n(fuzz_roles\.Stop|shmbus\.supervisor\._Stop):? ?\n", re.DOTALL
)
"""On stderr: SIGTERM came while a destructor ran. It was announced by other means, too."""


class Load(msgspec.Struct, frozen=True):
    count: int
    padding: bytes


TOPIC = shmbus.Topic("load", Load, capacity=1 << 12)
HEADERS = {"from": "fuzz"}


class Stop(BaseException):
    """SIGTERM came; no `except Exception` takes it for an error."""


class Armed:
    """Whether SIGTERM ends what runs."""

    def __init__(self) -> None:
        self.on = False
        signal.signal(signal.SIGTERM, self.stop)

    def stop(self, number: int, frame: object) -> None:
        if self.on:
            raise Stop


def _events(chance: random.Random) -> Iterator[Load]:
    for count in itertools.count(1):
        yield Load(count, bytes(chance.randrange(120)))


def _look(bus: shmbus.Bus, chance: random.Random) -> None:
    if chance.random() < 0.05:
        bus.stats()
        bus.losses()


def blocking(name: str, chance: random.Random, seen: Reactions) -> None:
    with shmbus.Bus(name, supervise=False) as bus, bus.publisher(TOPIC, name="blocking") as publisher:
        for event in _events(chance):
            publisher.publish(event, headers=HEADERS if chance.random() < 0.3 else None)
            seen["events"] += 1
            _look(bus, chance)
            time.sleep(PAUSE / 4)


def dropping(name: str, chance: random.Random, seen: Reactions) -> None:
    events = _events(chance)
    with shmbus.Bus(name, supervise=False) as bus:
        with bus.publisher(TOPIC, on_full=chance.choice(("drop", "drop", "raise"))) as publisher:
            while True:
                with contextlib.suppress(Full):
                    seen["events"] += publisher.publish_many(list(itertools.islice(events, chance.randrange(1, 12))))
                _look(bus, chance)
                time.sleep(PAUSE)


def _receive(handle: Any, chance: random.Random, seen: Reactions) -> None:
    """Receive by one of the ways there are; what a damaged record alone explains does not end it."""
    while True:
        try:
            way = chance.randrange(4)
            if way == 0:
                for _ in zip(handle, range(20), strict=False):
                    seen["events"] += 1
            elif way == 1:
                seen["events"] += len(handle.receive_many(chance.randrange(1, 30), timeout=0.1))
            elif way == 2:
                handle.receive(timeout=0.05)
                seen["events"] += 1
            else:
                _take_messages(handle, chance, seen)
        except Empty:
            seen["Empty"] += 1
        except (DecodeError, GapError) as error:
            seen[type(error).__name__] += 1


def _take_messages(handle: Any, chance: random.Random, seen: Reactions) -> None:
    for message, _ in zip(handle.messages(), range(20), strict=False):
        seen["events"] += 1
        with contextlib.suppress(msgspec.DecodeError):
            _ = message.headers
        if not isinstance(message, shmbus.ClaimedMessage):
            continue
        settle = chance.choice((message.ack, message.ack, message.ack, message.nack, message.reject))
        try:
            settle()
        except ReclaimedError:
            seen["ReclaimedError"] += 1


def reliable(name: str, chance: random.Random, seen: Reactions) -> None:
    with shmbus.Bus(name, supervise=False) as bus:
        with bus.subscriber(TOPIC, name="reliable", start=chance.choice(("latest", "oldest"))) as handle:
            _receive(handle, chance, seen)


def lossy(name: str, chance: random.Random, seen: Reactions) -> None:
    on_gap: Any = chance.choice((None, "raise"))
    with shmbus.Bus(name, supervise=False) as bus:
        with bus.subscriber(TOPIC, name="lossy", mode="lossy", on_gap=on_gap) as handle:
            _receive(handle, chance, seen)


def worker(name: str, chance: random.Random, seen: Reactions) -> None:
    with shmbus.Bus(name, supervise=False) as bus:
        with bus.worker(TOPIC, group="pool", prefetch=chance.choice((1, 4)), max_deliver=3) as handle:
            _receive(handle, chance, seen)


def supervisor(name: str, chance: random.Random, seen: Reactions) -> None:
    from shmbus.supervisor import run

    run(name, foreground=True)
    seen["left"] += 1
    time.sleep(PAUSE)


def _command(seen: Reactions, *words: str) -> str:
    """Run one command; its output. Anything but an exit code comes out as it is."""
    out, errors = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            code = cli.main(words)
    finally:
        if "Traceback" in (text := STOPPED.sub("", errors.getvalue())):
            raise RuntimeError(text)
    seen[f"{words[0]} exit {code}"] += 1
    return out.getvalue() if code == 0 else ""


def reader(name: str, chance: random.Random, seen: Reactions) -> None:
    ways = (["stat", name, "--json"], ["stat", name, "--json"], ["stat", name], ["ls"], ["doctor", "--json"])
    words = chance.choice(ways)
    output = _command(seen, *words)
    if "--json" in words and output:
        msgspec.json.decode(output)
    time.sleep(PAUSE)


def tail(name: str, chance: random.Random, seen: Reactions) -> None:
    as_json = ("--json",) if chance.random() < 0.5 else ()
    seen["events"] += _command(seen, "tail", name, TOPIC.name, "--oldest", "-n", "40", *as_json).count("\n")
    time.sleep(PAUSE)


ROLES: dict[str, Callable[[str, random.Random, Reactions], None]] = {
    "blocking": blocking,
    "dropping": dropping,
    "reliable": reliable,
    "lossy": lossy,
    "worker 1": worker,
    "worker 2": worker,
    "supervisor": supervisor,
    "reader": reader,
    "tail": tail,
}


def serve(pipe: Connection, role: str, seed: int, errors: str) -> None:
    """Play `role` on each bus that comes through the pipe, until None comes; `errors` receives stderr."""
    descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    faulthandler.enable(sys.stderr)
    faulthandler.register(signal.SIGUSR1, sys.stderr)
    logging.basicConfig(stream=io.StringIO(), level=logging.DEBUG)  # every message is formatted
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    resource.setrlimit(resource.RLIMIT_AS, (LARGEST_PROCESS, LARGEST_PROCESS))
    stat._PAUSE = 0.01  # type: ignore[misc]
    armed, chance = Armed(), random.Random(seed)
    while (words := pipe.recv()) is not None:
        seen: Reactions = collections.Counter()
        failures: list[str] = []
        if words[0] == "rm":
            _attempt(functools.partial(_command, seen, *words), seen, failures)
        else:
            _play(pipe, armed, functools.partial(ROLES[role], words[1], chance, seen), seen, failures)
        pipe.send((seen, failures))


def _play(pipe: Connection, armed: Armed, role: Callable[[], None], seen: Reactions, failures: list[str]) -> None:
    try:
        armed.on = True
        pipe.send(None)
        while not pipe.poll():  # a stop is announced, too: the supervisor takes SIGTERM for itself
            _attempt(role, seen, failures)
    except Stop:
        pass
    armed.on = False
    pipe.recv()


def _attempt(play: Callable[[], object], seen: Reactions, failures: list[str]) -> None:
    try:
        play()
        seen["rounds"] += 1
    except ShmbusError as error:
        seen[type(error).__name__] += 1
        time.sleep(PAUSE)
    except Exception:
        if len(failures) < 20:
            failures.append(traceback.format_exc())
        time.sleep(PAUSE)
