"""The watch: every death is reported once, by pidfd or by looking, and nothing else is."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest
from support import Processes, eventually, line

from shmbus._shm import segment
from shmbus._shm.lives import Lives
from shmbus._shm.watch import Watch

PATIENT = 60.0


@pytest.fixture
def lives(bus_name: str) -> Iterator[Lives]:
    name = f"shmbus-{bus_name}:lives"
    found = Lives.open(name, create=True)
    yield found
    found.close()
    segment.unlink(name)


@pytest.fixture(params=["pidfd", "look"])
def watch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, lives: Lives) -> Iterator[Watch]:
    """A watch, by pidfds and as on a kernel that has none."""
    if request.param == "look":
        monkeypatch.delattr(os, "pidfd_open")
    with Watch(lives) as found:
        yield found


def live(name: str, life: str) -> None:
    import sys

    from shmbus._shm.lives import Lives

    Lives.open(name).begin(int(life))
    print("living")
    sys.stdin.read()


def born(processes: Processes, lives: Lives, life: int) -> subprocess.Popen[str]:
    child = processes.spawn(live, lives.name, life)
    assert line(child) == "living"
    return child


def kill_unreaped(child: subprocess.Popen[str]) -> None:
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)


def test_each_death_is_reported_once(watch: Watch, lives: Lives, processes: Processes) -> None:
    """Exactly the processes that died are reported, zombies too, and once; no descriptor stays."""
    before = len(os.listdir("/proc/self/fd"))
    children = [born(processes, lives, life) for life in (1, 2, 3)]
    assert watch.watch({1, 2, 3}) == []
    assert watch.watch({1, 2, 3}) == []
    assert watch.poll(0) == ([], [])
    kill_unreaped(children[0])
    kill_unreaped(children[2])
    dead: list[int] = []
    while len(dead) < 2:
        dead += watch.poll(PATIENT)[0]
    assert sorted(dead) == [1, 3]
    assert watch.poll(0) == ([], [])
    assert watch.watch({1, 2}) == [1]
    watch.close()
    watch.close()
    assert len(os.listdir("/proc/self/fd")) == before + 6  # stdin and stdout of three children


def test_the_dead_are_not_watched(watch: Watch) -> None:
    """Of lives that nobody holds it is told at once."""
    assert watch.watch({5, 6}) in ([5, 6], [6, 5])
    assert watch.poll(0) == ([], [])


def test_descriptors_end_the_wait(watch: Watch, lives: Lives, processes: Processes) -> None:
    """Descriptors that become readable end the wait, while nobody dies."""
    born(processes, lives, 1)
    reader, writer = os.pipe()
    watch.watch({1})
    assert watch.poll(0.01, [reader]) == ([], [])
    os.write(writer, b"x")
    assert watch.poll(PATIENT, [reader]) == ([], [reader])
    assert watch.poll(0) == ([], [])
    os.close(reader)
    os.close(writer)


def test_who_is_left_out_dies_unreported(watch: Watch, lives: Lives, processes: Processes) -> None:
    """A process that is no longer watched dies unreported."""
    child = born(processes, lives, 1)
    watch.watch({1})
    watch.watch(set())
    kill_unreaped(child)
    assert watch.poll(0) == ([], [])


def lose_it(name: str) -> None:
    import os
    import sys

    from shmbus._shm.lives import Lives

    Lives.open(name).begin(1)
    print("living")
    sys.stdin.readline()
    os.closerange(3, 1000)
    print("lost")
    sys.stdin.read()


def test_a_lost_life_is_told_of_the_living(watch: Watch, lives: Lives, processes: Processes) -> None:
    """A process that lives and has lost its life is told at the first watch after a check."""
    child = processes.spawn(lose_it, lives.name)
    assert line(child) == "living"
    assert watch.watch({1}) == []
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()
    assert line(child) == "lost"

    def told() -> bool:
        watch.check()
        return watch.watch({1}) == [1]

    eventually(told, "it is told")
    assert child.poll() is None
