"""The pytest plugin, as its users have it: by tests that are run by pytest."""

from __future__ import annotations

import os

import pytest
from support import SHM, Processes

import shmbus

pytest_plugins = ["pytester"]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder for tests whose functions spawned children can import."""
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(pytester.path))
    return pytester


def left() -> list[str]:
    return [name for name in os.listdir(SHM) if f"pytest-{os.getpid():x}-" in name]


def outcome(run: pytest.Pytester, source: str, **expected: int) -> pytest.RunResult:
    run.makepyfile(test_users=source)
    found = run.runpytest_subprocess("-p", "no:cacheprovider")
    found.assert_outcomes(**expected)
    return found


def test_a_bus_of_the_tests_own(run: pytest.Pytester) -> None:
    """Each test has an open bus of its own, with books that are asserted to balance."""
    outcome(
        run,
        """
        import shmbus
        NUMBERS = shmbus.Topic("numbers", int)
        names = set()
        def test_one(shmbus_bus, shmbus_books):
            names.add(shmbus_bus.name)
            with shmbus_bus.subscriber(NUMBERS, name="audit") as audit, shmbus_bus.publisher(NUMBERS) as publisher:
                publisher.publish_many(range(3))
                assert audit.receive(timeout=10) == 0
                stats = shmbus_books()
                assert [(c.delivered, c.depth) for c in stats.consumers] == [(1, 2)]
            assert shmbus_books(shmbus_bus.name).consumers[0].abandoned == 2
        def test_two(shmbus_bus):
            assert shmbus_bus.name not in names
        """,
        passed=2,
    )


def test_what_is_left_behind_fails_the_test(run: pytest.Pytester) -> None:
    """A process that stays on the bus, and a group that is owed events, fail the test by name, and are removed."""
    found = outcome(
        run,
        """
        import subprocess, sys, shmbus
        from shmbus import pytest_plugin
        pytest_plugin.GRACE = 0.3
        NUMBERS = shmbus.Topic("numbers", int)
        def test_a_process(shmbus_bus):
            code = "import shmbus, sys; b = shmbus.Bus(sys.argv[1]); print(1, flush=True); sys.stdin.read()"
            global child
            child = subprocess.Popen([sys.executable, "-c", code, shmbus_bus.name], stdin=-1, stdout=-1)
            assert child.stdout.readline()
        def test_a_group(shmbus_bus):
            child.communicate()
            shmbus_bus.group(NUMBERS, "billing")
            with shmbus_bus.publisher(NUMBERS) as publisher:
                publisher.publish(1)
        """,
        passed=2,
        errors=2,
    )
    found.stdout.fnmatch_lines(["*was left behind: process *takes part*"])
    found.stdout.fnmatch_lines(["*was left behind: group numbers/billing is owed 1 events*"])
    assert not left()


def test_deaths(run: pytest.Pytester) -> None:
    """A process is killed where it is, or at a named line of the library; one that never comes there fails the test."""
    found = outcome(
        run,
        """
        import multiprocessing, signal, pytest, shmbus
        NUMBERS = shmbus.Topic("numbers", int)
        def publish(name, count):
            with shmbus.Bus(name) as bus, bus.publisher(NUMBERS) as publisher:
                publisher.publish_many(range(count))
        def idle(name):
            with shmbus.Bus(name) as bus, bus.subscriber(NUMBERS, name="sleeper"):
                signal.pause()
        def test_at_a_line(shmbus_bus, shmbus_kill, shmbus_books):
            audit = shmbus_bus.subscriber(NUMBERS, name="audit")
            assert shmbus_kill(publish, shmbus_bus.name, 5, at="close.shrunk") == -9
            assert len(audit.receive_many(5)) == 5
            shmbus_books()
        def test_where_it_is(shmbus_bus, shmbus_kill):
            child = multiprocessing.get_context("spawn").Process(target=idle, args=(shmbus_bus.name,))
            child.start()
            while not shmbus_bus.stats().consumers:
                pass
            assert shmbus_kill(child) == -9
            assert child.exitcode == -9
        def test_never_there(shmbus_bus, shmbus_kill):
            shmbus_kill(publish, shmbus_bus.name, 5, at="group.rings")
        def test_no_such_line(shmbus_kill):
            with pytest.raises(ValueError, match="there are segment.begun"):
                shmbus_kill(publish, "x", 5, at="nowhere")
        """,
        passed=3,
        failed=1,
    )
    found.stdout.fnmatch_lines(["*it ended before it came to 'group.rings' for the 1. time: exit code 0*"])


def test_books_that_do_not_balance(run: pytest.Pytester) -> None:
    """Books that do not balance fail the test with the terms."""
    found = outcome(
        run,
        """
        import msgspec, shmbus
        from shmbus import inspect
        NUMBERS = shmbus.Topic("numbers", int)
        def test_books(shmbus_bus, shmbus_books, monkeypatch):
            with shmbus_bus.subscriber(NUMBERS, name="audit"):
                stats = shmbus_books()
                wrong = msgspec.structs.replace(stats.consumers[0], offered=7, depth=5)
                wrong = msgspec.structs.replace(stats, consumers=(wrong,))
                monkeypatch.setattr(inspect, "stats_of", lambda bus: wrong)
                shmbus_books()
        """,
        failed=1,
    )
    found.stdout.fnmatch_lines(["*the books of numbers/audit do not balance: 7 offered, but 5 depth*"])


def test_it_loads_nothing_until_it_is_used(run: pytest.Pytester) -> None:
    """A run that uses no fixture of it loads no more of the library than the plugin."""
    outcome(
        run,
        """
        import sys
        def test_loaded():
            assert {name for name in sys.modules if name.startswith("shmbus")} == {"shmbus", "shmbus.pytest_plugin"}
        """,
        passed=1,
    )


def test_without_pytest(bus_name: str, processes: Processes) -> None:
    """What the fixtures do is there for any program: `shmbus.testing` kills, and checks books, by AssertionErrors."""
    from shmbus import testing

    topic = shmbus.Topic("numbers", int)
    with shmbus.Bus(bus_name) as bus, bus.publisher(topic) as publisher, bus.subscriber(topic, name="audit") as audit:
        publisher.publish_many(range(3))
        assert audit.receive(timeout=10) == 0
        assert testing.check_books(bus).consumers[0].depth == testing.check_books(bus_name).consumers[0].depth == 2
        child = processes.spawn("import sys; sys.stdin.read()")
        assert testing.kill(child) == child.returncode == -9
        with pytest.raises(AssertionError, match="is gone already"):
            testing.kill(child)
        with pytest.raises(TypeError, match="not 'web'"):
            testing.kill("web")
        with pytest.raises(ValueError, match="nowhere"):
            testing.kill_at("nowhere", print)
