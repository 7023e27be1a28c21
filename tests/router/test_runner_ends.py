"""How a run of a router ends: cancelled, interrupted, killed, with its bus."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import threading
from itertools import islice

import pytest
from routes import GROUP, INVOICES, ORDERS, PATIENCE, Invoice, Order, depth, publish, running
from support import Processes, eventually, line

import shmbus


def invoice(order: Order) -> Invoice:
    return Invoice(order.number)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_cancel_finishes_what_is_in_hand(bus_name: str, asynchronous: bool) -> None:
    """A cancelled run finishes the event in its hands, acks it, and takes no other."""
    router = shmbus.Router()
    begun, let, done = threading.Event(), threading.Event(), []

    def slow(order: Order) -> None:
        begun.set()
        let.wait(PATIENCE)
        done.append(order.number)

    async def slow_later(order: Order) -> None:
        await asyncio.to_thread(slow, order)

    router.worker(ORDERS, group=GROUP)(slow_later if asynchronous else slow)
    with shmbus.Bus(bus_name) as bus:
        bus.group(ORDERS, GROUP)
        publish(bus, 1, 2)
        thread = threading.Thread(target=router.run, args=(bus,))
        thread.start()
        assert begun.wait(PATIENCE)
        router.cancel()
        let.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()
        assert (done, depth(bus)) == ([1], 1)
        bus.remove_group(ORDERS, GROUP)


INTERRUPTED = """
import shmbus, sys
from routes import *
from support import eventually
router = shmbus.Router()
@router.worker(ORDERS, group=GROUP)
def slow(order: Order) -> None:
    print("begun", flush=True)
    sys.stdin.readline()
    eventually(lambda: router._runs[0]._handles[0].cancelled)  # the main thread may take the signal later
    print("done", flush=True)
with shmbus.Bus(sys.argv[1]) as bus:
    try:
        router.run(bus)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


def test_interrupt(bus_name: str, processes: Processes) -> None:
    """Ctrl-C lets a run finish what is in hand, then raises KeyboardInterrupt; a second one does not wait."""
    with shmbus.Bus(bus_name) as bus:
        bus.group(ORDERS, GROUP)
        publish(bus, 1, 2)
        child = processes.spawn(INTERRUPTED, bus_name)
        assert line(child) == "begun"
        child.send_signal(signal.SIGINT)
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
        assert [line(child), line(child)] == ["done", "interrupted"]
        assert child.wait(PATIENCE) == 0
        assert depth(bus) == 1
        second = processes.spawn(INTERRUPTED, bus_name, stderr=subprocess.DEVNULL)
        assert line(second) == "begun"
        second.send_signal(signal.SIGINT)
        eventually(lambda: interrupted_again(second), "it ends")
        assert depth(bus) == 1
        bus.remove_group(ORDERS, GROUP, force=True)


def interrupted_again(child: subprocess.Popen[str]) -> bool:
    """Ctrl-C until it ends: the first may not have been taken yet, and two in one are one."""
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
    return child.poll() is not None


DIES = """
import shmbus, sys
from shmbus._shm import failpoint
from routes import *
router = shmbus.Router()
@router.worker(ORDERS, group=GROUP, to=INVOICES)
def bill(order: Order) -> Invoice:
    return Invoice(order.number)
failpoint.arm("router.handled", int(sys.argv[2]))
with shmbus.Bus(sys.argv[1]) as bus:
    router.run(bus)
"""


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_death_before_the_ack_publishes_twice(bus_name: str, processes: Processes, asynchronous: bool) -> None:
    """A worker killed between publish and ack leaves an event that is handled again: its result is there twice."""
    code = DIES.replace("def bill", "async def bill") if asynchronous else DIES
    router = shmbus.Router()
    router.worker(ORDERS, group=GROUP, to=INVOICES)(invoice)
    with shmbus.Bus(bus_name) as bus, bus.subscriber(INVOICES) as invoices:
        bus.group(ORDERS, GROUP)
        publish(bus, 1, 2, 3)
        assert processes.spawn(code, bus_name, 2).wait(PATIENCE) == -signal.SIGKILL
        with running(router, bus):
            eventually(lambda: depth(bus) == 0)  # until the death is noticed others take what is READY behind it
        results: dict[str, list[int]] = {}
        for message in islice(invoices.messages(), 4):
            results.setdefault(message.publisher, []).append(message.event.number)
        assert invoices.try_receive() is None
        by_the_dead, by_the_living = sorted(results.values(), key=min)
        assert (by_the_dead, sorted(by_the_living)) == ([1, 2], [2, 3])


def test_the_bus_goes_under_a_run(bus_name: str) -> None:
    """A run whose bus is removed ends, with ClosedError."""
    router = shmbus.Router()
    router.worker(ORDERS, group=GROUP)(lambda order: None)
    with shmbus.Bus(bus_name) as bus:
        raised: list[BaseException] = []

        def run() -> None:
            try:
                router.run(bus)
            except shmbus.ClosedError as error:
                raised.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        eventually(lambda: any(c.workers for c in bus.stats().consumers))
        from shmbus import inspect

        inspect.remove(bus_name, force=True)
        thread.join(PATIENCE)
        assert raised
