"""`demo`: the main job on real input, Python's standard library parsed by a pool of worker processes.

One of them is killed half-way. The result, the books and what is left in shared memory are shown.

    this process  --sources-->  group "parsers" of worker processes  --found-->  this process

One loop feeds and collects: a full ring never stops it from draining the other. Delivery is at least once, so
a file may be found twice after a kill; results are kept by path and the second one is counted, not added.

What must stay true: however it ends, no process and no entry of /dev/shm is left.
"""

from __future__ import annotations

import heapq
import os
import platform
import sys
import sysconfig
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import shmbus
from shmbus import inspect
from shmbus.cli import _arguments
from shmbus.cli._demo_pool import Pool
from shmbus.cli._demo_screen import (
    LiveScreen,
    PlainScreen,
    balanced,
    show_books,
    show_differences,
    show_result,
)
from shmbus.cli._demo_work import FOUND, GROUP, SOURCES, Found, Report, Source, examine
from shmbus.cli._exit import FAILED, OK, complain
from shmbus.cli._render import plural, size
from shmbus.cli._terminate import ending_in_order
from shmbus.errors import BusNotFoundError
from shmbus.stats import with_rates

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

    from shmbus.cli._demo_screen import Screen
    from shmbus.cli._demo_work import Function
    from shmbus.stats import BusStats, ConsumerStats

_SHM: Final = Path("/dev/shm")
_LARGEST: Final = SOURCES.capacity // 4 - 4096  # bytes of text that fit into an event, beside path and framing
_ELSEWHERE: Final = frozenset({"site-packages", "dist-packages", "__pycache__"})
_LOOK: Final = 0.5  # seconds between two looks at the bus
_AHEAD: Final = 48  # files that are out: were it all of them, who is late would find nobody at work to kill
_TURN: Final = 0.05  # seconds to wait for results when there is no room for sources, or none left
_LONGEST: Final = 5
_PATIENCE: Final = 15.0  # seconds for the supervisor to remove the bus


def register(commands: _arguments.Commands) -> None:
    """Add `demo`."""
    demo = commands.add_parser(
        "demo",
        help="parse Python's standard library in a pool of worker processes, and kill one of them",
        description="Parse the sources of Python's standard library in a pool of worker processes; half-way"
        " one of them is killed and replaced. Nothing is lost, and nothing is left behind.",
    )
    demo.add_argument("--workers", metavar="N", type=_arguments.positive, help="default: one a core, at least 2")
    demo.add_argument("--limit", metavar="N", type=_arguments.positive, help="parse N files only")
    demo.add_argument("--check", action="store_true", help="compare with a single-process run")
    demo.add_argument("--no-kill", dest="kill", action="store_false", help="kill no worker")
    demo.add_argument("--quiet", action="store_true", help="no progress, only the result")
    demo.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; the exit code is 1 when books, check or shared memory are not as they must be."""
    files = source_files(arguments.limit)
    if not files:
        return complain(f"no source files in {sysconfig.get_path('stdlib')}")
    workers = arguments.workers or max(2, len(os.sched_getaffinity(0)))
    with ending_in_order():
        job = Job(files, workers, kill=arguments.kill)
        job.run(quiet=arguments.quiet)
        return job.report(check=arguments.check, quiet=arguments.quiet)


def source_files(limit: int | None) -> list[Path]:
    """The .py files of Python's standard library that fit into an event; with `limit`, the first ones."""
    root = Path(sysconfig.get_path("stdlib"))
    files = (path for path in sorted(root.rglob("*.py")) if not _ELSEWHERE & set(path.relative_to(root).parts))
    return [path for path in files if path.stat().st_size <= _LARGEST][:limit]


def read(path: Path) -> Source:
    """A file as an event, named from the library's folder on."""
    return Source(str(path.relative_to(sysconfig.get_path("stdlib"))), path.read_bytes())


class Collection:
    """What was found, by path; a second report of a path is counted and dropped."""

    def __init__(self) -> None:
        self.found: dict[str, Found] = {}
        self.twice = 0
        """Reports of a file that had been reported before."""
        self.again: set[str] = set()
        """Files that were handed out more than once."""

    def add(self, report: Report) -> None:
        """Take one report in."""
        path = report.found.path
        if report.attempt > 1:
            self.again.add(path)
        if path in self.found:
            self.twice += 1
        else:
            self.found[path] = report.found

    def longest(self) -> list[tuple[Found, Function]]:
        """The longest functions, the longest first."""
        functions = ((item, function) for item in self.found.values() for function in item.functions)
        return heapq.nsmallest(_LONGEST, functions, key=lambda pair: (-pair[1].lines, pair[0].path, pair[1].line))


class Job:
    """One run of the demo on a bus of its own."""

    def __init__(self, files: Sequence[Path], workers: int, *, kill: bool) -> None:
        self.bus_name: Final = f"demo-{os.getpid()}"
        self.files: Final = files
        self.workers: Final = workers
        self.collection: Final = Collection()
        self.seconds = 0.0
        self.rejected = 0
        self._kill = kill
        self._books: BusStats | None = None
        self._looked = 0.0

    def run(self, *, quiet: bool) -> None:
        """Do the work, then close everything; nothing is left behind, whatever is raised."""
        finished = False
        try:
            with shmbus.Bus(self.bus_name) as bus:
                bus.group(SOURCES, GROUP)  # before the first event, so that none of them is unrouted
                with bus.subscriber(FOUND, name="collector") as collector:
                    pool = Pool(self.bus_name, self.workers)
                    try:
                        with _screen("parsing", len(self.files), quiet=quiet) as screen:
                            screen.say(self._opening(pool))
                            started = time.monotonic()
                            self._feed_and_collect(bus, collector, pool, screen)
                            self.seconds = time.monotonic() - started
                        pool.end()
                        self._collect(collector, 0.0)
                    finally:
                        pool.kill()
                    self._books = bus.stats()
            finished = True
        finally:
            self._remove(wait=finished)

    def report(self, *, check: bool, quiet: bool) -> int:
        """Print the result, the books, the comparison, and what is left; returns the exit code."""
        collection = self.collection
        files = plural(len(collection.found), "file")
        print(f"parsed {files} in {self.seconds:.1f} s with {plural(self.workers, 'worker')}\n")
        show_result(list(collection.found.values()), collection.longest())
        assert self._books is not None
        show_books(self._books)
        print(
            f"\ndelivered again: {plural(len(collection.again), 'file')};"
            f" reported twice, counted once: {collection.twice}"
        )
        good = all(balanced(consumer) for consumer in self._books.consumers)
        if self.rejected:
            good = complain(f"{plural(self.rejected, 'file')} killed too many workers and was given up") == OK
        if check:
            good &= self._check(quiet=quiet)
        left = self._left()
        print(f"shared memory left: {', '.join(left) or 'none'}")
        return OK if good and not left else FAILED

    def _opening(self, pool: Pool) -> str:
        total = sum(path.stat().st_size for path in self.files)
        return (
            f"standard library of Python {platform.python_version()}: {plural(len(self.files), 'file')}, "
            f"{size(total)}\nbus {self.bus_name}, workers {', '.join(map(str, pool.pids))}"
        )

    def _feed_and_collect(
        self, bus: shmbus.Bus, collector: shmbus.Subscriber[Report], pool: Pool, screen: Screen
    ) -> None:
        with bus.publisher(SOURCES, name="reader", on_full="raise") as sources:
            for fed, path in enumerate(self.files):
                source = read(path)
                while fed - len(self.collection.found) - self.rejected >= _AHEAD or not _published(sources, source):
                    self._turn(bus, collector, pool, screen, _TURN)
                self._turn(bus, collector, pool, screen, 0.0)
            while len(self.collection.found) + self.rejected < len(self.files):
                self._turn(bus, collector, pool, screen, _TURN)

    def _turn(
        self,
        bus: shmbus.Bus,
        collector: shmbus.Subscriber[Report],
        pool: Pool,
        screen: Screen,
        timeout: float,
    ) -> None:
        """Collect what has come, kill and replace when it is time to, show it all now and then."""
        self._collect(collector, timeout)
        done = len(self.collection.found)
        screen.progress(done)
        if self._kill and done * 2 >= len(self.files):
            victim = pool.kill_one_at_work(lambda: _holders(bus.stats()))
            self._kill = victim is None  # nobody held one just now: at the next turn, then
            if victim is not None or done == len(self.files):
                screen.say(_killed(victim, done))
        for dead, new in pool.replace_dead():
            screen.say(f"worker {new} takes the place of {dead}")
        if time.monotonic() - self._looked >= _LOOK:
            stats = self._look(bus)
            screen.stats(stats)
            self.rejected = _parsers(stats).rejected

    def _look(self, bus: shmbus.Bus) -> BusStats:
        before, self._books = self._books, bus.stats()
        self._looked = time.monotonic()
        return with_rates(before, self._books) if before else self._books

    def _collect(self, collector: shmbus.Subscriber[Report], timeout: float) -> None:
        with suppress(shmbus.Empty):
            while reports := collector.receive_many(256, timeout=timeout):
                for report in reports:
                    self.collection.add(report)
                timeout = 0.0

    def _check(self, *, quiet: bool) -> bool:
        """Whether a run without bus and workers finds the same."""
        started = time.monotonic()
        with _screen("checking", len(self.files), quiet=quiet) as screen, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            alone = {found.path: found for found in _examined(self.files, screen)}
        seconds = time.monotonic() - started
        pooled = self.collection.found
        different = sorted(path for path in alone.keys() | pooled.keys() if alone.get(path) != pooled.get(path))
        if different:
            print(f"check: {plural(len(different), 'file')} differ from a single-process run")
            show_differences(different)
        else:
            print(f"check: equal to a single-process run, which took {seconds:.1f} s")
        return not different

    def _remove(self, *, wait: bool) -> None:
        """Let the supervisor remove the bus when all is done; else remove it, owed events and all."""
        deadline = time.monotonic() + (_PATIENCE if wait else 0.0)
        while self._left() and time.monotonic() < deadline:
            time.sleep(_TURN)
        if self._left():
            with suppress(BusNotFoundError):
                inspect.remove(self.bus_name, force=True)

    def _left(self) -> list[str]:
        return sorted(entry.name for entry in _SHM.iterdir() if self.bus_name in entry.name)


def _screen(title: str, total: int, *, quiet: bool) -> Screen:
    if sys.stdout.isatty() and not quiet:
        return LiveScreen(title, total)
    return PlainScreen(title, total, quiet=quiet)


def _published(sources: shmbus.Publisher[Source], source: Source) -> bool:
    try:
        sources.publish(source)
    except shmbus.Full:
        return False
    return True


def _examined(files: Iterable[Path], screen: Screen) -> Iterable[Found]:
    for done, path in enumerate(files, 1):
        yield examine(read(path))
        screen.progress(done)


def _parsers(stats: BusStats) -> ConsumerStats:
    return next(consumer for consumer in stats.consumers if consumer.name == GROUP)


def _holders(stats: BusStats) -> set[int]:
    return {worker.pid for worker in _parsers(stats).workers if worker.held}


def _killed(victim: int | None, done: int) -> str:
    if victim is None:
        return "no worker had anything to do half-way; none was killed"
    return f"worker {victim} killed (SIGKILL) while it held a file, after {plural(done, 'file')}"
