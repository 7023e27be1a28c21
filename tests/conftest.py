"""Fixtures that every test can use, and the care that no test leaves anything behind.

Which shmbus is tested: the installed one. The source tree has no compiled `_core`, so it must not be on
sys.path: pytest runs with `--import-mode=importlib`, PYTHONSAFEPATH keeps the working directory out of every
child, and a run that finds no `shmbus._core` stops at once with what to do about it.

Helpers are plain modules in tests/ (`support`, `model`): `pythonpath = ["tests"]` in pyproject.toml makes
them importable by name, in children started through the fixture `processes` too.
"""

from __future__ import annotations

import itertools
import os
import secrets
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support import SHM, Processes, bus_processes, entries, eventually

pytest_plugins = ["futures_fixtures"]

ONCE = (
    "bridge/",
    "cli/test_demo.py",
    "native/test_fuzz.py",
    "native/test_litmus.py",
    "observe/test_page.py",
    "observe/test_prometheus.py",
    "test_bench",
    "test_crash.py::test_failpoints",
    "test_lives.py",
    "test_roads.py",
    "test_package.py::test_broken_source",
    "test_typing.py",
    "_ledger/test_retired.py::test_churn",
    "_ledger/test_room.py::test_churn",
    "_ledger/test_topics.py::test_topics_come_and_go",
)
"""Brokers, browsers, namespaces, C and campaigns: what takes long and shows the same on every Python."""

GRACE = 10.0
"""Seconds that an automatic supervisor has to notice the last exit, remove the bus and go."""

_ROOT = Path(__file__).resolve().parents[1]
_RUN = f"{os.getpid():x}-{secrets.token_hex(3)}"
_COUNTER = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    """Stop at once where the tests would run against the uncompiled source tree."""
    _take_signals()
    os.environ["PYTHONSAFEPATH"] = "1"
    if not any((_ROOT / "shmbus").glob("_core*.so")):  # an editable install compiles into the source tree
        sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _ROOT]
    try:
        import shmbus._core as core
    except ImportError as error:
        pytest.exit(
            f"shmbus is not installed in {sys.executable} ({error}): run `pip install '.[test]'` there "
            "first, and start the tests with `python tools/check.py --only tests` or `pytest`",
            returncode=pytest.ExitCode.USAGE_ERROR,
        )
    if config.option.verbose > 0:
        sys.stderr.write(f"testing {core.__file__}\n")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is to run once."""
    for item in items:
        if item.nodeid.removeprefix("tests/").startswith(ONCE):
            item.add_marker(pytest.mark.once)


def _take_signals() -> None:
    """Children inherit what is ignored: by nohup, or by a shell that runs us in the background."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def no_stray_processes() -> Iterator[None]:
    """At the end of the run, no process that serves one of its buses is left."""
    yield
    strays: list[psutil.Process] = []

    def gone() -> bool:
        strays[:] = bus_processes(f"t{_RUN}")
        return not strays

    try:
        eventually(gone, lambda: f"processes left: {strays}", GRACE)
    finally:
        for process in strays:
            process.kill()


@pytest.fixture(autouse=True)
def no_leftovers(request: pytest.FixtureRequest) -> Iterator[None]:
    """At the end of a test that has a bus, /dev/shm holds nothing of it; leftovers are removed and reported.

    Set up before every other fixture of the test, so it looks last.
    """
    if "bus_name" not in request.fixturenames:
        yield
        return
    name: str = request.getfixturevalue("bus_name")
    yield
    try:
        eventually(lambda: not entries(name), lambda: f"/dev/shm is clean of {entries(name)}", GRACE)
    finally:
        for process in bus_processes(name) if entries(name) else ():
            process.kill()
        for entry in entries(name):
            (SHM / entry).unlink(missing_ok=True)


@pytest.fixture
def bus_name() -> str:
    """A valid bus name that no other test and no other run has; other buses of a test append to it."""
    return f"t{_RUN}-{next(_COUNTER)}x"


@pytest.fixture
def processes() -> Iterator[Processes]:
    """Children of the test: `processes.spawn(code, *args)`; all are killed and reaped at its end."""
    children = Processes()
    yield children
    children.kill_all()
