"""Who looks at what is in a pool: what is kept, what is free, and what a death leaves (P1 to P5)."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess

import numpy as np
import pytest
from frames import FRAMES, MIB, Frame, frame, used, whole
from support import Processes, entries, eventually, line

import shmbus

BLOCK = shmbus._core.POOL_BLOCK


# -- who holds what


def test_a_view_outlives_all(bus_name: str) -> None:
    """P4: a view outlives its handle, the bus and its segment, and shows the bytes of its own event (P1)."""
    with shmbus.Bus(bus_name) as bus:
        with bus.subscriber(FRAMES) as sub, bus.publisher(FRAMES) as pub:
            kept = []
            for number in range(60):
                pub.publish(frame(number))
                event = sub.receive(timeout=5)
                if number % 12 == 0:
                    kept.append(event)
            assert all(map(whole, kept))
            view = kept[0].image[1000:2000]
            del event
        assert all(map(whole, kept))
    assert not entries(bus_name)
    assert all(map(whole, kept))
    kept.clear()
    assert (view == 0).all()


def test_what_nobody_needs_is_free(bus_name: str) -> None:
    """P2: what all have received and nobody looks at is free, in any order; P5: so is a loan that was collected."""
    with (
        shmbus.Bus(bus_name) as bus,
        bus.subscriber(FRAMES) as sub,
        bus.worker(FRAMES, group="pool") as worker,
        bus.publisher(FRAMES, on_full="raise") as pub,
    ):
        for number in range(7):
            pub.publish(frame(number))
        assert used(bus) == 7 * MIB
        views = sub.receive_many(10, timeout=5)
        work = worker.receive_many(10, timeout=5)
        with pytest.raises(shmbus.Full) as full:
            pub.publish(Frame(0, np.zeros(2 * MIB, np.uint8)))
        assert set(full.value.blocked_by) == {sub.name, "pool"}
        worker.ack()
        del work
        with pytest.raises(shmbus.Full) as full:
            pub.empty(2 * MIB)
        assert full.value.blocked_by == (sub.name,)
        del views[::2]
        gc.collect()
        assert used(bus) <= 4 * MIB
        loan = pub.empty(4 * MIB)  # in several runs of blocks
        loan[:] = 77
        assert all(map(whole, views))
        assert used(bus) == 7 * MIB
        del loan
        assert used(bus) == 3 * MIB
        views.clear()
        assert used(bus) == 0
        assert pub.empty(8 * MIB).size == 8 * MIB


def test_scattered_extents_arrive(bus_name: str) -> None:
    """An extent of many runs is one array for subscribers, lossy ones and its publisher."""
    topic = shmbus.Topic("frames", Frame, pool=256 * BLOCK)
    with (
        shmbus.Bus(bus_name) as bus,
        bus.subscriber(topic) as sub,
        bus.subscriber(topic, mode="lossy") as lossy,
        bus.publisher(topic, on_full="raise") as pub,
    ):
        loans = [pub.buffer(BLOCK) for _ in range(256)]
        with pytest.raises(shmbus.Full):
            pub.buffer(1)
        del loans[::2]
        big = np.random.default_rng(1).integers(0, 255, 128 * BLOCK - 7, np.uint8)
        pub.publish(Frame(1, big))
        for receiver in (sub, lossy):
            assert (receiver.receive(timeout=5).image == big).all()


def test_blocks_until_there_is_room(bus_name: str, processes: Processes) -> None:
    """A publisher that waits for room in its pool goes on when the views are gone, and times out as told."""

    def child(bus_name: str) -> None:
        import frames

        import shmbus

        with shmbus.Bus.attach(bus_name) as bus, bus.subscriber(frames.FRAMES, name="viewer") as sub:
            frames.say("ready")
            bad = 0
            kept: list[frames.Frame] = []
            for number in range(200):
                event = sub.receive(timeout=30)
                kept = [*kept[-3:], event]
                bad += event.number != number or not all(map(frames.whole, kept))
            frames.say(bad)

    with shmbus.Bus(bus_name) as bus, bus.publisher(FRAMES) as pub:
        process = processes.spawn(child, bus_name)
        assert line(process) == "ready"
        for number in range(200):
            pub.publish(frame(number))
        assert line(process) == "0"
    with (
        shmbus.Bus(bus_name) as bus,
        bus.subscriber(FRAMES, name="slow") as sub,
        bus.publisher(FRAMES, timeout=0.1) as pub,
    ):
        for number in range(8):
            pub.publish(frame(number))
        with pytest.raises(shmbus.Full) as full:
            pub.publish(frame(8))
        assert full.value.blocked_by == ("slow",)
        assert [sub.receive(timeout=0).number for _ in range(8)] == list(range(8))


def test_drop_is_on_the_books(bus_name: str) -> None:
    """`on_full="drop"`: an event that finds no room in the pool is refused for every consumer."""
    with (
        shmbus.Bus(bus_name) as bus,
        bus.subscriber(FRAMES) as sub,
        bus.publisher(FRAMES, on_full="drop") as pub,
    ):
        results = [pub.publish(frame(number)) for number in range(10)]
        assert results == [1, 2, 3, 4, 5, 6, 7, 8, None, None]
        consumer = bus.stats().consumers[0]
        assert (consumer.offered, consumer.refused, consumer.depth) == (10, 2, 8)
        assert whole(sub.receive(timeout=5))


def test_lossy_is_told(bus_name: str) -> None:
    """P3: a lossy subscriber gets whole frames or gaps, and nobody waits for it."""
    gaps: list[shmbus.Gap] = []
    with (
        shmbus.Bus(bus_name) as bus,
        bus.subscriber(FRAMES, mode="lossy", on_gap=gaps.append) as lossy,
        bus.publisher(FRAMES, on_full="raise") as pub,
    ):
        for number in range(30):
            pub.publish(frame(number))
        got = lossy.receive_many(100, timeout=5)
        assert all(map(whole, got))
        assert [f.number for f in got] == list(range(22, 30))
        assert sum(gap.count for gap in gaps) == 22
        consumer = bus.stats().consumers[0]
        assert (consumer.delivered, consumer.overrun, consumer.offered) == (8, 22, 30)


def test_a_publisher_that_is_gone(bus_name: str) -> None:
    """Its pool stays for whoever is owed anything, and goes then; views stay."""
    with shmbus.Bus(bus_name) as bus, bus.subscriber(FRAMES) as sub:
        with bus.publisher(FRAMES) as pub:
            for number in range(5):
                pub.publish(frame(number))
        got = sub.receive_many(10, timeout=5)
        assert all(map(whole, got))
        sub.try_receive()
        eventually(lambda: not [name for name in entries(bus_name) if ":pool-" in name], "the pool is gone")
        assert all(map(whole, got))
        with bus.publisher(FRAMES) as pub:
            pub.publish(frame(6))
            assert whole(sub.receive(timeout=5))


def test_a_fork(bus_name: str) -> None:
    """A forked child has copies of what its parent looked at: its views show their own event, whatever comes later."""
    with shmbus.Bus(bus_name) as bus, bus.subscriber(FRAMES) as sub, bus.publisher(FRAMES) as pub:
        pub.publish(frame(5))
        kept, loans = [sub.receive(timeout=5)], [pub.empty(100)]
        loans[0][:] = 8
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)  # until the parent has used the memory again
            fine = whole(kept[0]) and bool((loans[0] == 8).all())
            del kept[0]
            os._exit(0 if fine else 1)
        os.close(reading)
        kept.clear()
        loans.clear()
        for number in range(20):
            pub.publish(frame(number))
            assert whole(sub.receive(timeout=5))
        os.close(writing)
        assert os.waitpid(child, 0)[1] == 0
        assert used(bus) == 0


def test_tasks_wait_for_the_pool(bus_name: str) -> None:
    """`apublish` waits for room in the pool, and the event loop goes on; a loan is writable again after a timeout."""

    async def main(bus: shmbus.Bus) -> None:
        with bus.subscriber(FRAMES) as sub, bus.publisher(FRAMES, timeout=60) as pub:
            task = asyncio.ensure_future(pub.apublish_many(frame(number) for number in range(30)))
            for number in range(30):
                event = await sub.areceive(timeout=60)
                assert event.number == number
                assert whole(event)
            assert await task == 30
        with bus.subscriber(FRAMES) as sub, bus.publisher(FRAMES, timeout=0) as pub:
            loan = pub.empty(MIB)
            for number in range(7):
                await pub.apublish(frame(number))
            with pytest.raises(shmbus.Full):
                await pub.apublish(frame(8))
            with pytest.raises(shmbus.Full):
                await pub.apublish(Frame(9, np.concatenate([loan, loan])))
            assert loan.flags.writeable

    with shmbus.Bus(bus_name) as bus:
        asyncio.run(main(bus))


# -- deaths


@pytest.mark.parametrize(
    ("how", "supervise"),
    [
        ("subscriber", True),
        ("subscriber closed", True),
        ("worker", True),
        ("worker acked", True),
        ("worker acked", False),
        ("worker acked closed", True),
    ],
)
def test_a_death_with_views(bus_name: str, processes: Processes, how: str, supervise: bool) -> None:
    """What a dead receiver looked at is free again, also when it had left the bus, or acked before."""
    with shmbus.Bus(bus_name, supervise=supervise) as bus, bus.publisher(FRAMES, on_full="raise") as pub:
        bus.group(FRAMES, "pool")
        process = processes.run(_command("keeper", bus_name, how, 4))
        assert line(process) == "ready"
        for number in range(4):
            pub.publish(frame(number))
        assert line(process) == "kept"
        bus.remove_group(FRAMES, "pool", force=True) if not how.startswith("worker") else None
        assert used(bus) == 4 * MIB
        _ask(process)
        process.kill()
        process.wait()
        if how == "worker":  # what it had not acked is the group's
            with bus.worker(FRAMES, group="pool") as worker:
                assert whole(worker.receive(timeout=30))
                worker.ack()

        def free() -> bool:
            bus._session.care()
            return used(bus) == 0

        eventually(free, "the views of the dead are gone")
        assert pub.empty(8 * MIB).size == 8 * MIB


def test_a_dead_publisher(bus_name: str, processes: Processes) -> None:
    """With a dead publisher go its loans; what it had published is received, and its pool goes after that."""
    with shmbus.Bus(bus_name) as bus, bus.subscriber(FRAMES) as sub:
        process = processes.run(_command("lender", bus_name, 3))
        assert line(process) == "3"
        process.kill()
        process.wait()
        event = sub.receive(timeout=30)
        assert whole(event)

        def gone() -> bool:
            sub.try_receive()
            return not [name for name in entries(bus_name) if ":pool-" in name]

        eventually(gone, "the pool is gone")
        assert whole(event)


def _command(role: str, *arguments: object) -> list[str]:
    import sys

    given = ", ".join(map(repr, arguments))
    return [sys.executable, "-c", f"import frames; frames.{role}({given})"]


def _ask(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("whole?\n")
    process.stdin.flush()
    assert line(process) == "True"
