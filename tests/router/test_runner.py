"""The runner: `shmbus run` of a router of two stages, and whatever happens to its processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from pipeline import (
    COUNTED,
    COUNTERS,
    DEAD,
    LEDGER,
    LIMIT,
    NOTES,
    PARSED,
    PARSERS,
    SOURCES,
    Counted,
    Source,
    functions,
    sources,
)
from support import Processes, child_environment, eventually

import shmbus

PATIENCE = 120.0


class Run:
    """`shmbus run`, and what it says."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._log = log

    def log(self) -> str:
        return self._log.read_text()

    def until(self, pattern: str, count: int = 1) -> list[Any]:
        """What matches in the log, once there are so many."""
        found = eventually(lambda: len(re.findall(pattern, self.log())) >= count, self.log, PATIENCE)
        assert found
        return re.findall(pattern, self.log())

    def pids(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.process.pid).children()]

    def end(self, code: int = 0) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE) == code, self.log()


@pytest.fixture
def run(processes: Processes, bus_name: str, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Starts the runner of a router."""
    runs: list[Run] = []

    def start(*options: object, target: str = "pipeline:router", cwd: Path = tmp_path, ack_within: float = 600) -> Run:
        command = [sys.executable, "-m", "shmbus", "run", target, "--bus", bus_name, *map(str, options)]
        log = tmp_path / f"log-{len(runs)}"
        environment = child_environment(ACK_WITHIN=str(ack_within))
        with log.open("w") as file:
            runs.append(Run(processes.run(command, stderr=file, cwd=cwd, env=environment), log))
        return runs[-1]

    yield start
    for one in runs:  # its children end with it, and have what a drain takes
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(one.process.pid).children()
            one.process.kill()
            for child in children:
                child.kill()


@contextmanager
def bus_of_two_stages(name: str) -> Iterator[shmbus.Bus]:
    with shmbus.Bus(name) as bus:
        bus.group(SOURCES, PARSERS)
        bus.group(PARSED, COUNTERS)
        try:
            yield bus
        finally:
            for topic, group in ((SOURCES, PARSERS), (PARSED, COUNTERS)):
                bus.remove_group(topic, group, force=True)


def publish(bus: shmbus.Bus, *paths: str) -> None:
    with bus.publisher(SOURCES) as publisher:
        publisher.publish_many([Source(path) for path in paths])


def workers(bus: shmbus.Bus) -> dict[int, int]:
    """How many events each process holds for the parsers."""
    group = next(c for c in bus.stats().consumers if c.name == PARSERS)
    return {worker.pid: worker.held for worker in group.workers}


def collect(subscriber: shmbus.Subscriber[Counted], into: dict[str, Counted]) -> int:
    """Take what has come; how many are there by now."""
    with suppress(shmbus.Empty):
        into.update((counted.path, counted) for counted in subscriber.receive_many(1000, 0.01))
    return len(into)


def test_everything_at_once(bus_name: str, run: Callable[..., Run], tmp_path: Path) -> None:
    """Workers that are killed, hang, leak and are replaced lose no event; one that kills is a letter, with causes."""
    good = ["hang-1", *sources(60), *(f"leak-{n}" for n in range(10))]  # of 3 workers one leaks three times, and more
    with (
        bus_of_two_stages(bus_name) as bus,
        bus.subscriber(COUNTED) as counted,
        bus.subscriber(DEAD) as dead,
    ):
        runner = run("--workers", 3, "--max-rss", "80M", "--drain", 1, ack_within=3.0)
        runner.until("ready: 3 workers")
        found: dict[str, Counted] = {}
        publish(bus, *good[:20], "crash-1")
        eventually(lambda: collect(counted, found) == 20, seconds=PATIENCE)
        publish(bus, *good[20:40])
        runner.process.send_signal(signal.SIGHUP)
        eventually(lambda: collect(counted, found) == 40, seconds=PATIENCE)
        old = {int(pid) for pid in re.findall(r"process (\d+)\) starts", runner.until("(?s)^.*SIGHUP: ")[0])}
        eventually(lambda: not old & {*runner.pids()}, seconds=PATIENCE)  # who is told to end, ends: that is no death
        publish(bus, "until-killed", *good[40:60])
        victim = eventually(lambda: next((pid for pid, held in workers(bus).items() if held), 0))
        os.kill(victim, signal.SIGKILL)
        runner.until("killed by SIGKILL")
        (tmp_path / "until-killed").touch()
        publish(bus, *good[60:])
        eventually(lambda: collect(counted, found) == 72, lambda: str({*good} - found.keys()), PATIENCE)
        letter = dead.receive(PATIENCE)
        runner.until("(is replaced|has ended): .* MiB of 80 in memory")
        runner.end()
        assert dead.try_receive() is None
        assert all(c.offered == c.delivered + c.depth + c.dropped for c in bus.stats().consumers)
    assert found.keys() == {*good, "until-killed"}
    assert all(c.functions == functions(path) for path, c in found.items() if path.endswith(".py"))
    assert letter.reason.count("killed by SIGSEGV, peak RSS") == letter.attempts == LIMIT


BROKEN = {
    "nothing": "",
    "raises": "raise ValueError('at the import')",
    "other": "router = 5",
    "empty": "import shmbus\nrouter = shmbus.Router()",
    "dies": "import os\nos._exit(9)",
}


@pytest.mark.parametrize(
    ("target", "code", "words"),
    [
        ("nomodule", 2, "MODULE:ROUTER names a module"),
        ("pipeline:", 2, "MODULE:ROUTER names a module"),
        ("nomodule:router", 3, "No module named 'nomodule'"),
        ("nothing:router", 3, "nothing has no router"),
        ("raises:router", 3, "at the import"),
        ("other:router", 3, "other:router is no Router: 5"),
        ("empty:router", 3, "empty:router has no handlers"),
        ("dies:router", 3, "did not start: exit code 9"),
    ],
)
def test_what_does_not_start(
    bus_name: str, run: Callable[..., Run], tmp_path: Path, target: str, code: int, words: str
) -> None:
    """A usage error is exit code 2, workers that do not start are 3, and the reason is told."""
    for name, text in BROKEN.items():
        (tmp_path / f"{name}.py").write_text(text)
    runner = run(target=target)
    assert runner.process.wait(PATIENCE) == code
    assert words in runner.log()


@pytest.mark.parametrize("words", ["--workers 0", "--max-rss 5X", "--max-rss -1", "--drain 0", "--max-tasks no"])
def test_usage(run: Callable[..., Run], words: str) -> None:
    """Options that cannot be are usage errors, before anything is started."""
    runner = run(*words.split())
    assert runner.process.wait(PATIENCE) == 2


def test_given_up(bus_name: str, run: Callable[..., Run]) -> None:
    """Workers that crash again and again, with nothing done in between, are given up: exit code 4."""
    with bus_of_two_stages(bus_name) as bus, bus.subscriber(DEAD) as dead:
        publish(bus, "crash-1", "exit-2")
        runner = run("--workers", 1, "--restarts", 3)
        assert runner.process.wait(PATIENCE) == 4
        assert len(re.findall(r"killed by SIGSEGV|exit code 5", runner.log())) >= 4
        delays = re.findall(r"started again in (\S+) s", runner.log())
        assert delays == ["0.1", "0.2", "0.4"]
        assert "process" in dead.receive(PATIENCE).reason


def test_drain(bus_name: str, run: Callable[..., Run]) -> None:
    """SIGTERM: what is in hand is finished within the drain, what takes longer goes back, nothing else is taken."""
    with bus_of_two_stages(bus_name) as bus, bus.subscriber(COUNTED) as counted:
        runner = run("--workers", 2, "--drain", 4)
        runner.until("ready: 2 workers")
        publish(bus, "drained", "slow", *sources(3))
        eventually(lambda: sum(workers(bus).values()) == 2)
        runner.end()
        found: dict[str, Counted] = {}
        depths = {c.name: c.depth for c in bus.stats().consumers}
        collect(counted, found)
        assert depths[PARSERS] + depths[COUNTERS] + len(found) == 5
        assert depths[PARSERS] == 4
        assert "has not finished event" in runner.log()
        assert not workers(bus)


def test_twice_is_at_once(bus_name: str, run: Callable[..., Run]) -> None:
    """A second signal does not wait for the drain, and says so in the exit code."""
    with bus_of_two_stages(bus_name) as bus:
        runner = run("--workers", 1, "--drain", 1000)
        runner.until("ready: 1 workers")
        publish(bus, "slow")
        eventually(lambda: sum(workers(bus).values()) == 1)
        runner.process.send_signal(signal.SIGINT)
        runner.until("SIGINT: ")
        runner.end(128 + signal.SIGTERM)
        eventually(lambda: not workers(bus))


def test_one_after_another(bus_name: str, run: Callable[..., Run]) -> None:
    """SIGHUP replaces each worker once its replacement is ready; the named subscriber moves, and is one at a time."""
    with bus_of_two_stages(bus_name) as bus, bus.subscriber(COUNTED) as counted, bus.publisher(NOTES) as notes:
        runner = run("--workers", 2)
        runner.until("ready: 2 workers")
        eventually(lambda: any(c.name == LEDGER and c.state == "ok" for c in bus.stats().consumers))
        notes.publish(Source("a"))
        first = counted.receive(PATIENCE).pids[0]
        before = set(runner.pids())
        runner.process.send_signal(signal.SIGHUP)
        runner.until("is ready", 4)
        eventually(lambda: not before & set(runner.pids()))
        order = re.findall(r"worker (\d) \(process \d+\) (starts|is ready|is replaced)", runner.log())[4:]
        numbers = [number for number, _ in order]
        assert [what for _, what in order] == ["is replaced", "starts", "is ready"] * 2
        assert numbers == ["1"] * 3 + ["2"] * 3
        eventually(lambda: any(c.name == LEDGER and c.state == "ok" for c in bus.stats().consumers))
        notes.publish(Source("b"))
        assert counted.receive(PATIENCE).pids[0] not in {first, *before}
        runner.end()


def test_limits(bus_name: str, run: Callable[..., Run]) -> None:
    """No worker handles more than --max-tasks events, and all events are handled."""
    files = sources(30)
    with bus_of_two_stages(bus_name) as bus, bus.subscriber(COUNTED) as counted:
        publish(bus, *files)
        runner = run("--workers", 2, "--max-tasks", 12)
        found: dict[str, Counted] = {}
        eventually(lambda: collect(counted, found) == len(files), seconds=PATIENCE)
        runner.until("is replaced: 12 tasks")
        runner.end()
    each = [pid for c in found.values() for pid in c.pids]
    assert max(each.count(pid) for pid in set(each)) <= 12 + 2  # three events may be in hand when the limit is reached
    assert len(set(each)) >= 5


def test_the_runner_is_killed(bus_name: str, run: Callable[..., Run], tmp_path: Path) -> None:
    """Workers whose runner is killed finish what they have in hand, and end."""
    with bus_of_two_stages(bus_name) as bus, bus.subscriber(COUNTED) as counted:
        runner = run("--workers", 2)
        runner.until("ready: 2 workers")
        publish(bus, "until-killed")
        eventually(lambda: sum(workers(bus).values()) == 1)
        children = runner.pids()
        runner.process.kill()
        (tmp_path / "until-killed").touch()
        eventually(lambda: not any(psutil.pid_exists(pid) for pid in children))
        depths = {c.name: c.depth for c in bus.stats().consumers}
        found: dict[str, Counted] = {}
        collect(counted, found)
        assert (depths[PARSERS], depths[COUNTERS] + len(found)) == (0, 1)


APP = """
import shmbus
from routes import *
router = shmbus.Router()
@router.worker(ORDERS, group=GROUP, to=INVOICES)
def bill(order: Order) -> Invoice:
    return Invoice(order.number, {part})
"""


def test_reload(bus_name: str, run: Callable[..., Run], tmp_path: Path) -> None:
    """A changed file replaces the workers; one that does not load leaves the old ones at work."""
    from routes import GROUP, INVOICES, ORDERS
    from routes import publish as order

    app = tmp_path / "app.py"
    app.write_text(APP.format(part=1))
    with shmbus.Bus(bus_name) as bus, bus.subscriber(INVOICES) as invoices:
        bus.group(ORDERS, GROUP)
        runner = run("--reload", target="app:router")
        runner.until("ready: 1 workers")
        order(bus, 1)
        assert invoices.receive(PATIENCE).part == 1
        app.write_text("this is no Python")
        runner.until("did not start")
        order(bus, 2)
        assert invoices.receive(PATIENCE).part == 1
        app.write_text(APP.format(part=22))
        runner.until("is ready", 2)
        runner.until("is replaced", 2)

        def new() -> bool:
            order(bus, 3)
            return invoices.receive(PATIENCE).part == 22

        eventually(new)
        runner.end()
        bus.remove_group(ORDERS, GROUP)


STUCK = """
import select
import shmbus
from shmbus import middleware
from routes import *
soon = middleware.Timeout(0.3)
def timed(delivery):  # the others may take what a busy machine takes
    return (yield from soon(delivery)) if delivery.event.number == 0 else (yield)
router = shmbus.Router(middleware=[timed])
@router.worker(ORDERS, group=GROUP, to=INVOICES, max_deliver=1)
def bill(order: Order) -> Invoice:
    if order.number == 0:
        select.select([], [], [], 10_000)
    return Invoice(order.number)
"""


def test_a_stuck_handler_is_replaced(bus_name: str, run: Callable[..., Run], tmp_path: Path) -> None:
    """A sync handler past its Timeout fails at once, and its process is replaced: no thread is lost for good."""
    from routes import DEAD as LETTERS
    from routes import GROUP, INVOICES, ORDERS
    from routes import publish as order

    (tmp_path / "stuck.py").write_text(STUCK)
    with shmbus.Bus(bus_name) as bus, bus.subscriber(INVOICES) as invoices, bus.subscriber(LETTERS) as letters:
        bus.group(ORDERS, GROUP)
        order(bus, 0, 1)
        runner = run("--drain", 1, target="stuck:router")
        assert "TimeoutError" in letters.receive(PATIENCE).reason
        assert invoices.receive(PATIENCE).number == 1
        runner.until("is replaced: stuck.bill does not return")
        runner.until("is ready", 2)
        order(bus, 2)
        assert invoices.receive(PATIENCE).number == 2
        runner.end()


def test_the_page_is_right(bus_name: str, run: Callable[..., Run], tmp_path: Path) -> None:
    """The first example of docs/router.md runs as it stands."""
    page = (Path(__file__).parents[2] / "docs" / "router.md").read_text(encoding="utf-8")
    example = page.split("```python\n", 1)[1].split("```", 1)[0]
    (tmp_path / "shop.py").write_text(example)
    names: dict[str, Any] = {"__name__": "shop"}
    exec(compile(example, "shop.py", "exec"), names)
    with shmbus.Bus(bus_name) as bus, bus.subscriber(names["INVOICES"]) as invoices:
        bus.group(names["ORDERS"], "billing")
        runner = run("--workers", 2, target="shop:router")
        with bus.publisher(names["ORDERS"]) as publisher:
            publisher.publish_many([names["Order"](1, 250), names["Order"](2, 0), names["Order"](3, 5)])
        assert {invoices.receive(PATIENCE).order for _ in range(2)} == {1, 3}
        runner.until("event .* attempt 1: done", 3)
        runner.end()
