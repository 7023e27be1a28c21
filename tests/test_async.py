"""Receivers in an event loop: iteration, areceive, many of them at once, cancelled tasks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest
from events import ORDERS, PATIENT, SMALL, Order, books, drain, opened, orders, take
from support import Processes, eventually, line

import shmbus
from shmbus import Bus


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    with opened(bus_name) as bus:
        yield bus


async def collect(receiver: shmbus.Subscriber[Order] | shmbus.Worker[Order], count: int) -> list[Order]:
    found: list[Order] = []
    async for order in receiver:
        found.append(order)
        if len(found) == count:
            break
    return found


def test_iterate(bus: Bus) -> None:
    """`async for` gives the events in order, those that are there and those that come."""

    async def main() -> None:
        with bus.publisher(ORDERS) as pub, bus.subscriber(ORDERS) as sub:
            pub.publish_many(orders(3))
            task = asyncio.create_task(collect(sub, 6))
            await asyncio.sleep(0)
            for order in orders(3, 4):
                pub.publish(order)
                await asyncio.sleep(0)
            assert await asyncio.wait_for(task, PATIENT) == orders(6)

    asyncio.run(main())


def test_two_in_one_loop(bus: Bus) -> None:
    """Subscribers and workers of one loop receive at the same time, in the loop's own thread."""

    async def main() -> None:
        threads = set(os.listdir("/proc/self/task"))  # by name: one of an earlier test may be on its way out
        with (
            bus.publisher(ORDERS) as pub,
            bus.subscriber(ORDERS) as one,
            bus.subscriber(ORDERS) as two,
            bus.worker(ORDERS, group="g") as worker,
        ):
            tasks = [asyncio.create_task(collect(receiver, 200)) for receiver in (one, two, worker)]
            for order in orders(200):
                pub.publish(order)
                if order.id % 7 == 0:
                    await asyncio.sleep(0)
            assert await asyncio.wait_for(asyncio.gather(*tasks), PATIENT) == [orders(200)] * 3
            assert set(os.listdir("/proc/self/task")) <= threads
            worker.ack()
            assert books(bus, "g") == {"offered": 200, "delivered": 200}

    asyncio.run(main())


def test_from_another_process(bus: Bus, processes: Processes) -> None:
    """An awaiting receiver is woken by events of another process, one at a time and in bursts."""
    code = """
        import sys
        from events import ORDERS, SMALL, Order
        from shmbus import Bus
        with Bus(sys.argv[1], supervise=False) as bus:
            with bus.publisher(ORDERS) as pub, bus.subscriber(SMALL) as answers:
                print("ready")
                for number in range(1, 201):
                    pub.publish(Order(number))
                    assert answers.receive(timeout=60).id == number
                pub.publish_many(Order(number) for number in range(201, 1201))
    """

    async def main() -> None:
        with bus.publisher(SMALL) as answer, bus.worker(ORDERS, group="g") as worker:
            with bus.subscriber(ORDERS) as sub:
                child = processes.spawn(code, bus.name)
                assert line(child) == "ready"
                for number in range(1, 1201):
                    assert await sub.areceive(timeout=PATIENT) == Order(number)
                    if number <= 200:
                        answer.publish(Order(number))
                assert await collect(worker, 1200) == orders(1200)
                worker.ack()
                assert child.wait() == 0

    asyncio.run(main())


def test_areceive_timeout(bus: Bus) -> None:
    """areceive raises Empty at its timeout, 0 included, and lets the loop run meanwhile."""

    async def main() -> None:
        with bus.subscriber(ORDERS) as sub, bus.worker(ORDERS, group="g") as worker:
            for receiver in (sub, worker):
                for timeout in (0, 0.02):
                    with pytest.raises(shmbus.Empty):
                        await receiver.areceive(timeout=timeout)
            ran = False

            async def other() -> None:
                nonlocal ran
                ran = True

            task = asyncio.create_task(other())
            with pytest.raises(shmbus.Empty):
                await sub.areceive(timeout=0.05)
            assert ran
            await task

    asyncio.run(main())


def test_cancelled_task(bus: Bus) -> None:
    """A cancelled task leaves the handle usable, awaited or not, with no event lost."""

    async def main() -> None:
        with bus.publisher(ORDERS) as pub, bus.subscriber(ORDERS, name="s") as sub:
            for turn in range(1, 20):
                task = asyncio.create_task(sub.areceive())
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                pub.publish(Order(turn))
                receive = sub.areceive(timeout=PATIENT)
                assert (await receive if turn % 2 else await asyncio.to_thread(take, sub, 1)) in (
                    Order(turn),
                    [Order(turn)],
                )
                receive.close()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(sub.areceive(), 0.02)
            pub.publish(Order(0))
            assert drain(sub) == [Order(0)]
            assert books(bus, "s") == {"offered": 20, "delivered": 20}

    asyncio.run(main())


@pytest.mark.parametrize("ending", ["cancel", "close", "close the bus"])
def test_end(bus_name: str, ending: str) -> None:
    """cancel() and close() end `async for` in good order, areceive with ClosedError, and harm no other descriptor."""

    async def main() -> None:
        for how in ("for", "areceive"):
            bus = Bus(bus_name, supervise=False)
            sub = bus.subscriber(ORDERS)
            task: asyncio.Task[object] = asyncio.create_task(collect(sub, 1) if how == "for" else sub.areceive())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            (bus.close if ending == "close the bus" else getattr(sub, ending))()
            own, other = os.pipe()  # takes the numbers that were freed
            readable = asyncio.Event()
            asyncio.get_running_loop().add_reader(own, readable.set)
            if how == "for":
                assert await asyncio.wait_for(task, PATIENT) == []
            else:
                with pytest.raises(shmbus.ClosedError):
                    await asyncio.wait_for(task, PATIENT)
            os.write(other, b"x")
            await asyncio.wait_for(readable.wait(), PATIENT)
            asyncio.get_running_loop().remove_reader(own)
            os.close(own)
            os.close(other)
            bus.close()

    asyncio.run(main())


def test_break_gives_back(bus: Bus) -> None:
    """An `async for` over a worker acks by asking for the next; the event at which it breaks off goes back."""

    async def main() -> None:
        with bus.publisher(ORDERS) as pub:
            with bus.worker(ORDERS, group="g") as worker:
                pub.publish_many(orders(3))
                assert await collect(worker, 2) == orders(2)
            assert books(bus, "g") == {"offered": 3, "delivered": 1, "depth": 2}

    asyncio.run(main())


def test_a_thread_then_a_loop(bus: Bus) -> None:
    """A handle may wait in a thread, then in a loop, then in another loop."""
    with bus.publisher(ORDERS) as pub, bus.subscriber(ORDERS) as sub:
        for turn in range(1, 7):
            with pytest.raises(shmbus.Empty):
                sub.receive(timeout=0.001)

            async def main() -> None:
                with pytest.raises(shmbus.Empty):
                    await sub.areceive(timeout=0.001)
                task = asyncio.create_task(sub.areceive(timeout=PATIENT))
                await asyncio.sleep(0)
                pub.publish(Order(turn))  # noqa: B023 -- it runs now
                assert await task == Order(turn)  # noqa: B023

            asyncio.run(main())
            eventually(lambda: sub.try_receive() is None)
