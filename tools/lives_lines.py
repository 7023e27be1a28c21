"""Part of lives.py: what comes between two lines of the package, at every line of every call in turn.

In a process with threads a signal handler may run between any two lines, whatever is masked, for another thread may
take the signal; the collector runs anywhere, and what it finds closes itself; a logging handler that publishes runs
wherever the package logs. A trace function does each at one line, with the bus lock held or not. Then no ghost of the
call is left, nothing hangs, and the same call works.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import itertools
import random
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from lives_base import GRACE, NOTES, Child, Note, Say, books, check_books, empty, left, require, wait

import shmbus

HOME = str(Path(shmbus.__file__).parent)
KNOWN = (shmbus.ClosedError, shmbus.LockTimeoutError, KeyboardInterrupt)
"""What a call may raise that something came into."""


class Scene:
    """One bus of one process, with handles that have something to do."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bus = shmbus.Bus(name, supervise=False)
        self.publisher = self.bus.publisher(NOTES, name="one")
        self.subscriber = self.bus.subscriber(NOTES, name="one")
        self.worker = self.bus.worker(NOTES, group="pool", name="one")
        self.publisher.publish(Note("one", 1))

    def close(self) -> None:
        for handle in (self.worker, self.subscriber, self.publisher, self.bus):
            handle.close()


def ack(scene: Scene) -> None:
    scene.worker.receive(GRACE)
    scene.worker.ack()


OPERATIONS: dict[str, Callable[[Scene], object]] = {
    "publisher": lambda s: s.bus.publisher(NOTES, name="two").close(),
    "subscriber": lambda s: s.bus.subscriber(NOTES, name="two").close(),
    "worker": lambda s: s.bus.worker(NOTES, group="pool", name="two").close(),
    "group": lambda s: s.bus.group(NOTES, "other"),
    "bus": lambda s: shmbus.Bus(s.name, supervise=False).close(),
    "publish": lambda s: s.publisher.publish(Note("one", 2)),
    "receive": lambda s: s.subscriber.receive(GRACE),
    "ack": ack,
    "stats": lambda s: s.bus.stats(),
    "close": Scene.close,
}


class Garbage:
    """What only the collector finds, with handles that nobody closed."""

    def __init__(self, scene: Scene) -> None:
        self.me = self
        self.handles = scene.bus.publisher(NOTES), scene.bus.subscriber(NOTES), scene.bus.worker(NOTES, group="pool")
        self.bus = shmbus.Bus(scene.name, supervise=False)


def interrupt(scene: Scene) -> None:
    raise KeyboardInterrupt


def close(scene: Scene) -> None:
    scene.bus.close()


def close_handle(scene: Scene) -> None:
    scene.subscriber.close()
    scene.worker.close()
    scene.publisher.close()


def collect(scene: Scene) -> None:
    gc.collect()


def publish(scene: Scene) -> None:
    """As a logging handler does that opens its publisher late; logging swallows what it raises."""
    with contextlib.suppress(shmbus.ShmbusError), scene.bus.publisher(NOTES) as publisher:
        publisher.publish(Note("logger", 1))


EVENTS: dict[str, Callable[[Scene], None]] = {e.__name__: e for e in (close, close_handle, collect, publish, interrupt)}


class Comes:
    """Has an event come at the `at`-th line of the package that runs within `with`."""

    def __init__(self, at: int, event: Callable[[], None]) -> None:
        self.left = at
        self.event = event
        self.where = ""

    def __enter__(self) -> None:
        sys.settrace(self.trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def trace(self, frame: FrameType, kind: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(HOME):
            return None
        if kind == "line":
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                self.event()
        return self.trace


def lines(bus: str, *, short: bool) -> str:
    step = 397 if short else 7  # lines; a call has hundreds to thousands of them, and the first is drawn
    failed: list[str] = []
    seen = 0
    cases = [c for c in itertools.product(EVENTS, OPERATIONS) if not short or c[0] != "interrupt"]
    for number, (event, operation) in enumerate(cases):
        name = f"{bus}-{number}"
        child = Child(one_case, name, operation, event, step)
        try:
            while (told := child.line()) == "on":
                seen += 1
            require(told == "over", told)
            require(child.end() == 0, "the process failed")
            wait(lambda name=name: not left(name), "removal", lambda name=name: left(name))  # type: ignore[misc]
        except AssertionError as error:
            failed.append(f"{event} in {operation}: {error}")
            Child.kill_all()
    require(not failed, f"{len(failed)} of {len(cases)} failed:", *(f"\n  {f}" for f in failed))
    return f"something came between two lines {seen} times, in {len(cases)} cases"


def one_case(say: Say, name: str, operation: str, event: str, step: int) -> None:
    warnings.simplefilter("ignore", ResourceWarning)
    gc.disable()
    with shmbus.Bus(name, supervise=False) as keeper, keeper.subscriber(NOTES, name="keeper") as heard:
        first = random.randrange(1, step + 1)
        for number in itertools.count():
            faulthandler.dump_traceback_later(GRACE / 3)
            at = first + number * step
            say("on")
            comes = one_line(keeper, operation, event, at)
            empty(heard)
            check_books(keeper.stats())
            if comes.left > 0:
                break
    say("over")


def one_line(keeper: shmbus.Bus, operation: str, event: str, at: int) -> Comes:
    scene = Scene(keeper.name)
    if event == "collect":
        Garbage(scene)
    comes = Comes(at, lambda: EVENTS[event](scene))
    with contextlib.suppress(*KNOWN), comes:
        OPERATIONS[operation](scene)
    what = f"{event} at {comes.where}, line {at} of {operation}"
    gc.collect()
    if event != "close" and operation != "close":
        for again in ("publisher", "subscriber", "worker", "bus", "stats"):
            try:
                OPERATIONS[again](scene)
            except (shmbus.ShmbusError, OSError) as error:
                raise AssertionError(f"{what}: afterwards {again} raises {type(error).__name__}: {error}") from error
    scene.close()
    stats = keeper.stats()
    require(len(stats.participants) == 1, f"{what}: ghosts", stats.participants)
    require(not [p for p in stats.publishers if p.pid], f"{what}: ghosts", stats.publishers)
    with keeper.worker(NOTES, group="pool") as worker:
        empty(worker)
    if any(c.name == "other" for c in stats.consumers):
        with keeper.worker(NOTES, group="other") as worker:
            empty(worker)
    require(books(keeper, "pool").depth == 0, f"{what}: the group is owed", books(keeper, "pool"))
    return comes
