"""The demo: its result is that of a single process though a worker is killed, and nothing is left, however it ends."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from support import Processes, bus_processes, child_environment, entries, eventually, line

import shmbus
from shmbus.cli import _demo_screen, _demo_work, demo
from shmbus.cli._demo_work import Found, Function, Report, Source, examine
from shmbus.stats import ConsumerStats

PATIENT = 300.0


def start(processes: Processes, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "shmbus", "demo", "--workers", "2", *arguments]
    return processes.run(command, stderr=subprocess.STDOUT, env=child_environment(COLUMNS="80"))


def finished(child: subprocess.Popen[str], code: int = 0) -> str:
    """What the demo printed, after it has ended with `code` and left nothing behind."""
    output, _ = child.communicate(timeout=PATIENT)
    assert child.returncode == code, output
    name = f"demo-{child.pid}"
    eventually(lambda: not entries(name), lambda: f"left: {entries(name)}")
    eventually(lambda: not list(bus_processes(name)), lambda: f"left: {list(bus_processes(name))}")
    assert "Traceback" not in output, output
    return output


def lines_until(child: subprocess.Popen[str], pattern: str) -> Iterator[str]:
    while True:
        text = line(child)
        yield text
        if re.search(pattern, text):
            return


def test_demo_survives_a_kill(processes: Processes) -> None:
    """With a worker killed at work the result equals a single-process run and the books balance."""
    output = finished(start(processes, "--limit", "300", "--check"))
    killed = re.search(r"worker (\d+) killed \(SIGKILL\) while it held a file", output)
    assert killed, output
    assert re.search(rf"worker \d+ takes the place of {killed[1]}", output), output
    assert re.search(r"^ +balances +balances$", output, re.M), output
    assert re.search(r"^  offered +300 +\d+$", output, re.M), output
    assert re.search(r"^delivered again: 1 file;", output, re.M), output
    assert "check: equal to a single-process run" in output
    assert output.endswith("shared memory left: none\n")


def demo_whose_parent_is_late() -> None:
    """The demo on a machine that does not run it, but its workers, once it has fed the last of its files."""
    import os
    import sys
    import time

    from shmbus import inspect
    from shmbus.cli import demo, main

    fed, publish, bus = 0, demo._published, f"demo-{os.getpid()}"

    def late(publisher: Any, source: Any) -> bool:
        nonlocal fed
        done = publish(publisher, source)
        fed += done
        while fed == 120 and any(c.depth for c in inspect.stats_of(bus).consumers if c.kind == "group"):
            time.sleep(0.01)  # not a wait: the interval of the poll
        return done

    demo._published = late  # type: ignore[assignment]
    sys.exit(main(["demo", "--workers", "2", "--limit", "120"]))


def test_demo_kills_somebody_however_late_it_is(processes: Processes) -> None:
    """A worker is killed at work though the demo itself was not run while its workers did what they had."""
    output = finished(processes.spawn(demo_whose_parent_is_late, stderr=subprocess.STDOUT))
    assert re.search(r"worker (\d+) killed \(SIGKILL\) while it held a file", output), output


def test_demo_without_kill(processes: Processes) -> None:
    """With `--no-kill --quiet` nobody is killed, each file is handed out once, and only the result is printed."""
    output = finished(start(processes, "--limit", "20", "--no-kill", "--quiet"))
    assert output.startswith("parsed 20 files in ")
    assert "killed" not in output
    assert "delivered again: 0 files; reported twice, counted once: 0" in output


def test_any_worker_may_be_killed(processes: Processes) -> None:
    """A worker that somebody else kills is replaced too, and nothing is lost."""
    child = start(processes, "--limit", "600", "--no-kill", "--check")
    *_, opening = lines_until(child, r"^bus demo-\d+, workers ")
    *_, _ = lines_until(child, r"^parsing: ")
    victim = int(opening.split()[-1])
    [process] = [process for process in bus_processes(f"demo-{child.pid}") if process.pid == victim]
    process.kill()
    output = finished(child)
    assert f"takes the place of {victim}" in output
    assert "check: equal to a single-process run" in output


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_interrupted_demo_leaves_nothing(processes: Processes, number: signal.Signals, code: int) -> None:
    """Ctrl-C, SIGTERM and SIGHUP in the middle of the work leave no process and no shared memory."""
    child = start(processes)
    *_, _ = lines_until(child, r"^parsing: ")
    child.send_signal(number)
    finished(child, code)


def test_workers_end_with_their_input(bus_name: str, processes: Processes) -> None:
    """A worker works until its standard input ends, then leaves in good order."""
    with shmbus.Bus(bus_name) as bus:
        bus.group(_demo_work.SOURCES, _demo_work.GROUP)
        with bus.subscriber(_demo_work.FOUND) as collector, bus.publisher(_demo_work.SOURCES) as sources:
            child = processes.run([sys.executable, "-m", "shmbus.cli._demo_work", bus_name])
            sources.publish(Source("x.py", b"def f(): pass\n"))
            report = collector.receive(timeout=PATIENT)
            assert child.stdin is not None
            child.stdin.close()
            assert child.wait(PATIENT) == 0
        assert report == Report(Found("x.py", 1, 0, (Function("f", 1, 1),), ""), 1)
        [parsers] = [c for c in bus.stats().consumers if c.name == _demo_work.GROUP]
        assert (parsers.offered, parsers.delivered, parsers.workers) == (1, 1, ())


@pytest.mark.parametrize(
    ("text", "lines", "parses"),
    [
        (b"", 0, True),
        (b"a = 1", 1, True),
        (b"a = 1\n", 1, True),
        (b"def broken(:\n", 1, False),
        (b"a = '\x00'\n", 1, False),
        (b"# coding: no-such\n", 1, False),
        (b"(" * 1000, 1, False),
    ],
)
def test_examine(text: bytes, lines: int, parses: bool) -> None:
    """A file is counted whether it parses or not."""
    found = examine(Source("x", text))
    assert (found.lines, not found.error) == (lines, parses)


def test_examine_names_functions_in_full() -> None:
    """Functions are named with what is around them, and measured without their decorators."""
    text = b"class A:\n    @x\n    def f(self):\n        async def g():\n            pass\n        return g\n"
    found = examine(Source("x", text))
    assert found.classes == 1
    assert set(found.functions) == {Function("A.f", 3, 4), Function("A.f.g", 4, 2)}


def test_collection_counts_a_file_once() -> None:
    """A file that was reported twice is counted once, and both the repetition and the second delivery are noted."""
    collection = demo.Collection()
    found = Found("x", 1, 0, (Function("short", 1, 1), Function("long", 2, 9)), "")
    for report in (Report(found, 2), Report(found, 3), Report(Found("y", 1, 0, (), ""), 1)):
        collection.add(report)
    assert (len(collection.found), collection.twice, collection.again) == (2, 1, {"x"})
    assert [function.name for _, function in collection.longest()] == ["long", "short"]


def test_books_that_do_not_balance_are_told() -> None:
    """A consumer whose terms do not add up is not balanced."""
    good = ConsumerStats(
        name="a", topic="t", kind="group", mode="reliable", state="ok", pid=0, lag_ns=0, offered=3, delivered=1,
        depth=1, rejected=1,
    )  # fmt: skip
    assert _demo_screen.balanced(good)
    bad = ConsumerStats(
        name="a", topic="t", kind="group", mode="reliable", state="ok", pid=0, lag_ns=0, offered=3, delivered=1
    )
    assert not _demo_screen.balanced(bad)


def test_source_files_fit() -> None:
    """The files are those of the standard library, none of an installed package, each small enough for an event."""
    files = demo.source_files(None)
    assert len(files) > 300
    assert not any("site-packages" in path.parts for path in files)
    assert demo.source_files(7) == files[:7]
    assert max(path.stat().st_size for path in files) < _demo_work.SOURCES.capacity // 4
