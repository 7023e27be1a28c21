"""Policies and the audit log: what becomes of the stalled, and what is told of who comes, goes and dies."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from support import Processes, eventually, line

import shmbus
from shmbus import inspect

NUMBERS = shmbus.Topic("numbers", int, capacity=4096)


@pytest.fixture
def audit(caplog: pytest.LogCaptureFixture) -> Iterator[list[dict[str, Any]]]:
    """The records of `shmbus.audit` so far, as what they say."""

    class Records(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.audit)  # type: ignore[attr-defined]

    found: list[dict[str, Any]] = []
    handler, logger = Records(), logging.getLogger("shmbus.audit")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield found
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(handler)


def test_joins_and_leaves_are_told_once(bus_name: str, audit: list[dict[str, Any]]) -> None:
    """Everybody who joins or leaves is one record, after it is true, with role, topic, name and process."""
    with shmbus.Bus(bus_name) as bus, bus.subscriber(NUMBERS, name="audit"):
        with bus.worker(NUMBERS, group="billing", name="one"), bus.publisher(NUMBERS, name="web"):
            pass
        bus.remove_group(NUMBERS, "billing")
    told = [(record["act"], record["role"], record["name"]) for record in audit if record["role"] != "process"]
    assert told == [
        ("join", "subscriber", "audit"),
        ("join", "group", "billing"),
        ("join", "worker", "one"),
        ("join", "publisher", "web"),
        ("leave", "publisher", "web"),
        ("leave", "worker", "one"),
        ("leave", "group", "billing"),
        ("leave", "subscriber", "audit"),
    ]
    assert [record["act"] for record in audit if record["role"] == "process"] == ["join", "leave"]
    assert {record["bus"] for record in audit} == {bus_name}


def test_deaths_are_told_by_who_reclaims(bus_name: str, processes: Processes, audit: list[dict[str, Any]]) -> None:
    """A process that is killed, and what it held, are told as deaths by the participant that reclaims them."""
    with shmbus.Bus(bus_name, supervise=False) as bus, bus.publisher(NUMBERS, name="web") as publisher:
        bus.group(NUMBERS, "billing")
        child = processes.spawn(join_all, bus_name)
        assert line(child) == "ready"
        child.kill()
        child.wait()
        sleeper = bus.subscriber(NUMBERS, name="other")
        with pytest.raises(shmbus.Empty):
            sleeper.receive(timeout=5)
        deaths = {(record["role"], record["name"]) for record in audit if record["act"] == "death"}
        assert {("subscriber", "sleeper"), ("worker", "one"), ("publisher", "child")} <= deaths
        assert [role for role, _ in deaths].count("process") == 1
        bus.remove_group(NUMBERS, "billing")
        publisher.close()


def join_all(bus_name: str) -> None:
    import signal

    import shmbus

    topic = shmbus.Topic("numbers", int, capacity=4096)
    bus = shmbus.Bus(bus_name, supervise=False)
    handles = bus.subscriber(topic, name="sleeper"), bus.worker(topic, group="billing", name="one")
    publisher = bus.publisher(topic, name="child")
    print("ready", flush=True)
    while handles and publisher is not None:
        signal.pause()


def test_nobody_listens(bus_name: str) -> None:
    """A participant that nobody has given a log loads no logging for it."""
    code = (
        "import sys, shmbus\n"
        "with shmbus.Bus(sys.argv[1]) as bus, bus.publisher(shmbus.Topic('t', int)):\n"
        "    assert 'logging' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, bus_name], check=True)


def receive_for_ever(bus_name: str) -> None:
    import shmbus

    with shmbus.Bus(bus_name) as bus:
        subscriber = bus.subscriber(shmbus.Topic("numbers", int, capacity=4096), name="sleeper")
        print("ready", flush=True)
        for _ in subscriber:
            pass


def test_a_stalled_subscriber_is_killed(bus_name: str, processes: Processes) -> None:
    """By policy "kill" a stopped subscriber is killed after so many seconds, and its publisher goes on."""
    policy = shmbus.Policy(stalled="kill", after=1.0)
    with shmbus.Bus(bus_name, policy=policy) as bus, bus.publisher(NUMBERS, name="web", timeout=60) as publisher:
        assert inspect.policy_of(bus_name) == policy
        child = processes.spawn(receive_for_ever, bus_name)
        assert line(child) == "ready"
        child.send_signal(signal.SIGSTOP)
        for n in range(1000):  # more than the ring holds
            publisher.publish(n)
        assert child.wait(30) == -signal.SIGKILL
        eventually(lambda: all(c.abandoned for c in bus.stats().consumers), "it is reclaimed")
        [consumer] = bus.stats().consumers
        assert consumer.state == "dead"
        assert consumer.offered == consumer.delivered + consumer.abandoned


def test_a_stalled_subscriber_is_reported(bus_name: str, processes: Processes) -> None:
    """By policy "report" a stopped subscriber holds its publisher back until it goes on, and gets everything."""
    with shmbus.Bus(bus_name, stall_timeout=1.0) as bus, bus.publisher(NUMBERS, timeout=0.1) as publisher:
        child = processes.spawn(receive_for_ever, bus_name)
        assert line(child) == "ready"
        child.send_signal(signal.SIGSTOP)
        with pytest.raises(shmbus.Full, match="sleeper"):
            publisher.publish_many(range(1000))
        eventually(lambda: bus.stats().consumers[0].state == "stopped", "it is told of")
        assert child.poll() is None
        child.send_signal(signal.SIGCONT)
        eventually(lambda: bus.stats().consumers[0].depth == 0, "it has received all")


def test_a_worker_that_holds_events_is_killed(bus_name: str, processes: Processes) -> None:
    """Of a stalled group those workers are killed that hold events, and what they held goes to others."""
    with shmbus.Bus(bus_name, policy=shmbus.Policy("kill", 1)) as bus, bus.publisher(NUMBERS) as publisher:
        child = processes.spawn(hold, bus_name)
        assert line(child) == "ready"
        publisher.publish(7)
        assert line(child) == "holds"
        child.send_signal(signal.SIGSTOP)
        assert child.wait(30) == -signal.SIGKILL
        with bus.worker(NUMBERS, group="billing") as worker:
            assert worker.receive(timeout=30) == 7
            worker.ack()
        bus.remove_group(NUMBERS, "billing")


def hold(bus_name: str) -> None:
    import signal

    import shmbus

    with shmbus.Bus(bus_name) as bus:
        worker = bus.worker(shmbus.Topic("numbers", int, capacity=4096), group="billing")
        print("ready", flush=True)
        assert worker.receive() == 7
        print("holds", flush=True)
        signal.pause()


def test_a_lossy_subscriber_is_left_alone(bus_name: str) -> None:
    """Who holds nobody back is not killed: the policy has nothing to say of it."""
    from shmbus._ledger import policies

    with shmbus.Bus(bus_name, policy=shmbus.Policy("kill", 1)) as bus:
        lossy = bus.subscriber(NUMBERS, name="lossy", mode="lossy")
        entry = bus._session.registry.read().consumers[0]
        assert policies.act(bus._session.registry, bus._session.rings, entry, 10**12) == []
        lossy.close()


def test_policy_is_changed_while_it_runs(bus_name: str, audit: list[dict[str, Any]]) -> None:
    """`shmbus policy` shows and changes it; who opens the bus without one leaves it; a change is audited."""
    command = [sys.executable, "-m", "shmbus", "policy", bus_name]
    with shmbus.Bus(bus_name):
        assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == (
            "stalled: report after 10 s\n"
        )
        changed = subprocess.run([*command, "--stalled", "kill"], check=True, capture_output=True, text=True)
        assert changed.stdout == "stalled: kill after 10 s\n"
        with shmbus.Bus(bus_name):
            assert inspect.policy_of(bus_name) == shmbus.Policy("kill", 10.0)
        inspect.set_policy(bus_name, shmbus.Policy("report", 3))
        inspect.set_policy(bus_name, shmbus.Policy("report", 3))
    assert [record["stalled"] for record in audit if record["act"] == "policy"] == ["report"]


@pytest.mark.parametrize(
    ("stalled", "after", "said"),
    [("maim", 1, "'maim'"), ("kill", 0.5, "0.5"), ("kill", True, "True")],
)
def test_what_is_no_policy(stalled: Any, after: Any, said: str) -> None:
    """What a policy cannot be is a ConfigError with the value."""
    with pytest.raises(shmbus.ConfigError, match=f"={said}$"):
        shmbus.Policy(stalled, after)
