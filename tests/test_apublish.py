"""Publishing from an event loop: waiting for room while the loop goes on, policies, cancelled tasks, the end."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Iterator
from typing import Any

import pytest
from events import PATIENT, SMALL, Order, assert_balanced, drain, fill, opened, orders, publisher, take
from support import Processes, line, until

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


async def soon(awaitable: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(awaitable, PATIENT)


def test_publisher_and_consumer_in_one_loop(bus: Bus, unbounded: None) -> None:
    """Tasks that publish wait for room while the loop runs their consumer; each event comes once, in order."""

    async def main() -> None:
        found: list[Order] = []

        async def read(receiver: Any) -> None:
            async for order in receiver:
                found.append(order)

        async def write(pub: shmbus.Publisher[Order], number: int) -> None:
            for order in orders(300, number * 1000):
                assert await pub.apublish(order, headers={"n": number}) is not None

        with bus.subscriber(SMALL) as sub, bus.publisher(SMALL) as pub:
            reader = asyncio.create_task(read(sub))
            await soon(asyncio.gather(*(write(pub, number) for number in range(4))))
            await until(lambda: len(found) == 1200)
            sub.cancel()
            await reader
        assert set(Counter(found).values()) == {1}
        for number in range(4):
            ids = [order.id for order in found if order.id // 1000 == number]
            assert ids == sorted(ids)

    asyncio.run(main())


def test_apublish_is_woken_from_another_process(bus: Bus, processes: Processes, unbounded: None) -> None:
    """A task that waits for room is woken by consumers of another process: a subscriber, a worker, one that leaves."""
    code = """
        import sys
        from events import SMALL
        from shmbus import Bus
        with Bus(sys.argv[1], supervise=False) as bus:
            sub, worker, stays = bus.subscriber(SMALL), bus.worker(SMALL, group="g"), bus.subscriber(SMALL)
            print("ready")
            sys.stdin.readline()
            for receiver in (worker, sub):
                for _ in range(50):
                    receiver.receive(timeout=60)
            sys.stdin.readline()
            stays.close()
            while sub.receive(timeout=60).id >= 0:
                worker.receive(timeout=60)
            print("done")
    """

    async def main() -> None:
        child = processes.spawn(code, bus.name)
        assert child.stdin
        assert line(child) == "ready"
        with bus.publisher(SMALL, name="p") as pub:

            async def publish() -> None:
                for order in orders(500):  # several rings full
                    await pub.apublish(order)
                await pub.apublish(Order(-1))

            task = asyncio.create_task(publish())
            for text in ("go\n", "leave\n"):
                await until(lambda: any(p.waiting for p in bus.stats().publishers))
                assert not task.done()
                child.stdin.write(text)
                child.stdin.flush()
            await soon(task)
        assert await asyncio.to_thread(line, child) == "done"

    asyncio.run(main())


def test_apublish_policies(bus: Bus) -> None:
    """apublish raises Full, drops, and waits for its timeout, as publish does."""

    async def main() -> None:
        with bus.subscriber(SMALL, name="slow") as sub:
            with bus.publisher(SMALL, on_full="raise") as pub:
                room = fill(pub)
                with pytest.raises(shmbus.Full, match="slow"):
                    await pub.apublish(Order(0))
            with bus.publisher(SMALL, on_full="drop") as pub:
                fill_up = [await pub.apublish(order) for order in orders(room + 5)]
                assert fill_up[-5:] == [None] * 5
                assert await pub.apublish_many(orders(5)) == 0
            for timeout in (0, 0.02):
                with bus.publisher(SMALL, timeout=timeout) as pub:
                    with pytest.raises(shmbus.Full) as info:
                        await pub.apublish_many(orders(room * 2))
                    assert 0 < info.value.published < room * 2
                    with pytest.raises(shmbus.Full, match="slow"):
                        await pub.apublish(Order(0))
                    with pytest.raises(shmbus.EventTypeError):
                        await pub.apublish("no order")  # type: ignore[arg-type]
                    with pytest.raises(shmbus.EventTooLargeError):
                        await pub.apublish(Order(0), headers={"x": "y" * 5000})
            drain(sub)
        assert_balanced(bus.stats())

    asyncio.run(main())


def test_cancelled_apublish(bus: Bus, unbounded: None) -> None:
    """A cancelled apublish has published nothing, and leaves its place to the next one; no flag of it stays."""

    async def main() -> None:
        with bus.subscriber(SMALL) as sub, bus.publisher(SMALL, name="p") as pub:
            with bus.publisher(SMALL, on_full="raise") as other:
                room = fill(other)
            for order in orders(room):
                pub.publish(order)
            waiting = [asyncio.create_task(pub.apublish(Order(1000 + n))) for n in range(4)]
            await until(lambda: any(p.waiting for p in bus.stats().publishers))
            assert take(sub, room // 2)
            waiting[0].cancel()
            waiting[2].cancel()
            drained = drain(sub)
            await soon(asyncio.wait(waiting))
            assert [task.cancelled() for task in waiting].count(True) <= 2
            assert not publisher(bus, "p").waiting
            came = {order.id for order in (*drained, *drain(sub)) if order.id >= 1000}
            assert came == {1000 + n for n, task in enumerate(waiting) if not task.cancelled()}
            many = asyncio.create_task(pub.apublish_many(orders(10_000)))
            await until(lambda: any(p.waiting for p in bus.stats().publishers))
            many.cancel()
            await asyncio.wait([many])
            ids = [order.id for order in drain(sub)]
            assert ids == list(range(1, len(ids) + 1))
            assert ids

    asyncio.run(main())


def test_apublish_many(bus: Bus, unbounded: None) -> None:
    """apublish_many publishes more than the ring holds, in order, and says how many."""

    async def main() -> None:
        with bus.publisher(SMALL) as pub, bus.worker(SMALL, group="g") as worker:
            task = asyncio.create_task(pub.apublish_many(iter(orders(2000))))
            found = []
            async with asyncio.timeout(PATIENT):
                async for order in worker:
                    found.append(order)
                    if order.id == 2000:
                        break
            assert await task == 2000
            assert found == orders(2000)
            assert await pub.apublish_many([]) == 0

    asyncio.run(main())


def test_close_ends_apublish(bus: Bus, unbounded: None) -> None:
    """close(), from the loop or another thread, ends every apublish that waits with ClosedError."""

    async def main() -> None:
        with bus.subscriber(SMALL):
            for elsewhere in (False, True):
                pub = bus.publisher(SMALL, name="p")
                tasks = [asyncio.create_task(pub.apublish_many(orders(500))) for _ in range(3)]
                await until(lambda: any(p.waiting for p in bus.stats().publishers))
                await asyncio.to_thread(pub.close) if elsewhere else pub.close()
                ends = await soon(asyncio.gather(*tasks, return_exceptions=True))
                assert [type(error) for error in ends] == [shmbus.ClosedError] * 3

    before = set(os.listdir("/proc/self/fd"))
    asyncio.run(main())
    assert len(set(os.listdir("/proc/self/fd")) - before) < 10


def test_threads_and_tasks_wait_for_room(bus: Bus, unbounded: None) -> None:
    """Threads and tasks may wait for room of one publisher at once, and are all served."""

    async def main() -> None:
        with bus.subscriber(SMALL) as sub, bus.publisher(SMALL) as pub:
            threads = [asyncio.to_thread(pub.publish_many, orders(200, 1 + n * 1000)) for n in range(2)]
            tasks = [pub.apublish_many(orders(200, 1 + n * 1000)) for n in range(2, 4)]
            everybody = asyncio.gather(*threads, *tasks)
            found = [await soon(sub.areceive()) for _ in range(800)]
            assert await soon(everybody) == [200] * 4
            assert len({order.id for order in found}) == 800

    asyncio.run(main())
