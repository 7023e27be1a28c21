"""Subscriber: what it gets, in which order, what it misses, and what it is told of that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from events import ORDERS, SMALL, Order, books, consumer, drain, fill, losses, opened, orders, take
from support import Processes, eventually, line

import shmbus
from shmbus import Bus


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    with opened(bus_name) as bus:
        yield bus


# -- what it gets


def test_every_subscriber_gets_every_event(bus: Bus) -> None:
    """Every subscriber receives every event of every publisher, each publisher's in its order."""
    with bus.subscriber(ORDERS) as one, bus.subscriber(ORDERS) as two:
        with bus.publisher(ORDERS) as first, bus.publisher(ORDERS) as second:
            for number in range(1, 101):
                first.publish(Order(number))
                second.publish(Order(1000 + number))
        for sub in (one, two):
            found = drain(sub)
            assert [order for order in found if order.id <= 1000] == orders(100)
            assert [order for order in found if order.id > 1000] == orders(100, 1001)


def test_latest(bus: Bus) -> None:
    """By default a subscriber gets what is published from its opening on, also by publishers that come later."""
    with bus.publisher(ORDERS) as pub:
        pub.publish_many(orders(3))
        with bus.subscriber(ORDERS) as sub:
            assert sub.try_receive() is None
            pub.publish(Order(4))
            with bus.publisher(ORDERS) as late:
                late.publish(Order(5))
            assert sorted(drain(sub)) == orders(2, 4)


def test_oldest(bus: Bus) -> None:
    """With `start="oldest"` it begins with what the rings still hold, that of closed publishers included."""
    with bus.publisher(ORDERS, name="gone") as gone:
        gone.publish_many(orders(3))
    with bus.publisher(ORDERS) as pub:
        pub.publish_many(orders(3, 4))
        with bus.subscriber(ORDERS, name="s", start="oldest") as sub:
            pub.publish(Order(7))
            assert sorted(drain(sub)) == orders(7)
            assert sub.try_receive() is None
            assert books(bus, "s") == {"offered": 7, "delivered": 7}


def test_oldest_of_a_full_ring(bus: Bus) -> None:
    """`start="oldest"` on a ring that has been around many times gives an unbroken run up to the newest event."""
    with bus.publisher(SMALL) as pub:
        pub.publish_many(orders(1234))
        with bus.subscriber(SMALL, start="oldest") as sub:
            found = drain(sub)
            assert len(found) > 50
            assert found == orders(len(found), 1235 - len(found))


def test_receive_many(bus: Bus) -> None:
    """receive_many gives up to so many events, those that are there, and raises Empty when there are none."""
    with bus.publisher(ORDERS) as pub, bus.subscriber(ORDERS) as sub:
        pub.publish_many(orders(10))
        assert sub.receive_many(4) == orders(4)
        assert sub.receive_many(256, timeout=0.1) == orders(6, 5)
        with pytest.raises(shmbus.Empty):
            sub.receive_many(256, timeout=0.01)
        for wrong in (0, -1):
            with pytest.raises(shmbus.ConfigError):
                sub.receive_many(wrong)


def test_publisher_that_lives_for_ten_events(bus: Bus, processes: Processes) -> None:
    """A process that opens a publisher, publishes ten events and exits loses none of them, at once or one by one."""
    code = """
        import sys
        from events import ORDERS, orders
        from shmbus import Bus
        with Bus(sys.argv[1], supervise=False) as bus, bus.publisher(ORDERS) as pub:
            for order in orders(10, int(sys.argv[2])):
                pub.publish(order)
    """
    with bus.subscriber(ORDERS, name="s") as sub, bus.worker(ORDERS, group="g") as worker:
        children = [processes.spawn(code, bus.name, first) for first in (0, 100, 200, 300)]
        for child in children:
            assert child.wait() == 0
        expected = [order for first in (0, 100, 200, 300) for order in orders(10, first)]
        assert sorted(drain(sub)) == expected
        assert sorted(drain(worker)) == expected
        for name in ("s", "g"):
            assert books(bus, name) == {"offered": 40, "delivered": 40}


PUBLISH_UNTIL_TOLD = """
    import sys, threading
    from events import SMALL, Order
    from shmbus import Bus

    def listen():
        sys.stdin.readline()
        told.set()

    told = threading.Event()
    threading.Thread(target=listen).start()
    with Bus(sys.argv[1], supervise=False) as bus, bus.publisher(SMALL) as pub:
        print("ready")
        number = 0
        while not told.is_set():
            number += 1
            pub.publish(Order(number))
        print(number)
"""


def test_joining_while_publishing(bus: Bus, processes: Processes) -> None:
    """Subscribers that come and go while events flow get an unbroken run each, and the one that stays gets all."""
    with bus.subscriber(SMALL, name="stays") as stays:
        child = processes.spawn(PUBLISH_UNTIL_TOLD, bus.name)
        assert line(child) == "ready"
        whole: list[Order] = []
        for turn in range(60):
            with bus.subscriber(SMALL, start="oldest" if turn % 2 else "latest") as sub:
                found: list[Order] = []
                while len(found) < 20:
                    whole.extend(drain(stays))
                    found.extend(drain(sub))
                assert found == orders(len(found), found[0].id)
        assert child.stdin is not None
        child.stdin.write("stop\n")
        child.stdin.flush()
        while child.poll() is None:
            whole.extend(drain(stays))
        whole.extend(drain(stays))
        last = int(line(child))
        assert whole == orders(last)
        assert child.wait() == 0
        assert books(bus, "stays") == {"offered": last, "delivered": last}


def test_many_publishers(bus: Bus, processes: Processes) -> None:
    """Several processes that publish at full speed to one subscriber lose nothing and keep their orders."""
    code = """
        import sys
        from events import SMALL, orders
        from shmbus import Bus
        with Bus(sys.argv[1], supervise=False) as bus, bus.publisher(SMALL) as pub:
            for order in orders(2000, int(sys.argv[2])):
                pub.publish(order)
    """
    with bus.subscriber(SMALL, name="s") as sub:
        for n in range(4):
            processes.spawn(code, bus.name, 10_000 * n)
        found = take(sub, 8000)
        for n in range(4):
            assert [order for order in found if order.id // 10_000 == n] == orders(2000, 10_000 * n)
        assert books(bus, "s") == {"offered": 8000, "delivered": 8000}


# -- what it misses


def test_lossy_holds_nobody_back(bus: Bus) -> None:
    """A lossy subscriber is overrun instead of slowing the publisher, and its gaps and events add up exactly."""
    gaps: list[shmbus.Gap] = []
    with (
        bus.publisher(SMALL, name="p", on_full="raise") as pub,
        bus.subscriber(SMALL, name="s", mode="lossy", on_gap=gaps.append) as sub,
    ):
        received: list[Order] = []
        for turn in range(20):
            pub.publish_many(orders(61 * turn % 500, sum(61 * t % 500 for t in range(turn)) + 1))
            received.extend(drain(sub))
        published = sum(61 * turn % 500 for turn in range(20))
        assert sum(gap.count for gap in gaps) + len(received) == published
        assert gaps
        missing = [number for gap in gaps for number in range(gap.first, gap.last + 1)]
        assert sorted([order.id for order in received] + missing) == list(range(1, published + 1))
        assert {(gap.publisher, gap.cause) for gap in gaps} == {("p", "overrun")}
        assert all(gap.count == gap.last - gap.first + 1 for gap in gaps)
        lost = sum(gap.count for gap in gaps)
        assert books(bus, "s") == {"offered": published, "delivered": len(received), "overrun": lost}
        (found,) = losses(bus, "s")
        assert found == ("p", "overrun", gaps[0].first, gaps[-1].last, lost)


def test_gap_is_raised(bus: Bus) -> None:
    """With `on_gap="raise"` a gap is a GapError before the event that follows it, once, and the stream goes on."""
    with bus.publisher(SMALL) as pub, bus.subscriber(SMALL, mode="lossy", on_gap="raise") as sub:
        pub.publish_many(orders(500))
        with pytest.raises(shmbus.GapError) as caught:
            sub.receive(timeout=0)
        gap = caught.value.gap
        assert isinstance(gap, shmbus.Gap)
        assert gap.first == 1
        assert drain(sub) == orders(500 - gap.count, gap.last + 1)
        assert sub.try_receive() is None


def test_gap_without_listener(bus: Bus) -> None:
    """Without `on_gap` a gap is on the books alone; it is counted even before the subscriber notices."""
    with bus.publisher(SMALL) as pub, bus.subscriber(SMALL, name="s", mode="lossy") as sub:
        pub.publish_many(orders(500))
        seen = books(bus, "s")
        assert seen["offered"] == 500
        found = drain(sub)
        assert found == orders(len(found), 501 - len(found))
        assert books(bus, "s") == {"offered": 500, "delivered": len(found), "overrun": 500 - len(found)}


def test_listener_that_raises(bus: Bus) -> None:
    """What `on_gap` raises goes up to the receiver, and the stream goes on behind the gap."""

    def listener(gap: shmbus.Gap) -> None:
        raise ZeroDivisionError(gap.count)

    with bus.publisher(SMALL) as pub, bus.subscriber(SMALL, name="s", mode="lossy", on_gap=listener) as sub:
        pub.publish_many(orders(500))
        with pytest.raises(ZeroDivisionError) as caught:
            next(iter(sub))
        assert drain(sub) == orders(500 - caught.value.args[0], caught.value.args[0] + 1)


def test_listener_that_publishes(bus: Bus) -> None:
    """`on_gap` may use the bus: publish an alarm, or look at the books."""
    alarms = shmbus.Topic("alarms", shmbus.Gap)
    with bus.publisher(alarms) as alarm, bus.subscriber(alarms) as watch, bus.publisher(SMALL) as pub:

        def listener(gap: shmbus.Gap) -> None:
            alarm.publish(gap)
            bus.stats()

        with bus.subscriber(SMALL, mode="lossy", on_gap=listener) as sub:
            pub.publish_many(orders(500))
            found = drain(sub)
            assert watch.receive(timeout=0).count == 500 - len(found)


def test_undecodable(bus: Bus) -> None:
    """A payload that is not of the type is a DecodeError with publisher, sequence and field; the stream goes on."""
    wrong: Any = "five"
    with bus.publisher(ORDERS, name="p") as pub, bus.subscriber(ORDERS, name="s") as sub:
        pub.publish_many([Order(1), Order(2, cents=wrong), Order(3)])
        assert sub.receive() == Order(1)
        with pytest.raises(shmbus.DecodeError, match=r"'p'.*\$\.cents") as caught:
            sub.receive()
        error = caught.value
        assert isinstance(error, ValueError)
        assert (error.topic, error.publisher, error.sequence) == ("orders", "p", 2)
        assert sub.receive() == Order(3)
        assert books(bus, "s") == {"offered": 3, "delivered": 2, "undecodable": 1}
        assert list(losses(bus, "s")) == [("p", "undecodable", 2, 2, 1)]


@pytest.mark.parametrize("how", ["next", "try_receive", "receive_many", "messages"])
def test_undecodable_anywhere(bus: Bus, how: str) -> None:
    """Every way to receive reports an undecodable event once and loses none of its neighbours."""
    wrong: Any = None
    with bus.publisher(ORDERS) as pub, bus.subscriber(ORDERS, name="s", mode="lossy") as sub:
        pub.publish_many([Order(1), Order(wrong), Order(wrong), Order(4)])
        found: list[Any] = []
        while len(found) < 4:
            try:
                if how == "receive_many":
                    found += sub.receive_many(10, timeout=0)
                elif how == "messages":
                    found.append(next(sub.messages()).event)
                else:
                    found.append(next(sub) if how == "next" else sub.try_receive())
            except shmbus.DecodeError as error:
                found.append(error.sequence)
        assert found == [Order(1), 2, 3, Order(4)]
        assert books(bus, "s") == {"offered": 4, "delivered": 2, "undecodable": 2}


class Extended(msgspec.Struct, frozen=True):
    id: int
    cents: int = 0
    note: str = "none"


def test_schema_evolves(bus: Bus) -> None:
    """With `schema="evolve"` a reader with a newer type gets defaults for what older publishers do not send."""
    newer = shmbus.Topic("orders", Extended, schema="evolve")
    with bus.publisher(ORDERS) as pub, bus.subscriber(newer) as sub:
        pub.publish(Order(1, 2))
        assert sub.receive() == Extended(1, 2, "none")


@pytest.mark.parametrize("codec", ["msgpack", "json", "pickle"])
def test_codecs(bus: Bus, codec: Any) -> None:
    """Every codec carries events; a topic that exists with another one is refused."""
    topic = shmbus.Topic("coded", Order, codec=codec)
    with bus.publisher(topic) as pub, bus.subscriber(topic) as sub:
        pub.publish_many(orders(3))
        assert take(sub, 3) == orders(3)
        other = shmbus.Topic("coded", Order, codec="json" if codec != "json" else "msgpack")
        with pytest.raises(shmbus.ShmbusError, match="codec"):
            bus.subscriber(other)


# -- the end


def test_close_abandons(bus: Bus) -> None:
    """What a subscriber had not received at its close is abandoned, and nobody waits for it any more."""
    with bus.publisher(SMALL, name="p", on_full="raise") as pub:
        with bus.subscriber(SMALL, name="s") as sub:
            count = fill(pub)
            take(sub, 10)
        assert books(bus, "s") == {"offered": count, "delivered": 10, "abandoned": count - 10}
        assert list(losses(bus, "s")) == [("p", "abandoned", 11, count, count - 10)]
        assert consumer(bus, "s").state == "closed"
        assert pub.publish_many(orders(1000)) == 1000


def test_name_goes_on(bus: Bus) -> None:
    """A subscriber that comes back under its name goes on with its totals."""
    with bus.publisher(ORDERS) as pub:
        for turn in range(1, 4):
            with bus.subscriber(ORDERS, name="s") as sub:
                pub.publish_many(orders(5))
                assert drain(sub) == orders(5)
            assert books(bus, "s") == {"offered": 5 * turn, "delivered": 5 * turn}
            pub.publish_many(orders(3))
    assert [c.name for c in bus.stats().consumers] == ["s"]


def test_ring_of_a_closed_publisher_goes(bus: Bus) -> None:
    """A closed publisher's events stay for the subscriber; then the books keep them, and the rings do not pile up."""
    with bus.subscriber(ORDERS, name="s") as sub:
        sizes = []
        for _ in range(30):
            with bus.publisher(ORDERS) as pub:
                pub.publish_many(orders(4))
            assert take(sub, 4) == orders(4)
            sizes.append(bus.stats().bytes)
        assert books(bus, "s") == {"offered": 120, "delivered": 120}
        eventually(lambda: sub.try_receive() is None)
        assert sizes[-1] == sizes[15]


def test_capacity(bus: Bus) -> None:
    """The 65th subscriber of a topic is a CapacityError that says so; a place freed is a place to take."""
    subs = [bus.subscriber(SMALL) for _ in range(64)]
    with pytest.raises(shmbus.CapacityError, match="64"):
        bus.subscriber(SMALL)
    subs.pop().close()
    subs.append(bus.subscriber(SMALL))
    with bus.publisher(SMALL) as pub:
        pub.publish(Order(1))
    assert [sub.receive(timeout=0) for sub in subs] == [Order(1)] * 64
    for sub in subs:
        sub.close()
