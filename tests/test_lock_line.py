"""The line before the bus lock, as those who stand in for a supervisor meet it."""

from __future__ import annotations

import signal
from contextlib import suppress

from events import SMALL as ORDERS
from events import Order
from support import Processes, eventually, line

import shmbus
from shmbus import Bus, _core
from shmbus._shm import processes as told


def queue_for_the_lock(name: str) -> None:
    import sys

    import shmbus

    with shmbus.Bus(name, supervise=False) as bus:
        print("ready", flush=True)
        sys.stdin.readline()
        with bus._session.locked():
            pass


def be_an_unsupervised_victim(name: str) -> None:
    import sys

    from events import SMALL as ORDERS

    import shmbus

    with shmbus.Bus(name, supervise=False) as bus, bus.subscriber(ORDERS):
        print("ready", flush=True)
        sys.stdin.read()


def test_who_is_stopped_in_line_keeps_nobody_from_reclaiming(bus_name: str, processes: Processes) -> None:
    """Where no supervisor is, and somebody is stopped in line for the lock, who waits still reclaims the dead."""
    with Bus(bus_name, supervise=False) as bus:
        queued = processes.spawn(queue_for_the_lock, bus_name)
        victim = processes.spawn(be_an_unsupervised_victim, bus_name)
        assert line(queued) == line(victim) == "ready"
        words = bus._session.registry.lives._words()
        with bus.publisher(ORDERS, on_full="raise") as publisher:

            def published() -> bool:
                with suppress(shmbus.Full):
                    publisher.publish(Order(1))
                    return True
                return False

            while published():
                pass
            with bus._session.locked():
                before = _core.load(words, _core.LIVES_TICKETS)
                queued.stdin.write("\n")  # type: ignore[union-attr]
                queued.stdin.flush()  # type: ignore[union-attr]
                eventually(lambda: _core.load(words, _core.LIVES_TICKETS) > before, "it stands in line")
                queued.send_signal(signal.SIGSTOP)
            eventually(lambda: told.stopped(queued.pid), "it stands still")
            victim.kill()
            victim.wait()
            eventually(published, "it has room again")
        queued.send_signal(signal.SIGCONT)
        assert queued.wait(30.0) == 0
