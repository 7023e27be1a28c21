"""What happens around the bus lock: who comes back under it, who leaves while it is held, who is gone with it."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from events import SMALL as ORDERS
from events import Order
from support import Processes, entries, eventually, line

import shmbus
from shmbus import Bus, _core
from shmbus._shm.lives import LockHeldError


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    with Bus(bus_name, supervise=False) as found:
        yield found


def participants(bus: Bus) -> int:
    return len(bus.stats().participants)


@contextmanager
def stopped_under_the_lock(name: str, processes: Processes) -> Iterator[None]:
    """A process that holds the lock and is stopped."""
    child = processes.spawn(stop_under_the_lock, name)
    assert line(child) == "holding"
    try:
        yield
    finally:
        child.send_signal(signal.SIGCONT)
        child.kill()
        child.wait()


def stop_under_the_lock(name: str) -> None:
    import os
    import signal

    from shmbus import Bus

    bus = Bus(name, supervise=False)
    with bus._session.locked():
        print("holding", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)


def test_closing_under_the_own_lock_is_put_off(bus: Bus) -> None:
    """A handle, or a whole other Bus, that is closed by the thread that holds the lock leaves when that lets go."""
    other = Bus(bus.name, supervise=False)
    publisher, subscriber = other.publisher(ORDERS), bus.subscriber(ORDERS)
    with bus._session.locked():
        subscriber.close()
        publisher.close()
        other.close()
        with pytest.raises(LockHeldError):
            bus.publisher(ORDERS)
    stats = bus.stats()
    assert participants(bus) == 1
    assert [p for p in stats.publishers if p.state != "closed"] == []
    assert [c for c in stats.consumers if c.state != "closed"] == []


def test_collected_under_the_own_lock(bus: Bus) -> None:
    """A handle that the collector finds under the lock leaves, and no ghost of it stays."""

    class Cycle:
        def __init__(self) -> None:
            self.me = self
            self.handle = bus.subscriber(ORDERS, name="ghost")

    Cycle()
    with bus._session.locked(), pytest.warns(ResourceWarning):
        gc.collect()
    assert [c.name for c in bus.stats().consumers if c.state != "closed"] == []
    bus.subscriber(ORDERS, name="ghost").close()


def test_a_signal_handler_closes_the_bus(bus_name: str, processes: Processes) -> None:
    """A handler that closes the bus in the middle of a change neither waits for its own thread nor leaves a ghost."""
    child = processes.spawn(close_in_handler, bus_name)
    assert line(child) == "LockHeldError or ClosedError: True"
    assert line(child) == "closed: True"
    assert child.wait(60) == 0
    eventually(lambda: not entries(bus_name), "nothing is left")


def close_in_handler(name: str) -> None:
    import os
    import signal
    import threading

    import shmbus
    from shmbus._ledger import members

    bus = shmbus.Bus(name, supervise=False)
    bus.subscriber(shmbus.Topic("t", int))
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda number, frame: bus.close())
    original = members.open_publisher

    def interrupted(*args: object, **options: object) -> object:
        # The other thread takes it, so the handler comes here though this one holds signals off.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.getpid()
        return original(*args, **options)  # type: ignore[arg-type]

    members.open_publisher = interrupted  # type: ignore[assignment]
    try:
        bus.publisher(shmbus.Topic("t", int))
        print("LockHeldError or ClosedError: True")
    except shmbus.ShmbusError as error:
        print("LockHeldError or ClosedError:", isinstance(error, (shmbus.ClosedError, shmbus.LockTimeoutError)))
    print("closed:", bus.closed)


def test_leaving_while_the_lock_is_held(bus: Bus, processes: Processes) -> None:
    """A process with many handles ends although a stopped one holds the lock, and what it held is reclaimed later."""
    child = processes.spawn(leave_at_the_end, bus.name)
    assert line(child) == "open"
    with stopped_under_the_lock(bus.name, processes):
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 3
        with pytest.raises(shmbus.LockTimeoutError, match="held by process"), bus._session.locked(0.1):
            pass
    subscriber = bus.subscriber(ORDERS)
    with pytest.raises(shmbus.Empty):
        subscriber.receive(timeout=1.5)  # it takes care meanwhile
    eventually(lambda: participants(bus) == 1, "the one that left without leave is reclaimed")
    subscriber.close()


def leave_at_the_end(name: str) -> None:
    import signal
    import sys

    import shmbus

    topic = shmbus.Topic("t", int)
    buses = [shmbus.Bus(name, supervise=False) for _ in range(3)]
    handles = [bus.publisher(topic) for bus in buses for _ in range(8)]
    handles += [bus.subscriber(topic) for bus in buses for _ in range(8)]  # type: ignore[misc]
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(3))
    print("open")
    signal.pause()


def test_a_handle_closed_while_the_lock_is_held(bus: Bus, processes: Processes) -> None:
    """close() of one handle comes back although the lock is not to be had, and the handle leaves once it is."""
    subscriber = bus.subscriber(ORDERS, name="late")
    with stopped_under_the_lock(bus.name, processes):
        subscriber.close()
        assert subscriber.closed
    eventually(lambda: all(c.state == "closed" for c in bus.stats().consumers), "it has left")


def test_exec_frees_what_was_held(bus: Bus, processes: Processes) -> None:
    """After an exec the names, claims and cursors of the old image are free, and it lives on as somebody else."""
    child = processes.spawn(hold_and_exec, bus.name)
    assert line(child) == "holding"
    publisher = bus.publisher(ORDERS, timeout=30)
    publisher.publish(Order(1))
    assert line(child) == "claimed"
    child.stdin.write("exec\n")  # type: ignore[union-attr]
    child.stdin.flush()  # type: ignore[union-attr]
    assert line(child) == "another image"
    with bus.worker(ORDERS, group="g") as worker, bus.subscriber(ORDERS, name="held") as again:
        messages = worker.messages()
        message = next(messages)
        assert (message.event, message.attempt) == (Order(1), 2)
        message.ack()
        assert again.try_receive() is None
        assert child.poll() is None
    publisher.close()


def hold_and_exec(name: str) -> None:
    import os
    import sys

    from events import SMALL as ORDERS

    import shmbus

    bus = shmbus.Bus(name, supervise=False)
    worker = bus.worker(ORDERS, group="g", prefetch=1)
    held = bus.subscriber(ORDERS, name="held")  # noqa: F841
    print("holding", flush=True)
    next(iter(worker))
    print("claimed", flush=True)
    sys.stdin.readline()
    os.execv(sys.executable, [sys.executable, "-c", "print('another image', flush=True); input()"])


def test_files_that_vanish(bus_name: str, processes: Processes) -> None:
    """Once its files are gone every handle of a bus ends with ClosedError, and the next Bus is a new one."""
    roles = ["publish", "receive", "work", "idle"]
    children = {role: processes.spawn(serve, bus_name, role) for role in roles}
    for child in children.values():
        assert line(child) == "serving"
    for entry in entries(bus_name):
        os.unlink(f"/dev/shm/{entry}")
    for role, child in children.items():
        if role != "idle":
            assert line(child) == "ClosedError", role
    with Bus(bus_name, supervise=False) as new:
        assert participants(new) == 1
        children["idle"].stdin.write("\n")  # type: ignore[union-attr]
        children["idle"].stdin.flush()  # type: ignore[union-attr]
        assert line(children["idle"]) == "ClosedError"
        assert participants(new) == 1


def serve(name: str, role: str) -> None:
    import sys
    import time

    from events import SMALL as ORDERS
    from events import Order

    import shmbus

    bus = shmbus.Bus(name)
    try:
        if role == "publish":
            with bus.publisher(ORDERS) as publisher:
                publisher.publish(Order(0))
                print("serving", flush=True)
                while True:
                    publisher.publish(Order(0))
                    time.sleep(0.01)  # not a wait: the pace of the publisher
        elif role == "idle":
            print("serving", flush=True)
            sys.stdin.readline()
            bus.publisher(ORDERS)
        elif role == "receive":
            with bus.subscriber(ORDERS) as subscriber:
                print("serving", flush=True)
                for _ in subscriber:
                    pass
        else:
            with bus.worker(ORDERS, group="g") as worker:
                print("serving", flush=True)
                for _ in worker:
                    pass
        print("ended")
    except shmbus.ShmbusError as error:
        print(type(error).__name__, flush=True)


def test_a_stopped_supervisor_is_done_without(bus_name: str, processes: Processes) -> None:
    """While the supervisor is stopped, whoever waits reclaims the dead; when it wakes, it goes on."""
    victim = processes.spawn(be_a_victim, bus_name)
    assert line(victim) == "ready"
    with Bus(bus_name) as bus, bus.publisher(ORDERS, timeout=60) as publisher:
        supervisor = eventually(lambda: bus.stats().supervisor.pid, "a supervisor is in office")
        stop_outside_of_the_lock(bus, supervisor)
        try:
            victim.kill()
            for n in range(2000):
                publisher.publish(Order(n))
            assert bus.stats().supervisor.pid == supervisor
        finally:
            os.kill(supervisor, signal.SIGCONT)
        eventually(lambda: bus.stats().supervisor.state == "ok", "it goes on")


def test_the_last_to_leave_takes_the_dead_along(bus_name: str, processes: Processes) -> None:
    """Who leaves last removes the bus, though a supervisor that is dead by now was heard when somebody had died."""
    with Bus(bus_name, supervise=False) as bus:
        victim = processes.spawn(be_a_victim, bus_name)
        assert line(victim) == "ready"
        eventually(lambda: bus.stats().supervisor.pid, "the victim's supervisor is in office")
        memory = bus._session.map
        life = next(p.life for p in bus._session.registry.read().participants if p.pid == victim.pid)
        os.kill(bus.stats().supervisor.pid, signal.SIGKILL)
        victim.kill()
        victim.wait()
        _core.store(memory, _core.BUS_SUPERVISOR_LIFE, life)  # as if it had been in office to the last moment
        _core.store(memory, _core.BUS_SUPERVISOR_BEAT, time.time_ns())
        assert "dead" in {p.state for p in bus.stats().participants}
    assert not entries(bus_name)


def stop_outside_of_the_lock(bus: Bus, pid: int) -> None:
    """Whoever is stopped under the lock holds up everybody, until it goes on: not what is tested here."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        try:
            with bus._session.locked(2.0):
                return
        except shmbus.LockTimeoutError:
            os.kill(pid, signal.SIGCONT)


def be_a_victim(name: str) -> None:
    import sys

    from events import SMALL as ORDERS

    import shmbus

    bus = shmbus.Bus(name, stall_timeout=1.0)
    held = bus.subscriber(ORDERS, name="victim")  # noqa: F841
    print("ready", flush=True)
    sys.stdin.read()


@pytest.mark.parametrize("on_full", ["drop", "raise"])
def test_who_does_not_wait_reclaims_too(bus: Bus, processes: Processes, on_full: str) -> None:
    """A publisher that refuses instead of waiting reclaims the dead that hold its ring."""
    victim = processes.spawn(be_a_victim, bus.name)
    assert line(victim) == "ready"
    with bus.publisher(ORDERS, on_full=on_full) as publisher:  # type: ignore[arg-type]

        def published() -> bool:
            try:
                return publisher.publish(Order(1)) is not None
            except shmbus.Full:
                return False

        while published():
            pass
        victim.kill()
        victim.wait()
        eventually(published, "it has room again")


def test_a_supervisor_that_cannot_start(
    bus_name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Bus() works where no supervisor can be started, and says once why there is none."""
    from shmbus._shm import spawn

    def refuse(bus: str) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable", "fork")

    monkeypatch.setattr(spawn, "spawn_supervisor", refuse)
    with Bus(bus_name) as bus, bus.subscriber(ORDERS) as subscriber:
        started = time.monotonic()
        while time.monotonic() - started < 2.5:
            with pytest.raises(shmbus.Empty):
                subscriber.receive(timeout=1.1)
    said = [record.getMessage() for record in caplog.records if record.name == "shmbus.bus"]
    assert len(said) == 1
    assert "Resource temporarily unavailable" in said[0]


def test_who_waits_says_who_holds_it_up(bus_name: str, processes: Processes) -> None:
    """A publisher that waits longer than stall_timeout logs, in its own process, who holds it up."""
    holder = processes.spawn(be_a_victim, bus_name)
    assert line(holder) == "ready"
    child = processes.spawn(wait_for_room, bus_name)
    said = line(child)
    assert f"held up by victim (process {holder.pid}, " in said
    assert "topic small has waited" in said


def wait_for_room(name: str) -> None:
    import logging
    import sys

    from events import SMALL as ORDERS
    from events import Order

    import shmbus

    logging.basicConfig(stream=sys.stdout)
    with shmbus.Bus(name) as bus, bus.publisher(ORDERS) as publisher:
        while True:
            publisher.publish(Order(1))
