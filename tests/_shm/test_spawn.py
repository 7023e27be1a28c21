"""The start of a supervisor: what it begins with, and that no wait() finds it; in threads, as subreaper, as PID 1."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import Processes, child_environment, child_source, eventually, line

from shmbus import _core
from shmbus._shm import spawn

PATIENT = 60.0
MODES = ["detached", "kept"]

REPORT = """
import json, os, signal, sys, time
status = dict(row.split(":", 1) for row in open("/proc/self/status").read().splitlines())
mask = os.umask(0)
made = {
    "blocked": int(status["SigBlk"], 16),
    # Python ignores two, and posix_spawn two that the C library keeps for itself.
    "ignored": int(status["SigIgn"], 16) & ~(1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1 | 1 << 31 | 1 << 32),
    "nice": os.getpriority(os.PRIO_PROCESS, 0),
    "policy": os.sched_getscheduler(0),
    "cores": sorted(os.sched_getaffinity(0)),
    "umask": mask,
    "folder": os.getcwd(),
    "session": os.getsid(0) == os.getpid(),
    "files": {number: os.readlink(f"/proc/self/fd/{number}") for number in "012"},
    "others": [link for link in map("/proc/self/fd/{}".format, os.listdir("/proc/self/fd"))
               if link[-1] not in "012" and os.path.exists(link)],
    "argv": sys.argv[1:],
    "variable": os.environ.get("VARIABLE"),
    "parent": os.getppid(),
    "pid": os.getpid(),
}
with open(sys.argv[1] + ".part", "w") as file:
    json.dump(made, file)
os.rename(sys.argv[1] + ".part", sys.argv[1])
if "stay" in sys.argv:
    signal.pause()
"""


def start_oddly(mode: str, report: str, source: str) -> None:
    import ctypes
    import os
    import signal
    import sys

    from shmbus import _core
    from shmbus._shm import spawn

    ctypes.CDLL(None).prctl(36, 1 if mode == "kept" else 0, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    told: list[int] = []
    signal.signal(signal.SIGCHLD, lambda number, frame: told.append(number))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.nice(3)
    os.umask(0o777)
    os.set_inheritable(os.dup(1), True)
    argv = [os.fsencode(word) for word in (sys.executable, "-I", "-c", source, report)]
    gaps = spawn._gaps() if mode == "kept" else None
    keeper = _core.start_process(argv[0], argv, [b"VARIABLE=1"], gaps)
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        print("no child", (keeper > 0) == (mode == "kept"), flush=True)
    input()
    if keeper:
        print(os.waitpid(keeper, 0x40000000) == (keeper, 0))
    else:
        print(True)
    print(told)


@pytest.mark.parametrize("mode", MODES)
def test_beginning(tmp_path: Path, processes: Processes, mode: str) -> None:
    """Whatever its parent made of itself, the process begins like one from a login, and no wait() finds it."""
    report = tmp_path / "report"
    child = processes.spawn(start_oddly, mode, report, REPORT)
    assert line(child) == "no child True"
    eventually(report.exists, "the process reports")
    found: dict[str, Any] = json.loads(report.read_text())
    assert found.pop("parent") != child.pid
    assert not Path(f"/proc/{found.pop('pid')}/nothing").exists()
    assert found == {
        "blocked": 0,
        "ignored": 0,
        "nice": 0 if os.geteuid() == 0 else 3,
        "policy": os.SCHED_OTHER,
        "cores": sorted(os.sched_getaffinity(0)),
        "umask": 0o077,
        "folder": "/",
        "session": True,
        "files": dict.fromkeys("012", "/dev/null"),
        "others": [],
        "argv": [str(report)],
        "variable": "1",
    }
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()
    assert [line(child), line(child)] == ["True", "[]"]


def keep_large(report: str, source: str) -> None:
    import ctypes
    import os
    import sys

    from shmbus import _core
    from shmbus._shm import spawn
    from shmbus._shm.segment import Segment

    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    large = [bytes(100) + os.urandom(100) for _ in range(400_000)]
    segment = Segment.create(f"{os.path.basename(report)}:0:ring-1", 1 << 20, lambda memory: None)
    argv = [os.fsencode(word) for word in (sys.executable, "-I", "-c", source, report, "stay")]
    print(_core.start_process(argv[0], argv, [], spawn._gaps()), len(large), segment.size, flush=True)
    input()


def memory_of(pid: int) -> int:
    """Bytes that are this process's alone."""
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(row.split()[1]) for row in rows if row.startswith(("Private_Dirty", "Shared_Dirty"))) << 10


def test_keeper_keeps_nothing(bus_name: str, tmp_path: Path, processes: Processes) -> None:
    """A keeper lets go of the memory, segments and descriptors that it was forked with, and ends with its child."""
    report = tmp_path / f"shmbus-{bus_name}"
    child = processes.spawn(keep_large, report, REPORT)
    keeper = int(line(child).split()[0])
    eventually(report.exists, "the process reports")
    try:
        eventually(lambda: memory_of(keeper) < 8 << 20 < memory_of(child.pid), "the memory is let go")
        assert "/dev/shm" not in Path(f"/proc/{keeper}/maps").read_text()
        assert os.listdir(f"/proc/{keeper}/fd") == []
        found = json.loads(report.read_text())
        assert found["parent"] == keeper
        os.kill(found["pid"], 9)
        eventually(lambda: Path(f"/proc/{keeper}/stat").read_text().split()[2] == "Z", "the keeper ends")
    finally:
        child.kill()
        for entry in Path("/dev/shm").glob(f"shmbus-{bus_name}*"):
            entry.unlink()


@pytest.mark.parametrize("mode", MODES)
def test_what_cannot_be_executed(mode: str) -> None:
    """A program that is not there is the error of the exec, and leaves no process."""
    before, children = len(os.listdir("/proc/self/fd")), psutil.Process().children()
    with pytest.raises(FileNotFoundError):
        _core.start_process(b"/nowhere", [b"nowhere"], [], spawn._gaps() if mode == "kept" else None)
    assert set(psutil.Process().children()) <= set(children)  # other tests may have left a forkserver
    assert len(os.listdir("/proc/self/fd")) == before


def start_from_threads(mode: str, folder: str) -> None:
    import os
    import signal
    import threading

    from shmbus import _core
    from shmbus._shm import spawn

    signal.signal(signal.SIGALRM, lambda number, frame: None)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    failures: list[BaseException] = []

    def start(each: int) -> None:
        try:
            for i in range(10):
                argv = [b"/bin/sh", b"-c", b": > " + os.fsencode(f"{folder}/{each}-{i}")]
                keeper = _core.start_process(argv[0], argv, [], spawn._gaps() if mode == "kept" else None)
                if keeper:
                    os.waitpid(keeper, spawn._WALL)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=start, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(failures)


@pytest.mark.parametrize("mode", MODES)
def test_start_from_threads(tmp_path: Path, processes: Processes, mode: str) -> None:
    """Eight threads start processes at once while signals come a thousand times a second, and all of them run."""
    assert line(processes.spawn(start_from_threads, mode, tmp_path)) == "[]"
    eventually(lambda: len(list(tmp_path.iterdir())) == 80, "every process has run")


def start_without_processes() -> None:
    import os
    import resource

    from shmbus._shm import spawn
    from shmbus.errors import ResourceLimitError

    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    os.setuid(54321)
    try:
        spawn.spawn_supervisor("nothing")
    except ResourceLimitError as error:
        print(error.limit, error.value, "ulimit -u" in str(error), isinstance(error, OSError))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user with no other process")
def test_limit_of_processes(processes: Processes) -> None:
    """Where no process can be started the error names the limit, its value, and what to do."""
    assert line(processes.spawn(start_without_processes)) == "RLIMIT_NPROC 1 True True"


@pytest.mark.parametrize(
    ("executable", "frozen", "words"),
    [
        (sys.executable, False, None),
        ("", False, "embedded"),
        (None, False, "embedded"),
        ("/usr/bin/uwsgi", False, "no Python"),
        ("/nowhere/python3", False, "not there"),
        (sys.executable, True, "frozen"),
    ],
)
def test_who_cannot_spawn(
    monkeypatch: pytest.MonkeyPatch, executable: str | None, frozen: bool, words: str | None
) -> None:
    """A frozen application and an embedded interpreter start nothing, and say why."""
    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr(sys, "frozen", frozen, raising=False)
    reason = spawn.can_spawn()
    assert reason is None if words is None else words in (reason or "")


def open_and_close(name: str) -> None:
    import os
    import signal
    import time

    import shmbus
    from shmbus import _core

    told: list[int] = []
    signal.signal(signal.SIGCHLD, lambda number, frame: told.append(number))
    topic = shmbus.Topic("t", int)
    for cycle in range(20):
        with shmbus.Bus(f"{name}-{cycle % 3}") as bus, bus.subscriber(topic) as sub, bus.publisher(topic) as pub:
            while not bus.stats().supervisor.pid:
                time.sleep(0.005)  # not a wait: the interval of a poll
            pub.publish(cycle)
            assert sub.receive(timeout=30) == cycle
    states = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii") as file:
                fields = file.read().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended, and is nobody's zombie
        if int(fields[1]) == os.getpid():
            states.append(fields[0])
    print(_core.adopts_orphans(), states, told)


def wait_for_own_children(name: str) -> None:
    import os

    import shmbus

    with shmbus.Bus(name) as bus:
        while not bus.stats().supervisor.pid:
            os.sched_yield()
        children = set()
        for _ in range(3):
            child = os.fork()
            if child == 0:
                os._exit(0)
            children.add(child)
        reaped = set()
        try:
            while True:
                reaped.add(os.wait()[0])
        except ChildProcessError:
            print(reaped == children, bool(bus.stats().supervisor.pid))


def as_subreaper(source: str) -> list[str]:
    prefix = "import ctypes\nctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\n"
    return [sys.executable, "-c", source.replace("import sys\n", f"import sys\n{prefix}", 1)]


def as_pid_1(source: str) -> list[str]:
    return ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", source]


BOXES = {"subreaper": as_subreaper, "PID 1": as_pid_1}


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize(
    ("what", "expected"),
    [(open_and_close, "True [] []"), (wait_for_own_children, "True True")],
    ids=["cycles", "prefork"],
)
def test_where_orphans_come_back(bus_name: str, processes: Processes, box: str, what: Any, expected: str) -> None:
    """As PID 1 and as a subreaper no zombie of a supervisor stays, and wait() waits for one's own children alone."""
    if box == "PID 1" and (os.geteuid() != 0 or shutil.which("unshare") is None):
        pytest.skip("needs root and unshare, for a PID namespace")
    child = processes.run([*BOXES[box](child_source(what)), bus_name], env=child_environment())
    assert line(child) == expected
    assert child.wait(PATIENT) == 0


def test_supervisor_is_no_child(bus_name: str, processes: Processes) -> None:
    """In an ordinary process, too, wait() ends when the application's own children have ended."""
    child = processes.spawn(wait_for_own_children, bus_name, stderr=subprocess.PIPE)
    assert line(child) == "True True"
