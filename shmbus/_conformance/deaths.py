"""Deaths and books, for tests: what the plugin of pytest, and anybody's own helpers, kill and count with.

Needs nothing of pytest. Each raises AssertionError with what does not hold.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmbus.bus import Bus
    from shmbus.stats import BusStats

PATIENCE: Final = 60.0
"""Seconds that a process has to die, or to come to the line that it is to die at."""
_TERMS: Final = ("delivered", "depth", "overrun", "refused", "abandoned", "undecodable", "rejected")


def kill(process: Any) -> int:
    """SIGKILL a process that runs, and wait until it is dead: a PID, or whatever has a `pid`, of `subprocess`,
    `multiprocessing`, `psutil`; returns -9, and where the object can be asked for the exit code it has it.
    """
    import psutil

    pid = process if isinstance(process, int) else getattr(process, "pid", None)
    if not isinstance(pid, int) or pid <= 0:
        raise TypeError(f"a PID, or a process that runs, not {process!r}")
    try:
        found = psutil.Process(pid)
        found.kill()
    except psutil.NoSuchProcess:
        raise AssertionError(f"process {pid} is gone already") from None
    for name in ("join", "wait"):  # of the object that will be asked for the exit code
        wait = getattr(process, name, None)
        if wait is not None:
            wait()
            break
    else:
        psutil.wait_procs([found], timeout=PATIENCE)
    return -signal.SIGKILL


def kill_at(point: str, target: Callable[..., object], *args: Any, visits: int = 1) -> int:
    """Call `target(*args)` in a spawned process that kills itself when it comes to a line of the library, for the
    `visits`-th time; returns its exit code, -9. The names of the lines are `shmbus._shm.failpoint.POINTS`.
    """
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
        raise AssertionError(f"it did not come to {point!r} within {PATIENCE:g} s")
    code = process.exitcode
    process.close()
    if code != -signal.SIGKILL:
        raise AssertionError(f"it ended before it came to {point!r} for the {visits}. time: exit code {code}")
    return code


def _armed(point: str, visits: int, target: Callable[..., object], args: tuple[Any, ...]) -> None:
    from shmbus._shm import failpoint

    failpoint.arm(point, visits)
    target(*args)


def check_books(bus: Bus | str) -> BusStats:
    """The books of every consumer balance, in all and with each publisher; returns the stats."""
    from shmbus import inspect

    stats = inspect.stats_of(bus if isinstance(bus, str) else bus.name)
    for consumer in stats.consumers:
        _require_balanced(f"{consumer.topic}/{consumer.name}", consumer)
        for source in consumer.publishers:
            _require_balanced(f"{consumer.topic}/{consumer.name} with {source.publisher}", source)
    return stats


def _require_balanced(who: str, books: Any) -> None:
    found = {term: getattr(books, term) for term in _TERMS}
    if sum(found.values()) != books.offered:
        said = " + ".join(f"{count} {term}" for term, count in found.items() if count) or "0"
        raise AssertionError(f"the books of {who} do not balance: {books.offered} offered, but {said}")
