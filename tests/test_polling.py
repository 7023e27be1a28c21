"""Who never waits, where no supervisor is: it polls, asks for no patience, or is told that there is no room. It looks
after the bus as whoever waits does, about once a second.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import pytest
from events import RAW, SMALL, Order, opened
from support import SHM, Processes, entries, eventually, line

import shmbus

BLOBS = shmbus.Topic("blobs", memoryview, pool=1 << 16, capacity=4096)


def be_a_subscriber(name: str) -> None:
    import sys

    from events import SMALL

    import shmbus

    topics = SMALL, shmbus.Topic("blobs", memoryview, pool=1 << 16, capacity=4096)
    with shmbus.Bus(name, supervise=False) as bus:
        handles = [bus.subscriber(topic) for topic in topics]
        print("ready", flush=True)
        sys.stdin.read()
        del handles


def hold_an_event(name: str) -> None:
    import sys

    from events import RAW

    import shmbus

    with shmbus.Bus(name, supervise=False) as bus, bus.worker(RAW, group="pool") as worker:
        worker.receive()
        print("ready", flush=True)
        sys.stdin.read()


SENDS = {
    "publish_now": lambda pub: pub.publish_now(Order(1)),
    "publish": lambda pub: pub.publish(Order(1)),
    "publish_many": lambda pub: pub.publish_many([Order(1)]),
    "apublish": lambda pub: asyncio.run(pub.apublish(Order(1))),
    "apublish_many": lambda pub: asyncio.run(pub.apublish_many([Order(1)])),
}


def sent(send: Callable[[], object]) -> bool:
    """Whether a call that does not wait was not refused."""
    try:
        send()
    except (shmbus.Full, shmbus.FlushTimeoutError):
        return False
    return True


def fill_until_refused(send: Callable[[], object]) -> None:
    while sent(send):
        pass


def goes_on(send: Callable[[], object]) -> None:
    """There is room again."""
    eventually(lambda: sent(send), "what the dead held is free")


@pytest.mark.parametrize("options", [{"on_full": "raise"}, {"timeout": 0}], ids=["raise", "no patience"])
@pytest.mark.parametrize("send", list(SENDS))
def test_who_is_refused_is_not_held_up_by_the_dead(
    bus_name: str, processes: Processes, send: str, options: dict[str, Any]
) -> None:
    """A publisher that waits for nothing has room again once a reliable subscriber that blocked it is dead."""
    with opened(bus_name) as bus:
        victim = processes.spawn(be_a_subscriber, bus_name)
        assert line(victim) == "ready"
        with bus.publisher(SMALL, **options) as publisher:
            fill_until_refused(lambda: SENDS[send](publisher))
            victim.kill()
            victim.wait()
            goes_on(lambda: SENDS[send](publisher))


@pytest.mark.parametrize("how", ["flush", "aflush"])
def test_who_asks_whether_all_is_received_waits_for_no_dead(bus_name: str, processes: Processes, how: str) -> None:
    """`flush(timeout=0)`, asked again and again, says yes once the only one who is owed anything is dead."""
    with opened(bus_name) as bus:
        victim = processes.spawn(be_a_subscriber, bus_name)
        assert line(victim) == "ready"
        with bus.publisher(SMALL) as publisher:
            publisher.publish(Order(1))
            victim.kill()
            victim.wait()
            goes_on(lambda: publisher.flush(0) if how == "flush" else asyncio.run(publisher.aflush(0)))


@pytest.mark.parametrize("send", ["publish", "publish_now", "apublish"])
def test_who_finds_no_memory_is_not_held_up_by_the_dead(bus_name: str, processes: Processes, send: str) -> None:
    """A publisher that does not wait for its pool has memory again once whoever is owed what is in it is dead."""
    sends: dict[str, Callable[[shmbus.Publisher[Any]], object]] = {
        "publish": lambda pub: pub.publish(memoryview(bytes(9000))),
        "publish_now": lambda pub: pub.publish_now(memoryview(bytes(9000))),
        "apublish": lambda pub: asyncio.run(pub.apublish(memoryview(bytes(9000)))),
    }
    with opened(bus_name) as bus:
        victim = processes.spawn(be_a_subscriber, bus_name)
        assert line(victim) == "ready"
        with bus.publisher(BLOBS, on_full="raise") as publisher:
            fill_until_refused(lambda: sends[send](publisher))
            victim.kill()
            victim.wait()
            goes_on(lambda: sends[send](publisher))


def looks(receiver: Any) -> dict[str, Callable[[], object]]:
    """Ways to ask without waiting; each gives something that is true, or nothing."""
    return {
        "try_receive": receiver.try_receive,
        "receive": lambda: receiver.receive(0),
        "receive_many": lambda: receiver.receive_many(3, timeout=0),
        "receive in no time": lambda: receiver.receive(1e-9),
        "areceive": lambda: asyncio.run(receiver.areceive(0)),
    }


def looked(look: Callable[[], object]) -> bool:
    try:
        return look() is not None
    except shmbus.Empty:
        return False


WAYS = ["try_receive", "receive", "receive_many", "receive in no time", "areceive"]


@pytest.mark.parametrize("way", WAYS)
def test_who_only_polls_is_given_what_the_dead_held(bus_name: str, processes: Processes, way: str) -> None:
    """A worker that never waits is given the event that a worker had in its hands who is dead."""
    with opened(bus_name) as bus:
        bus.group(RAW, "pool")
        with bus.publisher(RAW) as publisher:
            publisher.publish(b"event")
        victim = processes.spawn(hold_an_event, bus_name)
        assert line(victim) == "ready"
        with bus.worker(RAW, group="pool") as worker:
            victim.kill()
            victim.wait()
            eventually(lambda: looked(looks(worker)[way]), "it has the event")


@pytest.mark.parametrize("way", WAYS)
def test_who_only_polls_hears_that_the_files_are_gone(bus_name: str, way: str) -> None:
    """A subscriber that never waits ends with ClosedError once somebody has removed the files of its bus."""
    with shmbus.Bus(bus_name, supervise=False) as bus, bus.subscriber(RAW) as subscriber:
        assert not looked(looks(subscriber)[way])
        for name in entries(bus_name):
            os.unlink(f"{SHM}/{name}")

        def told() -> str:
            try:
                looked(looks(subscriber)[way])
            except shmbus.ClosedError as error:
                return str(error)
            return ""

        assert "its files in /dev/shm are gone" in eventually(told, "it is told")
