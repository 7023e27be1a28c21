"""Supervisor: how it comes and goes, what it does for the dead, and what it leaves to the living."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import psutil
import pytest
from events import ORDERS, PATIENT, SMALL, Order, books, consumer, drain, losses, opened, orders, publisher, take
from support import Processes, entries, eventually, line

import shmbus
from shmbus import Bus, inspect

HOLD = """
    import signal, sys
    from events import *
    from shmbus import Bus
    bus = Bus(sys.argv[1], supervise=len(sys.argv) > 3)
    exec(sys.argv[2])
    print("ready")
    while True:
        signal.pause()
"""
"""Does what its second argument says, says "ready", and stays as it is."""


def hold(processes: Processes, bus: str, code: str, *supervised: str) -> subprocess.Popen[str]:
    child = processes.spawn(HOLD, bus, code, *supervised)
    assert line(child) == "ready"
    return child


def kill(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()


def supervise(processes: Processes, bus: str) -> subprocess.Popen[str]:
    """A supervisor in the foreground, its log on a pipe."""
    return processes.run([sys.executable, "-m", "shmbus", "supervise", bus], stderr=subprocess.PIPE)


def in_office(bus: Bus, *, other_than: int = 0) -> int:
    def pid() -> int:
        found = bus.stats().supervisor
        return found.pid if found.state == "ok" and found.pid != other_than else 0

    return eventually(pid, "a supervisor in office")


@pytest.fixture
def bus(bus_name: str, processes: Processes) -> Iterator[Bus]:
    """A bus with a supervisor in the foreground, in office."""
    with opened(bus_name) as bus:
        supervise(processes, bus_name)
        in_office(bus)
        yield bus


# -- how it comes and goes


def test_automatic(bus_name: str) -> None:
    """Bus(...) makes sure that one supervisor runs: detached, no child of ours, gone with the bus."""
    with Bus(bus_name) as bus, Bus(bus_name):
        process = psutil.Process(in_office(bus))
        assert os.getsid(process.pid) != os.getsid(0)
        assert process.ppid() != os.getpid()
        assert process.cwd() == "/"
        assert process not in psutil.Process().children(recursive=True)
    eventually(lambda: not process.is_running())
    assert not entries(bus_name)


def test_automatic_is_replaced(bus_name: str) -> None:
    """When the automatic supervisor is killed, whoever waits on the bus starts another one."""
    with Bus(bus_name) as bus, bus.subscriber(ORDERS) as sub:
        first = in_office(bus)
        os.kill(first, signal.SIGKILL)

        def another() -> bool:
            with pytest.raises(shmbus.Empty):
                sub.receive(timeout=0.1)
            return bus.stats().supervisor.pid not in (0, first)

        eventually(another)


def test_standby_takes_over(bus_name: str, processes: Processes) -> None:
    """Of many foreground supervisors one is in office; when it is killed another takes over, and SIGTERM ends each."""
    with opened(bus_name) as bus:
        standby = {child.pid: child for child in [supervise(processes, bus_name) for _ in range(3)]}
        first = in_office(bus)
        kill(standby.pop(first))
        second = in_office(bus, other_than=first)
        standby[second].terminate()
        assert standby.pop(second).wait() == 0
        third = in_office(bus, other_than=second)
        assert third in standby
        standby[third].send_signal(signal.SIGINT)
        assert standby[third].wait() == 0
        eventually(lambda: bus.stats().supervisor.pid == 0)


def test_ends_with_the_bus(bus_name: str, processes: Processes) -> None:
    """A foreground supervisor ends in good order when the bus is removed; without a bus it fails and names it."""
    with Bus(bus_name, supervise=False) as bus:
        child = supervise(processes, bus_name)
        in_office(bus)
    assert child.wait() == 0
    child = supervise(processes, bus_name)
    _, errors = child.communicate()
    assert child.returncode != 0
    assert bus_name in errors
    assert "Traceback" not in errors


# -- the dead


def test_dead_subscriber(bus: Bus, processes: Processes) -> None:
    """What a killed subscriber had not received is abandoned, exactly, and the publisher that it blocked goes on."""
    child = hold(processes, bus.name, "sub = bus.subscriber(SMALL, name='s')")
    with bus.publisher(SMALL, name="p") as pub:
        thread = threading.Thread(target=pub.publish_many, args=(orders(500),))
        thread.start()
        eventually(lambda: publisher(bus, "p").waiting)
        assert publisher(bus, "p").blocked_by == ("s",)
        depth = consumer(bus, "s").depth
        kill(child)
        thread.join(PATIENT)
        assert not thread.is_alive()
        assert books(bus, "s") == {"offered": depth, "abandoned": depth}
        assert list(losses(bus, "s")) == [("p", "abandoned", 1, depth, depth)]
        assert consumer(bus, "s").state == "dead"
        assert publisher(bus, "p").published == 500
        (loss,) = bus.losses()
        assert 0 < loss.first_ns <= loss.last_ns <= bus.stats().time_ns


def test_dead_worker(bus: Bus, processes: Processes) -> None:
    """What a killed worker had claimed wakes another worker, with the next attempt; nothing else is given twice."""
    child = hold(processes, bus.name, "w = bus.worker(ORDERS, group='g'); got = []")
    kill(child)
    with bus.publisher(ORDERS) as pub, bus.worker(ORDERS, group="g", idle="park") as worker:
        pub.publish_many(orders(3))
        child = hold(processes, bus.name, "w = bus.worker(ORDERS, group='g', name='w'); stream = w.receive(60)")
        assert take(worker, 2) == orders(2, 2)
        worker.ack()
        (claimed,) = [w for w in consumer(bus, "g").workers if w.name == "w"]
        assert (claimed.pid, claimed.held) == (child.pid, 1)
        threading.Timer(0.0, kill, [child]).start()
        message = next(worker.messages())
        assert (message.event, message.attempt) == (Order(1), 2)
        message.ack()
        assert worker.try_receive() is None
        assert books(bus, "g") == {"offered": 3, "delivered": 3}


def test_dead_worker_exhausts(bus: Bus, processes: Processes) -> None:
    """An event that kills every worker it comes to ends in the dead letters."""
    with bus.publisher(ORDERS) as pub, bus.subscriber(shmbus.dead_letter_topic(ORDERS)) as dead:
        bus.group(ORDERS, "g")
        pub.publish(Order(13))
        for _ in range(2):
            kill(hold(processes, bus.name, "w = bus.worker(ORDERS, group='g', max_deliver=2); w.receive(60)"))
        with bus.worker(ORDERS, group="g", max_deliver=2) as worker:

            def letter() -> shmbus.DeadLetter | None:
                assert worker.try_receive() is None
                return dead.try_receive()

            found = eventually(letter)
            assert found is not None
            assert found.attempts == 2
        assert books(bus, "g") == {"offered": 1, "rejected": 1}


def test_dead_publisher(bus: Bus, processes: Processes) -> None:
    """Everything that a killed publisher had published arrives; then its work ring goes."""
    with bus.subscriber(SMALL, name="s") as sub, bus.worker(SMALL, group="g") as worker:
        before = bus.stats().bytes
        kill(hold(processes, bus.name, "p = bus.publisher(SMALL, name='p'); p.publish_many(orders(50))"))
        eventually(lambda: publisher(bus, "p").state == "dead")
        assert drain(sub) == orders(50)
        grown = bus.stats().bytes
        assert take(worker, 50) == orders(50)
        worker.ack()
        eventually(lambda: before < bus.stats().bytes < grown)
        for name in ("s", "g"):
            assert books(bus, name) == {"offered": 50, "delivered": 50}


def test_losses_are_logged(bus_name: str, processes: Processes) -> None:
    """The supervisor's log names the dead, and every loss with consumer, publisher, cause and count."""
    with opened(bus_name) as bus, bus.publisher(SMALL, name="till") as pub:
        child = supervise(processes, bus_name)
        in_office(bus)
        held = hold(processes, bus_name, "sub = bus.subscriber(SMALL, name='audit')")
        pub.publish_many(orders(7))
        kill(held)
        log = ""
        assert child.stderr is not None
        while "abandoned" not in log:
            text = child.stderr.readline()
            assert text, log
            log += text
        assert str(held.pid) in log
        assert all(word in log for word in ("audit", "till", "7"))


def test_growing_loss_is_logged(bus_name: str, processes: Processes) -> None:
    """A loss is logged, and again when it has grown, though nothing else on the bus has changed."""
    with opened(bus_name) as bus:
        log = supervise(processes, bus_name).stderr
        assert log is not None
        in_office(bus)
        with bus.subscriber(SMALL, name="slow", mode="lossy"), bus.publisher(SMALL) as pub:
            counts = []
            for _ in range(3):
                pub.publish_many(orders(1000))
                told = next(text for text in log if "slow of topic" in text and "sequences" in text)
                counts.append(int(told.partition(" lost ")[2].split()[0]))
            assert counts == sorted(set(counts))


# -- the living


def test_stalled_and_stopped(bus_name: str, processes: Processes) -> None:
    """Who makes no progress is reported as stalled, who is stopped as stopped; neither loses anything."""
    with opened(bus_name, stall_timeout=0.3) as bus:
        supervise(processes, bus_name)
        in_office(bus)
        code = "sub = bus.subscriber(SMALL, name='s'); w = bus.worker(SMALL, group='g', name='w')"
        child = hold(processes, bus_name, code)
        with bus.publisher(SMALL) as pub:
            assert (consumer(bus, "s").state, consumer(bus, "g").state) == ("ok", "ok")
            pub.publish_many(orders(5))
            eventually(lambda: (consumer(bus, "s").state, consumer(bus, "g").state) == ("stalled", "stalled"))
            child.send_signal(signal.SIGSTOP)
            eventually(lambda: consumer(bus, "s").state == "stopped")
            rounds = bus.stats().time_ns + 1_000_000_000
            eventually(lambda: bus.stats().time_ns > rounds)
            assert child.pid in [p.pid for p in bus.stats().participants]
            assert [p.state for p in bus.stats().participants if p.pid == child.pid] == ["stopped"]
            assert books(bus, "s") == books(bus, "g") == {"offered": 5, "depth": 5}
            child.send_signal(signal.SIGCONT)
            eventually(lambda: consumer(bus, "s").state == "stalled")
        assert child.poll() is None


def test_no_supervisor(bus_name: str, processes: Processes) -> None:
    """With `supervise=False` a blocked publisher itself finds that who blocks it is dead."""
    with Bus(bus_name, supervise=False) as bus, bus.publisher(SMALL) as pub:
        child = hold(processes, bus_name, "sub = bus.subscriber(SMALL, name='s')")
        kill(child)
        pub.publish_many(orders(1000))
        assert bus.stats().supervisor.pid == 0
        assert books(bus, "s")["abandoned"] > 50


def test_next_bus_reclaims(bus_name: str, processes: Processes) -> None:
    """Without a supervisor the next Bus of the name finds what the dead left, and takes their names over."""
    child = hold(processes, bus_name, "s = bus.subscriber(SMALL, name='s'); p = bus.publisher(SMALL, name='p')")
    kill(child)
    with Bus(bus_name, supervise=False) as bus:
        assert [p.pid for p in bus.stats().participants] == [os.getpid()]
        with bus.subscriber(SMALL, name="s") as sub, bus.publisher(SMALL, name="p") as pub:
            pub.publish(Order(1))
            assert drain(sub) == [Order(1)]


# -- the end of a bus


def test_removed_after_kills(bus_name: str, processes: Processes) -> None:
    """When every participant has been killed, the automatic supervisor removes the bus and goes."""
    code = "s = bus.subscriber(ORDERS); p = bus.publisher(ORDERS); p.publish_many(orders(9)); w = bus.stats()"
    children = [hold(processes, bus_name, code, "supervised") for _ in range(3)]
    pid = eventually(lambda: inspect.stats_of(bus_name).supervisor.pid)
    for child in children:
        kill(child)
    eventually(lambda: not entries(bus_name))
    eventually(lambda: not psutil.pid_exists(pid))


@pytest.mark.parametrize("point", ["remove.marked", "remove.unlinked"])
def test_removal_cut_short(bus_name: str, processes: Processes, point: str) -> None:
    """Where the last participant dies while it removes the bus, its supervisor removes the rest and goes."""
    code = (
        "from shmbus._shm import failpoint; from support import eventually; p = bus.publisher(ORDERS);"
        f"eventually(lambda: bus.stats().supervisor.pid); failpoint.arm({point!r}); bus.close()"
    )
    child = processes.spawn(HOLD, bus_name, code, "supervised")
    assert child.wait(PATIENT) == -signal.SIGKILL
    eventually(lambda: not entries(bus_name), lambda: str(entries(bus_name)))


def test_owed_bus_stays(bus_name: str, processes: Processes) -> None:
    """A bus whose group is owed events stays when its last participant leaves or dies, and goes once they are acked."""
    code = (
        "bus.group(ORDERS, 'g'); p = bus.publisher(ORDERS); p.publish_many(orders(3)); bus.subscriber(ORDERS).close()"
    )
    child = hold(processes, bus_name, code, "supervised")
    pid = eventually(lambda: inspect.stats_of(bus_name).supervisor.pid)
    kill(child)
    eventually(lambda: not psutil.pid_exists(pid), "an automatic supervisor does not stay for nobody")
    assert bus_name in inspect.buses()
    with Bus(bus_name) as bus, bus.worker(ORDERS, group="g") as worker:
        assert books(bus, "g") == {"offered": 3, "depth": 3}
        assert take(worker, 2) == orders(2)
    assert bus_name in inspect.buses()
    with Bus(bus_name, supervise=False) as bus, bus.worker(ORDERS, group="g") as worker:
        assert take(worker, 2) == orders(2, 2)
        worker.ack()
        assert books(bus, "g") == {"offered": 3, "delivered": 3}
    eventually(lambda: not entries(bus_name))
