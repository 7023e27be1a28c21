"""`shmbus losses`: what was lost, and what is being lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import msgspec
from support import Processes, line

import shmbus
from shmbus.cli.losses import as_text
from shmbus.stats import new_losses

NUMBERS = shmbus.Topic("numbers", int, capacity=4096)
COMMAND = [sys.executable, "-m", "shmbus", "losses"]


def test_losses_are_those_of_the_bus(bus_name: str) -> None:
    """The JSON of `losses` is `bus.losses()`; the text has a line for each, with cause and who."""
    with shmbus.Bus(bus_name) as bus, bus.publisher(NUMBERS, name="web") as publisher:
        with bus.subscriber(NUMBERS, name="audit"):
            publisher.publish_many(range(3))
        lossy = bus.subscriber(NUMBERS, name="monitor", mode="lossy", on_gap=lambda _: None)
        publisher.publish_many(range(500))
        assert lossy.try_receive() is not None
        told = subprocess.run([*COMMAND, bus_name, "--json"], check=True, capture_output=True)
        assert msgspec.json.decode(told.stdout, type=list[shmbus.Loss]) == bus.losses()
        text = subprocess.run([*COMMAND, bus_name], check=True, capture_output=True, text=True).stdout
        assert len(text.splitlines()) == len(bus.losses()) == 2
        assert "numbers/audit lost 3 events of web: abandoned, #1 to #3" in text


def test_follow_tells_what_comes(bus_name: str, processes: Processes) -> None:
    """With `--follow` each loss is a line when it happens, with what has come since, until the bus is removed."""
    with shmbus.Bus(bus_name) as bus, bus.publisher(NUMBERS, name="web") as publisher:
        follower = processes.run([*COMMAND, bus_name, "--follow", "--json"])
        for turn in (1, 2):
            with bus.subscriber(NUMBERS, name="audit"):
                publisher.publish_many(range(turn))
            found = json.loads(line(follower))
            assert (found["consumer"], found["cause"], found["count"]) == ("audit", "abandoned", turn)
    assert follower.wait(30) == 0


def test_follow_ends_by_signal(bus_name: str, processes: Processes) -> None:
    """Ctrl-C ends `--follow` as it is meant to end."""
    with shmbus.Bus(bus_name) as bus, bus.publisher(NUMBERS, name="web") as publisher:
        follower = processes.run([*COMMAND, bus_name, "--follow"])
        with bus.subscriber(NUMBERS, name="audit"):
            publisher.publish(1)
        assert "abandoned" in line(follower)
        follower.send_signal(signal.SIGINT)
        assert follower.wait(30) == 0


def test_no_such_bus(bus_name: str) -> None:
    """A bus that is not there is exit code 3."""
    done = subprocess.run([*COMMAND, bus_name], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)


def loss(count: int, first: int, last: int, consumer: str = "audit") -> shmbus.Loss:
    return shmbus.Loss(
        consumer=consumer, topic="t", publisher="p", cause="overrun", count=count, first=first, last=last,
        first_ns=1, last_ns=2,
    )  # fmt: skip


def test_growth_is_told_once() -> None:
    """What a look has beyond the one before is new entries, and of others the growth."""
    before = [loss(3, 1, 3), loss(2, 1, 2, "other"), loss(1, 1, 1)]
    after = [loss(5, 1, 5), loss(2, 1, 2, "other"), loss(1, 1, 1), loss(4, 9, 12)]
    assert sum(new.count for new in new_losses(before, after)) == 2 + 4
    assert new_losses(before, before) == []
    assert new_losses([loss(3, 1, 3)], [loss(5, 1, 5)]) == [loss(2, 4, 5)]


def test_names_cannot_act_upon_a_terminal() -> None:
    """What a segment holds reaches the terminal as text."""
    assert "\x1b" not in as_text(loss(1, 1, 1, "\x1b[2J"))
