"""The pytest plugin `shmbus`: a bus of the test's own, deaths at named lines, books that balance.

    shmbus_bus      an open Bus that no other test has; at the end it is removed, and what is left of it fails the test
    shmbus_kill     SIGKILL: of a process that runs, or of one that comes to a named line of the library
    shmbus_books    asserts that the books of a bus balance, and returns its stats

It is found by its entry point; `-p no:shmbus` leaves it out. It loads nothing of the library until a fixture is used.
"""

from __future__ import annotations

import itertools
import os
import secrets
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import shmbus

GRACE: Final = 10.0
"""Seconds that processes have to leave a bus, and its supervisor to remove it, when a test has ended."""

_RUN: Final = f"{os.getpid():x}-{secrets.token_hex(3)}"
_count = itertools.count(1)


class HasPid(Protocol):
    """A process of `subprocess`, `multiprocessing`, `psutil`, ..."""

    @property
    def pid(self) -> int | None:
        """None: it has not been started."""
        ...


@pytest.fixture
def shmbus_bus() -> Iterator[shmbus.Bus]:
    """A bus that no other test has, open in this process; `shmbus_bus.name` is what others open it by.

    At the end of the test it is closed. A process that still takes part then, or anything that is left of the bus in
    /dev/shm after ten seconds, is removed, and fails the test.
    """
    import shmbus

    name = f"pytest-{_RUN}-{next(_count)}"
    bus = shmbus.Bus(name)
    try:
        yield bus
    finally:
        bus.close()
        left = _leftovers(name)
    if left:
        pytest.fail(f"bus {name!r} was left behind: {left}", pytrace=False)


def _leftovers(name: str) -> str:
    """Wait until the bus is gone; what was still there is removed by force, and told."""
    from shmbus import inspect
    from shmbus._shm import segment
    from shmbus._shm.names import object_prefix
    from shmbus.errors import BusNotFoundError, ShmbusError

    prefix = object_prefix(name)
    deadline = time.monotonic() + GRACE
    while True:
        left = segment.names(prefix)
        if not left:
            return ""
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    try:
        stats = inspect.stats_of(name)
        who = [f"process {p.pid} ({p.command}) takes part" for p in stats.participants]
        groups = [c for c in stats.consumers if c.kind == "group" and c.depth]
        who += [f"group {c.topic}/{c.name} is owed {c.depth} events" for c in groups]
    except ShmbusError as error:
        who = [str(error)]
    try:
        inspect.remove(name, force=True)
    except BusNotFoundError:
        return ""  # at the last moment
    return "; ".join(who) if who else ", ".join(left)


@contextmanager
def _failing() -> Iterator[None]:
    """What does not hold fails the test by its own words, without a traceback through here."""
    try:
        yield
    except AssertionError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def shmbus_kill() -> Callable[..., int]:
    """Kill a process as nothing can prevent, and wait until it is dead.

    `shmbus_kill(process)` kills one that runs: a PID, or whatever has a `pid`. `shmbus_kill(target, *args, at="point")`
    calls `target(*args)` in a spawned process that kills itself when it comes to that line of the library, `visits=n`
    for the n-th time; the names of the lines are `shmbus._shm.failpoint.POINTS`. Both return the exit code where it can
    be had, -9. A process that ends before it comes there fails the test.
    """

    def kill(victim: int | HasPid | Callable[..., object], *args: Any, at: str = "", visits: int = 1) -> int:
        from shmbus._conformance import deaths

        if at and not callable(victim):
            raise TypeError(f"with at= a function is called in a process of its own: {victim!r}")
        with _failing():
            return deaths.kill_at(at, cast("Any", victim), *args, visits=visits) if at else deaths.kill(victim)

    return kill


@pytest.fixture
def shmbus_books(request: pytest.FixtureRequest) -> Callable[..., shmbus.BusStats]:
    """Assert that the books of every consumer balance, in all and with each publisher; returns the stats.

    `shmbus_books(bus)` takes a Bus or the name of one; `shmbus_books()` the bus of `shmbus_bus`.
    """

    def check(bus: shmbus.Bus | str | None = None) -> shmbus.BusStats:
        from shmbus._conformance import deaths

        if bus is None:
            bus = request.getfixturevalue("shmbus_bus")
        assert bus is not None
        with _failing():
            return deaths.check_books(bus)

    return check
