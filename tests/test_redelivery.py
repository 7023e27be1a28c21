"""Redelivery: what is given back for later, given back unseen, or taken from a worker that is too slow."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from events import ORDERS, PATIENT, SMALL, Order, books, consumer, drain, fill, opened, orders, take
from support import Processes, eventually, line

import shmbus
from shmbus import Bus

SOON = 0.05
"""Seconds; nothing below asserts that it is short, only that nobody comes before it has passed."""
LONG = 3600.0


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    with opened(bus_name) as bus:
        yield bus


@pytest.fixture
def pub(bus: Bus) -> Iterator[shmbus.Publisher[Order]]:
    with bus.publisher(ORDERS, name="p") as publisher:
        yield publisher


def message(worker: shmbus.Worker[Order]) -> shmbus.ClaimedMessage[Order]:
    return next(worker.messages())


# -- nack(delay=)


def test_delay(bus: Bus, pub: shmbus.Publisher[Order]) -> None:
    """A delayed event comes again with the next attempt, not before its time; it is depth meanwhile, others pass it."""
    with bus.worker(ORDERS, group="g") as worker:
        pub.publish_many(orders(3))
        first = message(worker)
        before = time.monotonic()
        first.nack(delay=SOON)
        assert first.settled
        assert books(bus, "g") == {"offered": 3, "depth": 3}
        assert take(worker, 2) == orders(2, 2)
        worker.ack()
        assert consumer(bus, "g").claimed == 0
        again = message(worker)
        assert time.monotonic() - before >= SOON
        assert (again.event, again.attempt) == (Order(1), 2)
        again.ack()
        assert books(bus, "g") == {"offered": 3, "delivered": 3}


def test_delayed_events_come_when_each_is_due(bus: Bus, pub: shmbus.Publisher[Order]) -> None:
    """Events that are delayed by different times come in the order of these, to workers that sleep."""
    with bus.worker(ORDERS, group="g", idle="park") as worker:
        pub.publish_many(orders(4))
        delays = {1: 0.3, 2: 0.1, 3: 0.2, 4: 0.4}
        held = [message(worker) for _ in range(4)]
        before = time.monotonic()
        for one in held:
            one.nack(delay=delays[one.event.id])
        for id in sorted(delays, key=lambda id: delays[id]):
            assert worker.receive(timeout=PATIENT) == Order(id)
            assert time.monotonic() - before >= delays[id]
        worker.ack()


def test_delay_of_nothing(bus: Bus, pub: shmbus.Publisher[Order]) -> None:
    """A delay of 0 is none."""
    with bus.worker(ORDERS, group="g") as worker:
        pub.publish(Order(1))
        message(worker).nack(delay=0)
        assert worker.try_receive() == Order(1)
        worker.ack()


@pytest.mark.parametrize("delay", [-1, -1e-9, float("nan"), float("inf"), 7 * 86400 + 1, "1", None])
def test_delay_that_cannot_be(bus: Bus, pub: shmbus.Publisher[Order], delay: Any) -> None:
    """A delay that is no number of seconds up to a week is refused with its value, and the event stays held."""
    with bus.worker(ORDERS, group="g") as worker:
        pub.publish(Order(1))
        held = message(worker)
        with pytest.raises(shmbus.ConfigError, match="delay="):
            held.nack(delay=delay)
        assert not held.settled
        held.ack()


def test_a_busy_worker_gets_what_is_due(bus: Bus, pub: shmbus.Publisher[Order]) -> None:
    """A delayed event comes in its turn though there is always something else to do."""
    with bus.worker(ORDERS, group="g") as worker:
        pub.publish_many(orders(100, 2))
        pub.publish(Order(1))
        held = [message(worker) for _ in range(101)]
        for other in held[:-1]:
            other.nack()
        held[-1].nack(delay=SOON)
        seen: list[int] = []

        def comes() -> bool:
            one = message(worker)
            seen.append(one.event.id)
            if one.event.id == 1:
                one.ack()
                return True
            one.ack()
            pub.publish(Order(1000))
            return False

        eventually(comes)


def test_delay_wakes_whoever_sleeps(bus: Bus, pub: shmbus.Publisher[Order]) -> None:
    """A worker that sleeps since before an event was delayed gets it, though the one that delayed it looks no more."""
    found: list[Order] = []
    with bus.worker(ORDERS, group="g") as one, bus.worker(ORDERS, group="g", idle="park") as two:
        pub.publish(Order(1))
        held = message(one)
        thread = threading.Thread(target=lambda: found.append(two.receive(timeout=PATIENT)))
        thread.start()
        held.nack(delay=SOON)
        thread.join()
        assert found == [Order(1)]
        two.ack()


def test_delay_in_an_event_loop(bus: Bus, pub: shmbus.Publisher[Order]) -> None:
    """A worker that awaits is woken in time, whoever delayed the event, and the loop goes on meanwhile."""

    async def run() -> None:
        with bus.worker(ORDERS, group="g") as one, bus.worker(ORDERS, group="g") as two:
            pub.publish(Order(1))
            held = message(one)
            waiting = asyncio.create_task(two.areceive(timeout=PATIENT))
            await asyncio.sleep(0)
            before = time.monotonic()
            held.nack(delay=SOON)
            assert await waiting == Order(1)
            assert time.monotonic() - before >= SOON
            two.ack()

    asyncio.run(run())


def test_a_sleep_ends_with_the_delay(bus: Bus, pub: shmbus.Publisher[Order]) -> None:
    """A worker that parks beside a delayed event is told to sleep no longer than until that is due."""
    with bus.worker(ORDERS, group="g") as worker:
        assert worker._due() > LONG
        pub.publish_many(orders(2))
        held = [message(worker), message(worker)]
        held[0].nack(delay=LONG)
        assert 0 < worker._due() < LONG + 1
        held[1].nack(delay=LONG / 2)
        assert 0 < worker._due() < LONG / 2 + 1
    assert books(bus, "g") == {"offered": 2, "depth": 2}


def test_delay_outlives_everybody(bus: Bus, pub: shmbus.Publisher[Order], processes: Processes) -> None:
    """A delay outlives the worker that gave the event back and all others, and so does the event."""
    code = """
        import signal, sys
        from events import ORDERS
        from shmbus import Bus
        bus = Bus(sys.argv[1], supervise=False)
        message = next(bus.worker(ORDERS, group="g").messages())
        message.nack(delay=1.0)
        print("delayed", flush=True)
        signal.pause()
    """
    bus.group(ORDERS, "g")
    pub.publish(Order(1))
    child = processes.spawn(code, bus.name)
    assert line(child) == "delayed"
    before = time.monotonic() - 0.5  # the child may have written its line late
    child.send_signal(signal.SIGKILL)
    child.wait()
    with bus.worker(ORDERS, group="g") as worker:
        assert worker.try_receive() is None
        assert books(bus, "g") == {"offered": 1, "depth": 1}
        again = message(worker)
        assert (again.event, again.attempt) == (Order(1), 2)
        assert time.monotonic() - before >= 0.5
        again.ack()


def test_delays_are_used_up(bus: Bus, pub: shmbus.Publisher[Order]) -> None:
    """Delayed deliveries count: past `max_deliver` the event is a dead letter."""
    letters = shmbus.dead_letter_topic(ORDERS)
    with bus.subscriber(letters) as dead, bus.worker(ORDERS, group="g", max_deliver=2) as worker:
        pub.publish(Order(1))
        for _ in range(2):
            message(worker).nack(delay=0.001)
        eventually(lambda: worker.try_receive() is None and books(bus, "g").get("rejected") == 1)
        assert dead.receive(timeout=PATIENT).attempts == 2


def test_a_delayed_event_keeps_its_room(bus: Bus) -> None:
    """A publisher that comes a whole ring behind a delayed event waits for it, and is told by whom."""
    with bus.publisher(SMALL, on_full="raise") as pub, bus.worker(SMALL, group="g") as worker:
        pub.publish(Order(0))
        message(worker).nack(delay=0.5)
        count = fill(pub)
        assert drain(worker) == orders(count)
        with pytest.raises(shmbus.Full, match="g"):
            pub.publish(Order(0))
        assert worker.receive(timeout=PATIENT) == Order(0)
        worker.ack()
        pub.publish(Order(1))


# -- unseen


def test_restarts_cost_no_attempts(bus: Bus, pub: shmbus.Publisher[Order]) -> None:
    """Events that a worker only prefetched have used up nothing, however often workers come and go in good order."""
    bus.group(ORDERS, "g")
    pub.publish_many(orders(40))
    seen = []
    with bus.subscriber(shmbus.dead_letter_topic(ORDERS)) as dead:
        for _ in range(20):
            with bus.worker(ORDERS, group="g", prefetch=32, max_deliver=2) as worker:
                seen.append(worker.receive(timeout=PATIENT))
                worker.ack()
        assert seen == orders(20)
        with bus.worker(ORDERS, group="g") as worker:
            assert [(m.event, m.attempt) for m in (message(worker) for _ in range(20))] == [
                (order, 1) for order in orders(20, 21)
            ]
        assert dead.try_receive() is None


@pytest.mark.parametrize("how", ["cancel", "error", "many"])
def test_what_was_handed_out_is_charged(bus: Bus, pub: shmbus.Publisher[Order], how: str) -> None:
    """However a worker breaks off, what it handed out counts as an attempt, and what it only prefetched does not."""
    bus.group(ORDERS, "g")
    pub.publish_many(orders(8))

    def break_off(worker: shmbus.Worker[Order]) -> None:
        if how == "many":
            assert worker.receive_many(2, timeout=0) == orders(2)
            return
        for order in worker:
            if order.id == 1:
                continue
            if how == "error":
                raise ZeroDivisionError
            worker.cancel()
            break

    def work() -> None:
        with bus.worker(ORDERS, group="g", prefetch=8) as worker:
            break_off(worker)

    with pytest.raises(ZeroDivisionError) if how == "error" else nullcontext():
        work()
    with bus.worker(ORDERS, group="g") as worker:
        found = {m.event.id: m.attempt for m in (message(worker) for _ in range(7 if how != "many" else 8))}
    charged = {1, 2} if how == "many" else {2}
    assert found == {id: 2 if id in charged else 1 for id in range(1 if how == "many" else 2, 9)}


def test_a_prefetching_worker_that_dies(bus: Bus, pub: shmbus.Publisher[Order], processes: Processes) -> None:
    """What a dead worker held counts as handed out, all of it, on top of what it had given back unseen before."""
    code = """
        import signal, sys
        from events import ORDERS
        from shmbus import Bus
        bus = Bus(sys.argv[1], supervise=False)
        for _ in range(3):
            with bus.worker(ORDERS, group="g", prefetch=4) as worker:
                worker.receive(timeout=0)  # and never acks it: the first event is charged
        worker = bus.worker(ORDERS, group="g", prefetch=4)
        worker.receive(timeout=0)
        print("holds", flush=True)
        signal.pause()
    """
    bus.group(ORDERS, "g")
    pub.publish_many(orders(4))
    child = processes.spawn(code, bus.name)
    assert line(child) == "holds"
    child.send_signal(signal.SIGKILL)
    child.wait()
    with bus.worker(ORDERS, group="g", max_deliver=10) as worker:
        found = {m.event.id: m.attempt for m in (message(worker) for _ in range(4))}
    assert found == {1: 5, 2: 2, 3: 2, 4: 2}


# -- ack_within


def test_a_slow_worker(bus: Bus, pub: shmbus.Publisher[Order]) -> None:
    """What a worker holds for longer than `ack_within` goes to another, and the slow one can settle it no more."""
    with bus.worker(ORDERS, group="g", ack_within=0.05, name="slow") as slow, bus.worker(ORDERS, group="g") as other:
        pub.publish_many(orders(3))
        held = [message(slow) for _ in range(3)]
        found = [message(other) for _ in range(3)]
        assert sorted((m.event.id, m.attempt) for m in found) == [(1, 2), (2, 2), (3, 2)]
        for settle in (held[0].ack, held[1].nack, held[2].reject):
            with pytest.raises(shmbus.ReclaimedError):
                settle()
        for one in found:
            one.ack()
        assert books(bus, "g") == {"offered": 3, "delivered": 3}


def test_a_slow_loop(bus: Bus, pub: shmbus.Publisher[Order]) -> None:
    """A loop that is too slow learns it when it asks for the next one, and goes on with that."""
    with bus.worker(ORDERS, group="g", ack_within=0.05) as slow, bus.worker(ORDERS, group="g") as other:
        pub.publish_many(orders(1))
        assert next(slow) == Order(1)
        assert other.receive(timeout=PATIENT) == Order(1)
        with pytest.raises(shmbus.ReclaimedError, match="too slow"):
            next(slow)
        pub.publish(Order(2))
        assert next(slow) == Order(2)
        slow.ack()
        other.ack()
        assert books(bus, "g") == {"offered": 2, "delivered": 2}


def test_prefetched_events_that_went_to_others(bus: Bus, pub: shmbus.Publisher[Order]) -> None:
    """A worker never hands out what it had prefetched and others were given meanwhile, nor what is in its place now."""
    with bus.worker(SMALL, group="g", ack_within=0.05, prefetch=4) as slow, bus.worker(SMALL, group="g") as other:
        with bus.publisher(SMALL) as small:
            small.publish_many(orders(4))
            assert slow.receive(timeout=PATIENT) == Order(1)
            assert take(other, 4) == orders(4)
            other.ack()
            for id in range(5, 500):  # several laps of the ring
                small.publish(Order(id))
                assert other.try_receive() == Order(id)
                other.ack()
            small.publish(Order(500))
            with pytest.raises(shmbus.ReclaimedError):
                slow.try_receive()
            assert slow.receive(timeout=PATIENT) == Order(500)
            slow.ack()


def test_a_supervisor_looks_for_the_slow(bus_name: str, processes: Processes) -> None:
    """A supervisor takes back what is held for too long, also while nobody of the group waits, and of the stopped."""
    code = """
        import signal, sys
        from events import ORDERS
        from shmbus import Bus
        bus = Bus(sys.argv[1])
        worker = bus.worker(ORDERS, group="g", ack_within=0.1)
        worker.receive(timeout=60)
        print("holds", flush=True)
        signal.pause()
    """
    with Bus(bus_name) as bus, bus.publisher(ORDERS) as pub:
        bus.group(ORDERS, "g")
        child = processes.spawn(code, bus_name)
        pub.publish(Order(1))
        assert line(child) == "holds"
        child.send_signal(signal.SIGSTOP)
        eventually(lambda: consumer(bus, "g").claimed == 0)
        child.send_signal(signal.SIGCONT)
        with bus.worker(ORDERS, group="g") as worker:
            again = message(worker)
            assert (again.event, again.attempt) == (Order(1), 2)
            again.ack()


def test_who_is_in_time_keeps_it(bus: Bus, pub: shmbus.Publisher[Order]) -> None:
    """A worker that settles in time loses nothing, and one without `ack_within` may take as long as it likes."""
    with bus.worker(ORDERS, group="g", ack_within=LONG) as one, bus.worker(ORDERS, group="g") as two:
        pub.publish_many(orders(2))
        held = [message(one), message(two)]
        with pytest.raises(shmbus.Empty):
            two.receive(timeout=2.5)  # looks after the bus twice
        for each in held:
            each.ack()
        assert books(bus, "g") == {"offered": 2, "delivered": 2}


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "1", True])
@pytest.mark.parametrize("option", ["ack_within", "expires"])
def test_times_that_cannot_be(bus: Bus, option: str, value: Any) -> None:
    """`ack_within` and `expires` are positive numbers of seconds; only `expires` may be infinite."""
    if option == "expires" and value == float("inf"):
        bus.group(ORDERS, "g", expires=value)
        return
    with pytest.raises(shmbus.ConfigError, match=option):
        bus.worker(ORDERS, group="g", **{option: value})
    assert bus.stats().consumers == ()
