"""The end of handles while others use them: close() and cancel() beside calls that run, and the interpreter's exit."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from events import ORDERS, PATIENT, SMALL, Order, books, consumer, drain, fill, opened, orders, publisher, take
from support import Processes, child_environment, eventually

import shmbus
from shmbus import Bus

Receiver = shmbus.Subscriber[Any] | shmbus.Worker[Any]


class Gate:
    """A decoder that has begun waits here until it is let on."""

    def __init__(self) -> None:
        self.begun, self.on = threading.Event(), threading.Event()
        self.then: Callable[[], object] = lambda: None

    def pass_through(self) -> None:
        self.begun.set()
        self.then()
        assert self.on.wait(PATIENT)


GATE = Gate()


class Slow:
    """Unpickles by way of the gate, in the middle of its record."""

    def __init__(self, tail: str) -> None:
        self.tail = tail

    def __reduce__(self) -> Any:
        return _rebuild, (Pause(), self.tail)


class Pause:
    def __reduce__(self) -> Any:
        return _pause, ()


def _pause() -> int:
    if not GATE.begun.is_set():
        GATE.pass_through()
    return 0


def _rebuild(pause: int, tail: str) -> str:
    return tail


SLOW = shmbus.Topic("slow", object, capacity=4096, codec="pickle")


def slow(letter: str) -> Slow:
    """An event that fills a quarter of the ring, so that four others would overwrite it in place."""
    count = 1000 - len(pickle.dumps(Slow(""), protocol=5)) - 10
    return Slow(letter * count)


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    with opened(bus_name) as bus:
        yield bus


@pytest.fixture
def gate() -> Iterator[Gate]:
    global GATE
    GATE = Gate()
    yield GATE
    GATE.on.set()


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads switch wherever they may."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def receiver_of(bus: Bus, kind: str, topic: shmbus.Topic[Any] = ORDERS, **options: Any) -> Receiver:
    return bus.worker(topic, group="g", **options) if kind == "worker" else bus.subscriber(topic, name="g", **options)


@pytest.mark.parametrize("kind", ["subscriber", "worker"])
def test_close_waits_for_a_decoder(bus: Bus, gate: Gate, kind: str) -> None:
    """close() in another thread lets a decoder that reads in place end before the publisher may overwrite the event."""
    receiver = receiver_of(bus, kind, SLOW)
    with bus.publisher(SLOW, on_full="drop") as pub, ThreadPoolExecutor(2) as pool:
        pub.publish(slow("A"))
        received = pool.submit(receiver.receive, PATIENT)
        assert gate.begun.wait(PATIENT)
        closed = pool.submit(receiver.close)
        eventually(lambda: receiver.closed)
        for _ in range(20):
            pub.publish(slow("B"))
        assert not closed.done()
        assert not received.done()
        gate.on.set()
        assert set(received.result()) == {"A"}
        closed.result()
        assert books(bus, "g")["offered"] == 21


@pytest.mark.parametrize("who", ["handle", "bus"])
@pytest.mark.parametrize("kind", ["subscriber", "worker"])
def test_close_by_a_decoder(bus_name: str, gate: Gate, kind: str, who: str) -> None:
    """What a decoder closes, its handle or the whole bus, stays until the event is decoded, and is gone then."""
    with opened(bus_name) as outer:
        bus = Bus(bus_name, supervise=False)
        receiver = receiver_of(bus, kind, SLOW)
        with outer.publisher(SLOW, on_full="drop") as pub, ThreadPoolExecutor(1) as pool:
            pub.publish(slow("A"))
            gate.then = receiver.close if who == "handle" else bus.close
            received = pool.submit(receiver.receive, PATIENT)
            assert gate.begun.wait(PATIENT)
            eventually(lambda: receiver.closed)
            for _ in range(20):
                pub.publish(slow("B"))
            assert consumer(outer, "g").depth > 0
            gate.on.set()
            assert set(received.result()) == {"A"}
            eventually(lambda: consumer(outer, "g").state in ("closed", "idle"))
            assert bus.closed == (who == "bus")
        bus.close()
        eventually(lambda: len(outer.stats().participants) == 1)


class Meets:
    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return _meet, (self.number,)


def _meet(number: int) -> int:
    return MEETING[number]()


MEETING: list[Callable[[], int]] = []


def test_two_decoders_close_each_other(bus: Bus) -> None:
    """Two threads that close each other's handle, each from within a call of its own, do not wait for each other."""
    inside = threading.Barrier(2)
    topics = [shmbus.Topic(f"meet-{n}", object, codec="pickle") for n in range(2)]
    subscribers = [bus.subscriber(topic) for topic in topics]

    def meet(number: int) -> int:
        inside.wait(PATIENT)
        subscribers[1 - number].close()
        return number

    MEETING[:] = [lambda: meet(0), lambda: meet(1)]
    for number, topic in enumerate(topics):
        with bus.publisher(topic) as pub:
            pub.publish(Meets(number))
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(subscriber.receive, PATIENT) for subscriber in subscribers]
        assert [future.result() for future in futures] == [0, 1]
    assert all(subscriber.closed for subscriber in subscribers)
    assert all(c.state == "closed" for c in bus.stats().consumers)


def test_close_by_a_signal_handler(bus: Bus, gate: Gate) -> None:
    """A signal handler that closes the handle in whose decoder it runs closes it when that has ended."""
    sub = bus.subscriber(SLOW, name="g")
    with bus.publisher(SLOW, on_full="drop") as pub:
        pub.publish(slow("A"))

        def interrupt() -> None:
            os.kill(os.getpid(), signal.SIGUSR1)
            gate.on.set()

        gate.then = interrupt
        before = signal.signal(signal.SIGUSR1, lambda *_: sub.close())
        try:
            assert set(str(sub.receive(timeout=PATIENT))) == {"A"}
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert sub.closed
        assert books(bus, "g") == {"offered": 1, "delivered": 1}


def test_close_ends_a_blocked_publish(bus: Bus) -> None:
    """close() in another thread ends every publish that waits for room with ClosedError."""
    with bus.subscriber(SMALL), ThreadPoolExecutor(4) as pool:
        pub = bus.publisher(SMALL, name="p")
        with bus.publisher(SMALL, on_full="raise") as other:
            fill(other)
        blocked = [pool.submit(lambda: [pub.publish(order) for order in orders(1000)]) for _ in range(4)]
        eventually(lambda: publisher(bus, "p").waiting)
        pub.close()
        for future in blocked:
            assert isinstance(future.exception(), shmbus.ClosedError)


def test_close_waits_for_an_encoder(bus: Bus, gate: Gate) -> None:
    """close() of a publisher waits for the publish that runs, which raises ClosedError and has published nothing."""

    class Encodes:
        def __reduce__(self) -> Any:
            gate.pass_through()
            return int, ()

    pub = bus.publisher(SLOW, name="p")
    with ThreadPoolExecutor(2) as pool:
        published = pool.submit(pub.publish, Encodes())
        assert gate.begun.wait(PATIENT)
        closed = pool.submit(pub.close)
        eventually(lambda: pub.closed)
        assert publisher(bus, "p").state == "ok"
        assert not closed.done()
        gate.on.set()
        assert isinstance(published.exception(), shmbus.ClosedError)
        closed.result()
    assert not [p for p in bus.stats().publishers if p.name == "p" and p.state == "ok"]


def test_close_waits_for_a_rejection(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """close() waits for a reject() that runs: its event is done, and there is one dead letter."""
    inside, on = threading.Event(), threading.Event()
    with bus.publisher(ORDERS) as pub, bus.subscriber(shmbus.dead_letter_topic(ORDERS)) as dead:
        worker = bus.worker(ORDERS, group="g")
        pub.publish(Order(1))
        message = next(worker.messages())
        letter = worker._letter

        def slowly(*arguments: Any) -> Any:
            inside.set()
            assert on.wait(PATIENT)
            return letter(*arguments)

        monkeypatch.setattr(worker, "_letter", slowly)
        with ThreadPoolExecutor(2) as pool:
            rejected = pool.submit(message.reject, "no")
            assert inside.wait(PATIENT)
            closed = pool.submit(worker.close)
            eventually(lambda: worker.closed)
            assert not closed.done()
            on.set()
            rejected.result()
            closed.result()
        assert len(drain(dead)) == 1
        assert books(bus, "g") == {"offered": 1, "rejected": 1}


def test_close_from_many_threads(bus_name: str, switching: None) -> None:
    """Handles that are received from, settled, published to, looked at and closed by different threads end in order."""
    with opened(bus_name) as outer:
        outer.group(SMALL, "g")
        for _ in range(15):
            bus = Bus(bus_name, supervise=False)
            pub, sub, worker = bus.publisher(SMALL), bus.subscriber(SMALL), bus.worker(SMALL, group="g")
            with ThreadPoolExecutor(8) as pool:
                calls: list[Callable[[], object]] = [
                    lambda p=pub: [p.publish(order) for order in orders(10_000)],  # type: ignore[misc]
                    lambda s=sub: list(s),  # type: ignore[misc]
                    lambda w=worker: [pool.submit(message.ack) for message in w.messages()],  # type: ignore[misc]
                    lambda b=bus: [b.stats() for _ in range(1000)],  # type: ignore[misc]
                ]
                running = [pool.submit(call) for call in calls]
                eventually(lambda: consumer(outer, "g").delivered > 0)
                closing = [pool.submit(thing.close) for thing in (bus, sub, worker, bus)]
                for closed in closing:
                    closed.result()
                for future in running:
                    assert future.exception() is None or isinstance(future.exception(), shmbus.ClosedError)
            with outer.worker(SMALL, group="g") as rest:
                drain(rest)
            found = books(outer, "g")
            assert found["offered"] == found["delivered"]


# -- cancel


WAYS: dict[str, Callable[[Any], object]] = {
    "iterate": list,
    "receive": lambda worker: worker.receive(),
    "timeout": lambda worker: worker.receive(timeout=PATIENT),
    "many": lambda worker: worker.receive_many(5),
    "messages": lambda worker: list(worker.messages()),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("prefetch", [1, 4])
def test_cancel_acks_what_is_in_hand(bus: Bus, way: str, prefetch: int) -> None:
    """After cancel() the loop that asks for the next event acks the one in hand, and ends; the rest goes back."""
    with bus.publisher(ORDERS) as pub:
        bus.group(ORDERS, "g")
        pub.publish_many(orders(9))
        with bus.worker(ORDERS, group="g", prefetch=prefetch) as worker:
            assert take(worker, 2) == orders(2)
            worker.cancel()
            assert consumer(bus, "g").claimed == prefetch - (1 if prefetch > 1 else 0)
            try:
                assert WAYS[way](worker) == []
            except shmbus.ClosedError:
                assert way in ("receive", "timeout", "many")
            assert (books(bus, "g")["delivered"], consumer(bus, "g").claimed) == (2, 0)
        with bus.worker(ORDERS, group="g") as worker:
            assert drain(worker) == orders(7, 3)


# -- the exit of the interpreter


def at_exit(bus_name: str, what: str) -> None:
    import asyncio
    import sys
    import threading
    from pathlib import Path

    from events import ORDERS, SMALL, Order
    from support import eventually

    import shmbus

    class Stuck:
        def __reduce__(self) -> tuple[object, ...]:
            return stick, ()

    def stick() -> None:
        threading.Event().wait()

    stick.__module__, stick.__qualname__ = "__main__", "stick"
    sys.modules["__main__"].stick = stick  # type: ignore[attr-defined]
    bus = shmbus.Bus(bus_name, supervise=False)
    small, sub, worker = bus.publisher(SMALL), bus.subscriber(ORDERS), bus.worker(ORDERS, group="g")
    full = bus.subscriber(SMALL)
    objects = shmbus.Topic("objects", object, codec="pickle")
    stuck, pub = bus.subscriber(objects), bus.publisher(objects)
    pub.publish(Stuck())
    at_work = threading.Event()

    async def loop() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(sub.areceive())
            tasks.create_task(worker.areceive())
            tasks.create_task(small.apublish_many(Order(n) for n in range(1000)))

    def forever(call: object) -> None:
        while True:
            call()  # type: ignore[operator]
            at_work.set()

    ways = {
        "receive": sub.receive,
        "timeout": lambda: worker.receive(timeout=3600),
        "iterate": lambda: [sub.receive() for _ in sub],
        "messages": lambda: [list(worker.messages()), bus.stats()],
        "many": lambda: worker.receive_many(5),
        "publish": lambda: small.publish_many(Order(n) for n in range(1000)),
        "busy": lambda: forever(lambda: bus.publisher(SMALL, on_full="drop").publish(Order(1))),
        "stats": lambda: forever(bus.stats),
        "open": lambda: forever(lambda: bus.subscriber(ORDERS).close()),
        "loop": lambda: asyncio.run(loop()),
        "stuck": stuck.receive,
    }
    thread = threading.Thread(target=ways[what], daemon=True)
    thread.start()
    state = Path(f"/proc/self/task/{thread.native_id}/stat")
    eventually(lambda: at_work.is_set() or state.read_text().rpartition(")")[2].split()[0] == "S")
    print("main has ended, with", full.topic.name)


@pytest.mark.parametrize(
    "what",
    ["receive", "timeout", "iterate", "messages", "many", "publish", "busy", "stats", "open", "loop", "stuck"],
)
def test_daemon_threads_at_exit(bus_name: str, what: str, processes: Processes) -> None:
    """A daemon thread that waits, works or sits in a decoder when the interpreter exits prints and hinders nothing."""
    with opened(bus_name):
        child = processes.spawn(at_exit, bus_name, what, stderr=subprocess.PIPE, env=child_environment())
        out, err = child.communicate(timeout=PATIENT)
        assert (out, err, child.returncode) == ("main has ended, with small\n", "", 0)
