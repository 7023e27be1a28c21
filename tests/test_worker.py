"""Worker: its share of a group's events, and what becomes of each: acked, given back, rejected, used up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from events import ORDERS, PATIENT, RAW, SMALL, Order, books, consumer, drain, fill, losses, opened, orders, take
from support import Processes, eventually, line

import shmbus
from shmbus import Bus


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    with opened(bus_name) as bus:
        yield bus


@pytest.fixture
def pub(bus: Bus) -> Iterator[shmbus.Publisher[Order]]:
    with bus.publisher(ORDERS, name="p") as publisher:
        yield publisher


# -- who gets what


def test_group_collects_without_workers(bus: Bus, pub: shmbus.Publisher[Order]) -> None:
    """A group collects events while no worker lives: before the first, and between two; other groups get theirs."""
    bus.group(ORDERS, "billing")
    bus.group(ORDERS, "billing")
    pub.publish_many(orders(5))
    assert books(bus, "billing") == {"offered": 5, "depth": 5}
    assert consumer(bus, "billing").state == "idle"
    with bus.worker(ORDERS, group="billing") as worker, bus.worker(ORDERS, group="late") as late:
        pub.publish(Order(6))
        assert take(worker, 3) == orders(3)
        assert drain(late) == [Order(6)]
    assert books(bus, "billing") == {"offered": 6, "delivered": 2, "depth": 4}
    pub.publish(Order(7))
    with bus.worker(ORDERS, group="billing") as worker:
        assert drain(worker) == orders(5, 3)
    assert books(bus, "billing") == {"offered": 7, "delivered": 7}


def test_group_of_a_topic(bus: Bus, pub: shmbus.Publisher[Order]) -> None:
    """Groups of one name on two topics are two groups."""
    with bus.publisher(SMALL) as other, bus.worker(ORDERS, group="g") as one, bus.worker(SMALL, group="g") as two:
        pub.publish(Order(1))
        other.publish(Order(2))
        assert (drain(one), drain(two)) == ([Order(1)], [Order(2)])


def test_workers_share(bus: Bus, pub: shmbus.Publisher[Order]) -> None:
    """Each event of a group goes to one of its workers, in order, whoever asks first."""
    with bus.worker(ORDERS, group="g") as one, bus.worker(ORDERS, group="g") as two:
        pub.publish_many(orders(10))
        found = [worker.try_receive() for worker in (one, two) * 5]
        assert found == orders(10)
        assert (one.try_receive(), two.try_receive()) == (None, None)
        assert books(bus, "g") == {"offered": 10, "delivered": 10}


def test_processes_share(bus: Bus, processes: Processes) -> None:
    """Worker processes share a group's events: each is acked once, and all of them are."""
    code = """
        import sys
        from events import SMALL
        from shmbus import Bus, Empty
        with Bus(sys.argv[1], supervise=False) as bus, bus.worker(SMALL, group="g") as worker:
            print("ready")
            ids = []
            for order in worker:
                if order.id < 0:
                    worker.ack()
                    break
                ids.append(order.id)
            print(*ids)
    """
    with bus.publisher(SMALL) as pub:
        children = [processes.spawn(code, bus.name) for _ in range(3)]
        assert [line(child) for child in children] == ["ready"] * 3
        pub.publish_many(orders(3000))
        pub.publish_many([Order(-1)] * 3)
        found = [int(number) for child in children for number in line(child).split()]
        assert sorted(found) == list(range(1, 3001))
        assert [child.wait() for child in children] == [0, 0, 0]
        assert books(bus, "g") == {"offered": 3003, "delivered": 3003}


# -- acks


def test_asking_acks(bus: Bus, pub: shmbus.Publisher[Order]) -> None:
    """Asking for the next event acks the last one, by every way to ask; ack() does it without asking."""
    with bus.worker(ORDERS, group="g") as worker:
        pub.publish_many(orders(8))

        def delivered() -> int:
            return books(bus, "g").get("delivered", 0)

        assert next(worker) == Order(1)
        assert (delivered(), consumer(bus, "g").claimed, consumer(bus, "g").depth) == (0, 1, 8)
        assert worker.receive() == Order(2)
        assert delivered() == 1
        assert worker.try_receive() == Order(3)
        assert delivered() == 2
        assert worker.receive_many(3) == orders(3, 4)
        assert delivered() == 3
        assert worker.receive_many(1) == [Order(7)]
        assert delivered() == 6
        worker.ack()
        worker.ack()
        assert delivered() == 7
        assert next(worker) == Order(8)
        assert worker.try_receive() is None
        assert delivered() == 8


def test_iteration_that_breaks_off(bus: Bus, pub: shmbus.Publisher[Order]) -> None:
    """The event at which a worker breaks off, by break or by an error, goes back to the group when it closes."""
    pub_events = orders(4)
    bus.group(ORDERS, "g")
    pub.publish_many(pub_events)

    def fail_at(id: int) -> None:
        with bus.worker(ORDERS, group="g") as worker:
            for order in worker:
                if order.id == id:
                    raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_at(2)
    assert books(bus, "g") == {"offered": 4, "delivered": 1, "depth": 3}
    with bus.worker(ORDERS, group="g") as worker:
        message = next(worker.messages())
        assert (message.event, message.attempt) == (Order(2), 2)
        message.ack()
        assert drain(worker) == orders(2, 3)


def test_messages(bus: Bus, pub: shmbus.Publisher[Order]) -> None:
    """A message is held until it is settled, in any order; settling it again changes nothing."""
    with bus.worker(ORDERS, group="g") as worker:
        for order in orders(3):
            pub.publish(order, headers={"id": order.id})
        stream = worker.messages()
        one, two, three = next(stream), next(stream), next(stream)
        assert [(m.event, m.sequence, m.publisher, m.attempt, m.headers) for m in (one, two, three)] == [
            (Order(n), n, "p", 1, {"id": n}) for n in (1, 2, 3)
        ]
        assert (consumer(bus, "g").claimed, consumer(bus, "g").workers[0].held) == (3, 3)
        three.ack()
        one.ack()
        one.nack()
        one.ack()
        assert books(bus, "g") == {"offered": 3, "delivered": 2, "depth": 1}
        assert worker.try_receive() is None  # which acks nothing: the message is open
        assert not two.settled
        two.ack()
        assert books(bus, "g") == {"offered": 3, "delivered": 3}


def test_nack(bus: Bus, pub: shmbus.Publisher[Order]) -> None:
    """A nacked event is delivered again, to any worker, with the next attempt."""
    with bus.worker(ORDERS, group="g") as one, bus.worker(ORDERS, group="g") as two:
        pub.publish_many(orders(2))
        next(one.messages()).nack()
        again = next(two.messages())
        assert (again.event, again.attempt) == (Order(1), 2)
        again.nack()
        third = next(one.messages())
        assert (third.event, third.attempt) == (Order(1), 3)
        third.ack()
        assert drain(two) == [Order(2)]
        assert books(bus, "g") == {"offered": 2, "delivered": 2}


def test_nack_wakes_a_sibling(bus: Bus, pub: shmbus.Publisher[Order]) -> None:
    """A nacked event wakes a worker that waits."""
    found: list[Order] = []
    with bus.worker(ORDERS, group="g") as one, bus.worker(ORDERS, group="g", idle="park") as two:
        pub.publish(Order(1))
        message = next(one.messages())
        thread = threading.Thread(target=lambda: found.append(two.receive(timeout=PATIENT)))
        thread.start()
        message.nack()
        thread.join()
        assert found == [Order(1)]
        two.ack()


def test_close_gives_back(bus: Bus, pub: shmbus.Publisher[Order]) -> None:
    """Open messages and prefetched events go back to the group at close, and then cannot be settled."""
    worker = bus.worker(ORDERS, group="g", prefetch=4)
    pub.publish_many(orders(8))
    stream = worker.messages()
    one, two = next(stream), next(stream)
    one.ack()
    assert consumer(bus, "g").claimed == 3
    worker.close()
    for settle in (two.ack, two.nack, two.reject):
        with pytest.raises(shmbus.ClosedError):
            settle()
    assert books(bus, "g") == {"offered": 8, "delivered": 1, "depth": 7}
    with bus.worker(ORDERS, group="g") as other:
        found = [next(other.messages()) for _ in range(7)]
        assert [m.event for m in found] == orders(7, 2)
        assert [m.attempt for m in found] == [2, 1, 1, 1, 1, 1, 1]
        for message in found:
            message.ack()


def test_prefetch(bus: Bus, pub: shmbus.Publisher[Order]) -> None:
    """A worker that prefetches claims so many at once, gives them out in order, and acks each by itself."""
    with bus.worker(ORDERS, group="g", prefetch=4) as worker, bus.worker(ORDERS, group="g") as other:
        pub.publish_many(orders(6))
        assert worker.try_receive() == Order(1)
        assert other.try_receive() == Order(5)
        assert take(worker, 2) == orders(2, 2)
        assert books(bus, "g")["delivered"] == 2
        assert worker.receive_many(10) == [Order(4), Order(6)]
        assert other.try_receive() is None
        worker.ack()
        assert books(bus, "g") == {"offered": 6, "delivered": 6}


# -- dead letters


def test_reject(bus: Bus, pub: shmbus.Publisher[Order]) -> None:
    """A rejected event is a dead letter with reason, attempts, origin and payload, and is rejected on the books."""
    letters = shmbus.dead_letter_topic(ORDERS)
    assert (letters.name, letters.type) == ("orders.dead", shmbus.DeadLetter)
    with bus.subscriber(letters) as dead, bus.worker(ORDERS, group="g") as worker:
        pub.publish_many(orders(3))
        next(worker.messages()).nack()
        next(worker.messages()).reject("no such customer")
        next(worker.messages()).reject()
        assert drain(worker) == [Order(3)]
        one, two = drain(dead)
        assert msgspec.msgpack.decode(one.payload, type=Order) == Order(1)
        assert (one.reason, one.attempts, one.publisher, one.sequence) == ("no such customer", 2, "p", 1)
        assert (one.topic, one.group) == ("orders", "g")
        assert two.reason
        assert books(bus, "g") == {"offered": 3, "delivered": 1, "rejected": 2}
        assert list(losses(bus, "g")) == [("p", "rejected", 1, 2, 2)]


def test_dead_letters_are_read_later(bus: Bus, pub: shmbus.Publisher[Order]) -> None:
    """Dead letters can be read from the oldest on by whoever asks later, with a topic of their name."""
    with bus.worker(ORDERS, group="g") as worker:
        pub.publish(Order(1))
        next(worker.messages()).reject("x" * 5000)
    with bus.subscriber(shmbus.Topic("orders.dead", shmbus.DeadLetter), start="oldest") as dead:
        assert dead.receive(timeout=0).reason.startswith("x" * 100)


def test_max_deliver(bus: Bus, pub: shmbus.Publisher[Order]) -> None:
    """An event that was handed out `max_deliver` times without an ack becomes a dead letter."""
    with (
        bus.subscriber(shmbus.dead_letter_topic(ORDERS)) as dead,
        bus.worker(ORDERS, group="g", max_deliver=3) as worker,
    ):
        pub.publish_many(orders(2))
        attempts = []
        for message in worker.messages():
            if message.event == Order(2):
                message.ack()
                break
            attempts.append(message.attempt)
            message.nack()
        assert attempts == [1, 2, 3]
        (letter,) = drain(dead)
        assert (letter.attempts, letter.sequence) == (3, 1)
        assert "3" in letter.reason
        assert books(bus, "g") == {"offered": 2, "delivered": 1, "rejected": 1}


def test_largest_event_fits_a_dead_letter(bus: Bus) -> None:
    """The largest event that a topic carries can be rejected with the longest reason and names."""
    with bus.publisher(RAW, name="p" * 63) as pub, bus.worker(RAW, group="g" * 63) as worker:
        with pytest.raises(shmbus.EventTooLargeError) as caught:
            pub.publish(b"x" * 5000)
        payload = b"x" * caught.value.maximum
        pub.publish(payload)
        with bus.subscriber(shmbus.dead_letter_topic(RAW)) as dead:
            next(worker.messages()).reject("é" * 10_000)
            assert dead.receive(timeout=0).payload == payload


def test_undecodable(bus: Bus, pub: shmbus.Publisher[Order]) -> None:
    """What does not decode is a DecodeError once, becomes a dead letter, and is counted as undecodable."""
    wrong: Any = "one"
    with bus.subscriber(shmbus.dead_letter_topic(ORDERS)) as dead, bus.worker(ORDERS, group="g") as worker:
        pub.publish_many([Order(wrong), Order(2), Order(wrong), Order(4)])
        with pytest.raises(shmbus.DecodeError, match=r"'p'.*\$\.id") as caught:
            next(worker)
        assert (caught.value.publisher, caught.value.sequence) == ("p", 1)
        message = next(worker.messages())
        assert message.event == Order(2)
        message.ack()
        with pytest.raises(shmbus.DecodeError):
            next(worker.messages())
        assert drain(worker) == [Order(4)]
        assert [letter.sequence for letter in drain(dead)] == [1, 3]
        assert books(bus, "g") == {"offered": 4, "delivered": 2, "undecodable": 2}


def test_worker_of_dead_letters(bus: Bus, pub: shmbus.Publisher[Order]) -> None:
    """A group may work on dead letters; one that it rejects is gone, counted as rejected."""
    letters = shmbus.dead_letter_topic(ORDERS)
    with bus.worker(letters, group="morgue") as morgue, bus.worker(ORDERS, group="g") as worker:
        pub.publish(Order(1))
        next(worker.messages()).reject("first")
        message = next(morgue.messages())
        assert message.event.reason == "first"
        message.reject("second")
        assert books(bus, "morgue") == {"offered": 1, "rejected": 1}


# -- room


def test_slow_group_blocks(bus: Bus) -> None:
    """A group whose open messages fill the ring holds back the publisher, wherever the open one lies."""
    with bus.publisher(SMALL, on_full="raise") as pub, bus.worker(SMALL, group="g") as worker:
        count = fill(pub)
        first = next(worker.messages())
        assert drain(worker) == orders(count - 1, 2)
        with pytest.raises(shmbus.Full) as caught:
            pub.publish(Order(0))
        assert caught.value.blocked_by == ("g",)
        first.ack()
        assert pub.publish_many(orders(50)) == 50
        assert drain(worker) == orders(50)


def test_killed_worker(bus: Bus, processes: Processes) -> None:
    """What a killed worker had claimed goes to another one with the next attempt, without any supervisor."""
    code = """
        import sys, signal
        from events import ORDERS
        from shmbus import Bus
        bus = Bus(sys.argv[1], supervise=False)
        worker = bus.worker(ORDERS, group="g", prefetch=3, name="doomed")
        print(*(order.id for order in worker.receive_many(2)), flush=True)
        signal.pause()
    """
    bus.group(ORDERS, "g")
    with bus.publisher(ORDERS) as pub:
        pub.publish_many(orders(5))
        child = processes.spawn(code, bus.name)
        assert line(child) == "1 2"
        assert consumer(bus, "g").claimed in (2, 3)
        child.send_signal(signal.SIGKILL)
        child.wait()
        with bus.worker(ORDERS, group="g") as worker:
            stream = worker.messages()
            found: dict[int, int] = {}
            while len(found) < 5:
                message = next(stream)
                found[message.event.id] = message.attempt
                message.ack()
            assert (found[1], found[2], found[5]) == (2, 2, 1)
            eventually(lambda: len(bus.stats().participants) == 1)
        assert books(bus, "g") == {"offered": 5, "delivered": 5}
