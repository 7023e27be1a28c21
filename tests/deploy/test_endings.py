"""How processes end while others stand still: at exit with many handles, by signals, beside a stopped lock holder."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any

import pytest
from events import ORDERS, PATIENT, Order, assert_balanced, drain
from support import Processes, eventually, line

from shmbus import Bus


def holder(name: str) -> None:
    """Stops itself while it holds the bus lock."""
    import os
    import signal

    from shmbus import Bus

    bus = Bus(name, supervise=False)
    with bus._session.locked():
        print("holds", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    print("goes on", flush=True)
    bus.close()


def many(name: str, way: str) -> None:
    """Has 64 handles and then ends, told by a line."""
    import contextlib
    import os
    import signal
    import sys

    from events import ORDERS

    from shmbus import Bus

    bus = Bus(name, supervise=False)
    handles: list[Any] = []
    for _ in range(20):
        handles += [bus.publisher(ORDERS), bus.subscriber(ORDERS), bus.worker(ORDERS, group="pool")]
    handles += [Bus(name, supervise=False) for _ in range(4)]
    if way == "SIGTERM":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    print("open", flush=True)
    sys.stdin.readline()
    if way == "with":
        with contextlib.ExitStack() as stack:
            for handle in handles:
                stack.callback(handle.close)
            stack.callback(bus.close)
    elif way == "SIGTERM":
        os.kill(os.getpid(), signal.SIGTERM)
    elif way == "error":
        raise ValueError("on purpose")


@pytest.mark.parametrize(("way", "code"), [("exit", 0), ("with", 0), ("SIGTERM", 7), ("error", 1)])
def test_exit_beside_a_stopped_holder(bus_name: str, processes: Processes, way: str, code: int) -> None:
    """A process with 64 handles ends while another stands still with the bus lock, and nothing of it stays."""
    with Bus(bus_name, supervise=False) as bus:
        child = processes.spawn(many, bus_name, way, stderr=subprocess.PIPE)
        assert line(child) == "open"
        stopped = processes.spawn(holder, bus_name)
        assert line(stopped) == "holds"
        eventually(lambda: state(stopped.pid) == "T")
        _, errors = child.communicate("go\n", timeout=PATIENT)  # a wait of seconds a handle takes longer
        assert child.returncode == code, errors
        assert ("on purpose" in errors) == (way == "error"), errors
        assert way == "error" or not errors, errors
        stopped.send_signal(signal.SIGCONT)
        assert line(stopped) == "goes on"
        assert stopped.wait() == 0

        def alone() -> bool:
            Bus(bus_name, supervise=False).close()  # finds what is left of the dead
            return [p.pid for p in bus.stats().participants] == [os.getpid()]

        eventually(alone)
        assert_balanced(bus.stats())


def state(pid: int) -> str:
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return file.read().rpartition(")")[2].split()[0]


def test_others_go_on_beside_a_stopped_holder(bus_name: str, processes: Processes) -> None:
    """While a process stands still with the bus lock, events flow between those that are there."""
    with Bus(bus_name, supervise=False) as bus, bus.publisher(ORDERS) as publisher, bus.subscriber(ORDERS) as sub:
        worker = bus.worker(ORDERS, group="pool")
        stopped = processes.spawn(holder, bus_name)
        assert line(stopped) == "holds"
        eventually(lambda: state(stopped.pid) == "T")
        for count in range(2000):
            publisher.publish(Order(count))
            assert sub.receive(timeout=PATIENT) == worker.receive(timeout=PATIENT) == Order(count)
        assert bus.stats().participants
        stopped.kill()
        stopped.wait()
        bus.group(ORDERS, "other")  # the kernel has taken the lock from the dead
        with bus.worker(ORDERS, group="other") as other:
            publisher.publish(Order(1))
            assert other.receive(timeout=PATIENT) == Order(1)
            other.ack()
        worker.receive(timeout=PATIENT)
        worker.ack()


def role(name: str, what: str) -> None:
    """Serves in one role for ever, with default handlers of signals."""
    import sys

    from events import ORDERS, Order

    from shmbus import Bus

    bus = Bus(name, supervise=False)
    print("serves", flush=True)
    if what == "publisher":
        publisher = bus.publisher(ORDERS)
        while True:
            publisher.publish(Order(1))
    elif what == "supervisor":
        bus.close()
        from shmbus.supervisor import run

        sys.exit(run(name, foreground=True))
    receiver = bus.subscriber(ORDERS) if what == "subscriber" else bus.worker(ORDERS, group="pool")
    for _ in receiver:
        pass


@pytest.mark.parametrize("what", ["publisher", "subscriber", "worker", "supervisor"])
def test_default_sigterm(bus_name: str, processes: Processes, what: str) -> None:
    """SIGTERM without a handler ends each role like a kill: whoever waits reclaims it, the books balance."""
    with Bus(bus_name, supervise=False) as bus, bus.publisher(ORDERS) as publisher, bus.subscriber(ORDERS) as sub:
        child = processes.spawn(role, bus_name, what)
        assert line(child) == "serves"
        if what == "publisher":
            sub.receive(timeout=PATIENT)
        elif what == "supervisor":
            eventually(lambda: bus.stats().supervisor.pid == child.pid)
        for count in range(100):
            publisher.publish(Order(count))
        child.terminate()
        assert child.wait() == (0 if what == "supervisor" else -signal.SIGTERM)

        def alone() -> bool:
            drain(sub)
            Bus(bus_name, supervise=False).close()
            return [p.pid for p in bus.stats().participants] == [os.getpid()]

        eventually(alone)
        assert_balanced(bus.stats())
        with bus.worker(ORDERS, group="pool") as worker:
            drain(worker)
