"""Stamps and ids: `time_ns` grows strictly within a publisher, and `Message.id` names an event for everybody, once."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from events import ORDERS, PATIENT, Order, opened
from support import Processes, child_environment, line

import shmbus
from shmbus import Bus, inspect

CLOCK = Path(__file__).parent / "native" / "step_clock.c"
FEW = shmbus.Topic("few", Order, capacity=4096)


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    with opened(bus_name) as bus:
        yield bus


def taken(handle: shmbus.Subscriber[Order] | shmbus.Worker[Order], count: int) -> list[shmbus.Message[Order]]:
    """The next messages of a handle; those of a worker are acked."""
    found: list[shmbus.Message[Order]] = []
    for message in handle.messages():
        if isinstance(message, shmbus.ClaimedMessage):
            message.ack()
        found.append(message)
        if len(found) == count:
            break
    return found


def test_stamps_grow_strictly(bus: Bus) -> None:
    """Whoever publishes, threads at once, in batches, in an event loop: each stamp of a publisher is above the last."""
    with bus.publisher(ORDERS) as pub, bus.subscriber(ORDERS) as sub, bus.worker(ORDERS, group="g") as worker:
        threads = [
            threading.Thread(target=lambda: [pub.publish(Order(i)) for i in range(200)]),
            threading.Thread(target=lambda: [pub.publish_many([Order(i)] * 50) for i in range(4)]),
            threading.Thread(target=lambda: asyncio.run(publish_in_loop(pub, 100))),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seen, claimed = taken(sub, 600), taken(worker, 600)
    assert all(a.time_ns < b.time_ns and a.sequence < b.sequence for a, b in pairwise(seen))
    assert [m.id for m in seen] == [m.id for m in claimed]
    assert len({m.id for m in seen}) == 600


async def publish_in_loop(pub: shmbus.Publisher[Order], count: int) -> None:
    for i in range(count):
        await pub.apublish(Order(i))
    await pub.apublish_many([Order(i) for i in range(count)])


def clock_steps_back(bus_name: str) -> None:
    import time

    from events import ORDERS, Order

    import shmbus

    before = time.time_ns()
    with shmbus.Bus.attach(bus_name) as bus, bus.publisher(ORDERS) as pub:
        for i in range(300):
            pub.publish(Order(i))
        pub.publish_many([Order(i) for i in range(100)])
    print(before - time.time_ns(), flush=True)


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_clock_that_steps_back(bus: Bus, bus_name: str, processes: Processes, tmp_path: Path) -> None:
    """Stamps grow under a wall clock that only ever steps back."""
    library = tmp_path / "clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, CLOCK, "-ldl"], check=True)
    with bus.subscriber(ORDERS) as sub:
        child = processes.spawn(clock_steps_back, bus_name, env=child_environment(LD_PRELOAD=str(library)))
        assert int(line(child)) > 0, "the clock did not step back"
        found = taken(sub, 400)
    assert all(a.time_ns < b.time_ns for a, b in pairwise(found))


def test_the_same_for_everybody(bus: Bus, bus_name: str) -> None:
    """Subscriber, worker, history, tail and dead letter have one id for one event."""
    with bus.worker(ORDERS, group="g") as worker, bus.subscriber(ORDERS) as sub:
        with bus.publisher(ORDERS, name="p") as pub, bus.subscriber(shmbus.dead_letter_topic(ORDERS)) as dead:
            pub.publish(Order(1))
            [live] = taken(sub, 1)
            with inspect.Tail(bus_name, "orders", oldest=True) as tail:
                [tailed] = tail.read()
            message = next(iter(worker.messages()))
            assert message.id == live.id == tailed.id
            message.reject("no")
            assert dead.receive(timeout=PATIENT).id == live.id
        with bus.subscriber(ORDERS, start="oldest") as late:  # its publisher is gone
            assert [m.id for m in taken(late, 1)] == [live.id]
    assert re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]+-[0-9a-f]{16}", live.id)


def test_an_event_that_is_given_up(bus: Bus) -> None:
    """An event whose attempts are used up has its id in the dead letter, which nobody wrote who saw it."""
    with bus.subscriber(shmbus.dead_letter_topic(FEW)) as dead, bus.subscriber(FEW) as sub, bus.publisher(FEW) as pub:
        with bus.worker(FEW, group="g", max_deliver=1) as worker:
            pub.publish(Order(1))
            next(iter(worker.messages())).nack()
            assert worker.try_receive() is None
            assert dead.receive(timeout=PATIENT).id == taken(sub, 1)[0].id


def test_names_come_back_and_ids_do_not(bus_name: str) -> None:
    """A publisher, and a bus, that come back under their names have other ids, whatever the clock says."""
    origins: set[str] = set()
    for _ in range(3):
        with opened(bus_name) as bus, bus.subscriber(ORDERS) as sub:
            for _ in range(3):
                with bus.publisher(ORDERS, name="p") as pub:
                    pub.publish(Order(1))
                origins.add(taken(sub, 1)[0].id.rpartition("-")[0])
    assert len(origins) == 9
