"""Handles that several tasks of an event loop use: waiting at once, whose ask acks what, messages."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Iterator
from typing import Any

import pytest
from events import ORDERS, PATIENT, Order, books, consumer, drain, opened, orders, take
from support import eventually, until

import shmbus
from shmbus import Bus


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    with opened(bus_name) as bus:
        yield bus


@pytest.fixture
def unbounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sleep that its wake-up does not reach lasts for good."""
    monkeypatch.setattr("shmbus._handles.waiting.BOUND", 1e6)
    monkeypatch.setattr("shmbus.publisher.BOUND", 1e6)
    monkeypatch.setattr("shmbus.bus.PATIENCE", 1e6)


async def soon(awaitable: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(awaitable, PATIENT)


def delivered(bus: Bus) -> tuple[int, int]:
    """Events of the group that are acked, and that are claimed."""
    found = consumer(bus, "g")
    return found.delivered, found.claimed


# -- waiting at once


@pytest.mark.parametrize("kind", ["subscriber", "worker"])
def test_tasks_share_a_handle(bus: Bus, kind: str, unbounded: None) -> None:
    """Any number of tasks wait at one handle: each event goes to one of them, and no wake-up is lost to another."""

    async def main() -> None:
        receiver: Any = bus.worker(ORDERS, group="g") if kind == "worker" else bus.subscriber(ORDERS)
        found: list[tuple[int, Order]] = []

        async def collect(number: int) -> None:
            async for order in receiver:
                found.append((number, order))
                if order.id % 3 == 0:
                    await asyncio.sleep(0)

        with receiver, bus.publisher(ORDERS) as pub:
            async with asyncio.TaskGroup() as tasks:
                for number in range(5):
                    tasks.create_task(collect(number))
                await asyncio.sleep(0)
                sent = 0
                for burst in (1, 1, 1, 5, 1, 2, 30, 1, 1):
                    pub.publish_many(orders(burst, sent + 1))
                    sent += burst
                    await until(lambda: len(found) == sent)  # noqa: B023
                receiver.cancel()
            assert sorted(order.id for _, order in found) == list(range(1, sent + 1))
            assert len({number for number, _ in found}) > 1
            if kind == "worker":
                assert books(bus, "g") == {"offered": sent, "delivered": sent}

    asyncio.run(main())


def test_a_cancelled_task_passes_its_wake_up_on(bus: Bus, unbounded: None) -> None:
    """A task that is cancelled, or whose time is up, in the moment in which it is woken leaves the event to another."""

    async def main() -> None:
        with bus.publisher(ORDERS) as pub, bus.subscriber(ORDERS) as sub:
            for turn in range(1, 40):
                one = asyncio.create_task(sub.areceive(timeout=None if turn % 2 else 0.001))
                two = asyncio.create_task(sub.areceive())
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                pub.publish(Order(turn))
                if turn % 2:
                    one.cancel()
                else:
                    await asyncio.wait([one])
                await soon(asyncio.wait([one, two]) if turn % 2 else asyncio.sleep(0))
                won = [task for task in (one, two) if task.done() and not task.cancelled() and not task.exception()]
                if two not in won and one in won:
                    two.cancel()
                else:
                    won = [two]
                assert await soon(won[0]) == Order(turn)
                await asyncio.wait([one, two])
            assert sub.try_receive() is None

    asyncio.run(main())


def test_two_loops_share_a_handle(bus: Bus, unbounded: None) -> None:
    """Tasks of loops in two threads may wait at one handle, as long as they look by turns."""
    with bus.publisher(ORDERS) as pub, bus.subscriber(ORDERS) as sub:
        found: list[Order] = []
        waiting = threading.Barrier(3)

        async def one() -> None:
            task = asyncio.create_task(sub.areceive())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            waiting.wait(PATIENT)
            found.append(await soon(task))

        threads = []
        for _ in range(2):
            threads.append(threading.Thread(target=lambda: asyncio.run(one())))
            threads[-1].start()
            eventually(lambda: waiting.n_waiting == len(threads))
        waiting.wait(PATIENT)
        for turn in (1, 2):
            pub.publish(Order(turn))
            eventually(lambda: len(found) == turn)  # noqa: B023
        for thread in threads:
            thread.join()
        assert sorted(found) == orders(2)


@pytest.mark.parametrize("ending", ["cancel", "close"])
def test_the_end_reaches_every_task(bus: Bus, ending: str, unbounded: None) -> None:
    """cancel() and close() end the waits of all tasks of a handle, from another thread too."""

    async def main() -> None:
        for elsewhere in (False, True):
            sub = bus.subscriber(ORDERS)
            tasks = [asyncio.create_task(sub.areceive()) for _ in range(5)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            end = getattr(sub, ending)
            await asyncio.to_thread(end) if elsewhere else end()
            ends = await soon(asyncio.gather(*tasks, return_exceptions=True))
            assert [type(error) for error in ends] == [shmbus.ClosedError] * 5
            sub.close()

    asyncio.run(main())


# -- who asks


def test_asking_acks_by_task(bus: Bus) -> None:
    """Asking acks what the same task was handed; what a task holds that has ended stays claimed until close."""

    async def main() -> None:
        with bus.publisher(ORDERS) as pub, bus.worker(ORDERS, group="g") as worker:
            pub.publish_many(orders(6))
            go = asyncio.Event()

            async def work() -> None:
                await worker.areceive()
                await go.wait()
                await worker.areceive()
                raise ZeroDivisionError

            busy = asyncio.create_task(work())
            await asyncio.sleep(0)
            for _ in range(3):
                await soon(asyncio.create_task(worker.areceive()))
            assert delivered(bus) == (2, 2)  # of main, who asked three times
            worker.try_receive()
            assert delivered(bus) == (3, 2)
            go.set()
            with pytest.raises(ZeroDivisionError):
                await soon(busy)
            assert delivered(bus) == (4, 2)
            worker.ack()
            assert delivered(bus) == (5, 1)
        assert books(bus, "g") == {"offered": 6, "delivered": 5, "depth": 1}

    asyncio.run(main())


def test_whoever_calls_asks(bus: Bus) -> None:
    """areceive() asks for the task that calls it, whatever task awaits it, and acks what that had by then."""

    async def main() -> None:
        with bus.publisher(ORDERS) as pub, bus.worker(ORDERS, group="g") as worker:
            pub.publish_many(orders(8))
            assert await asyncio.wait_for(worker.areceive(), PATIENT) == Order(1)
            assert await asyncio.wait_for(worker.areceive(), PATIENT) == Order(2)
            assert delivered(bus) == (1, 1)
            both = await asyncio.gather(worker.areceive(), worker.areceive())
            assert list(both) == orders(2, 3)
            assert delivered(bus) == (2, 2)
            assert await anext(worker) == Order(5)
            assert delivered(bus) == (4, 1)
            worker.ack()
            assert delivered(bus) == (5, 0)

    asyncio.run(main())


def test_ack_of_a_task_that_has_returned(bus: Bus) -> None:
    """ack() acks what tasks were handed that have returned, in whatever loop, but not what others hold."""
    with bus.publisher(ORDERS) as pub, bus.worker(ORDERS, group="g") as worker:
        pub.publish_many(orders(4))

        async def one() -> Order:
            return await worker.areceive()

        async def main() -> None:
            await asyncio.create_task(one())
            await asyncio.create_task(one())

            async def forever() -> None:
                await worker.areceive()
                await asyncio.Event().wait()

            busy = asyncio.create_task(forever())
            await asyncio.sleep(0)
            worker.ack()
            assert delivered(bus) == (2, 1)
            busy.cancel()
            await asyncio.wait([busy])
            worker.ack()
            assert delivered(bus) == (2, 1)

        asyncio.run(main())
        asyncio.run(one())
        assert delivered(bus) == (2, 2)
        worker.ack()
        assert delivered(bus) == (3, 1)


def test_cancel_in_a_loop(bus: Bus) -> None:
    """cancel() lets `async for` ack the event in hand when it asks for the next one, and gives back the rest."""

    async def main() -> None:
        for prefetch in (1, 4):
            with bus.worker(ORDERS, group="g", prefetch=prefetch) as worker, bus.publisher(ORDERS) as pub:
                pub.publish_many(orders(5))
                async for order in worker:
                    if order.id == 2:
                        worker.cancel()
                assert delivered(bus)[1] == 0
                with pytest.raises(shmbus.ClosedError):
                    await worker.areceive()
                assert drain(worker) == orders(3, 3)

    asyncio.run(main())
    assert books(bus, "g") == {"offered": 10, "delivered": 10}


# -- messages


def test_messages_both_ways(bus: Bus) -> None:
    """messages() of both kinds iterates in an event loop as it does in a thread, and by turns."""

    async def main() -> None:
        with (
            bus.publisher(ORDERS, name="p") as pub,
            bus.subscriber(ORDERS) as sub,
            bus.worker(ORDERS, group="g") as worker,
        ):
            for order in orders(6):
                pub.publish(order, headers={"id": order.id})
            for stream in (sub.messages(), worker.messages()):
                found = [next(stream), await anext(stream)]
                async for message in stream:
                    found.append(message)
                    if len(found) == 4:
                        break
                for message in stream:
                    found.append(message)
                    if len(found) == 6:
                        break
                assert [(m.event, m.sequence, m.publisher) for m in found] == [(Order(n), n, "p") for n in range(1, 7)]
                assert [m.headers for m in found] == [{"id": n} for n in range(1, 7)]
                for message in found:
                    if isinstance(message, shmbus.ClaimedMessage):
                        await message.aack()
                        await message.anack()
                        await message.areject()
            assert books(bus, "g") == {"offered": 6, "delivered": 6}
            sub.cancel()
            assert [m async for m in sub.messages()] == list(sub.messages()) == []
            worker.close()
            assert [m async for m in worker.messages()] == list(worker.messages()) == []

    asyncio.run(main())


def test_concurrent_messages(bus: Bus) -> None:
    """Tasks that each settle one message settle it alone: what is not done when the worker closes goes back."""

    async def main() -> None:
        with bus.publisher(ORDERS) as pub, bus.worker(ORDERS, group="g") as worker:
            pub.publish_many(orders(12))

            async def handle(message: shmbus.ClaimedMessage[Order]) -> None:
                if message.event.id % 3:
                    await asyncio.sleep(0)
                    await message.aack()

            async with asyncio.TaskGroup() as tasks:
                count = 0
                async for message in worker.messages():
                    tasks.create_task(handle(message))
                    count += 1
                    if count == 12:
                        break
            assert delivered(bus) == (8, 4)
        assert books(bus, "g") == {"offered": 12, "delivered": 8, "depth": 4}

    asyncio.run(main())


def test_areject_waits_for_room(bus: Bus, unbounded: None) -> None:
    """areject() waits for room for its dead letter while the loop goes on; cancelled, it leaves the message open."""
    topic = shmbus.Topic("jobs", bytes, capacity=1 << 14)
    letters = shmbus.dead_letter_topic(topic)

    async def main() -> None:
        bus.group(letters, "inspectors")
        with bus.publisher(topic) as pub, bus.worker(topic, group="g") as worker:
            stream, rejected = worker.messages(), 0
            while True:
                pub.publish(bytes(2000))
                message = await anext(stream)
                task = asyncio.create_task(message.areject("no"))
                for _ in range(20):
                    await asyncio.sleep(0)
                if not task.done():
                    break
                await task
                rejected += 1
            assert rejected > 1
            task.cancel()
            await asyncio.wait([task])
            assert not message.settled
            again = asyncio.create_task(message.areject("no"))
            await until(lambda: any(p.waiting for p in bus.stats().publishers))
            assert not again.done()
            with bus.worker(letters, group="inspectors") as inspector:
                assert len(take(inspector, rejected)) == rejected
                inspector.ack()
                await soon(again)
                assert len(drain(inspector)) == 1
            assert message.settled
            assert books(bus, "g") == {"offered": rejected + 1, "rejected": rejected + 1}

    asyncio.run(main())
