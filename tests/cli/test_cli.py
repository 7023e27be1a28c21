"""The command line: exit codes, one-line errors, JSON, what each command does to a real bus."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from support import SHM, Processes, child_environment, entries, eventually, line

import shmbus
from shmbus import diagnostics, inspect
from shmbus._shm.names import object_prefix
from shmbus.cli import parser
from shmbus.stats import BusStats

PATIENT = 60.0


class Order(msgspec.Struct, frozen=True):
    id: int
    cents: int


ORDERS = shmbus.Topic("orders", Order, capacity=4096)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "shmbus", *arguments]


def run(*arguments: str, text: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """One command to its end, 80 columns wide, its output caught."""
    return subprocess.run(
        command(*arguments),
        input=text,
        capture_output=True,
        text=True,
        timeout=PATIENT,
        env=child_environment(COLUMNS="80", **environment),
        check=False,
    )


def start(processes: Processes, *arguments: str, stderr: int | None = subprocess.PIPE) -> subprocess.Popen[str]:
    return processes.run(command(*arguments), stderr=stderr, env=child_environment(COLUMNS="80"))


def failed_in_one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The complaint of a command that had to fail with `code`."""
    assert done.returncode == code, done
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("shmbus: ")
    return done.stderr.strip()


def block(bus_name: str) -> None:
    """Child: fill the ring that a subscriber does not read, until blocked for good."""
    import msgspec

    import shmbus

    class Order(msgspec.Struct, frozen=True):
        id: int
        cents: int

    with (
        shmbus.Bus(bus_name) as bus,
        bus.publisher(shmbus.Topic("orders", Order, capacity=4096), name="till") as publisher,
    ):
        while True:
            publisher.publish(Order(1, 2))


# -- exit codes


def test_version() -> None:
    """`--version` prints the version of the package."""
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"shmbus {shmbus.__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("stat", "Not A Name"),
        ("stat", "shop", "--watch", "0"),
        ("stat", "shop", "--watch", "other"),
        ("tail", "shop", "orders", "-n", "none"),
        ("tail",),
        ("tail", "shop"),
        ("tail", "shop", "--journal", "none"),
        ("rm",),
        ("pub", "shop", "orders", "{}", "-H", "no-sign"),
        ("demo", "--workers", "0"),
    ],
)
def test_usage(arguments: tuple[str, ...]) -> None:
    """A command line that cannot be ends with exit code 2 and prints nothing to stdout."""
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("stat", "{}"),
        ("stat", "{}", "--json"),
        ("top", "{}"),
        ("tail", "{}", "orders"),
        ("pub", "{}", "orders", "1"),
        ("rm", "{}"),
        ("rm", "--force", "{}"),
        ("supervise", "{}"),
    ],
)
def test_no_such_bus(bus_name: str, arguments: tuple[str, ...]) -> None:
    """A bus that does not exist is exit code 3 and one line that names it, and nothing is created."""
    done = run(*(argument.format(bus_name) if "{" in argument else argument for argument in arguments))
    assert bus_name in failed_in_one_line(done, 3)
    assert not entries(bus_name)


def test_no_such_topic(bus_name: str) -> None:
    """A topic that does not exist is exit code 3 and one line that names it and those that do."""
    with shmbus.Bus(bus_name) as bus, bus.publisher(ORDERS):
        for arguments in (("tail", bus_name, "order"), ("pub", bus_name, "order", "1")):
            complaint = failed_in_one_line(run(*arguments), 3)
            assert "'order'" in complaint
            assert "orders" in complaint


# -- ls, rm


def test_ls(bus_name: str) -> None:
    """`ls` has a line for a bus, with its number of processes, topics and consumers."""
    with shmbus.Bus(bus_name) as bus, bus.subscriber(ORDERS):
        done = run("ls")
    row = next(row for row in done.stdout.splitlines() if row.startswith(bus_name))
    assert re.search(r"\s1\s+1\s+1\s+0\s", row), row


def test_rm_refuses_a_bus_in_use(bus_name: str) -> None:
    """`rm` leaves a bus that somebody uses, and names the process; `rm --force` removes it whole."""
    bus = shmbus.Bus(bus_name)
    assert str(os.getpid()) in failed_in_one_line(run("rm", bus_name), 1)
    assert entries(bus_name)
    done = run("rm", "--force", bus_name)
    assert (done.returncode, done.stdout) == (0, f"removed {bus_name}\n")
    eventually(lambda: not entries(bus_name), lambda: f"left: {entries(bus_name)}")
    bus.close()


def test_rm_takes_many(bus_name: str) -> None:
    """`rm` removes every bus it can, and fails if one of them is not there."""
    bus = shmbus.Bus(bus_name)
    done = run("rm", "--force", f"{bus_name}-gone", bus_name)
    assert f"{bus_name}-gone" in failed_in_one_line(done, 3)
    assert done.stdout == f"removed {bus_name}\n"
    bus.close()


# -- stat, top


def test_stat_json(bus_name: str) -> None:
    """`stat BUS --json` is one BusStats with an interval and books that balance."""
    with shmbus.Bus(bus_name) as bus, bus.subscriber(ORDERS, name="audit"), bus.publisher(ORDERS) as publisher:
        publisher.publish_many([Order(1, 2), Order(2, 3)])
        done = run("stat", bus_name, "--json")
    stats = msgspec.json.decode(done.stdout, type=BusStats, strict=True)
    assert (done.returncode, stats.bus, done.stdout.count("\n")) == (0, bus_name, 1)
    assert stats.interval > 0
    [consumer] = stats.consumers
    assert (consumer.name, consumer.offered, consumer.delivered, consumer.depth) == ("audit", 2, 0, 2)


def test_stat_of_all(bus_name: str) -> None:
    """`stat --json` without a bus is a list with every bus of the host."""
    with shmbus.Bus(bus_name):
        done = run("stat", "--json")
    assert bus_name in [stats.bus for stats in msgspec.json.decode(done.stdout, type=list[BusStats])]


def test_stat_names_who_blocks(bus_name: str, processes: Processes) -> None:
    """A subscriber that does not read is named as the one that blocks the publisher, on both sides."""
    with shmbus.Bus(bus_name) as bus, bus.subscriber(ORDERS, name="audit"):
        child = processes.spawn(block, bus_name)
        eventually(lambda: any(p.waiting for p in bus.stats().publishers), "the publisher waits")
        done = run("stat", bus_name)
        child.kill()
    assert re.search(r"^orders/till .* blocked by audit", done.stdout, re.M), done.stdout
    assert re.search(r"^  till waits for audit: [\d,]+ bytes unread$", done.stdout, re.M), done.stdout
    assert re.search(r"^orders/audit .* blocks till", done.stdout, re.M), done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("arguments", [("stat", "{}", "--watch", "0.05"), ("top", "{}", "-i", "0.05")])
def test_watch_ends_with_the_bus(bus_name: str, processes: Processes, arguments: tuple[str, ...]) -> None:
    """A live view goes on until the bus is removed, and that is no error."""
    with shmbus.Bus(bus_name):
        child = start(processes, *(argument.format(bus_name) for argument in arguments), stderr=None)
        for _ in range(2):
            eventually(lambda: line(child).startswith(bus_name), "a headline")
    assert child.wait(PATIENT) == 0


def test_watch_before_the_bus(bus_name: str, processes: Processes) -> None:
    """`stat --watch BUS --json` takes the word for the bus and prints one document a line until interrupted."""
    with shmbus.Bus(bus_name):
        child = start(processes, "stat", "--json", "--watch", bus_name, stderr=None)
        assert json.loads(line(child))["bus"] == bus_name
        assert json.loads(line(child))["interval"] > 0
        child.send_signal(signal.SIGINT)
        assert child.wait(PATIENT) == 130


# -- tail, pub


def test_pub(bus_name: str) -> None:
    """`pub` publishes an event of the topic's type with its headers and prints the sequence."""
    with shmbus.Bus(bus_name) as bus, bus.subscriber(ORDERS) as orders:
        done = run("pub", bus_name, "orders", '{"id": 7, "cents": 250}', "-H", "by=hand")
        assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
        message = next(orders.messages())
    assert (message.event, message.headers) == (Order(7, 250), {"by": "hand"})


def test_pub_lines(bus_name: str) -> None:
    """`pub BUS TOPIC -` publishes every line of stdin that is not blank, in order."""
    with shmbus.Bus(bus_name) as bus, bus.subscriber(ORDERS) as orders:
        done = run("pub", bus_name, "orders", "-", text='{"id": 1, "cents": 1}\n\n{"id": 2, "cents": 2}\n')
        assert (done.returncode, done.stdout) == (0, "1\n2\n")
        assert orders.receive_many(9, timeout=PATIENT) == [Order(1, 1), Order(2, 2)]


@pytest.mark.parametrize("text", ['{"id": "seven", "cents": 1}', '{"id": 7}', "{", "[]"])
def test_pub_refuses_what_does_not_fit(bus_name: str, text: str) -> None:
    """What is no JSON, or not of the topic's type, is one line and exit code 1, and nothing is published."""
    with shmbus.Bus(bus_name) as bus, bus.subscriber(ORDERS) as orders:
        failed_in_one_line(run("pub", bus_name, "orders", text), 1)
        assert orders.try_receive() is None


def test_tail(bus_name: str) -> None:
    """`tail --oldest -n 2` prints the two oldest events, for people and as JSON, and is no consumer."""
    with shmbus.Bus(bus_name) as bus, bus.publisher(ORDERS, name="till") as publisher:
        for number in range(3):
            publisher.publish(Order(number, 5), headers={"n": number})
        plain = run("tail", bus_name, "orders", "--oldest", "-n", "2")
        coded = run("tail", bus_name, "orders", "--oldest", "-n", "2", "--json")
        assert not bus.stats().consumers
    assert re.fullmatch(r'(\d\d:\d\d:\d\d\.\d{6} till #\d \{"id":\d,"cents":5\}  \{"n":\d\}\n){2}', plain.stdout), plain
    first, second = map(json.loads, coded.stdout.splitlines())
    assert first.keys() == {"publisher", "sequence", "time_ns", "id", "headers", "event", "gap"}
    assert (first["sequence"], second["sequence"]) == (1, 2)
    assert second["event"] == {"id": 1, "cents": 5}


def test_tail_is_ended_by_hand(bus_name: str, processes: Processes) -> None:
    """`tail` shows what is published while it runs, and Ctrl-C is a good end."""
    with shmbus.Bus(bus_name) as bus, bus.publisher(ORDERS) as publisher:
        child = start(processes, "tail", bus_name, "orders", "--oldest")
        for number in range(2):
            publisher.publish(Order(number, 5))
            assert f'"id":{number}' in line(child)
        child.send_signal(signal.SIGINT)
        assert child.communicate(timeout=PATIENT) == ("", "")
    assert child.returncode == 0


def test_tail_ends_with_the_bus(bus_name: str, processes: Processes) -> None:
    """`tail` of a bus that is removed ends well and says why."""
    with shmbus.Bus(bus_name) as bus, bus.publisher(ORDERS) as publisher:
        publisher.publish(Order(1, 5))
        child = start(processes, "tail", bus_name, "orders", "--oldest")
        line(child)
    assert child.communicate(timeout=PATIENT) == ("", "shmbus: the bus was removed\n")
    assert child.returncode == 0


def test_closed_pipe_is_silent(bus_name: str, processes: Processes) -> None:
    """A reader that has seen enough, as `head` has, ends `tail` without a word."""
    with shmbus.Bus(bus_name) as bus, bus.publisher(ORDERS) as publisher:
        publisher.publish(Order(1, 5))
        child = start(processes, "tail", bus_name, "orders", "--oldest", "--json")
        line(child)
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        publisher.publish(Order(2, 5))
        assert child.stderr.read() == ""
        assert child.wait(PATIENT) == 0


# -- supervise, doctor


def test_supervise(bus_name: str, processes: Processes) -> None:
    """`supervise` is the supervisor of a bus that has none, until SIGTERM."""
    with shmbus.Bus(bus_name, supervise=False) as bus:
        child = start(processes, "supervise", bus_name, stderr=subprocess.DEVNULL)
        eventually(lambda: bus.stats().supervisor.pid == child.pid, "it is in office")
        child.terminate()
        assert child.wait(PATIENT) == 0
    inspect.remove(bus_name, force=True) if entries(bus_name) else None


def test_doctor() -> None:
    """`doctor` finds every check, fails only for a failed one, and says the same as JSON."""
    done = run("doctor", "--json")
    findings = msgspec.json.decode(done.stdout, type=list[diagnostics.Finding])
    assert done.returncode == any(finding.status == "fail" for finding in findings)
    assert {"kernel", "/dev/shm", "room", "segments", "semaphores", "descriptors"} <= {f.check for f in findings}
    assert "segments" in run("doctor").stdout


def test_doctor_names_leftovers(bus_name: str) -> None:
    """An object whose bus is gone is reported with the command that removes it."""
    names = [f"{object_prefix(bus_name)}ring-1", f"sem.{object_prefix(bus_name)}pub-0"]
    for name in names:
        (SHM / name).write_bytes(bytes(4096))
    advice = [f.advice for f in diagnostics.examine() if f.check == "leftovers" and bus_name in f.value]
    assert advice == [f"shmbus rm --force {bus_name}"]
    assert run(*advice[0].split()[1:]).returncode == 0
    assert not entries(bus_name)


def test_doctor_names_abandoned_buses(bus_name: str, processes: Processes) -> None:
    """A bus without participants that still owes events is reported with their number."""
    bus = shmbus.Bus(bus_name)
    bus.group(ORDERS, "billing")
    with bus.publisher(ORDERS) as publisher:
        publisher.publish_many([Order(1, 2), Order(2, 3)])
    assert not _leftovers_of(bus_name)
    bus.close()
    [finding] = eventually(lambda: _leftovers_of(bus_name), "the supervisor has left")
    assert "owes 2 events" in finding.value
    assert f"shmbus rm --force {bus_name}" in finding.advice
    inspect.remove(bus_name, force=True)


def _leftovers_of(bus_name: str) -> list[diagnostics.Finding]:
    return [f for f in diagnostics.examine() if f.check == "leftovers" and bus_name in f.value]


def test_docs_name_every_command_and_option() -> None:
    """docs/cli.md describes every command and every long option that the parser knows."""
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    (found,) = (a.choices for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    commands: dict[str, argparse.ArgumentParser] = dict(found)
    assert {"ls", "rm", "stat", "top", "tail", "pub", "supervise", "doctor", "demo", "journal", "bridge"} <= {*commands}
    for name, command in commands.items():
        assert f"`shmbus {name}" in text
        options = set(re.findall(r"--[a-z][a-z-]+", command.format_help())) - {"--help"}
        missing = {option for option in options if not re.search(rf"{option}(?![\w-])", text)}
        assert not missing, (name, missing)
