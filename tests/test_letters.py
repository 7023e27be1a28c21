"""Dead letters: they fit whatever ring the event came from, and never stop the group."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from events import ORDERS, PATIENT, Order, books, consumer, drain, opened, orders
from support import eventually

import shmbus
from shmbus import Bus, DeadLetter
from shmbus import letters as _letters

LARGE = shmbus.Topic("jobs", bytes, capacity=1 << 22)
JOBS = shmbus.Topic("jobs", bytes, capacity=1 << 16)
TINY = shmbus.Topic("jobs", bytes, capacity=4096)


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    with opened(bus_name) as bus:
        yield bus


def reject(worker: shmbus.Worker[Any], count: int = 1, reason: str = "no") -> None:
    for _ in range(count):
        next(worker.messages()).reject(reason)


def test_a_larger_ring_than_the_topic_says(bus: Bus) -> None:
    """An event of a publisher whose rings are larger than the worker's topic says fits into its dead letter."""
    with bus.publisher(LARGE) as pub, bus.worker(TINY, group="g") as worker:
        with bus.subscriber(shmbus.dead_letter_topic(TINY)) as dead:
            pub.publish(bytes(900_000))
            reject(worker)
            letter = dead.receive(timeout=PATIENT)
            assert (len(letter.payload), letter.truncated) == (900_000, 0)
        assert books(bus, "g") == {"offered": 1, "rejected": 1}


def test_a_larger_ring_that_comes_later(bus: Bus) -> None:
    """Letters go into larger rings once somebody publishes out of larger ones; those before them stay to be read."""
    with bus.subscriber(shmbus.dead_letter_topic(TINY)) as dead, bus.worker(TINY, group="g") as worker:
        with bus.publisher(TINY) as pub:
            pub.publish(b"small")
            reject(worker)
            with bus.publisher(LARGE) as large:
                large.publish(bytes(1_000_000))
                reject(worker)
                pub.publish(b"again")
                reject(worker)
        found = {len(dead.receive(timeout=PATIENT).payload) for _ in range(3)}
        assert found == {5, 1_000_000}
        assert [p.name for p in bus.stats().publishers if p.topic == "jobs.dead" and p.pid].__len__() == 1


def test_where_no_larger_ring_can_be_had(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where /dev/shm has no room for a larger ring the letter is cut to what there is, and says by how much."""

    def no_room(self: Bus, topic: shmbus.Topic[Any], *more: Any) -> Any:
        if topic.name.endswith(".dead") and topic.capacity > 1 << 16:
            raise shmbus.NoSpaceError(28, "ring", topic.capacity, 0)
        return real(self, topic, *more)

    real = Bus._open_publisher
    monkeypatch.setattr(Bus, "_open_publisher", no_room)
    with bus.subscriber(shmbus.dead_letter_topic(TINY)) as dead, bus.worker(TINY, group="g") as worker:
        with bus.publisher(LARGE) as large:
            large.publish(bytes(range(256)) * 1000)
            reject(worker, reason="é" * 1000)
            letter = dead.receive(timeout=PATIENT)
            assert letter.payload == (bytes(range(256)) * 1000)[: len(letter.payload)]
            assert 10_000 < len(letter.payload) == 256_000 - letter.truncated
        assert books(bus, "g") == {"offered": 1, "rejected": 1}


def test_letters_of_older_programs() -> None:
    """A letter without the count of missing bytes is one that is whole."""
    old = {"reason": "r", "attempts": 1, "publisher": "p", "sequence": 1, "payload": b"x", "topic": "t", "group": "g"}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode({**old, "time_ns": 1}), type=DeadLetter).truncated == 0


def fill_letters(bus: Bus) -> None:
    """A group of inspectors whose worker is not there today, with a full ring."""
    letters = shmbus.dead_letter_topic(ORDERS)
    bus.group(letters, "inspectors")


def test_no_room_stops_nobody(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    """Where the dead letters have no room a rejected event goes back for later, the log says who is in the way, and the
    group goes on; once there is room, every event has its letter."""
    letters = shmbus.dead_letter_topic(JOBS)
    bus.group(letters, "inspectors")
    with bus.publisher(JOBS) as pub, bus.worker(JOBS, group="g", max_deliver=100) as worker:

        def full() -> bool:
            pub.publish(bytes(8000))
            reject(worker)
            return books(bus, "g").get("depth") == 1

        with caplog.at_level(logging.WARNING, logger="shmbus.loss"):
            eventually(full)
        assert "inspectors" in caplog.text
        assert "'jobs.dead'" in caplog.text
        pub.publish(b"next")
        message = next(worker.messages())
        assert message.event == b"next"
        message.ack()
        with bus.worker(letters, group="inspectors") as inspector:
            drain(inspector)
            again = next(worker.messages())
            assert (len(again.event), again.attempt) == (8000, 2)
            again.reject("no")
            assert len(drain(inspector)) == 1
        assert books(bus, "g").get("depth") is None


def test_an_event_loop_does_not_wait(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an event loop nothing is waited for; elsewhere one wait in vain is enough for a while."""
    waits: list[bool] = []
    now, later = shmbus.Publisher.publish_now, shmbus.Publisher.publish

    def publish_now(self: Any, event: Any) -> None:
        waits.append(False)
        now(self, event)

    def publish(self: Any, event: Any, **headers: Any) -> int | None:
        if isinstance(event, DeadLetter):
            waits.append(True)
            self._timeout = 0.01
        return later(self, event, **headers)

    monkeypatch.setattr(shmbus.Publisher, "publish_now", publish_now)
    monkeypatch.setattr(shmbus.Publisher, "publish", publish)
    letters = shmbus.dead_letter_topic(JOBS)
    bus.group(letters, "inspectors")

    with bus.publisher(JOBS) as pub, bus.worker(JOBS, group="g", max_deliver=100) as worker:

        async def run() -> None:
            while books(bus, "g").get("depth") != 1:
                pub.publish(bytes(8000))
                reject(worker)

        asyncio.run(run())
        assert set(waits) == {False}
        waits.clear()
        pub.publish_many([bytes(8000)] * 2)
        reject(worker, 2)
        assert waits == [True, False]


def test_used_up_without_room(bus: Bus) -> None:
    """An event whose attempts are used up stays on the books until its letter can be written; nobody sees it again."""
    letters = shmbus.dead_letter_topic(JOBS)
    bus.group(letters, "inspectors")
    with bus.publisher(JOBS) as pub:
        with bus.worker(JOBS, group="g") as worker:
            while books(bus, "g").get("depth") != 1:
                pub.publish(bytes(8000))
                reject(worker)
        with bus.worker(JOBS, group="h", max_deliver=1) as other:
            pub.publish(bytes(8000))
            next(other.messages()).nack()
            assert other.try_receive() is None
            assert books(bus, "h") == {"offered": 1, "depth": 1}
            with bus.worker(letters, group="inspectors") as inspector:
                drain(inspector)
                eventually(lambda: other.try_receive() is None and books(bus, "h").get("rejected") == 1)
                (letter,) = [one for one in drain(inspector) if one.group == "h"]
                assert (letter.attempts, letter.reason) == (1, "delivered 1 times without an ack")


def test_undecodable_without_room(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not decode is told as ever, and stays until its letter can be written."""
    refusing = True

    def write(self: Any, letter: DeadLetter) -> DeadLetter:
        if refusing:
            raise shmbus.Full("orders.dead", ("somebody",))
        return real(self, letter)

    real = _letters.Letters.write
    monkeypatch.setattr(_letters.Letters, "write", write)
    wrong: Any = "one"
    with bus.publisher(ORDERS) as pub, bus.worker(ORDERS, group="g") as worker:
        pub.publish_many([Order(wrong), Order(2)])
        with pytest.raises(shmbus.DecodeError):
            worker.try_receive()
        assert worker.try_receive() == Order(2)
        worker.ack()
        assert books(bus, "g") == {"offered": 2, "delivered": 1, "depth": 1}
        refusing = False
        with pytest.raises(shmbus.DecodeError):
            worker.receive(timeout=PATIENT)
        assert books(bus, "g") == {"offered": 2, "delivered": 1, "undecodable": 1}


@pytest.mark.parametrize("error", [shmbus.SchemaMismatchError("orders.dead", ["x"]), shmbus.CapacityError("full")])
def test_letters_that_cannot_be_opened(bus: Bus, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Where the dead-letter topic cannot be opened at all the event goes back for later too."""

    def no(self: Bus, topic: shmbus.Topic[Any], *more: Any) -> Any:
        if topic.name.endswith(".dead"):
            raise error
        return real(self, topic, *more)

    real = Bus._open_publisher
    monkeypatch.setattr(Bus, "_open_publisher", no)
    with bus.publisher(ORDERS) as pub, bus.worker(ORDERS, group="g") as worker:
        pub.publish_many(orders(2))
        reject(worker)
        assert worker.try_receive() == Order(2)
        worker.ack()
        assert consumer(bus, "g").depth == 1
        monkeypatch.undo()
        before = time.monotonic()
        reject(worker)
        assert time.monotonic() >= before
        assert books(bus, "g") == {"offered": 2, "delivered": 1, "rejected": 1}
