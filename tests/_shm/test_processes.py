"""What is told of processes: command lines, namespaces, who is stopped."""

from __future__ import annotations

import os
import signal
import sys

from support import Processes, eventually, line

from shmbus._shm import processes as told


def wait_for_end() -> None:
    import sys

    print("ready")
    sys.stdin.read()


def test_descriptions_are_short(processes: Processes) -> None:
    """A process is described by its command on one line of at most 60 characters, a dead one by nothing."""
    child = processes.spawn(wait_for_end)
    assert line(child) == "ready"
    text = told.describe(child.pid)
    assert text.startswith("python")
    assert len(text) == 60
    assert text.isprintable()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert told.describe(child.pid) in ("", os.path.basename(sys.executable))  # a zombie keeps its name
    child.wait()
    assert told.describe(child.pid) == ""


def test_own_description_needs_no_proc() -> None:
    """A process describes itself by how it was started."""
    assert told.own_description().split()[0] == os.path.basename(sys.orig_argv[0])


def rename_itself() -> None:
    import sys
    from pathlib import Path

    Path("/proc/self/comm").write_text(") T (1 2) T", encoding="ascii")
    print("renamed")
    sys.stdin.read()


def test_stopped_is_told(processes: Processes) -> None:
    """A process that SIGSTOP holds is stopped, whatever its name looks like; one that runs or is gone is not."""
    child = processes.spawn(rename_itself)
    assert line(child) == "renamed"
    assert not told.stopped(child.pid)
    child.send_signal(signal.SIGSTOP)
    eventually(lambda: told.stopped(child.pid), "the child stops")
    child.send_signal(signal.SIGCONT)
    eventually(lambda: not told.stopped(child.pid), "the child goes on")
    child.kill()
    child.wait()
    assert not told.stopped(child.pid)


def print_identity() -> None:
    from shmbus._shm import processes

    print(processes.boot_id().hex(), processes.pid_namespace())


def test_processes_of_one_host_agree(processes: Processes) -> None:
    """Two processes see the same boot, 16 bytes, and the same PID namespace."""
    assert len(told.boot_id()) == 16
    assert line(processes.spawn(print_identity)) == f"{told.boot_id().hex()} {told.pid_namespace()}"
