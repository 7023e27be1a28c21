"""Where the audit log goes: a file that many processes share, the system log; what the supervisor tells of losses."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Processes, eventually, line

import shmbus
from shmbus import inspect, observe

NUMBERS = shmbus.Topic("numbers", int, capacity=4096)


@pytest.fixture
def put_back() -> Iterator[None]:
    """The logger is as it was."""
    logger = logging.getLogger("shmbus.audit")
    before, level = list(logger.handlers), logger.level
    yield
    for handler in [handler for handler in logger.handlers if handler not in before]:
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(level)


def records(path: Path) -> list[dict[str, Any]]:
    """Those that are whole: a line that is just being written may be read in part."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(one) for one in text[: text.rfind("\n") + 1].splitlines()]


def join_and_leave(bus_name: str, path: str, name: str) -> None:
    import shmbus
    from shmbus import observe

    observe.audit_to(file=path)
    with shmbus.Bus(bus_name) as bus, bus.publisher(shmbus.Topic("numbers", int, capacity=4096), name=name):
        print("ready", flush=True)
        sys.stdin.readline()


def test_processes_share_a_file(bus_name: str, processes: Processes, tmp_path: Path, put_back: None) -> None:
    """Every record of every process is a line of its own of JSON."""
    path = tmp_path / "audit.jsonl"
    observe.audit_to(file=path)
    with shmbus.Bus(bus_name):
        children = [processes.spawn(join_and_leave, bus_name, path, f"web-{n}") for n in range(4)]
        for child in children:
            assert line(child) == "ready"
        for child in children:
            child.communicate("\n")
    told = [(r["act"], r["role"]) for r in records(path)]
    for role, count in (("process", 5), ("publisher", 4)):
        assert told.count(("join", role)) == told.count(("leave", role)) == count
    assert all(r["bus"] == bus_name and r["time_ns"] > 0 and r["message"] for r in records(path))


def test_losses_are_told_by_the_supervisor(bus_name: str, processes: Processes, tmp_path: Path) -> None:
    """`shmbus supervise --audit` tells of each loss by consumer and cause, with the total that the books have."""
    path = tmp_path / "audit.jsonl"
    with shmbus.Bus(bus_name, supervise=False) as bus:
        supervisor = processes.run([sys.executable, "-m", "shmbus", "supervise", bus_name, "--audit", str(path)])
        eventually(lambda: bus.stats().supervisor.pid == supervisor.pid, "it is in office")
        lossy = bus.subscriber(NUMBERS, name="lossy", mode="lossy", on_gap=lambda _: None)
        publisher = bus.publisher(NUMBERS, name="web")

        def told() -> dict[str, int]:
            return {r["cause"]: r["total"] for r in records(path) if r["act"] == "loss" and r["name"] == "lossy"}

        for turn in range(2):
            publisher.publish_many(range(500))
            lossy.receive(timeout=10)
            booked = bus.stats().consumers[0].overrun
            eventually(lambda: told() == {"overrun": booked}, f"turn {turn} is told of")  # noqa: B023
        lossy.close()
        books = bus.stats().consumers[0]
        eventually(lambda: told() == {"overrun": books.overrun, "abandoned": books.abandoned}, "the rest is told of")
        losses = [r for r in records(path) if r["act"] == "loss"]
        assert sum(r["count"] for r in losses) == books.overrun + books.abandoned
        assert {(r["publisher"], r["topic"], r["by"]) for r in losses} == {("web", "numbers", supervisor.pid)}
        publisher.close()


@pytest.mark.parametrize("audited", [False, True])
def test_stderr_has_each_thing_once(bus_name: str, processes: Processes, tmp_path: Path, audited: bool) -> None:
    """On the stderr of `shmbus supervise` a loss, a stall and its end are a line each; the audit log is elsewhere."""
    path, said = tmp_path / "audit.jsonl", tmp_path / "stderr"
    options = ["--audit", str(path)] if audited else []
    with shmbus.Bus(bus_name, supervise=False, stall_timeout=0.1) as bus, said.open("w") as stderr:
        command = [sys.executable, "-m", "shmbus", "supervise", bus_name, *options]
        supervisor = processes.run(command, stderr=stderr)
        eventually(lambda: bus.stats().supervisor.pid == supervisor.pid, "it is in office")
        idler = bus.subscriber(NUMBERS, name="idler")
        publisher = bus.publisher(NUMBERS, name="web")
        publisher.publish_many(range(3))
        eventually(lambda: "is stalled" in said.read_text(), "it is stalled")
        assert idler.receive(timeout=60) == 0
        eventually(lambda: "goes on" in said.read_text(), "it goes on")
        idler.close()
        eventually(lambda: "lost 2" in said.read_text(), "it has lost the rest")
        supervisor.terminate()
        assert supervisor.wait(60) == 0
        publisher.close()
    lines = said.read_text().splitlines()
    assert [sum(word in text for text in lines) for word in ("lost 2", "goes on")] == [1, 1]
    stalls = sum("is stalled" in text for text in lines)  # again, where the machine is busy
    assert len([text for text in lines if "idler" in text]) == 2 + stalls
    assert [r["count"] for r in records(path) if r["act"] == "loss"] == ([2] if audited else [])


def test_the_system_log(bus_name: str, processes: Processes, tmp_path: Path) -> None:
    """With --syslog each record is a datagram of facility daemon to the socket that is named, also once the system log
    was started again.
    """
    where = tmp_path / "log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(where))
        server.settimeout(60)
        with shmbus.Bus(bus_name, supervise=False) as bus:
            command = [sys.executable, "-m", "shmbus", "supervise", bus_name, "--syslog", str(where)]
            supervisor = processes.run(command)
            eventually(lambda: bus.stats().supervisor.pid == supervisor.pid, "it is in office")
            with bus.subscriber(NUMBERS, name="audit"), bus.publisher(NUMBERS, name="web") as publisher:
                publisher.publish(1)
            text = server.recv(4096).decode()
            assert text.startswith(f"<28>shmbus[{supervisor.pid}]: bus {bus_name}: audit of topic numbers lost 1")
            where.unlink()
            server.close()  # the system log is started again
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
                again.bind(str(where))
                again.settimeout(60)
                with bus.subscriber(NUMBERS, name="late"), bus.publisher(NUMBERS, name="web") as publisher:
                    publisher.publish(1)
                assert "late of topic numbers lost 1" in again.recv(4096).decode()


def test_a_system_log_that_is_away(bus_name: str, tmp_path: Path) -> None:
    """One that is not there, and what is no address, is said at once, in one line."""
    command = [sys.executable, "-m", "shmbus", "supervise", bus_name, "--syslog"]
    with shmbus.Bus(bus_name):
        for address, said in ((str(tmp_path / "none"), "none"), ("nowhere", "syslog='nowhere'")):
            done = subprocess.run([*command, address], capture_output=True, text=True, check=False)
            assert done.returncode != 0
            assert said in done.stderr
            assert "Traceback" not in done.stderr


def test_who_is_told_nothing(bus_name: str, put_back: None) -> None:
    """Nothing that makes no sense is taken for an address; without a place no handler is made."""
    assert observe.audit_to() == []
    with pytest.raises(shmbus.ConfigError, match="log:99999"):
        observe.audit_to(syslog="log:99999")
    with shmbus.Bus(bus_name):
        assert inspect.stats_of(bus_name).participants
