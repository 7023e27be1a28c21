"""The watcher: looks at buses again and again, and keeps what one look cannot say: rates, histories, dead letters.

May touch: nothing; it looks through `inspect`. Any thread may ask; one thread of its own looks.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec

from shmbus import inspect
from shmbus._log import logger
from shmbus.errors import BusNotFoundError, ShmbusError
from shmbus.observe.health import Patience, Problem, problems
from shmbus.stats import BusStats, with_rates
from shmbus.topic import DEAD_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shmbus.stats import Loss

INTERVAL: Final = 0.5
"""Seconds between two looks; more where a look takes long, so that looking costs a twentieth of a core at most."""
POINTS: Final = 120
"""Looks that a history goes back."""
FRESH: Final = 0.2
"""Seconds for which a look is as good as one of now: rates over less than that say little."""
LETTERS: Final = 50
_SHARE: Final = 20

_log = logger("shmbus.observe")


class Trail(msgspec.Struct):
    """The last looks at one publisher or consumer, the newest at the end."""

    rate: deque[float] = msgspec.field(default_factory=lambda: deque(maxlen=POINTS))
    depth: deque[int] = msgspec.field(default_factory=lambda: deque(maxlen=POINTS))
    """Of a publisher: bytes that wait."""


class View(msgspec.Struct, frozen=True, kw_only=True):
    """All that there is to show of a bus."""

    stats: BusStats
    problems: list[Problem]
    losses: list[Loss]
    letters: list[dict[str, Any]]
    """Dead letters, the newest first."""
    trails: dict[str, Trail]
    """By "publisher/ID" and "KIND/TOPIC/NAME"."""


class _Watched:
    """What is kept of one bus."""

    def __init__(self, bus: str) -> None:
        self.bus: Final = bus
        self.stats: BusStats | None = None
        self.error = ""
        self.trails: dict[str, Trail] = {}
        self.problems: list[Problem] = []
        self.letters: deque[dict[str, Any]] = deque(maxlen=LETTERS)
        self._patience = Patience()
        self._tails: dict[str, inspect.Tail] = {}

    def look(self) -> bool:
        """False if there is no such bus."""
        try:
            stats = inspect.stats_of(self.bus)
        except (ShmbusError, OSError) as error:
            self.stats, self.error = None, str(error)
            self.problems = [Problem(bus=self.bus, severity="critical", kind="unreadable", why=self.error)]
            return not isinstance(error, BusNotFoundError)
        before = self.stats
        if before is not None and before.created_ns != stats.created_ns:  # another bus of that name
            before, self._patience = None, Patience()
            self.trails.clear()
            self.letters.clear()
            self.close()
        self.stats, self.error = with_rates(before, stats) if before is not None else stats, ""
        self.problems = problems(self.stats, self._patience.look(stats, time.monotonic()))
        self._note_trails(self.stats)
        return True

    def _note_trails(self, stats: BusStats) -> None:
        trails: dict[str, Trail] = {}
        for p in stats.publishers:
            trail = trails[f"publisher/{p.id}"] = self.trails.get(f"publisher/{p.id}") or Trail()
            trail.rate.append(round(p.rate, 1))
            trail.depth.append(p.used)
        for c in stats.consumers:
            key = f"{c.kind}/{c.topic}/{c.name}"
            trail = trails[key] = self.trails.get(key) or Trail()
            trail.rate.append(round(c.rate, 1))
            trail.depth.append(c.depth)
        self.trails = trails

    def read_letters(self) -> list[dict[str, Any]]:
        for topic in self.stats.topics if self.stats else ():
            if topic.name.endswith(DEAD_SUFFIX):
                with suppress(ShmbusError, OSError):
                    tail = self._tails.get(topic.name)
                    if tail is None:
                        tail = self._tails[topic.name] = inspect.Tail(self.bus, topic.name, oldest=True)
                    for item in tail.read():
                        if isinstance(item.event, dict):
                            self.letters.append(_letter(item))
        return sorted(self.letters, key=lambda letter: letter["written_ns"], reverse=True)

    def close(self) -> None:
        for tail in self._tails.values():
            tail.close()
        self._tails.clear()


def _letter(item: inspect.Tailed) -> dict[str, Any]:
    """The fields of a dead letter that fit on a line; the payload stays where it is."""
    event: dict[str, Any] = item.event
    shown = {key: value for key, value in event.items() if isinstance(value, str | int | float)}
    return {**shown, "letter": item.sequence, "written_ns": item.time_ns}


class Watcher:
    """Looks at the named buses, or at all of this user's, from `start` to `close`."""

    def __init__(self, buses: Sequence[str] = ()) -> None:
        self.buses: Final = tuple(buses)
        self._watched: dict[str, _Watched] = {}
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._looked = float("-inf")

    def start(self) -> None:
        """Look for the first time, and from now on."""
        self.look()
        self._thread = threading.Thread(target=self._run, name="shmbus-observe", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no longer. Idempotent."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            for watched in self._watched.values():
                watched.close()

    def _run(self) -> None:
        pause = INTERVAL
        while not self._end.wait(pause):
            begun = time.monotonic()
            try:
                self.look()
            except Exception:
                _log.exception("a look at the buses went wrong; the next one is in %.1f s", pause)
            pause = max(INTERVAL, _SHARE * (time.monotonic() - begun))

    def look(self, fresh: float = 0.0) -> None:
        """One look at every bus, unless the last one is not older than `fresh` seconds."""
        with self._lock:
            if time.monotonic() - self._looked < fresh:
                return
            names = self.buses or tuple(inspect.buses())
            for gone in self._watched.keys() - set(names):
                self._watched.pop(gone).close()
            for name in names:
                watched = self._watched.setdefault(name, _Watched(name))
                if not watched.look() and not self.buses:  # removed since it was listed
                    self._watched.pop(name).close()
            self._looked = time.monotonic()

    def stats(self) -> list[BusStats]:
        """The last look at each bus that could be read, with rates."""
        with self._lock:
            return [w.stats for w in self._watched.values() if w.stats is not None]

    def problems(self) -> list[Problem]:
        """What is wrong, by the last look."""
        with self._lock:
            return [problem for w in self._watched.values() for problem in w.problems]

    def names(self) -> list[str]:
        """The buses that are watched, also those that cannot be read."""
        with self._lock:
            return sorted(self._watched)

    def view(self, bus: str) -> View:
        """All that there is to show of one. Raises BusNotFoundError where it is not watched or not there."""
        with self._lock:
            watched = self._watched.get(bus)
            if watched is None or watched.stats is None:
                raise BusNotFoundError(bus)
            return View(
                stats=watched.stats,
                problems=watched.problems,
                losses=list(reversed(inspect.losses_of(bus)[-200:])),
                letters=watched.read_letters(),
                trails=watched.trails,
            )
