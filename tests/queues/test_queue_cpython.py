"""CPython's tests of queues, with ours in place of its own; cpython_queue_tests.py names what is left out, and why."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("cpython_queue_tests.py")
NO_TESTS = 77
"""Exit code of a Python that was installed without its tests."""


def run(*arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, PROGRAM, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    if result.returncode == NO_TESTS:
        pytest.skip("this Python was installed without its tests")
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_theirs_pass(method: str) -> None:
    """`_TestQueue` and `TestSimpleQueue` of CPython pass under each start method."""
    assert int(run(method).rpartition("ran ")[2]) >= 10


def test_shutdown() -> None:
    """CPython's tests of `queue.Queue.shutdown` pass, its threads on a queue of processes."""
    file = _test_queue_file()
    if file is None:
        pytest.skip("no Python 3.13 or later with its tests here")
    assert int(run("shutdown", file).rpartition("ran ")[2]) >= 18


def _test_queue_file() -> str | None:
    """The test_queue.py of a Python that has `shutdown`: this one, or another one that is here."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    others = [shutil.which("python3.13"), shutil.which("python3.14"), *sorted(pyenv.glob("3.1[3-9]*/bin/python3"))]
    for python in [sys.executable, *(str(other) for other in others if other)]:
        found = subprocess.run(
            [python, "-c", "import queue, test.test_queue as t; queue.ShutDown; print(t.__file__)"],
            capture_output=True,
            text=True,
            check=False,
        )
        if found.returncode == 0:
            return str(found.stdout).strip()
    return None
