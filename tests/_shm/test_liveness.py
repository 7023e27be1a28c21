"""Liveness: start times, zombies, a watch that reports each death once, locks that end with their holder."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import psutil
import pytest
from support import Processes, eventually, line

from shmbus._shm import lives, segment
from shmbus._shm.lives import Watch
from shmbus._shm.segment import FileLock, Segment

PATIENT = 60.0


def wait_for_end() -> None:
    import sys

    print("ready")
    sys.stdin.read()


def started(processes: Processes) -> tuple[subprocess.Popen[str], int, int]:
    """A child that lives until its stdin ends, its pid and its start time."""
    child = processes.spawn(wait_for_end)
    assert line(child) == "ready"
    start = lives.start_time(child.pid)
    assert start is not None
    return child, child.pid, start


def kill_unreaped(child: subprocess.Popen[str]) -> None:
    """Kill the child and wait until it is dead, but leave the zombie."""
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)


def test_start_times_tell_processes_apart(processes: Processes) -> None:
    """A process is alive with its own start time and with no other."""
    _, pid, start = started(processes)
    assert lives.start_time(os.getpid()) == lives.own_start_time() <= start
    assert lives.alive(pid, start)
    assert not lives.alive(pid, start - 1)
    assert not lives.alive(pid, start + 1)


def rename_itself() -> None:
    import sys
    from pathlib import Path

    Path("/proc/self/comm").write_text(") Z (1 2) X", encoding="ascii")
    print("renamed")
    sys.stdin.read()


def test_names_do_not_confuse_the_parser(processes: Processes) -> None:
    """Parentheses and spaces in the name of a process change neither its start time nor its state."""
    child = processes.spawn(rename_itself)
    assert line(child) == "renamed"
    start = lives.start_time(child.pid)
    assert start is not None
    assert start >= lives.own_start_time()
    assert lives.alive(child.pid, start)


def test_zombies_are_dead(processes: Processes) -> None:
    """A dead process that nobody has waited for is dead, and one that was waited for has no start time."""
    child, pid, start = started(processes)
    kill_unreaped(child)
    assert lives.start_time(pid) == start
    assert not lives.alive(pid, start)
    child.wait()
    assert lives.start_time(pid) is None
    assert not lives.alive(pid, start)


def end_main_thread() -> None:
    import ctypes
    import platform
    import sys
    import threading

    def live_on() -> None:
        print("on")
        sys.stdin.read()

    threading.Thread(target=live_on).start()
    exit_this_thread = {"x86_64": 60, "aarch64": 93}[platform.machine()]
    ctypes.CDLL(None).syscall(exit_this_thread, 0)


def test_ended_main_thread_is_no_death(processes: Processes) -> None:
    """A process whose main thread has ended lives as long as another thread of it runs."""
    child = processes.spawn(end_main_thread)
    assert line(child) == "on"
    start = lives.start_time(child.pid)
    assert start is not None

    def state() -> str:
        with open(f"/proc/{child.pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0]

    eventually(lambda: state() == "Z", "the main thread ends")
    assert lives.alive(child.pid, start)
    with Watch() as watch:
        assert watch.add(child.pid, start)
        assert watch.poll(0) == ([], [])
        child.kill()
        assert watch.poll(PATIENT) == ([(child.pid, start)], [])
    assert not lives.alive(child.pid, start)


def compare_start_of_fork() -> None:
    import os
    import time

    from shmbus._shm import lives

    mine = lives.own_start_time()
    while time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK") < mine + 2:
        os.sched_yield()  # until a fork begins at another tick
    child = os.fork()
    if child == 0:
        own = lives.own_start_time()
        os._exit(not (own == lives.start_time(os.getpid()) and own > mine))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def test_own_start_time_after_fork(processes: Processes) -> None:
    """A forked child learns its own start time, not that of its parent."""
    assert line(processes.spawn(compare_start_of_fork)) == "0"


def print_identity() -> None:
    from shmbus._shm import lives

    print(lives.boot_id().hex(), lives.pid_namespace())


def test_processes_of_one_host_agree(processes: Processes) -> None:
    """Two processes see the same boot, 16 bytes, and the same PID namespace."""
    assert len(lives.boot_id()) == 16
    said = line(processes.spawn(print_identity))
    assert said == f"{lives.boot_id().hex()} {lives.pid_namespace()}"


def test_descriptions_are_short(processes: Processes) -> None:
    """A process is described by its command on one line of at most 60 characters, a dead one by nothing."""
    child, pid, _ = started(processes)
    text = lives.describe(pid)
    assert text.startswith("python")
    assert len(text) == 60
    assert text.isprintable()
    kill_unreaped(child)
    assert lives.describe(pid) == ""
    child.wait()
    assert lives.describe(pid) == ""


def test_health_is_told(processes: Processes) -> None:
    """A process held by SIGSTOP is stopped and alive, one that runs is ok, one that is gone is dead."""
    child, pid, start = started(processes)
    assert lives.health(pid, start) == "ok"
    child.send_signal(signal.SIGSTOP)
    eventually(lambda: lives.health(pid, start) == "stopped", "the child stops")
    assert lives.alive(pid, start)
    child.send_signal(signal.SIGCONT)
    eventually(lambda: lives.health(pid, start) == "ok", "the child goes on")
    child.kill()
    child.wait()
    assert lives.health(pid, start) == "dead"


@pytest.fixture(params=["pidfd", "look"])
def watch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Watch:
    """A watch, by pidfds and as on a kernel that has none; every test closes it and so looks for leaks."""
    if request.param == "look":
        monkeypatch.delattr(os, "pidfd_open")
    return Watch()


def test_watch_reports_each_death_once(watch: Watch, processes: Processes) -> None:
    """Exactly the processes that died are reported, zombies too, and once."""
    before = len(os.listdir("/proc/self/fd"))
    children = [started(processes) for _ in range(3)]
    keys = [(pid, start) for _, pid, start in children]
    assert all(watch.add(*key) for key in keys + keys)
    assert watch.poll(0) == ([], [])
    kill_unreaped(children[0][0])
    kill_unreaped(children[2][0])
    dead: list[tuple[int, int]] = []
    while len(dead) < 2:
        dead += watch.poll(PATIENT)[0]
    assert sorted(dead) == sorted([keys[0], keys[2]])
    assert watch.poll(0) == ([], [])
    assert not watch.add(*keys[0])
    watch.close()
    watch.close()
    assert len(os.listdir("/proc/self/fd")) == before + 6  # stdin and stdout of three children


def test_watch_refuses_a_reused_pid(watch: Watch, processes: Processes) -> None:
    """A process that began at another time than the one meant is not watched, nor is one that is gone."""
    child, pid, start = started(processes)
    with watch:
        assert not watch.add(pid, start - 1)
        child.kill()
        child.wait()
        assert not watch.add(pid, start)
        assert watch.poll(0) == ([], [])


def test_watch_waits_for_descriptors_too(watch: Watch, processes: Processes) -> None:
    """Descriptors that become readable end the wait, while nobody dies."""
    _, pid, start = started(processes)
    reader, writer = os.pipe()
    with watch:
        assert watch.add(pid, start)
        assert watch.poll(0.01, [reader]) == ([], [])
        os.write(writer, b"x")
        assert watch.poll(None, [reader]) == ([], [reader])
        assert watch.poll(0) == ([], [])
    os.close(reader)
    os.close(writer)


def test_watch_forgets_what_is_removed(watch: Watch, processes: Processes) -> None:
    """A process that is no longer watched dies unreported."""
    child, pid, start = started(processes)
    with watch:
        assert watch.add(pid, start)
        watch.remove(pid, start)
        watch.remove(pid, start)
        kill_unreaped(child)
        assert watch.poll(0) == ([], [])


def watch_without_descriptors(pid: str, start: str) -> None:
    import resource
    import sys

    from shmbus._shm.lives import Watch

    watch = Watch()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    print(watch.add(int(pid), int(start)), watch.poll(0))
    sys.stdin.readline()
    print(watch.poll(0.01))
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    print(watch.poll(60))


def test_watch_without_descriptors(processes: Processes) -> None:
    """Who cannot be looked at for want of descriptors counts as alive, and its death is seen later."""
    child, pid, start = started(processes)
    watcher = processes.spawn(watch_without_descriptors, pid, start)
    assert line(watcher) == "True ([], [])"
    kill_unreaped(child)
    assert watcher.stdin is not None
    watcher.stdin.write("dead\n")
    watcher.stdin.flush()
    assert line(watcher) == "([], [])"
    assert line(watcher) == f"([({pid}, {start})], [])"


@pytest.fixture
def file(bus_name: str) -> Iterator[str]:
    """The name of a file to lock."""
    name = f"shmbus-{bus_name}"
    Segment.create(name, 4096, lambda memory: None).close()
    yield name
    segment.unlink(name)


def nobody() -> str:
    return "nobody"


def hold(name: str) -> None:
    import sys

    from shmbus._shm.segment import FileLock

    with FileLock(name).held(60, lambda: "?"):
        print("held")
        sys.stdin.read()


def test_lock_is_freed_by_sigkill(file: str, processes: Processes) -> None:
    """The kernel frees the lock of a process that is killed."""
    child = processes.spawn(hold, file)
    assert line(child) == "held"
    lock = FileLock(file)
    assert not lock.try_acquire()
    child.kill()
    lock.acquire(PATIENT, nobody)
    lock.release()


def hold_and_fork(name: str) -> None:
    import os
    import sys

    from shmbus._shm.segment import FileLock

    lock, again = FileLock(name), FileLock(name)
    lock.acquire(60, lambda: "?")
    child = os.fork()
    if child == 0:
        lock.release()  # not its own: must do nothing
        os.write(1, f"free in child: {again.try_acquire()} {lock.try_acquire()}\n".encode())
    else:
        os.write(1, f"{child}\n".encode())
    sys.stdin.read()
    os._exit(0)


def test_forked_child_has_no_part_in_the_lock(file: str, processes: Processes) -> None:
    """A child forked under the lock neither frees it while its parent lives nor keeps it afterwards."""
    parent = processes.spawn(hold_and_fork, file)
    said = {line(parent), line(parent)}
    assert "free in child: False False" in said
    (child,) = (int(text) for text in said if text.isdigit())
    lock = FileLock(file)
    assert not lock.try_acquire()
    parent.kill()
    lock.acquire(PATIENT, nobody)
    assert psutil.pid_exists(child)
    lock.release()
    assert parent.stdin is not None
    parent.stdin.close()
    eventually(lambda: not psutil.pid_exists(child), "the forked child ends")


def fork_beside_locking(name: str) -> None:
    import os
    import threading

    from shmbus._shm.segment import FileLock

    lock = FileLock(name)
    done = threading.Event()

    def lock_often() -> None:
        while not done.is_set():
            with lock.held(60, lambda: "?"):
                pass

    thread = threading.Thread(target=lock_often)
    thread.start()
    bad = 0
    for _ in range(200):
        child = os.fork()
        if child == 0:
            paths = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
            targets = [os.readlink(path) for path in paths if os.path.lexists(path)]
            os._exit(any(name in target for target in targets))
        bad += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    done.set()
    thread.join()
    print(bad)


def test_fork_at_any_moment_leaves_no_descriptor(file: str, processes: Processes) -> None:
    """However a fork falls into another thread's locking, the child has no descriptor of the lock's file."""
    assert line(processes.spawn(fork_beside_locking, file)) == "0"
