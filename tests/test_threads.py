"""Handles that several threads use: who settles, whose ask acks what, who is turned away."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from events import ORDERS, PATIENT, SMALL, Order, books, consumer, drain, opened, orders
from support import eventually

import shmbus
from shmbus import Bus
from shmbus.message import ACK

Receiver = shmbus.Subscriber[Any] | shmbus.Worker[Any]


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    with opened(bus_name) as bus:
        yield bus


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads switch wherever they may."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_a_pool_settles(bus: Bus, switching: None) -> None:
    """A pool settles what one thread receives, while that waits, receives, and follows publishers that come and go."""
    rounds, each = 60, 8
    with bus.worker(SMALL, group="g") as worker, ThreadPoolExecutor(4) as pool:
        made = pool.submit(lambda: [_publish_few(bus, SMALL, each) for _ in range(rounds)])
        settled: list[Any] = []
        seen: set[int] = set()
        for message in worker.messages():
            seen.add(message.event.id)
            how = message.reject if message.event.id % 7 == 0 else message.ack
            if message.event.id % 5 == 0 and message.attempt == 1:
                how = message.nack
            settled.append(pool.submit(how))
            if len(settled) == rounds * each + rounds * (each // 5):
                break
        assert len(made.result()) == rounds
        for future in settled:
            future.result()
        assert seen == set(range(1, each + 1))
        rejected = rounds * len([id for id in range(1, each + 1) if id % 7 == 0])
        assert books(bus, "g") == {
            "offered": rounds * each,
            "delivered": rounds * each - rejected,
            "rejected": rejected,
        }


def _publish_few(bus: Bus, topic: shmbus.Topic[Order], count: int) -> int:
    with bus.publisher(topic, timeout=PATIENT) as pub:
        return len([pub.publish(order) for order in orders(count)])


def test_settled_once(bus: Bus, switching: None) -> None:
    """A message that many threads settle at once is settled by one of them, and the others do nothing."""
    with bus.publisher(ORDERS) as pub, bus.worker(ORDERS, group="g") as worker, ThreadPoolExecutor(4) as pool:
        pub.publish_many(orders(200))
        stream = worker.messages()
        for message in (next(stream) for _ in range(200)):
            for future in [pool.submit(message.ack) for _ in range(4)]:
                future.result()
        assert books(bus, "g") == {"offered": 200, "delivered": 200}


def test_settled_by_one_that_fails(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who settles what another thread is settling learns what became of it: an ack that failed there is none here."""
    with bus.publisher(ORDERS) as pub, bus.worker(ORDERS, group="g") as worker, ThreadPoolExecutor(2) as pool:
        pub.publish(Order(1))
        message = next(worker.messages())
        begun, go_on = threading.Event(), threading.Event()

        def fail(*_: object) -> bool:
            begun.set()
            go_on.wait()
            raise shmbus.ClosedError("the worker is closed")

        monkeypatch.setattr(worker, "_settle", fail)
        first = pool.submit(message.ack)
        begun.wait()
        second = pool.submit(message.ack)
        eventually(second.running)
        go_on.set()
        for future in (first, second):
            with pytest.raises(shmbus.ClosedError):
                future.result()
        assert not message.settled


def test_settling_while_the_ring_is_let_go_of(bus: Bus) -> None:
    """A thread that is posting a publisher while another one changes the worker's rings harms neither."""
    inside, on = threading.Event(), threading.Event()
    with bus.worker(SMALL, group="g") as worker:
        post = worker._wake_publisher

        def slowly(ring_id: int) -> Any:
            inside.set()
            assert on.wait(PATIENT)
            return post(ring_id)

        worker._wake_publisher = slowly  # type: ignore[method-assign]
        stream = worker.messages()
        with bus.publisher(SMALL) as pub:
            filler = threading.Thread(target=lambda: [pub.publish(order) for order in orders(300)])
            filler.start()
            held = [next(stream) for _ in range(40)]
            acks = threading.Thread(target=lambda: [worker.settle(message, ACK) for message in held])
            acks.start()
            assert inside.wait(PATIENT)
            others = [bus.publisher(SMALL) for _ in range(20)]
            for other in others:
                other.publish(Order(0))
            got = 0
            while got < 20:
                message = next(stream)
                got += message.event.id == 0
                message.ack()
            on.set()
            for other in others:
                other.close()
            while filler.is_alive() or consumer(bus, "g").depth > len(held):
                next(stream).ack()
            acks.join()
            filler.join()
        drain(worker)
        assert books(bus, "g") == {"offered": 320, "delivered": 320}


def test_asking_acks_by_thread(bus: Bus) -> None:
    """Asking acks what the same thread was handed, and ack() that and what threads were that have ended."""
    with bus.publisher(ORDERS) as pub, bus.worker(ORDERS, group="g") as worker, ThreadPoolExecutor(1) as other:
        pub.publish_many(orders(6))
        assert worker.receive(timeout=PATIENT) == Order(1)
        assert other.submit(worker.receive, PATIENT).result() == Order(2)
        assert consumer(bus, "g").claimed == 2
        assert worker.receive(timeout=PATIENT) == Order(3)
        assert books(bus, "g")["delivered"] == 1
        worker.ack()
        assert (books(bus, "g")["delivered"], consumer(bus, "g").claimed) == (2, 1)
        other.submit(worker.ack).result()
        assert (books(bus, "g")["delivered"], consumer(bus, "g").claimed) == (3, 0)
        ended = threading.Thread(target=worker.receive)
        ended.start()
        ended.join()
        assert worker.receive(timeout=PATIENT) == Order(5)
        assert consumer(bus, "g").claimed == 2
        worker.ack()
        assert books(bus, "g") == {"offered": 6, "delivered": 5, "depth": 1}


def test_the_bus_is_closed_while_the_lock_is_waited_for(bus_name: str) -> None:
    """Whoever waits for the bus lock while another thread closes the bus gets ClosedError."""
    with opened(bus_name) as outer, ThreadPoolExecutor(1) as pool:
        bus = Bus(bus_name, supervise=False)
        begun = threading.Event()

        def open_one() -> None:
            begun.set()
            bus.publisher(ORDERS)

        with outer._session.locked():
            opening = pool.submit(open_one)
            assert begun.wait(PATIENT)
            bus.close()  # which leaves once this thread lets go of the lock
        assert isinstance(opening.exception(), shmbus.ClosedError)
        assert len(outer.stats().participants) == 1


def test_a_call_that_is_turned_away_changes_nothing(bus: Bus) -> None:
    """What a second thread asked for, and was refused, is not what the first one gets."""
    with bus.publisher(ORDERS) as pub, bus.worker(ORDERS, group="g") as worker, ThreadPoolExecutor(1) as pool:
        first = pool.submit(worker.receive_many, 2, PATIENT)

        def turned_away() -> bool:
            try:
                worker.receive_many(1000, timeout=0)
            except RuntimeError:
                return True
            except shmbus.Empty:
                return False
            raise AssertionError("something was there")

        eventually(turned_away)
        pub.publish_many(orders(100))
        assert len(first.result()) <= 2
