"""Part of lives.py: three containers of one pod that share /dev/shm, and are killed as a whole under load.

A container is a PID namespace of its own with a /proc of its own; its first process forks a publisher, a reliable and a
lossy subscriber, and a worker, as `kill_campaign.py` has them. SIGKILL takes all of it at once, the supervisor that one
of its processes started included; then it is started again, with the same names. At each look the books balance, the
other containers go on, and at the end all that any life committed was received and worked on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import kill_audit
import kill_campaign
from lives_base import Child, in_namespaces, lives, require

import shmbus

CONTAINER = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
MOUNT = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
RUNS = ("publisher", "subscriber", "lossy", "worker")
COUNT = 3
A_LAP = 200 * kill_audit.SEEN.size
"""Bytes of notes about more events than a ring has room for: nobody writes that many past a dead consumer."""


def containers(bus: str, *, short: bool) -> str:
    return in_namespaces(["--mount"], MOUNT, "pod", bus, "5" if short else "200")


def pod(bus: str, kills: str) -> str:
    with tempfile.TemporaryDirectory(prefix="shmbus-pod-") as folder:
        campaign = Pod(bus, int(kills), folder)
        try:
            campaign.run()
        except BaseException:
            campaign.clean()
            raise
        left = os.listdir("/dev/shm")
        require(not left, "left in /dev/shm:", left)
        slowest, restart = max(campaign.pauses), max(campaign.restarts)
        return (
            f"{kills} containers killed and started again, {campaign.lives} lives, {campaign.looks} looks at the "
            f"books; the others all went on within {slowest:.1f} s, the killed one was up again within {restart:.1f} s"
        )


class Pod(kill_campaign.Campaign):
    """The campaign, with containers in place of processes."""

    def __init__(self, bus: str, kills: int, folder: str) -> None:
        super().__init__(kills, os.getpid(), ["container"], folder)
        self.bus = bus
        self.containers: dict[int, tuple[Child, int]] = {}
        self.pauses: list[float] = [0.0]
        self.restarts: list[float] = [0.0]

    def run(self) -> None:
        with shmbus.Bus(self.bus) as bus:
            bus.group(kill_campaign.TOPIC, "pool")
            self.start("auditor", 0)
            self.wait(lambda: self.is_open(self.lives), "the auditor's start")
            for index in range(COUNT):
                self.start_container(index)
            for index in range(COUNT):
                self.wait_until_up(index)
            while self.killed["container"] < self.kills:
                self.kill_container(bus)
            self.finish(bus)
        self.check_nothing_left()

    def start_container(self, index: int) -> None:
        first = self.lives + 1
        self.lives += len(RUNS)
        command = [*CONTAINER, *lives("container", self.bus, self.folder, str(first), str(index))]
        self.containers[index] = Child.program(command), first

    def wait_until_up(self, index: int) -> None:
        child, first = self.containers[index]

        def up() -> bool:
            self.check_alive(index)
            return all(self.is_open(first + n) for n in range(len(RUNS)))

        self.wait(up, f"the start of container {index} ({child.pid})")

    def check_alive(self, index: int) -> None:
        child, _ = self.containers[index]
        if os.waitpid(child.pid, os.WNOHANG)[0]:
            child.status = -1
            raise AssertionError(f"container {index} ended by itself, or could not start")

    def sizes(self, index: int) -> list[int]:
        """Bytes that each life of a container has written down: they grow while it publishes and receives."""
        _, first = self.containers[index]
        return [os.stat(f"{self.folder}/{role}-{first + n}").st_size for n, role in enumerate(RUNS)]

    def kill_container(self, bus: shmbus.Bus) -> None:
        index = self.chance.randrange(COUNT)
        time.sleep(self.chance.expovariate(1 / 0.2))  # not a wait: the moment of the kill
        child, _ = self.containers[index]
        self.check_alive(index)
        child.kill()
        child.end()
        killed = time.monotonic()
        before = {other: self.sizes(other) for other in range(COUNT) if other != index}
        self.killed["container"] += 1
        late = self.chance.random() < 0.3  # the place stays empty for a while
        if not late:
            self.start_container(index)

        def go_on() -> bool:
            for other in list(before):
                self.check_alive(other)
                if all(new > old + A_LAP for new, old in zip(self.sizes(other), before[other], strict=True)):
                    del before[other]
            return not before

        self.wait(go_on, "going on of the other containers", lambda: kill_campaign.describe(bus.stats()))
        self.pauses.append(time.monotonic() - killed)
        self.check_books(bus.stats())
        started = killed
        if late:
            started = time.monotonic()
            self.start_container(index)
        self.wait_until_up(index)
        self.restarts.append(time.monotonic() - started)
        self.check_books(bus.stats())

    def stop(self, role: str) -> None:
        """Publishers first, by a signal of their own; then, with the workers, all that is in the containers."""
        if role == "publisher":
            for child, _ in self.containers.values():
                os.kill(first_process(child.pid), signal.SIGUSR1)
            for child, _ in self.containers.values():
                require(child.line() == "publisher ended 0", "the end of a publisher")
        elif role == "worker":
            for child, _ in self.containers.values():
                os.kill(first_process(child.pid), signal.SIGTERM)
            for index, (child, _) in self.containers.items():
                require(child.end() == 0, f"container {index} ended with {child.status}")
        elif role == "auditor":
            super().stop(role)

    def clean(self) -> None:
        for child, _ in self.containers.values():
            if child.status is None:
                child.kill()
        super().clean()


def first_process(unshare: int) -> int:
    """The first process of a container, as its unshare(1) outside has it."""
    (pid,) = map(int, Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split())
    return pid


def container(bus: str, folder: str, first: str, index: str) -> None:
    """PID 1: starts the four, passes signals on, reaps whatever ends, and fails if one of the four does."""
    require(os.getpid() == 1, "a container has a PID namespace of its own")
    children: dict[int, str] = {}
    for number, role in enumerate(RUNS):
        children[fork(kill_campaign.RUN[role], bus, folder, int(first) + number, int(index))] = role

    def pass_on(number: int, frame: object) -> None:
        for pid, role in children.items():
            if number == signal.SIGTERM or role == "publisher":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGUSR1, pass_on)
    while children:
        pid, status = os.wait()  # a supervisor's first process among them
        role = children.pop(pid, "")
        if role:
            print(f"{role} ended {os.waitstatus_to_exitcode(status)}", flush=True)
            require(status == 0, f"{role} ended by itself")


def fork(run: object, *arguments: object) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        run(*arguments)  # type: ignore[operator]
        code = 0
    finally:
        sys.stdout.flush()
        os._exit(code)
