"""Servers and daemons: a pre-fork master, its reload by exec, a double fork with all descriptors closed, PID 1."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from events import PATIENT
from support import Processes, child_environment, child_source, entries, eventually, line

import shmbus
from shmbus import Bus

JOBS = shmbus.Topic("jobs", int)


def master(name: str, life: str) -> None:
    """Opens the bus before it forks; a worker opens its own; SIGHUP execs the master anew, SIGTERM ends all."""
    import os
    import signal
    import sys

    import shmbus
    from shmbus import Bus

    jobs = shmbus.Topic("jobs", int)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP, signal.SIGTERM])
    bus = Bus(name)
    publisher = bus.publisher(jobs, name="master")
    bus.group(jobs, "workers")
    children = []
    for index in range(2):
        child = os.fork()
        if child:
            children.append(child)
            continue
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with Bus(name) as own, own.worker(jobs, group="workers", name=f"worker-{life}-{index}") as worker:
            signal.signal(signal.SIGTERM, lambda *_: worker.cancel())
            os.write(1, b"up\n")
            for job in worker:
                os.write(1, f"did {job}\n".encode())
        os._exit(0)
    told = []
    signal.signal(signal.SIGHUP, lambda *_: told.append("reload"))
    signal.signal(signal.SIGTERM, lambda *_: told.append("end"))
    os.write(1, b"master\n")
    count = 0
    while not told:
        count += 1
        publisher.publish(int(life) * 1000000 + count)
        signal.sigtimedwait([], 0.002)
    for child in children:
        os.kill(child, signal.SIGTERM)
    try:
        while True:  # all children; one that is not ours must not keep us
            pid, status = os.wait()
            assert pid in children, (pid, children)
            assert status == 0, status
    except ChildProcessError:
        os.write(1, b"no more children\n")
    if told == ["reload"]:  # as uWSGI and gunicorn do: nothing is closed, nothing runs at exit
        os.execv(sys.executable, [sys.executable, "-c", *sys.orig_argv[2:-1], str(int(life) + 1)])
    bus.close()
    os.write(1, f"published {count}\n".encode())


def test_prefork(bus_name: str, processes: Processes) -> None:
    """A pre-fork master reloads by exec under its own names, and its wait for children ends when they have."""
    server = processes.spawn(master, bus_name, 1)
    done: set[int] = set()
    for life in (1, 2, 3):
        words: list[str] = []
        while sorted(words) != ["master", "up", "up"]:
            words += [word for word in [line(server)] if not note(word, done)]
        goal = len(done) + 50
        while len(done) < goal:
            note(line(server), done)
        server.send_signal(signal.SIGHUP if life < 3 else signal.SIGTERM)
        while not (word := line(server)).startswith("no more"):
            assert note(word, done), word
    assert line(server).startswith("published")
    assert server.wait() == 0
    with Bus(bus_name, supervise=False) as bus, bus.worker(JOBS, group="workers") as worker:
        assert [p.pid for p in bus.stats().participants] == [os.getpid()]  # no life of the master is left
        rest = set(iter(worker.try_receive, None))
    everything = done | rest
    for life in (1, 2, 3):
        counts = sorted(job % 1000000 for job in everything if job // 1000000 == life)
        assert counts == list(range(1, len(counts) + 1))
    assert not done & rest


def note(word: str, done: set[int]) -> bool:
    """Whether a line of the server says that a job is done; no job is done twice, for no worker died."""
    if not word.startswith("did "):
        return False
    job = int(word.split()[1])
    assert job not in done
    done.add(job)
    return True


def daemon(name: str, closes: str) -> None:
    """The double fork of old daemons; `closes` says when all descriptors are closed."""
    import contextlib
    import logging
    import os
    import sys

    import shmbus
    from shmbus import Bus

    told = os.dup(1)
    os.set_inheritable(told, False)
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)

    def say(what: object) -> None:
        os.write(2000, f"{what}\n".encode())

    os.dup2(told, 2000)  # where neither of the two closes it
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("shmbus").addHandler(handler)
    jobs = shmbus.Topic("jobs", int)

    if closes == "before":
        os.closerange(0, 1024)
    bus = Bus(name)
    handles = bus.publisher(jobs, name="daemon"), bus.subscriber(jobs, name="daemon")
    if closes != "before":
        os.closerange(0, 1024 if closes == "after" else 3)
    say(os.getpid())
    end, event = "", 1
    try:
        while event:
            handles[0].publish(1)
            event = handles[1].receive(timeout=60)
            with contextlib.suppress(shmbus.Empty):
                while event:
                    event = handles[1].receive(timeout=0.05)
    except Exception as error:
        end = f"{type(error).__name__}: {error}"
    try:
        bus.close()
    except Exception as error:
        end += f" / close: {type(error).__name__}: {error}"
    say(f"ended by [{end}], logged {said}")
    sys.exit(0)


@pytest.mark.parametrize("closes", ["before", "standard"])
def test_daemon(bus_name: str, processes: Processes, closes: str) -> None:
    """A daemon whose descriptors 0 to 2 are closed takes part: no file of the bus is numbered below 3."""
    child = processes.spawn(daemon, bus_name, closes)
    pid = int(line(child))
    try:
        with Bus.attach(bus_name, supervise=False) as bus, bus.subscriber(JOBS) as sub:
            assert sub.receive(timeout=PATIENT) == 1
            numbers = [int(n) for n in os.listdir(f"/proc/{pid}/fd")]
            files = {n: os.readlink(f"/proc/{pid}/fd/{n}") for n in numbers if n <= 2}
            assert not [path for path in files.values() if bus_name in path], files
            for _ in range(5):
                assert sub.receive(timeout=PATIENT) == 1
            assert pid in [p.pid for p in bus.stats().participants]
            with bus.publisher(JOBS) as pub:
                pub.publish(0)
        ended = line(child)
        assert "ended by []" in ended, ended
    finally:
        kill(pid)


def test_daemon_that_closes_everything(bus_name: str, processes: Processes) -> None:
    """A process that closes the descriptor of its proof of life says so loudly, and hurts nobody."""
    with Bus(bus_name, supervise=False) as bus, bus.subscriber(JOBS) as sub, bus.publisher(JOBS) as pub:
        child = processes.spawn(daemon, bus_name, "after")
        pid = int(line(child))
        try:
            ended = line(child)  # by an error, not because it was told
            assert re.search(r"ended by \[\w+Error: .*(lives|lock|proof)", ended), ended
            assert "OSError" not in ended, ended
            pub.publish(2)
            eventually(lambda: sub.try_receive() == 2, "events of others")
            eventually(lambda: [p.pid for p in bus.stats().participants] == [os.getpid()])
            with bus.publisher(JOBS, name="daemon"):
                pass
        finally:
            kill(pid)


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def first_process(name: str) -> None:
    """As PID 1: opens and closes, then waits for all its children as a master does."""
    import os
    import threading

    import shmbus
    from shmbus import Bus

    assert os.getpid() == 1
    topic = shmbus.Topic("jobs", int)

    def zombies() -> list[str]:
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
                    text = file.read()
            except OSError:
                continue
            if text.rpartition(")")[2].split()[0] == "Z":
                found.append(text)
        return found

    for number in range(5):
        with Bus(f"{name}-{number % 2}") as bus, bus.subscriber(topic) as sub, bus.publisher(topic) as pub:
            while not bus.stats().supervisor.pid:
                pub.publish(number)
                assert sub.receive(timeout=60) == number
    while any(name in entry for entry in os.listdir("/dev/shm")):
        threading.Event().wait(0.01)
    with Bus(name) as bus, bus.subscriber(topic) as sub:
        while not bus.stats().supervisor.pid:
            threading.Event().wait(0.01)
        assert zombies() == []
        child = os.fork()
        if child == 0:
            os._exit(0)
        pids = []
        try:
            while True:
                pids.append(os.wait()[0])
        except ChildProcessError:
            pass
        print(f"children {len(pids)} {child in pids}", flush=True)


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="a PID namespace needs root and unshare(1)"
)
def test_pid_1(bus_name: str, processes: Processes) -> None:
    """As PID 1 a process keeps no zombie of a supervisor, and its wait for children ends when its own have ended."""
    enter = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*enter, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no PID namespace can be made here")
    command = [*enter, sys.executable, "-c", child_source(first_process), bus_name]
    child = processes.run(command, env=child_environment())
    assert line(child) == "children 1 True"
    assert child.wait() == 0
    eventually(lambda: not entries(bus_name))
