"""Departures that cannot be made at once: somebody stopped, or busy, has the lock; no descriptor or thread is left."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from events import SMALL, Order
from support import Processes, eventually, line

import shmbus
from shmbus import Bus
from shmbus._handles import late, session


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    with Bus(bus_name, supervise=False) as found:
        yield found


def stop_under_the_lock(name: str) -> None:
    import os
    import signal

    from shmbus import Bus

    with Bus(name, supervise=False) as bus, bus._session.locked():
        print("holding", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)


def names(bus: Bus) -> set[str]:
    return {consumer.name for consumer in bus._session.registry.read().consumers}


def test_a_bus_whose_leave_is_put_off_leaves_in_the_end(
    bus: Bus, processes: Processes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However long a stopped process has the lock: what another Bus of this process had open is off the books then."""
    monkeypatch.setattr(late, "_PATIENCE", 0.1)
    monkeypatch.setattr(late, "_RESPITE", 0.01)
    other = Bus(bus.name, supervise=False)
    subscriber = other.subscriber(SMALL, name="ghost")
    with bus.publisher(SMALL, on_full="raise") as publisher:
        stopped = processes.spawn(stop_under_the_lock, bus.name)
        assert line(stopped) == "holding"
        other.close()
        assert subscriber.closed
        eventually(lambda: caplog.text.count("cannot be left yet") > 2, "it was tried more than once")
        stopped.send_signal(signal.SIGCONT)
        assert stopped.wait(30.0) == 0
        eventually(lambda: not names(bus), "nothing is left of it")
        publisher.publish_many([Order(n) for n in range(1000)])


class Stop(BaseException):
    pass


def test_a_handler_that_closes_ends_a_wait_for_the_lock(
    bus: Bus, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler closes a bus and raises, while its thread waits for the lock: that bus leaves as any other does."""
    monkeypatch.setattr(late, "_PATIENCE", 3600.0)
    other = Bus(bus.name, supervise=False)
    subscriber = other.subscriber(SMALL, name="ghost")

    def stop(number: int, frame: object) -> None:
        other.close()
        raise Stop

    stopped = processes.spawn(stop_under_the_lock, bus.name)
    assert line(stopped) == "holding"
    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(Stop), bus._session.locked(3600.0):
            pass
    finally:
        signal.signal(signal.SIGALRM, before)
    assert subscriber.closed
    stopped.send_signal(signal.SIGCONT)
    assert stopped.wait(30.0) == 0
    eventually(lambda: not names(bus), "nothing is left of it")


@pytest.mark.parametrize("thread", [False, True])
def test_closing_ends_a_wait_for_the_lock(bus: Bus, processes: Processes, thread: bool) -> None:
    """Who waits for the lock of a bus that is closed, by a signal handler or another thread, need not wait on."""
    other = Bus(bus.name, supervise=False)
    stopped = processes.spawn(stop_under_the_lock, bus.name)
    assert line(stopped) == "holding"
    closing = threading.Timer(0.3, other.close)
    before = signal.signal(signal.SIGALRM, lambda number, frame: other.close())
    try:
        if thread:
            closing.start()
        else:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(shmbus.ClosedError, match="is closed"), other._session.locked(3600.0):
            pass
    finally:
        signal.signal(signal.SIGALRM, before)
    stopped.send_signal(signal.SIGCONT)
    assert stopped.wait(30.0) == 0
    eventually(lambda: len(bus._session.registry.read().participants) == 1, "nothing is left of it")


def test_where_no_thread_is_to_be_had(bus: Bus, processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot leave at once, nor by a thread (a limit of processes), leaves with the next look after the bus."""
    other = Bus(bus.name, supervise=False)
    handles = [bus.subscriber(SMALL, name="ghost"), other.subscriber(SMALL, name="others")]
    watching = bus.subscriber(SMALL, name="watching")
    stopped = processes.spawn(stop_under_the_lock, bus.name)
    assert line(stopped) == "holding"
    with monkeypatch.context() as patch:
        patch.setattr(late, "_start", lambda work: False)
        handles[0].close()
        other.close()
    stopped.send_signal(signal.SIGCONT)
    assert stopped.wait(30.0) == 0

    def left() -> bool:
        with pytest.raises(shmbus.Empty):
            watching.receive(0)
        return names(bus) == {"watching"}

    eventually(left, "nothing is left of them")
    watching.close()


def test_somebody_busy_puts_off_no_departure(bus: Bus) -> None:
    """Who tried for the lock without waiting, and met somebody busy, still waits for it to leave: its name is free."""
    for _ in range(3):
        subscriber = bus.subscriber(SMALL, name="mine")
        held, leaving = threading.Event(), threading.Event()

        def hold(held: threading.Event = held, leaving: threading.Event = leaving) -> None:
            with bus._session.locked():
                held.set()
                leaving.wait(30.0)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(30.0)
        with pytest.raises(shmbus.LockTimeoutError), bus._session.locked(0):
            pass  # as whoever stands in for the supervisor does
        threading.Timer(0.1, leaving.set).start()
        subscriber.close()
        assert not names(bus)
        thread.join()


def test_all_buses_of_a_process_leave_in_one_time(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the exit the next bus waits for its lock for as long as the ones before it have left of the second."""
    now = 100.0
    monkeypatch.setattr(session, "time", SimpleNamespace(monotonic=lambda: now))
    with session.leaving_within(1.0):
        assert bus._session.patience() == 1.0
        now += 0.75
        assert bus._session.patience() == 0.25
        now += 5.0
        assert bus._session.patience() == 0.0
    assert bus._session.patience() == session.LEAVE_TIMEOUT


def be_without_descriptors(name: str) -> None:
    import logging
    import os
    import resource
    import sys
    from contextlib import suppress

    from events import SMALL, Order

    import shmbus
    from shmbus import Bus

    told: list[str] = []

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    logging.getLogger("shmbus").addHandler(Heard())
    bus, other = Bus(name, supervise=False), Bus(name, supervise=False)
    subscriber, publisher = bus.subscriber(SMALL, name="here"), other.publisher(SMALL)
    publisher.publish(Order(0))
    subscriber.receive(timeout=30)
    used = len(os.listdir("/proc/self/fd"))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 8, limit[1]))
    taken = []
    with suppress(OSError):
        while True:
            taken.append(os.dup(0))
    print("ready", flush=True)
    sys.stdin.readline()
    with suppress(shmbus.Empty):
        subscriber.receive(timeout=2.5)
    publisher.publish(Order(1))
    print("received", subscriber.receive(timeout=30).id, flush=True)
    publisher.publish(Order(2))
    subscriber.close()
    bus.close()
    print("closed, told:", any("cannot look after it" in text for text in told), flush=True)
    sys.stdin.readline()
    for descriptor in taken:
        os.close(descriptor)
    print("free", flush=True)
    sys.stdin.readline()
    publisher.close()
    other.close()


def work(name: str) -> None:
    import sys

    from events import RAW

    import shmbus

    with shmbus.Bus(name, supervise=False) as bus, bus.worker(RAW, group="pool", ack_within=60.0):
        with bus.publisher(RAW):
            print("ready", flush=True)
            sys.stdin.read()


def test_without_descriptors_it_is_waited_and_left(bus: Bus, processes: Processes) -> None:
    """A process without a descriptor left receives what it waits for, though it cannot look after the bus, and what it
    closes leaves once it has one.
    """
    worker = processes.spawn(work, bus.name)
    assert line(worker) == "ready"
    child = processes.spawn(be_without_descriptors, bus.name)
    assert line(child) == "ready"
    worker.kill()
    worker.wait()

    def goes_on() -> str:
        child.stdin.write("\n")  # type: ignore[union-attr]
        child.stdin.flush()  # type: ignore[union-attr]
        return line(child)

    assert goes_on() == "received 1"
    assert line(child) == "closed, told: True"
    assert goes_on() == "free"
    eventually(lambda: names(bus) == {"pool"}, "nothing is left of its subscriber")
    child.communicate("\n", timeout=30.0)
    assert child.returncode == 0
