"""Waiting for events: timeouts, idle modes, cancel, close from elsewhere, and Ctrl-C."""

from __future__ import annotations

import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import psutil
import pytest
from events import ORDERS, PATIENT, SMALL, Order, books, drain, opened, orders, take
from support import Processes, eventually, line

import shmbus
from shmbus import Bus

Receiver = shmbus.Subscriber[Order] | shmbus.Worker[Order]


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    with opened(bus_name) as bus:
        yield bus


@pytest.fixture(params=["subscriber", "worker"])
def receiver(bus: Bus, request: pytest.FixtureRequest) -> Iterator[Receiver]:
    """A subscriber, then a worker: both wait alike."""
    with bus.subscriber(ORDERS) if request.param == "subscriber" else bus.worker(ORDERS, group="g") as found:
        yield found


class InThread:
    """A call that runs in a thread; `result()` is what it returned or raised."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._found: list[Any] = []
        self._thread = threading.Thread(target=self._run, args=(call,))
        self._thread.start()
        # It waits in the kernel: whoever acts now finds a parked handle.
        path = f"/proc/self/task/{self._thread.native_id}/stat"
        eventually(lambda: not self._thread.is_alive() or _state(path) == "S")

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            self._found.append(call())
        except BaseException as error:
            self._found.append(error)

    def result(self) -> Any:
        self._thread.join(PATIENT)
        assert not self._thread.is_alive()
        return self._found[0]


def _state(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "gone"


# -- timeouts


@pytest.mark.parametrize("timeout", [0, 0.0, -1, 0.001, 0.05])
def test_timeout(receiver: Receiver, timeout: float) -> None:
    """With nothing to receive, a timeout ends in Empty, which is a queue.Empty, and not before its time."""
    for call in (lambda: receiver.receive(timeout=timeout), lambda: receiver.receive_many(3, timeout=timeout)):
        began = time.monotonic()
        with pytest.raises(queue.Empty) as caught:
            call()
        assert isinstance(caught.value, shmbus.Empty)
        assert time.monotonic() - began >= timeout
    assert receiver.try_receive() is None


def test_receive_takes_a_positional_timeout(bus: Bus, receiver: Receiver) -> None:
    """The timeout of receive may be given by position, as with queue-like objects of other libraries."""
    with bus.publisher(ORDERS) as pub:
        pub.publish(Order(1))
        assert receiver.receive(0) == Order(1)
        with pytest.raises(shmbus.Empty):
            receiver.receive(0.001)


@pytest.mark.parametrize("timeout", ["1", [1], object()])
def test_bad_timeout(bus: Bus, receiver: Receiver, timeout: Any) -> None:
    """A timeout that is no number is an error, and takes no event."""
    with pytest.raises((shmbus.ConfigError, TypeError)):
        receiver.receive(timeout=timeout)
    with bus.publisher(ORDERS) as pub:
        pub.publish(Order(1))
    assert receiver.receive(timeout=0) == Order(1)


@pytest.mark.parametrize("idle", ["adaptive", "park", "spin"])
@pytest.mark.parametrize("method", ["subscriber", "worker"])
def test_idle_modes(bus: Bus, processes: Processes, idle: Literal["adaptive", "park", "spin"], method: str) -> None:
    """In every idle mode events that come singly, with pauses, reach another process and come back."""
    code = """
        import sys
        from events import ORDERS, SMALL
        from shmbus import Bus
        group = {"group": "g"} if sys.argv[3] == "worker" else {}
        with Bus(sys.argv[1], idle=sys.argv[2], supervise=False) as bus, bus.publisher(SMALL) as back:
            with getattr(bus, sys.argv[3])(ORDERS, **group) as receiver:
                print("ready")
                for order in receiver:
                    back.publish(order)
                    if order.id == 100:
                        break
                if group:
                    receiver.ack()
    """
    with bus.publisher(ORDERS) as pub, bus.subscriber(SMALL, idle=idle) as sub:
        child = processes.spawn(code, bus.name, idle, method)
        assert line(child) == "ready"
        for order in orders(100):
            if order.id % 10 == 0:
                eventually(lambda: idle == "spin" or psutil.Process(child.pid).status() == psutil.STATUS_SLEEPING)
            pub.publish(order)
            assert sub.receive(timeout=PATIENT) == order
        assert child.wait() == 0


def test_wake_from_park(bus: Bus, receiver: Receiver) -> None:
    """A receiver that sleeps is woken by an event, by one of a publisher that comes later too."""
    waiting = InThread(lambda: receiver.receive(timeout=PATIENT))
    with bus.publisher(ORDERS) as pub:
        pub.publish(Order(1))
        assert waiting.result() == Order(1)
        waiting = InThread(lambda: next(iter(receiver)))
        pub.publish(Order(2))
        assert waiting.result() == Order(2)
        waiting = InThread(lambda: next(iter(receiver.messages())))
        pub.publish(Order(3))
        message = waiting.result()
        assert message.event == Order(3)
        if isinstance(message, shmbus.ClaimedMessage):
            message.ack()


def test_batch_wakes_many(bus: Bus) -> None:
    """A batch wakes as many parked workers as it has events."""
    workers = [bus.worker(ORDERS, group="g", idle="park") for _ in range(4)]
    waiting = [InThread(lambda w=worker: w.receive(timeout=PATIENT)) for worker in workers]  # type: ignore[misc]
    with bus.publisher(ORDERS) as pub:
        pub.publish_many(orders(4))
        assert sorted(call.result() for call in waiting) == orders(4)
    for worker in workers:
        worker.ack()
        worker.close()
    assert books(bus, "g") == {"offered": 4, "delivered": 4}


# -- cancel and close


def ways_to_wait(receiver: Receiver) -> list[Callable[[], Any]]:
    return [
        lambda: list(receiver),
        lambda: list(receiver.messages()),
        receiver.receive,
        lambda: receiver.receive(timeout=PATIENT),
        lambda: receiver.receive_many(5),
    ]


@pytest.mark.parametrize("way", range(5))
@pytest.mark.parametrize("ending", ["cancel", "close"])
def test_end_from_another_thread(receiver: Receiver, way: int, ending: str) -> None:
    """cancel() and close() from another thread end an iteration, and a receive with ClosedError."""
    waiting = InThread(ways_to_wait(receiver)[way])
    getattr(receiver, ending)()
    found = waiting.result()
    assert found == [] if way < 2 else isinstance(found, shmbus.ClosedError)
    assert receiver.cancelled == (ending == "cancel")


def test_cancel_is_for_good(bus: Bus, receiver: Receiver) -> None:
    """After cancel() iteration is over, while what is there can still be received without waiting."""
    with bus.publisher(ORDERS) as pub:
        pub.publish_many(orders(2))
        assert next(receiver) == Order(1)
        receiver.cancel()
        receiver.cancel()
        assert list(receiver) == []
        assert drain(receiver) == [Order(2)]
        with pytest.raises(shmbus.ClosedError):
            receiver.receive(timeout=PATIENT)


def test_cancel_between_events(bus: Bus, receiver: Receiver) -> None:
    """cancel() inside the loop ends it after the event in hand."""
    with bus.publisher(ORDERS) as pub:
        pub.publish_many(orders(10))
        found = []
        for order in receiver:
            found.append(order)
            if order.id == 3:
                receiver.cancel()
        assert found == orders(3)
        drain(receiver)


def test_close_of_the_bus_ends_a_wait(bus_name: str) -> None:
    """Closing the Bus ends the waits of all its handles."""
    for _ in range(30):
        bus = Bus(bus_name, supervise=False)
        sub, worker = bus.subscriber(ORDERS), bus.worker(ORDERS, group="g")
        waiting = [InThread(lambda s=sub: list(s)), InThread(worker.receive)]  # type: ignore[misc]
        bus.close()
        assert waiting[0].result() == []
        assert isinstance(waiting[1].result(), shmbus.ClosedError)


def test_removed_under_a_wait(bus_name: str) -> None:
    """Who waits on a bus that is removed by force is told with ClosedError."""
    from shmbus import inspect

    with Bus(bus_name, supervise=False) as bus, bus.subscriber(ORDERS) as sub, bus.publisher(ORDERS) as pub:
        waiting = InThread(sub.receive)
        inspect.remove(bus_name, force=True)
        assert isinstance(waiting.result(), shmbus.ClosedError)
        with pytest.raises(shmbus.ClosedError):
            pub.publish(Order(1))
        with pytest.raises(shmbus.ClosedError):
            bus.publisher(ORDERS)


def test_one_thread_at_a_time(bus: Bus, receiver: Receiver) -> None:
    """A second thread that receives on a handle gets events or an error, and none is lost or doubled."""
    found: list[Order] = []

    def receive() -> None:
        while True:
            try:
                order = receiver.try_receive()
            except RuntimeError:
                continue
            if order is not None:
                found.append(order)
                if order.id < 0:
                    return

    threads = [threading.Thread(target=receive) for _ in range(2)]
    for thread in threads:
        thread.start()
    with bus.publisher(ORDERS) as pub:
        for order in orders(1000):
            pub.publish(order)
        pub.publish_many([Order(-1), Order(-2)])
    for thread in threads:
        thread.join(PATIENT)
    assert sorted(found) == [Order(-2), Order(-1), *orders(1000)]
    drain(receiver)


# -- signals

WAIT = """
    import signal, sys
    from events import SMALL, ORDERS
    import shmbus
    from shmbus import Bus
    how, kind = sys.argv[2:]
    group = {"group": "g"} if kind == "worker" else {}
    with Bus(sys.argv[1], supervise=False) as bus, getattr(bus, kind)(ORDERS, **group) as receiver:
        signal.signal(signal.SIGTERM, lambda number, frame: receiver.cancel())
        print("waits")
        try:
            if how == "receive":
                receiver.receive()
            elif how == "receive_many":
                receiver.receive_many(9)
            elif how == "messages":
                for message in receiver.messages():
                    pass
            else:
                for order in receiver:
                    pass
            print("ended")
        except KeyboardInterrupt:
            print("interrupted")
        except shmbus.ClosedError:
            print("cancelled")
        if kind == "subscriber" and how == "receive":
            print(receiver.try_receive())
"""


@pytest.mark.parametrize("kind", ["subscriber", "worker"])
@pytest.mark.parametrize("how", ["iterate", "receive", "receive_many", "messages"])
def test_signals(bus: Bus, processes: Processes, how: str, kind: str) -> None:
    """Ctrl-C ends every wait with KeyboardInterrupt; a signal handler that cancels ends it in good order."""
    for number, expected in ((signal.SIGINT, "interrupted"), (signal.SIGTERM, "cancelled")):
        child = processes.spawn(WAIT, bus.name, how, kind)
        assert line(child) == "waits"
        process = psutil.Process(child.pid)
        eventually(lambda p=process: p.status() == psutil.STATUS_SLEEPING)  # type: ignore[misc]
        child.send_signal(number)
        text = line(child)
        assert text == ("ended" if expected == "cancelled" and how in ("iterate", "messages") else expected)
        assert child.wait() == 0


def test_handler_that_publishes(bus: Bus) -> None:
    """A signal handler may publish while the interrupted code publishes or waits, and nothing is lost."""
    with bus.publisher(ORDERS) as pub, bus.subscriber(ORDERS, name="s") as sub:
        handled = 0

        def handler(number: int, frame: object) -> None:
            nonlocal handled
            handled += 1
            pub.publish(Order(-handled))

        previous = signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        found: list[Order] = []
        try:
            number = 0
            while handled < 50:
                number += 1
                pub.publish(Order(number))
                found += take(sub, 1)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        found += drain(sub)
        assert [order for order in found if order.id > 0] == orders(number)
        assert sorted(order.id for order in found if order.id < 0) == list(range(-handled, 0))


def interrupted(child: subprocess.Popen[str]) -> subprocess.Popen[str]:
    """The child, after it has said that it waits, slept, and been sent SIGTERM."""
    assert line(child) == "waits"
    eventually(lambda: psutil.Process(child.pid).status() == psutil.STATUS_SLEEPING)
    child.send_signal(signal.SIGTERM)
    return child


def closes_in_the_handler(name: str, kind: str) -> None:
    import signal

    from events import ORDERS

    import shmbus

    with shmbus.Bus(name) as bus:
        receiver = bus.subscriber(ORDERS) if kind == "subscriber" else bus.worker(ORDERS, group="g")
        signal.signal(signal.SIGTERM, lambda number, frame: receiver.close())
        print("waits", flush=True)
        print(list(receiver))


@pytest.mark.parametrize("kind", ["subscriber", "worker"])
def test_closed_by_a_signal_handler(bus: Bus, processes: Processes, kind: str) -> None:
    """A handle that a signal handler closes in the middle of its own wait ends the iteration."""
    child = interrupted(processes.spawn(closes_in_the_handler, bus.name, kind))
    assert line(child) == "[]"


def takes_in_the_handler(name: str, kind: str) -> None:
    import signal

    from events import ORDERS, PATIENT

    import shmbus

    with shmbus.Bus(name) as bus:
        with bus.subscriber(ORDERS) if kind == "subscriber" else bus.worker(ORDERS, group="g") as receiver:
            signal.signal(signal.SIGTERM, lambda number, frame: print(receiver.try_receive(), flush=True))
            print("waits", flush=True)
            print(receiver.receive(timeout=PATIENT), flush=True)


@pytest.mark.parametrize("kind", ["subscriber", "worker"])
def test_used_by_a_signal_handler(bus: Bus, processes: Processes, kind: str) -> None:
    """A signal handler may use the handle whose wait it interrupts, and the wait goes on."""
    child = interrupted(processes.spawn(takes_in_the_handler, bus.name, kind))
    assert line(child) == "None"
    with bus.publisher(ORDERS) as pub:
        pub.publish(Order(1))
        assert line(child) == str(Order(1))
