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
import signal
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import shmbus

GRACE: Final = 10.0
"""Seconds that processes have to leave a bus, and its supervisor to remove it, when a test has ended."""
PATIENCE: Final = 60.0
"""Seconds that a process has to come to the line that it is to die at."""

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


@pytest.fixture
def shmbus_kill() -> Callable[..., int]:
    """Kill a process as nothing can prevent, and wait until it is dead.

    `shmbus_kill(process)` kills one that runs: a PID, or whatever has a `pid`. `shmbus_kill(target, *args, at="point")`
    calls `target(*args)` in a spawned process that kills itself when it comes to that line of the library, `visits=n`
    for the n-th time; the names of the lines are `shmbus._shm.failpoint.POINTS`. Both return the exit code where it can
    be had, -9. A process that ends before it comes there fails the test.
    """

    def kill(victim: int | HasPid | Callable[..., object], *args: Any, at: str = "", visits: int = 1) -> int:
        if at:
            if not callable(victim):
                raise TypeError(f"with at= a function is called in a process of its own: {victim!r}")
            return _kill_at(victim, args, at, visits)
        pid = victim if isinstance(victim, int) else getattr(victim, "pid", None)
        if not isinstance(pid, int) or pid <= 0:
            raise TypeError(f"a PID, or a process that runs, not {victim!r}")
        return _kill_now(pid, victim)

    return kill


def _kill_now(pid: int, victim: object) -> int:
    import psutil

    try:
        process = psutil.Process(pid)
        process.kill()
    except psutil.NoSuchProcess:
        pytest.fail(f"process {pid} is gone already", pytrace=False)
    for name in ("join", "wait"):  # of the object that will be asked for the exit code
        wait = getattr(victim, name, None)
        if wait is not None:
            wait()
            break
    else:
        psutil.wait_procs([process], timeout=PATIENCE)
    return -signal.SIGKILL


def _kill_at(target: Callable[..., object], args: tuple[Any, ...], point: str, visits: int) -> int:
    import multiprocessing

    from shmbus._shm import failpoint

    if point not in failpoint.POINTS:
        raise ValueError(f"no point {point!r}: there are {', '.join(failpoint.POINTS)}")
    process = multiprocessing.get_context("spawn").Process(target=_armed, args=(point, visits, target, args))
    process.start()
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
        process.join()
        pytest.fail(f"it did not come to {point!r} within {PATIENCE:g} s", pytrace=False)
    code = process.exitcode
    process.close()
    if code != -signal.SIGKILL:
        pytest.fail(f"it ended before it came to {point!r} for the {visits}. time: exit code {code}", pytrace=False)
    return code


def _armed(point: str, visits: int, target: Callable[..., object], args: tuple[Any, ...]) -> None:
    from shmbus._shm import failpoint

    failpoint.arm(point, visits)
    target(*args)


@pytest.fixture
def shmbus_books(request: pytest.FixtureRequest) -> Callable[..., shmbus.BusStats]:
    """Assert that the books of every consumer balance, in all and with each publisher; returns the stats.

    `shmbus_books(bus)` takes a Bus or the name of one; `shmbus_books()` the bus of `shmbus_bus`.
    """

    def check(bus: shmbus.Bus | str | None = None) -> shmbus.BusStats:
        from shmbus import inspect

        if bus is None:
            bus = request.getfixturevalue("shmbus_bus")
        assert bus is not None
        stats = inspect.stats_of(bus if isinstance(bus, str) else bus.name)
        for consumer in stats.consumers:
            _require_balanced(f"{consumer.topic}/{consumer.name}", consumer)
            for source in consumer.publishers:
                _require_balanced(f"{consumer.topic}/{consumer.name} with {source.publisher}", source)
        return stats

    return check


def _require_balanced(who: str, books: Any) -> None:
    terms = ("delivered", "depth", "overrun", "refused", "abandoned", "undecodable", "rejected")
    found = {term: getattr(books, term) for term in terms}
    if sum(found.values()) != books.offered:
        said = " + ".join(f"{count} {term}" for term, count in found.items() if count) or "0"
        pytest.fail(f"the books of {who} do not balance: {books.offered} offered, but {said}", pytrace=False)
