"""Publisher: what it takes, what it refuses, what it does when there is no room, and what it counts."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from events import (
    ORDERS,
    PATIENT,
    RAW,
    SMALL,
    Order,
    Renamed,
    books,
    drain,
    fill,
    losses,
    opened,
    orders,
    publisher,
    take,
)
from support import Processes, eventually, line

import shmbus
from shmbus import Bus


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    with opened(bus_name) as bus:
        yield bus


# -- what it takes


def test_sequences(bus: Bus) -> None:
    """publish returns sequences from 1 without holes, and publish_many how many events it published."""
    with bus.publisher(ORDERS) as pub, bus.subscriber(ORDERS) as sub:
        assert [pub.publish(order) for order in orders(3)] == [1, 2, 3]
        assert pub.publish_many(orders(4, 4)) == 4
        assert pub.publish_many(order for order in orders(2, 8)) == 2
        assert pub.publish_many([]) == 0
        assert pub.publish(Order(10)) == 10
        assert drain(sub) == orders(10)


def test_every_publisher_counts_its_own(bus: Bus) -> None:
    """Each publisher of a topic has sequences of its own."""
    with bus.publisher(ORDERS) as one, bus.publisher(ORDERS) as two:
        assert [one.publish(Order(1)), two.publish(Order(2)), one.publish(Order(3))] == [1, 1, 2]
        assert one.name != two.name


@pytest.mark.parametrize(
    "headers", [None, {}, {"trace": "abc"}, {"n": 1, "list": [1, {"x": None}], "raw": b"\0\xff", "f": 0.5}]
)
def test_headers(bus: Bus, headers: dict[str, Any] | None) -> None:
    """Headers arrive as they were given, {} for none, at subscribers and at workers."""
    with bus.publisher(ORDERS) as pub, bus.subscriber(ORDERS) as sub, bus.worker(ORDERS, group="g") as worker:
        pub.publish(Order(1), headers=headers)
        for receiver in (sub, worker):
            message = next(iter(receiver.messages()))
            assert message.event == Order(1)
            assert message.headers == (headers or {})


@pytest.mark.parametrize("headers", [{1: "x"}, [("a", 1)], "trace", {"x": object()}])
def test_bad_headers(bus: Bus, headers: Any) -> None:
    """Headers that are no dict with str keys and plain values are an error, and nothing is written."""
    with bus.publisher(ORDERS) as pub, bus.subscriber(ORDERS) as sub:
        with pytest.raises((shmbus.ConfigError, TypeError)):
            pub.publish(Order(1), headers=headers)
        assert pub.publish(Order(2)) == 1
        assert drain(sub) == [Order(2)]


def test_message_says_where_it_came_from(bus: Bus) -> None:
    """A message carries the event, its sequence, its publisher's name and the time when it was published."""
    with bus.publisher(ORDERS, name="till 4") as pub, bus.subscriber(ORDERS) as sub:
        before = time.time_ns()
        pub.publish_many(orders(2))
        after = time.time_ns()
        messages = sub.messages()
        found = [next(messages), next(messages)]
        assert [(m.event, m.sequence, m.publisher) for m in found] == [(Order(1), 1, "till 4"), (Order(2), 2, "till 4")]
        assert before <= found[0].time_ns <= found[1].time_ns <= after
        assert "till 4" in repr(found[0])


@pytest.mark.parametrize("payload", [b"", b"\0", bytes(range(256)), b"x" * 900])
def test_bytes_topic(bus: Bus, payload: bytes) -> None:
    """A topic of bytes carries payloads as they are, empty ones too."""
    with bus.publisher(RAW) as pub, bus.subscriber(RAW) as sub, bus.worker(RAW, group="g") as worker:
        pub.publish(payload, headers={"n": 1})
        assert (sub.receive(timeout=0), worker.receive(timeout=0)) == (payload, payload)


@pytest.mark.parametrize("wrong", [Renamed(1), {"id": 1}, None, 5, "Order", Order])
def test_wrong_event_type(bus: Bus, wrong: Any) -> None:
    """An event of another type is an EventTypeError and a TypeError; nothing is written and the ring goes on."""
    with bus.publisher(ORDERS) as pub, bus.subscriber(ORDERS) as sub:
        with pytest.raises(shmbus.EventTypeError, match=r"Order") as caught:
            pub.publish(wrong)
        assert isinstance(caught.value, TypeError)
        with pytest.raises(shmbus.EventTypeError):
            pub.publish_many([Order(1), wrong, Order(2)])
        assert pub.publish(Order(3)) == 1
        assert drain(sub) == [Order(3)]


@pytest.mark.parametrize("wrong", ["text", 5, [1], None])
def test_wrong_payload_type(bus: Bus, wrong: Any) -> None:
    """A topic of bytes takes nothing but bytes."""
    with bus.publisher(RAW) as pub:
        with pytest.raises(shmbus.EventTypeError):
            pub.publish(wrong)
        assert pub.publish(b"x") == 1


def test_too_large(bus: Bus) -> None:
    """An event that the ring can never hold says its size and the limit; the largest that it can hold fits."""
    with bus.publisher(RAW) as pub, bus.subscriber(RAW) as sub, bus.worker(RAW, group="g") as worker:
        with pytest.raises(shmbus.EventTooLargeError) as caught:
            pub.publish(b"x" * 5000)
        error = caught.value
        assert isinstance(error, ValueError)
        assert (error.topic, error.size) == ("raw", 5000)
        assert 900 < error.maximum <= 1024
        with pytest.raises(shmbus.EventTooLargeError):
            pub.publish(b"x" * (error.maximum + 1))
        with pytest.raises(shmbus.EventTooLargeError):
            pub.publish_many([b"a", b"x" * (error.maximum + 1), b"b"])
        with pytest.raises(shmbus.EventTooLargeError):
            pub.publish(b"x" * error.maximum, headers={"x": 1})
        with pytest.raises(shmbus.EventTooLargeError):
            pub.publish(b"", headers={"x": "y" * 100_000})
        for number in range(1, 20):
            assert pub.publish(b"y" * error.maximum) == number
            assert [len(r.receive(timeout=0)) for r in (sub, worker)] == [error.maximum] * 2


def test_batch_is_all_or_nothing_until_it_is_encoded(bus: Bus) -> None:
    """An iterable that raises in the middle of publish_many has published nothing, and its error goes up."""

    def events() -> Iterator[Order]:
        yield Order(1)
        raise ZeroDivisionError

    with bus.publisher(ORDERS) as pub, bus.subscriber(ORDERS) as sub:
        with pytest.raises(ZeroDivisionError):
            pub.publish_many(events())
        with pytest.raises(TypeError):
            pub.publish_many(5)  # type: ignore[arg-type]
        assert sub.try_receive() is None
        assert pub.publish(Order(2)) == 1


# -- no room


def test_raise(bus: Bus) -> None:
    """With `on_full="raise"` a full ring is a Full at once that names the slow subscriber, and nobody else."""
    with (
        bus.publisher(SMALL, on_full="raise") as pub,
        bus.subscriber(SMALL, name="slow") as slow,
        bus.subscriber(SMALL, name="quick") as quick,
        bus.subscriber(SMALL, name="lossy", mode="lossy"),
    ):
        count = fill(pub)
        assert drain(quick) == orders(count)
        with pytest.raises(shmbus.Full) as caught:
            pub.publish(Order(0))
        assert (caught.value.topic, caught.value.blocked_by, caught.value.published) == ("small", ("slow",), 0)
        assert "slow" in str(caught.value)
        assert count > 50
        assert publisher(bus, pub.name).blocked_by == ("slow",)
        assert take(slow, 2) == orders(2)
        assert pub.publish(Order(count + 1)) == count + 1
        assert drain(slow) == orders(count - 1, 3)


def test_full_is_queue_full(bus: Bus) -> None:
    """Full names the group that holds the room, and is a queue.Full; publish_many says how many got in."""
    import queue

    with bus.publisher(SMALL, on_full="raise") as pub, bus.worker(SMALL, group="billing") as worker:
        with pytest.raises(queue.Full) as caught:
            pub.publish_many(orders(1000))
        error = caught.value
        assert isinstance(error, shmbus.Full)
        assert error.blocked_by == ("billing",)
        assert 50 < error.published < 1000
        assert take(worker, error.published) == orders(error.published)
        assert worker.try_receive() is None
        assert pub.publish_many(orders(10)) == 10
        with pytest.raises(shmbus.Full) as second:
            pub.publish_many(orders(1000))
        assert 0 < second.value.published < error.published


def test_block_times_out(bus: Bus) -> None:
    """With a timeout a blocked publish raises Full that names everybody in the way, and wrote nothing."""
    with (
        bus.publisher(SMALL, timeout=0.05) as pub,
        bus.subscriber(SMALL, name="s") as sub,
        bus.worker(SMALL, group="g"),
    ):
        count = fill(pub)
        with pytest.raises(shmbus.Full) as caught:
            pub.publish(Order(0))
        assert caught.value.blocked_by == ("g",)
        assert not publisher(bus, pub.name).waiting
        assert drain(sub) == orders(count)
        with pytest.raises(shmbus.Full) as caught:
            pub.publish(Order(0))
        assert caught.value.blocked_by == ("g",)
        assert sub.try_receive() is None


def test_block_zero_timeout(bus: Bus) -> None:
    """A timeout of 0 does not wait."""
    with bus.publisher(SMALL, timeout=0) as pub, bus.subscriber(SMALL) as sub:
        count = fill(pub)
        assert drain(sub) == orders(count)
        assert pub.publish(Order(1)) == count + 1


def test_block_until_read(bus: Bus) -> None:
    """A blocked publisher is seen to wait, is named where it waits, and goes on when its consumer has read."""
    with bus.publisher(SMALL, name="p") as pub, bus.subscriber(SMALL, name="slow") as sub:
        thread = threading.Thread(target=pub.publish_many, args=(orders(1000),))
        thread.start()
        eventually(lambda: publisher(bus, "p").waiting)
        stats = bus.stats()
        assert stats.publishers[0].blocked_by == ("slow",)
        assert stats.consumers[0].blocks == ("p",)
        assert stats.consumers[0].state == "slow"
        assert take(sub, 1000) == orders(1000)
        thread.join(PATIENT)
        assert not thread.is_alive()
        assert not publisher(bus, "p").waiting
        assert books(bus, "slow") == {"offered": 1000, "delivered": 1000}


def test_block_until_subscriber_leaves(bus: Bus) -> None:
    """A blocked publisher goes on when who blocks it closes."""
    pub, sub = bus.publisher(SMALL), bus.subscriber(SMALL, name="slow")
    thread = threading.Thread(target=pub.publish_many, args=(orders(300),))
    thread.start()
    eventually(lambda: publisher(bus, pub.name).waiting)
    sub.close()
    thread.join(PATIENT)
    assert not thread.is_alive()
    assert publisher(bus, pub.name).published == 300
    pub.close()
    found = books(bus, "slow")
    assert found == {"offered": found["abandoned"], "abandoned": found["abandoned"]}


def test_close_ends_a_block(bus: Bus) -> None:
    """Closing a publisher from another thread ends its blocked publish with ClosedError."""
    pub, sub = bus.publisher(SMALL), bus.subscriber(SMALL)
    raised: list[BaseException] = []

    def publish() -> None:
        try:
            pub.publish_many(orders(1000))
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=publish)
    thread.start()
    eventually(lambda: publisher(bus, pub.name).waiting)
    pub.close()
    thread.join(PATIENT)
    assert [type(error) for error in raised] == [shmbus.ClosedError]
    assert drain(sub) == orders(publisher(bus, pub.name).published)
    sub.close()


def test_drop(bus: Bus) -> None:
    """`on_full="drop"` returns None and counts `refused` exactly, for each consumer that went without."""
    with (
        bus.publisher(SMALL, name="p", on_full="drop") as pub,
        bus.subscriber(SMALL, name="slow") as slow,
        bus.worker(SMALL, group="g") as worker,
    ):
        results = []
        for order in orders(500):
            results.append(pub.publish(order))
            assert worker.receive(timeout=0) == order
        worker.ack()
        kept = [sequence for sequence in results if sequence is not None]
        assert kept == list(range(1, len(kept) + 1))
        assert 50 < len(kept) < 500
        refused = 500 - len(kept)
        assert results[len(kept) :] == [None] * refused
        assert books(bus, "slow") == {"offered": 500, "depth": len(kept), "refused": refused}
        assert books(bus, "g") == {"offered": 500, "delivered": 500}
        assert publisher(bus, "p").refused == refused
        assert drain(slow) == orders(len(kept))
        assert books(bus, "slow") == {"offered": 500, "delivered": len(kept), "refused": refused}
        assert list(losses(bus, "slow")) == [("p", "refused", len(kept) + 1, len(kept) + 1, refused)]


def test_drop_many(bus: Bus) -> None:
    """publish_many with `on_full="drop"` returns how many events everybody got, and counts the others."""
    with bus.publisher(SMALL, on_full="drop") as pub, bus.subscriber(SMALL, name="s") as sub:
        count = pub.publish_many(orders(500))
        assert drain(sub) == orders(count)
        assert books(bus, "s") == {"offered": 500, "delivered": count, "refused": 500 - count}
        with bus.subscriber(SMALL, name="late") as late:
            assert pub.publish_many(orders(10)) == 10
            assert books(bus, "late") == {"offered": 10, "depth": 10}
            assert drain(late) == orders(10)


def test_unrouted(bus: Bus) -> None:
    """Events published while the topic has no consumer are counted as unrouted, and block nobody."""
    with bus.publisher(SMALL, name="p", on_full="raise") as pub:
        assert pub.publish_many(orders(1000)) == 1000
        assert (publisher(bus, "p").published, publisher(bus, "p").unrouted) == (1000, 1000)
        with bus.subscriber(SMALL) as sub:
            pub.publish(Order(1))
            assert drain(sub) == [Order(1)]
            assert publisher(bus, "p").unrouted == 1000
        pub.publish(Order(1))
        assert (publisher(bus, "p").published, publisher(bus, "p").unrouted) == (1002, 1001)


def test_threads_share_a_publisher(bus: Bus) -> None:
    """Threads may share a publisher: every event arrives once, and each thread's in its order."""
    with bus.publisher(SMALL) as pub, bus.subscriber(SMALL, name="s") as sub:

        def publish(first: int) -> None:
            for order in orders(500, first):
                pub.publish(order)

        threads = [threading.Thread(target=publish, args=(1000 * n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        found = take(sub, 2000)
        for thread in threads:
            thread.join()
        for n in range(4):
            assert [order for order in found if order.id // 1000 == n] == orders(500, 1000 * n)
        assert books(bus, "s") == {"offered": 2000, "delivered": 2000}


def test_interrupt_ends_a_block(bus: Bus, processes: Processes) -> None:
    """Ctrl-C ends a blocked publish, and the process leaves as any other."""
    code = """
        import sys
        from events import SMALL, orders
        from shmbus import Bus
        with Bus(sys.argv[1], supervise=False) as bus, bus.publisher(SMALL, name="p") as pub:
            print("begins")
            try:
                pub.publish_many(orders(1000))
            except KeyboardInterrupt:
                print("interrupted")
            print(bus.stats().publishers[0].waiting)
    """
    with bus.subscriber(SMALL):
        child = processes.spawn(code, bus.name)
        assert line(child) == "begins"
        eventually(lambda: any(p.waiting for p in bus.stats().publishers))
        eventually(lambda: psutil.Process(child.pid).status() == psutil.STATUS_SLEEPING)
        child.send_signal(signal.SIGINT)
        assert [line(child), line(child)] == ["interrupted", "False"]
        assert child.wait() == 0
