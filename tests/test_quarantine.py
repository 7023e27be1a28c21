"""Quarantine: a stalled reliable subscriber holds up nobody, is told what that cost, and is reliable again."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from quarantined import AT_WILL, FITS, NUMBERS, balanced, consumer, drained, fill, quarantine
from support import Processes, entries, eventually, line

import shmbus
from shmbus import Bus, Policy, inspect


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    """A bus on which nobody is put in quarantine but by `quarantine`."""
    with Bus(bus_name, policy=AT_WILL, supervise=False) as bus:
        yield bus


# -- stopped for good: processes, signals, and a supervisor or none


def receive_and_tell(bus_name: str, last: str, supervise: str) -> None:
    import logging

    import shmbus

    logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(name)s: %(message)s")
    topic = shmbus.Topic("numbers", int, capacity=4096, max_capacity=None)
    with shmbus.Bus(bus_name, supervise=bool(supervise)) as bus:

        def gap(gap: shmbus.Gap) -> None:
            print("gap", gap.publisher, gap.first, gap.last, gap.count, gap.cause, flush=True)

        subscriber = bus.subscriber(topic, name="sleeper", on_gap=gap)
        print("ready", flush=True)
        for message in subscriber.messages():
            print("got", message.publisher, message.sequence, message.event, flush=True)
            if message.event == int(last):
                break
        found = next(c for c in bus.stats().consumers if c.name == "sleeper")
        print("books", found.offered, found.delivered, found.depth, found.overrun, found.refused, flush=True)


def told_by(child: subprocess.Popen[str]) -> list[list[str]]:
    """All that the child says until its books."""
    found = []
    while True:
        found.append(line(child).split())
        if found[-1][0] == "books":
            return found


def taken(publisher: shmbus.Publisher[int], number: int) -> bool:
    """Whether an event went everywhere, whatever the publisher does when it is full."""
    try:
        return publisher.publish(number) is not None
    except shmbus.Full:
        return False


@pytest.mark.parametrize(("on_full", "supervise"), [("block", True), ("drop", False), ("raise", True)])
def test_stopped_and_woken(bus_name: str, processes: Processes, on_full: Any, supervise: bool) -> None:
    """A publisher goes on without who was stopped; woken, that gets what its ring held, one Gap, and all since."""
    with Bus(bus_name, policy=Policy("quarantine", 1.0), supervise=supervise) as bus:
        publisher = bus.publisher(NUMBERS, name="web", on_full=on_full, timeout=60)
        child = processes.spawn(receive_and_tell, bus_name, -1, supervise or "")
        assert line(child) == "ready"
        publisher.publish(0)
        assert line(child) == "got web 1 0"
        child.send_signal(signal.SIGSTOP)
        published, blockers = 1, set[str]()
        while published <= 4 * FITS:
            try:
                published += publisher.publish(published) is not None
            except shmbus.Full as error:
                blockers.update(error.blocked_by)
        assert blockers <= {"sleeper"}
        stopped = consumer(bus, "sleeper")
        assert stopped.quarantined_ns
        assert not stopped.blocks
        assert stopped.overrun > FITS
        assert balanced(stopped)
        child.send_signal(signal.SIGCONT)
        eventually(lambda: consumer(bus, "sleeper").quarantined_ns == 0, "it is reliable again")
        lost = consumer(bus, "sleeper").overrun
        for number in [*range(published, published + 3 * FITS), -1]:  # more than a ring holds, and none is lost
            eventually(lambda number=number: taken(publisher, number), "there is room")  # type: ignore[misc]
        told = told_by(child)
        got = [int(words[2]) for words in told if words[0] == "got"]
        [gap] = [words[1:] for words in told if words[0] == "gap"]
        assert gap[0] == "web"
        assert int(gap[2]) - int(gap[1]) + 1 == int(gap[3]) == lost
        assert gap[4] == "overrun"
        assert got == [n for n in range(2, published + 3 * FITS + 2) if not int(gap[1]) <= n <= int(gap[2])]
        assert len([n for n in got if n < int(gap[1])]) >= FITS - 1
        words = [" ".join(words) for words in told]
        assert any("is reliable again" in said for said in words if said.startswith("shmbus.loss: "))
        offered, delivered, depth, overrun, refused = map(int, told[-1][1:])
        assert (delivered, depth, overrun) == (len(got) + 1, 0, lost)
        assert offered == delivered + overrun + refused
        if on_full == "block":
            assert refused == 0
        child.wait(30)
        publisher.close()


def test_the_policy_is_changed_under_a_publisher_that_waits(bus_name: str, processes: Processes) -> None:
    """`shmbus policy` frees a publisher that waits already; what it does is on the audit log of who acts."""
    with Bus(bus_name) as bus, bus.publisher(NUMBERS, name="web", timeout=60) as publisher:
        child = processes.spawn(receive_and_tell, bus_name, -1, "yes")
        assert line(child) == "ready"
        child.send_signal(signal.SIGSTOP)
        number = fill(publisher)
        command = [sys.executable, "-m", "shmbus", "policy", bus_name, "--stalled", "quarantine", "--after", "1"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert said == "stalled: quarantine after 1 s\n"
        publisher.publish(number)
        assert consumer(bus, "sleeper").quarantined_ns
        text = subprocess.run(
            [sys.executable, "-m", "shmbus", "stat", bus_name], check=True, capture_output=True, text=True
        ).stdout
        assert "sleeper is in quarantine" in text
        child.send_signal(signal.SIGCONT)
        publisher.publish(-1)
        books = told_by(child)[-1]
        assert [int(n) for n in books[1:]] == [number + 2, number + 2, 0, 0, 0]  # there was room for all of it


def test_killed_in_quarantine(bus_name: str, processes: Processes, bus: Bus) -> None:
    """Of who dies in quarantine nothing is left but its books, and they balance."""
    with bus.publisher(NUMBERS) as publisher:
        child = processes.spawn(receive_and_tell, bus_name, -1, "")
        assert line(child) == "ready"
        child.send_signal(signal.SIGSTOP)
        number = fill(publisher)
        quarantine(bus, "sleeper")
        publisher.publish_many(range(number, number + 3 * FITS))
        child.kill()
        child.wait()
        with bus.subscriber(NUMBERS, name="other") as other, pytest.raises(shmbus.Empty):
            other.receive(timeout=3)  # who waits reclaims the dead
        found = consumer(bus, "sleeper")
        assert found.state == "dead"
        assert found.overrun > 0
        assert found.abandoned >= FITS
        assert balanced(found)
        eventually(lambda: sum("ring-" in name for name in entries(bus_name)) == 1, "its ring is gone")


# -- being told


def test_raised_once_for_each_publisher(bus: Bus) -> None:
    """With on_gap="raise" each publisher's gap is raised once, behind what was received before it."""
    publishers = [bus.publisher(NUMBERS, name=name) for name in ("a", "b")]
    sleeper = bus.subscriber(NUMBERS, name="sleeper", on_gap="raise")
    numbers = [fill(publisher) for publisher in publishers]
    quarantine(bus, "sleeper")
    for publisher, number in zip(publishers, numbers, strict=True):
        publisher.publish_many(range(number, number + 3 * FITS))
    got: list[int] = []
    raised: list[tuple[str, int]] = []
    while True:
        try:
            event = sleeper.try_receive()
        except shmbus.GapError as error:
            gap: Any = error.gap
            raised.append((gap.publisher, len(got)))
            continue
        if event is None:
            break
        got.append(event)
    assert sorted(name for name, _ in raised) == ["a", "b"]
    assert all(after >= sum(numbers) for _, after in raised)
    found = consumer(bus, "sleeper")
    assert found.delivered == len(got)
    assert [loss.cause for loss in bus.losses()] == ["overrun", "overrun"]
    assert sum(loss.count for loss in bus.losses()) == found.overrun
    for handle in (sleeper, *publishers):
        handle.close()


def test_again_and_again(bus: Bus, bus_name: str) -> None:
    """Who stalls each time it has come back is owed two rings of a publisher at most, and loses no count of it."""
    publisher = bus.publisher(NUMBERS)
    sleeper = bus.subscriber(NUMBERS, name="sleeper")
    got: list[int] = []
    number = 0
    for _ in range(8):
        number = fill(publisher, number, 2 * FITS)
        quarantine(bus, "sleeper")
        number = fill(publisher, number, 3 * FITS)
        got += [sleeper.receive(10), sleeper.receive(10)]
        assert sum("ring-" in name for name in entries(bus_name)) <= 4
    got += drained(sleeper)
    assert got == sorted(set(got))
    found = consumer(bus, "sleeper")
    assert found.delivered == len(got)
    assert found.offered == number == found.delivered + found.overrun
    assert not found.quarantined_ns
    for handle in (sleeper, publisher):
        handle.close()


def test_no_room_for_another_ring(bus: Bus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Where /dev/shm has no room for a ring more, its publisher waits on, says why, and goes on once there is."""
    from shmbus._shm.rings import Rings

    publisher = bus.publisher(NUMBERS, timeout=0.05)
    sleeper = bus.subscriber(NUMBERS, name="sleeper")
    number = fill(publisher)
    quarantine(bus, "sleeper")

    def none(*_: object) -> None:
        raise shmbus.NoSpaceError(28, "ring", 4096, 0)

    with monkeypatch.context() as patch:
        patch.setattr(Rings, "create", none)
        with pytest.raises(shmbus.Full, match="sleeper"):
            publisher.publish(number)
    assert "stays where it is" in caplog.text
    publisher._not_before = 0.0
    publisher.publish(number)
    assert drained(sleeper) == list(range(number + 1))
    sleeper.close()
    publisher.close()


def test_while_the_lock_is_not_to_be_had(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who wakes while somebody keeps the bus lock receives without it, and is reliable once it was to be had."""
    from shmbus import subscriber as module

    monkeypatch.setattr(module, "_PATIENCE", 0.01)
    publisher = bus.publisher(NUMBERS)
    sleeper = bus.subscriber(NUMBERS, name="sleeper")
    number = fill(publisher)
    quarantine(bus, "sleeper")
    publisher.publish(number)
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with bus._session.registry.locked():
            held.set()
            assert go_on.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(60)
    assert sleeper.receive(10) == 0
    assert consumer(bus, "sleeper").quarantined_ns
    go_on.set()
    holder.join()
    assert drained(sleeper) == list(range(1, number + 1))
    with pytest.raises(shmbus.Empty):
        sleeper.receive(2.5)
    assert not consumer(bus, "sleeper").quarantined_ns
    sleeper.close()
    publisher.close()


def test_what_is_shown(bus: Bus, bus_name: str) -> None:
    """stat --json, metrics and health say who is in quarantine."""
    pytest.importorskip("prometheus_client")
    from prometheus_client import generate_latest
    from prometheus_client.core import CollectorRegistry

    from shmbus.observe import health
    from shmbus.observe.metrics import BusCollector

    publisher = bus.publisher(NUMBERS)
    sleeper = bus.subscriber(NUMBERS, name="sleeper")
    number = fill(publisher)
    quarantine(bus, "sleeper")
    publisher.publish(number)
    told = msgspec.json.decode(msgspec.json.encode(inspect.stats_of(bus_name)))
    [found] = [c for c in told["consumers"] if c["name"] == "sleeper"]
    assert found["quarantined_ns"] > 0
    registry = CollectorRegistry()
    registry.register(BusCollector([bus_name]))
    text = generate_latest(registry).decode()
    assert f'shmbus_quarantined{{bus="{bus_name}",consumer="sleeper",topic="numbers"}} 1.0' in text
    stalled = msgspec.structs.replace(consumer(bus, "sleeper"), state="stalled")
    stats = msgspec.structs.replace(bus.stats(), consumers=(stalled,))
    [problem] = [p for p in health.problems(stats, {}) if p.kind == "stalled"]
    assert problem.severity == "warning"
    assert "quarantine" in problem.why
    sleeper.close()
    publisher.close()
