"""A file of a bus that is not what it should be: somebody truncated it, or put something else there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from events import ORDERS, PATIENT, RAW, Order, opened
from support import SHM, Processes, eventually, line

import shmbus
from shmbus import _core, inspect
from shmbus._shm.names import object_prefix

WAYS = {
    "empty": lambda path: path.touch(),
    "junk": lambda path: path.write_bytes(b"?" * 20000),
    "link": lambda path: path.symlink_to("/dev/null"),
}


def hold_an_event(name: str) -> None:
    import os
    import signal

    from events import RAW

    import shmbus

    with shmbus.Bus(name, supervise=False) as bus, bus.worker(RAW, group="pool", ack_within=0.5) as worker:
        worker.receive()
        print("holding", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)


def serve(name: str) -> None:
    import sys

    from shmbus import supervisor

    sys.exit(supervisor.run(name, foreground=True))


@pytest.mark.parametrize("how", list(WAYS))
def test_a_spoilt_ring_keeps_a_supervisor_from_nothing_else(bus_name: str, processes: Processes, how: str) -> None:
    """Whatever lies in the place of one topic's ring: of another topic's, what is held for too long goes to others, and
    who is stalled is said to be.
    """
    with opened(bus_name, stall_timeout=0.2) as bus, bus.publisher(ORDERS, name="spoilt") as spoilt:
        spoilt.publish(Order(1))
        path = Path(SHM, f"{object_prefix(bus_name)}ring-{bus._session.registry.read().rings[0].id}")
        path.unlink()
        WAYS[how](path)
        with bus.subscriber(RAW, name="slow"), bus.publisher(RAW) as publisher:
            bus.group(RAW, "pool")
            publisher.publish(b"event")
            holder = processes.spawn(hold_an_event, bus_name)
            assert line(holder) == "holding"
            processes.spawn(serve, bus_name)
            eventually(lambda: _core.load(bus._session.map, _core.BUS_SUPERVISOR_LIFE), "a supervisor is in office")
            with bus.worker(RAW, group="pool") as worker:
                assert worker.receive(timeout=PATIENT) == b"event"
                worker.ack()
            if how != "link":  # whose file that is nobody asks: it is no file of ours
                eventually(lambda: stalled(bus), "the stalled are marked")
                found = inspect.stats_of(bus_name)
                assert found.lost_rings == 1
                assert {c.name for c in found.consumers} == {"pool", "slow"}
            holder.kill()
            holder.wait()
        os.unlink(path)


def stalled(bus: shmbus.Bus) -> bool:
    """Whether a supervisor has marked the subscriber that receives nothing."""
    entry = next(c for c in bus._session.registry.read().consumers if c.name == "slow")
    at = _core.CONSUMER_LINES + entry.line * _core.LINE + _core.CONSUMER_STALLED
    return bool(_core.load(bus._session.map, at))
