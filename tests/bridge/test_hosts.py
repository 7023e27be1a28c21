"""A host whose processes die all at once, its supervisor too: what it owes lies in /dev/shm, and is carried later.

The long form is tools/bridge_kills.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from bridges import arriving, bridging, own, topic_of
from brokers import Broker, Nats, Redis
from events import opened
from journals import command
from support import Processes, bus_processes, eventually, line

from shmbus.inspect import stats_of


def publishes(bus_name: str, topic_name: str, count: str) -> None:
    """Publish orders once somebody is owed them, say so, and stay."""
    from events import Order, orders
    from support import eventually

    import shmbus

    with shmbus.Bus(bus_name) as bus, bus.publisher(shmbus.Topic(topic_name, Order)) as publisher:
        eventually(
            lambda: any(c.kind == "group" for c in bus.stats().consumers), "the group of the bridge, or its spool"
        )
        for order in orders(int(count)):
            publisher.publish(order)
        print("published", flush=True)
        sys.stdin.read()


def everybody_is_killed(bus_name: str) -> None:
    """SIGKILL for all that runs on the bus, the supervisor first: it is not to see the others die."""
    supervisor = eventually(lambda: stats_of(bus_name).supervisor.pid, "a supervisor in office")
    for process in sorted(bus_processes(bus_name), key=lambda process: process.pid != supervisor):
        process.kill()
    eventually(lambda: not list(bus_processes(bus_name)), "the end of all")


@pytest.mark.parametrize(("kind", "spooled"), [(Redis, False), (Nats, True)])
def test_a_host_that_is_killed(
    bus_name: str, tmp_path: Path, kind: type[Broker], spooled: bool, processes: Processes
) -> None:
    """What was published arrives, although publisher, bridge and supervisor were killed before any broker had it."""
    broker = own(kind, tmp_path)
    topic, count = topic_of(bus_name), 2000
    spool = ["--spool", tmp_path / "spool"] if spooled else []
    words = command("bridge", bus_name, broker.url, "--out", topic.name, "--name", "here", *spool)
    processes.run(words, stderr=subprocess.DEVNULL)
    assert line(processes.spawn(publishes, bus_name, topic.name, count)) == "published"
    everybody_is_killed(bus_name)
    broker.start()
    try:
        with opened(bus_name + "b") as bus, bus.subscriber(topic) as subscriber:
            with bridging(bus, broker, in_=[topic], name="there"):
                bridge = processes.run(words, stderr=subprocess.DEVNULL)
                got: dict[str, int] = {}
                messages = arriving(subscriber)
                while len(got) < count:
                    message = next(messages)
                    got[message.headers["shmbus-id"]] = message.event.id
                eventually(lambda: not any(c.depth for c in stats_of(bus_name).consumers), "an ack for each")
                bridge.terminate()
                assert bridge.wait() == 0
    finally:
        broker.kill()
    assert sorted(got.values()) == list(range(1, count + 1))
