"""`flush`: back once every reliable subscriber has received, and every group has acked, what was published before."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from events import ORDERS, PATIENT, Order, opened, orders
from support import Processes, eventually, line

import shmbus
from shmbus import Bus


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    with opened(bus_name, supervise=False) as bus:
        yield bus


class Flush(threading.Thread):
    """A flush in a thread of its own, and how it ended."""

    def __init__(self, pub: shmbus.Publisher[Any], awaited: bool) -> None:
        super().__init__()
        self.pub, self.awaited = pub, awaited
        self.error: BaseException | None = None
        self.start()
        eventually(lambda: pub._flushing(0) or not self.is_alive())

    def run(self) -> None:
        try:
            asyncio.run(self.pub.aflush()) if self.awaited else self.pub.flush()
        except BaseException as error:
            self.error = error

    def ended(self) -> None:
        self.join(PATIENT)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error


@pytest.fixture(params=[False, True], ids=["thread", "task"])
def flush(request: pytest.FixtureRequest) -> Callable[[shmbus.Publisher[Any]], Flush]:
    """Begins to flush, and is back once it waits."""
    return lambda pub: Flush(pub, request.param)


def test_nobody_is_owed_anything(bus: Bus) -> None:
    """A flush with nobody there, with nothing published, and past a lossy subscriber is back at once."""
    with bus.publisher(ORDERS) as pub:
        pub.flush(0)
        pub.publish(Order(1))
        pub.flush(0)
        with bus.subscriber(ORDERS, mode="lossy"), bus.worker(ORDERS, group="g"), bus.subscriber(ORDERS):
            pub.flush(0)


def test_names_who_is_missing(bus: Bus) -> None:
    """A timeout is an error that names whoever lacks something, and nobody else."""
    with (
        bus.publisher(ORDERS) as pub,
        bus.subscriber(ORDERS, name="slow"),
        bus.subscriber(ORDERS, name="quick") as quick,
        bus.subscriber(ORDERS, name="lossy", mode="lossy"),
        bus.worker(ORDERS, group="bills") as worker,
    ):
        pub.publish(Order(1))
        quick.receive(timeout=PATIENT)
        with pytest.raises(shmbus.FlushTimeoutError) as told:
            pub.flush(0.01)
        assert set(told.value.blocked_by) == {"slow", "bills"}
        assert isinstance(told.value, TimeoutError)
        worker.receive(timeout=PATIENT)  # received is not acked
        with pytest.raises(TimeoutError, match=r"slow, bills|bills, slow"):
            asyncio.run(pub.aflush(timeout=0.01))
    with bus.publisher(ORDERS) as pub, pytest.raises(shmbus.ConfigError):
        pub.flush(-1)


def test_waits_for_what_came_before(bus: Bus, flush: Callable[[Any], Flush]) -> None:
    """It is back with the last event of those before it, received by the one and acked by the other."""
    with bus.publisher(ORDERS) as pub, bus.subscriber(ORDERS) as sub, bus.worker(ORDERS, group="g") as worker:
        pub.publish_many(orders(3))
        waiting = flush(pub)
        pub.publish(Order(99))
        assert sub.receive_many(3) == list(orders(3))
        for message in worker.messages():
            assert waiting.is_alive()
            message.ack()
            if message.sequence == 3:
                break
        waiting.ended()
        assert sub.receive(0) == Order(99)


@pytest.mark.parametrize("last", ["subscriber", "worker"])
def test_is_woken(bus: Bus, last: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever receives the last event wakes it, however long it would sleep, and before that event is worked on."""
    monkeypatch.setattr("shmbus._handles.flushing.NAP", PATIENT)
    with bus.publisher(ORDERS) as pub, bus.subscriber(ORDERS) as sub, bus.worker(ORDERS, group="g") as worker:
        pub.publish_many(orders(2))
        if last == "worker":
            assert sub.receive_many(2)
        else:
            assert worker.receive_many(2)
            worker.ack()
        waiting = Flush(pub, awaited=False)
        eventually(lambda: raised(bus, pub))
        began = time.monotonic()
        if last == "subscriber":
            sub.receive(0), sub.receive(0)
        else:
            assert worker.receive_many(2)
            worker.ack()
        waiting.ended()
        assert time.monotonic() - began < PATIENT


def raised(bus: Bus, pub: shmbus.Publisher[Any]) -> bool:
    """Whether the publisher's rings say that it waits."""
    session = bus._session
    rings = [r for r in session.document().rings if r.publisher == pub._id and not r.group]
    return all(session.rings.broadcast(r).info()["waiting"] for r in rings)


@pytest.mark.parametrize("how", ["close", "group", "publisher"])
def test_whoever_goes_is_waited_for_no_longer(bus: Bus, how: str, flush: Callable[[Any], Flush]) -> None:
    """Who closes, or is removed, ends the wait; closing the publisher ends it by ClosedError."""
    pub = bus.publisher(ORDERS)
    sub = bus.subscriber(ORDERS) if how != "group" else None
    worker = bus.worker(ORDERS, group="g") if how == "group" else None
    pub.publish(Order(1))
    waiting = flush(pub)
    if how == "close":
        assert sub is not None
        sub.close()
    elif how == "group":
        assert worker is not None
        worker.close()
        bus.remove_group(ORDERS, "g")
    else:
        pub.close()
        with pytest.raises(shmbus.ClosedError):
            waiting.ended()
        return
    waiting.ended()
    pub.close()


def subscribes(bus_name: str) -> None:
    import sys

    from events import ORDERS

    import shmbus

    with shmbus.Bus.attach(bus_name) as bus, bus.subscriber(ORDERS), bus.worker(ORDERS, group="g"):
        print("here", flush=True)
        sys.stdin.read()


def test_a_consumer_that_dies(bus_name: str, processes: Processes) -> None:
    """A subscriber that is killed is waited for no longer; what its worker held, its siblings ack."""
    with opened(bus_name) as bus, bus.publisher(ORDERS) as pub, bus.worker(ORDERS, group="g") as worker:
        child = processes.spawn(subscribes, bus_name)
        assert line(child) == "here"
        pub.publish_many(orders(10))
        waiting = Flush(pub, awaited=False)
        child.kill()
        while Order(10) not in worker.receive_many(10, timeout=PATIENT):
            pass
        worker.ack()
        waiting.ended()


def test_what_was_dropped(bus: Bus) -> None:
    """An event that had no room is owed to nobody."""
    small = shmbus.Topic("small", Order, capacity=4096)
    with bus.publisher(small, on_full="drop") as pub, bus.subscriber(small) as sub:
        while pub.publish(Order(1)) is not None:
            pass
        while sub.try_receive():
            pass
        pub.flush(0)
