"""What tests share: waiting for a condition, and child processes that cannot outlive their test.

Touches nothing of shmbus, so that it can be imported in any child. A wait that can be given up ends with an
AssertionError that says what was waited for; the others end with the child that they wait for.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil

T = TypeVar("T")

TESTS = Path(__file__).resolve().parent
SHM = Path("/dev/shm")


def eventually(predicate: Callable[[], T], message: str | Callable[[], str] = "condition", seconds: float = 30.0) -> T:
    """Poll `predicate` until it is true and return its value; after `seconds`, fail with `message`.

    `seconds` is a watchdog, not an expectation: be generous. A callable `message` is called at the failure.
    """
    deadline = time.monotonic() + seconds
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            text = message() if callable(message) else message
            raise AssertionError(f"not within {seconds:g} s: {text} (last value: {value!r})")
        time.sleep(0.005)  # not a wait: the interval of the poll


async def until(predicate: Callable[[], T], seconds: float = 60.0) -> T:
    """`eventually` in an event loop, which goes on meanwhile."""
    async with asyncio.timeout(seconds):
        while not (value := predicate()):  # noqa: ASYNC110
            await asyncio.sleep(0.001)  # not a wait: the interval of the poll
    return value


def entries(bus_name: str) -> list[str]:
    """Every name in /dev/shm that belongs to the bus: segments, semaphores, FIFOs, locks, temporary names."""
    return sorted(entry for entry in os.listdir(SHM) if bus_name in entry)


def bus_processes(bus_name: str) -> Iterator[psutil.Process]:
    """Every other live process whose command line names the bus."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if process.pid != os.getpid() and any(bus_name in word for word in words):
            yield process


def child_environment(**changes: str) -> dict[str, str]:
    """The environment of a child: the installed package, the helpers of tests/, output unbuffered."""
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH", "")]))
    always = {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", "PYTHONPATH": path}
    return {**os.environ, **always, **changes}


def child_source(code: str | Callable[..., object]) -> str:
    """Python source for `python -c`: a snippet as it is, or a self-contained function and a call of it.

    A function is sent as text: it must import what it uses, and gets the child's arguments as strings.
    """
    if isinstance(code, str):
        return textwrap.dedent(code)
    header = "from __future__ import annotations\nimport sys\n"
    return f"{header}{textwrap.dedent(inspect.getsource(code))}\n{code.__name__}(*sys.argv[1:])\n"


def line(process: subprocess.Popen[str]) -> str:
    """The next line of the child's stdout, stripped; fails with the exit code if the child has closed it."""
    assert process.stdout is not None
    text = process.stdout.readline()
    if not text:
        raise AssertionError(f"child {process.pid} ended before its next line: exit code {process.wait()}")
    return text.strip()


class Processes:
    """The child processes of one test; `kill_all()` at its end leaves none. Fixture: `processes`."""

    def __init__(self) -> None:
        self._children: list[subprocess.Popen[str]] = []

    def spawn(self, code: str | Callable[..., object], *args: object, **options: Any) -> subprocess.Popen[str]:
        """Run `code` in a child of this interpreter; stdin and stdout are text pipes, stderr is the test's.

        `args` become the child's `sys.argv[1:]`; `options` go to `subprocess.Popen`.
        """
        command = [sys.executable, "-c", child_source(code), *map(str, args)]
        return self.run(command, **options)

    def run(self, command: list[str], **options: Any) -> subprocess.Popen[str]:
        """Start any command under the same care."""
        options.setdefault("stdin", subprocess.PIPE)
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("env", child_environment())
        child: subprocess.Popen[str] = subprocess.Popen(command, text=True, **options)
        self._children.append(child)
        return child

    def kill_all(self) -> None:
        """SIGKILL whatever still runs, reap every child, close every pipe."""
        for child in self._children:
            child.kill()
        for child in self._children:
            child.wait()
            for pipe in (child.stdin, child.stdout, child.stderr):
                close_quietly(pipe)
        self._children.clear()


def close_quietly(pipe: Any) -> None:
    """Close a pipe whose reader may be dead with our text still unsent."""
    try:
        if pipe is not None:
            pipe.close()
    except BrokenPipeError:
        pass
