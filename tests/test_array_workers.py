"""Records as arrays, of workers, of who dies, in event loops and forked children, and mixed with an event a call."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import threading
from typing import Any

import pytest
from events import opened
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from records import SMALL, STRIDE, TRADES, books, rows_of, trades
from support import Processes, eventually

import shmbus

pytest.importorskip("numpy", reason="arrays of records need NumPy")


# -- workers


def test_worker_acks_the_last(bus_name: str) -> None:
    """A worker claims a run together; asking for the next acks it, and closing gives back what is in hand."""
    with opened(bus_name) as bus, bus.publisher(TRADES) as publisher:
        worker = bus.worker(TRADES, group="g")
        publisher.publish_array(rows_of(trades(100)))
        arrays = worker.arrays(40)
        rows = next(arrays)
        assert rows["time"].tolist() == list(range(1, 41))
        assert rows.strides == (STRIDE,)
        assert not rows.flags.writeable
        assert (books(bus, "g").claimed, books(bus, "g").delivered) == (40, 0)
        assert len(next(arrays)) == 40
        assert (books(bus, "g").claimed, books(bus, "g").delivered) == (40, 40)
        other = bus.worker(TRADES, group="g")
        assert next(other.arrays(5))["time"].tolist() == [81, 82, 83, 84, 85]
        worker.close()
        assert next(other.arrays(4))["time"].tolist() == [41, 42, 43, 44]
        assert [next(other.messages()).attempt for _ in range(2)] == [2, 2]
        other.ack()
        assert books(bus, "g").delivered == 49


def test_workers_share(bus_name: str) -> None:
    """Several workers by arrays and by events get each event once."""
    with opened(bus_name) as bus, bus.publisher(SMALL) as publisher:
        bus.group(SMALL, "g")
        seen: list[int] = []
        lock = threading.Lock()

        def work(kind: str) -> None:
            with bus.worker(SMALL, group="g") as worker:
                workers.append(worker)
                found: Any = worker.arrays(16) if kind == "arrays" else worker
                for item in found:
                    with lock:
                        seen.extend(item["time"].tolist() if kind == "arrays" else [item.time])

        workers: list[Any] = []
        threads = [threading.Thread(target=work, args=(kind,)) for kind in ("arrays", "events", "arrays")]
        for thread in threads:
            thread.start()
        for start in range(1, 3001, 50):
            publisher.publish_array(rows_of(trades(50, start)))
        eventually(lambda: len(seen) >= 3000, lambda: f"{len(seen)} of 3000")
        for worker in workers:
            worker.cancel()
        for thread in threads:
            thread.join()
        assert sorted(seen) == list(range(1, 3001))
        assert books(bus, "g").delivered == 3000


def test_worker_not_contiguous(bus_name: str) -> None:
    """What others hold in between ends an array; what was given back comes again."""
    with opened(bus_name) as bus, bus.publisher(TRADES) as publisher:
        one, two = bus.worker(TRADES, group="g"), bus.worker(TRADES, group="g")
        publisher.publish_array(rows_of(trades(10)))
        messages = [next(one.messages()) for _ in range(4)]
        for message in messages[1:3]:
            message.nack()
        arrays = two.arrays()
        assert next(arrays)["time"].tolist() == [2, 3]
        assert next(arrays)["time"].tolist() == [5, 6, 7, 8, 9, 10]
        assert books(bus, "g").claimed == 8


def test_worker_gives_up(bus_name: str) -> None:
    """What was delivered too often is dead-lettered, and ends an array."""
    with opened(bus_name) as bus, bus.publisher(TRADES) as publisher:
        letters = bus.subscriber(shmbus.dead_letter_topic(TRADES))
        first = bus.worker(TRADES, group="g", max_deliver=1)
        publisher.publish_array(rows_of(trades(3)))
        message = next(first.messages())
        message.nack()
        worker = bus.worker(TRADES, group="g", max_deliver=1)
        assert next(worker.arrays())["time"].tolist() == [2, 3]
        letter = letters.receive(1)
        assert letter.payload == rows_of(trades(1)).tobytes()


def test_expiring_claims(bus_name: str) -> None:
    """A worker whose claims expire gets copies: others may have the record before it is done."""
    with opened(bus_name) as bus, bus.publisher(SMALL) as publisher:
        worker = bus.worker(SMALL, group="g", ack_within=0.05)
        publisher.publish_array(rows_of(trades(10)))
        rows = next(worker.arrays())
        assert rows.strides == (29,)
        assert not rows.flags.writeable
        assert rows["time"].tolist() == list(range(1, 11))


KILLED = """
import sys, os, signal
import shmbus, records
with shmbus.Bus(sys.argv[1]) as bus:
    worker = bus.worker(records.TRADES, group="g")
    arrays = worker.arrays(10)
    next(arrays)
    rows = next(arrays)
    print(rows["time"].tolist(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_worker(bus_name: str, processes: Processes) -> None:
    """A worker that is killed with an array in hand loses none: those that it had not acked go to another."""
    with shmbus.Bus(bus_name) as bus, bus.publisher(TRADES) as publisher:
        bus.group(TRADES, "g")
        publisher.publish_array(rows_of(trades(30)))
        child = processes.spawn(KILLED, bus_name)
        assert child.wait(20) == -signal.SIGKILL
        with bus.worker(TRADES, group="g") as worker:
            seen: list[int] = []
            for rows in worker.arrays():
                seen += rows["time"].tolist()
                if len(seen) == 20:
                    break
            assert sorted(seen) == list(range(11, 31))
            worker.ack()
            assert books(bus, "g").delivered == 30


SUBSCRIBED = """
import sys, os, signal
import shmbus, records
with shmbus.Bus(sys.argv[1]) as bus, bus.subscriber(records.TRADES, name="killed") as subscriber:
    print("ready", flush=True)
    arrays = subscriber.arrays(10)
    next(arrays)
    rows = next(arrays)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_subscriber(bus_name: str, processes: Processes) -> None:
    """A subscriber that is killed with an array in hand holds nobody up, and its books balance."""
    with shmbus.Bus(bus_name) as bus, bus.publisher(TRADES) as publisher, bus.subscriber(TRADES) as other:
        child = processes.spawn(SUBSCRIBED, bus_name)
        eventually(lambda: any(c.name == "killed" for c in bus.stats().consumers), lambda: "it never came")
        publisher.publish_array(rows_of(trades(30)))
        assert child.wait(20) == -signal.SIGKILL
        assert len(next(other.arrays())) == 30
        eventually(lambda: books(bus, "killed").abandoned, lambda: f"it is not reclaimed: {bus.stats().consumers}")
        found = books(bus, "killed")
        assert (found.state, found.delivered, found.abandoned) == ("dead", 10, 20)


# -- event loops, forks


def test_async(bus_name: str) -> None:
    """`async for` over arrays, of subscribers and workers."""

    async def main() -> None:
        with opened(bus_name) as bus, bus.publisher(TRADES) as publisher:
            subscriber, worker = bus.subscriber(TRADES), bus.worker(TRADES, group="g")

            async def collect(handle: Any) -> list[int]:
                seen: list[int] = []
                async for rows in handle.arrays(7):
                    seen += rows["time"].tolist()
                    if len(seen) == 60:
                        break
                return seen

            tasks = [asyncio.create_task(collect(handle)) for handle in (subscriber, worker)]
            for start in (1, 21, 41):
                await asyncio.sleep(0)
                publisher.publish_array(rows_of(trades(20, start)))
            for seen in await asyncio.wait_for(asyncio.gather(*tasks), 20):
                assert seen == list(range(1, 61))

    asyncio.run(main())


def test_fork(bus_name: str) -> None:
    """An array that a forked child inherits is readable there, and the child moves no cursor of its parent."""
    with opened(bus_name) as bus, bus.publisher(TRADES) as publisher, bus.subscriber(TRADES, name="s") as subscriber:
        publisher.publish_array(rows_of(trades(20)))
        rows = next(subscriber.arrays(8))
        child = os.fork()
        if child == 0:
            good = rows["time"].tolist() == list(range(1, 9))
            try:
                next(subscriber.arrays())
            except shmbus.ForkedError:
                subscriber.close()
                del subscriber
                gc.collect()
                os._exit(0 if good else 3)
            os._exit(4)
        assert os.waitpid(child, 0)[1] == 0
        assert books(bus, "s").delivered == 0
        assert rows["time"].tolist() == list(range(1, 9))


@given(
    st.lists(st.tuples(st.sampled_from(["array", "many", "one", "headers"]), st.integers(1, 40)), max_size=25),
    st.integers(0, 1 << 32),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mixed(bus_name: str, steps: list[tuple[str, int]], seed: int) -> None:
    """However events are published and received, each consumer gets each of them, in order, once."""
    name = f"{bus_name}-{os.urandom(4).hex()}"
    with opened(name) as bus, bus.publisher(SMALL) as publisher:
        subscriber, worker = bus.subscriber(SMALL, name="s"), bus.worker(SMALL, group="g", prefetch=3)
        got: dict[str, list[int]] = {"s": [], "g": []}
        sent, draw = 0, random.Random(seed)

        def receive(key: str, handle: Any) -> None:
            while len(got[key]) < sent:
                how, most = draw.choice(["event", "arrays", "array", "many"]), draw.randint(1, 50)
                if how == "event":
                    got[key].append(handle.receive(0).time)
                elif how == "many":
                    got[key] += [event.time for event in handle.receive_many(most, 0)]
                else:
                    rows = next(handle.arrays(most)) if how == "arrays" else handle.receive_array(most, 0)
                    got[key] += rows["time"].tolist()
            assert handle.try_receive() is None  # lets go of the array in hand: it may be half of the ring

        for how, count in steps:
            events = trades(count, sent + 1)
            if how == "array":
                publisher.publish_array(rows_of(events))
            elif how == "many":
                publisher.publish_many(events)
            else:
                for event in events[:5]:
                    publisher.publish(event, headers={"n": event.time} if how == "headers" else None)
            sent += count if how in ("array", "many") else len(events[:5])
            receive("s", subscriber)
            receive("g", worker)
        assert got["s"] == list(range(1, sent + 1))
        assert sorted(got["g"]) == got["s"]
        assert books(bus, "s").delivered == books(bus, "g").delivered == sent
