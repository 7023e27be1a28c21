"""`mode="latest"`: the newest event of each publisher; what is skipped is on the books, and nobody is held up."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator

import msgspec
import pytest
from events import ORDERS, PATIENT, RAW, Order, books, opened, orders

import shmbus
from shmbus import Bus


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    with opened(bus_name) as bus:
        yield bus


def test_the_newest_of_each_publisher(bus: Bus) -> None:
    """It is handed the newest event of each publisher, once, and the others are overrun."""
    with bus.subscriber(ORDERS, name="s", mode="latest") as sub, bus.publisher(ORDERS) as a, bus.publisher(ORDERS) as b:
        a.publish_many(orders(3))
        b.publish(Order(10))
        assert {sub.receive(0), sub.receive(0)} == {Order(3), Order(10)}
        assert sub.try_receive() is None
        assert books(bus, "s") == {"offered": 4, "delivered": 2, "overrun": 2}
        a.publish(Order(4))
        a.publish(Order(5))
        assert books(bus, "s") == {"offered": 6, "delivered": 2, "depth": 2, "overrun": 2}
        message = next(iter(sub.messages()))
        assert (message.event, message.sequence) == (Order(5), 5)
        assert sub.mode == "latest"


def test_never_blocks_and_catches_up(bus: Bus) -> None:
    """A publisher goes on for many laps of its ring; the next look is at the newest, whatever was overwritten."""
    with bus.publisher(RAW, on_full="raise") as pub, bus.subscriber(RAW, name="s", mode="latest") as sub:
        chance = random.Random(7)
        for i in range(300):
            pub.publish(i.to_bytes(2, "little") + bytes(chance.randrange(700)))
            if i % 37 == 0:
                assert int.from_bytes(sub.receive(0)[:2], "little") == i
        pub.flush(0)  # nobody waits for it
        assert int.from_bytes(sub.receive(0)[:2], "little") == 299
        assert books(bus, "s") == {"offered": 300, "delivered": 10, "overrun": 290}


def test_while_others_publish(bus: Bus) -> None:
    """What it sees of each publisher only grows, and its books balance, while threads publish as fast as they can."""
    end = threading.Event()
    with bus.subscriber(RAW, name="s", mode="latest") as sub:

        def publish(name: str) -> None:
            with bus.publisher(RAW, name=name) as pub:
                for i in range(3000):
                    pub.publish(i.to_bytes(2, "little") + bytes(i % 900))
                end.wait(PATIENT)

        threads = [threading.Thread(target=publish, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        seen = {"a": -1, "b": -1}
        for message in sub.messages():
            number = int.from_bytes(message.event[:2], "little")
            assert number > seen[message.publisher]
            assert message.event[2:] == bytes(number % 900)
            seen[message.publisher] = number
            if set(seen.values()) == {2999}:
                break
        end.set()
        for thread in threads:
            thread.join()
        found = books(bus, "s")
        assert found["offered"] == 6000 == found["delivered"] + found["overrun"]


def test_in_an_event_loop(bus: Bus) -> None:
    """A task that awaits is woken by the first event, and gets the newest."""

    async def run() -> None:
        with bus.subscriber(ORDERS, mode="latest") as sub, bus.publisher(ORDERS) as pub:
            waiting = asyncio.ensure_future(sub.areceive(timeout=PATIENT))
            await asyncio.sleep(0)
            pub.publish_many(orders(5))
            assert await waiting == Order(5)

    asyncio.run(run())


def test_of_publishers_that_are_gone(bus: Bus) -> None:
    """The newest of each publisher is there after it has closed, in the order in which they did."""
    with bus.subscriber(ORDERS, name="s", mode="latest") as sub:
        for first in (1, 11, 21):
            with bus.publisher(ORDERS) as pub:
                pub.publish_many(orders(5, first))
        assert [sub.receive(0).id for _ in range(3)] == [5, 15, 25]
        assert sub.try_receive() is None
        assert books(bus, "s") == {"offered": 15, "delivered": 3, "overrun": 12}
    with bus.subscriber(ORDERS, start="oldest", mode="latest") as late:
        assert [late.receive(0).id for _ in range(3)] == [5, 15, 25]


def test_of_publishers_whose_rings_grew(bus: Bus) -> None:
    """The newest event is in the ring that a publisher went on in; what the ones before still hold is overrun."""
    growing = shmbus.Topic("growing", int, capacity=4096, max_capacity=16 << 20)
    with (
        bus.subscriber(growing) as slow,
        bus.subscriber(growing, name="s", mode="latest") as sub,
        bus.publisher(growing) as pub,
        bus.publisher(growing) as other,
    ):
        for turn in range(1, 4):
            pub.publish_many(range(5000 * turn))
            other.publish(-turn)
            assert {sub.receive(0), sub.receive(0)} == {5000 * turn - 1, -turn}
            assert sub.try_receive() is None
        assert books(bus, "s") == {"offered": 30_003, "delivered": 6, "overrun": 29_997}
        assert sum(1 for _ in iter(slow.try_receive, None)) == 30_003


class Other(msgspec.Struct):
    id: str


def test_what_does_not_decode(bus: Bus) -> None:
    """A newest event that does not decode is counted as that, and what came before it as overrun."""
    plain = shmbus.Topic("plain", Order, validate=False, enc_hook=lambda _: "no")
    with bus.subscriber(plain, name="s", mode="latest") as sub, bus.publisher(plain) as pub:
        pub.publish(Order(1))
        pub.publish(Order("one"))  # type: ignore[arg-type]
        with pytest.raises(shmbus.DecodeError):
            sub.receive(0)
        assert books(bus, "s") == {"offered": 2, "undecodable": 1, "overrun": 1}


def test_takes_no_on_gap(bus: Bus) -> None:
    """Who asks to skip is not told of what it skipped."""
    with pytest.raises(shmbus.ConfigError, match="latest"):
        bus.subscriber(ORDERS, mode="latest", on_gap="raise")
