"""Kills bridges, brokers and buses' processes at random while events flow from one bus to another over a broker.

Two buses of one host stand for two hosts: nothing but the broker connects them. Publishers, bridges and the sink are
processes; each round kills one of them, or the broker, and starts it again; once the broker is away for longer. At the
end: every event that a publish had returned for is in the sink's file, duplicates are counted by id, and per publisher
the first arrivals are in order.

    python tools/bridge_kills.py --kind nats                 200,000 events, 50 kills, a minute without the broker
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

import shmbus
from shmbus import inspect

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from brokers import Broker, Nats, Rabbit, Redis

KINDS: dict[str, type[Broker]] = {"nats": Nats, "redis": Redis, "amqp": Rabbit}
GRACE = 120.0
PUBLISHERS = 2


class Note(msgspec.Struct, frozen=True):
    writer: str
    count: int
    filler: str = "x" * 100


NOTES = shmbus.Topic("notes", Note, capacity=1 << 20)


def publish(bus_name: str, writer: str, first: str, total: str, told: str) -> None:
    """Publish notes, and say in a file how far that has come: it never says more than was published."""
    with shmbus.Bus(bus_name) as bus, bus.publisher(NOTES, name=writer) as publisher, open(told, "ab", 0) as file:
        for count in range(int(first), int(total) + 1):
            publisher.publish(Note(writer, count))
            if count % 50 == 0 or count == int(total):
                file.write(b"%d\n" % count)
        publisher.flush(timeout=None)


def sink(bus_name: str, path: str) -> None:
    """Append each event to a file, then ack it."""
    with shmbus.Bus(bus_name) as bus, bus.worker(NOTES, group="sink", max_deliver=4000) as worker:
        with open(path, "ab", 0) as file:
            for message in worker.messages():
                note = message.event
                file.write(b"%s %s %d\n" % (message.headers["shmbus-id"].encode(), note.writer.encode(), note.count))
                message.ack()


class Campaign:
    def __init__(self, kind: type[Broker], folder: Path, arguments: argparse.Namespace) -> None:
        self.folder, self.total = folder, arguments.events // PUBLISHERS
        self.random = random.Random(arguments.seed)
        self.away, self.kills = arguments.away, arguments.kills
        self.here, self.there = f"bkills-{os.getpid()}-a", f"bkills-{os.getpid()}-b"
        (folder / "broker").mkdir()
        self.broker = kind(folder / "broker")
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.written = folder / "sink"
        self.written.touch()

    def command(self, name: str) -> list[str]:
        bridge = [sys.executable, "-m", "shmbus", "bridge"]
        if name == "out":
            return [*bridge, self.here, self.broker.url, "--out", "notes", "--name", "out"]
        if name == "in":
            return [*bridge, self.there, self.broker.url, "--in", "notes", "--name", "in"]
        own = [sys.executable, __file__, "--as"]
        if name == "sink":
            return [*own, "sink", self.there, str(self.written)]
        return [*own, "publish", self.here, name, str(self.told(name) + 1), str(self.total), str(self.folder / name)]

    def told(self, writer: str) -> int:
        path = self.folder / writer
        lines = path.read_text().split() if path.exists() else []
        return int(lines[-1]) if lines else 0

    def start(self, name: str) -> None:
        self.children[name] = subprocess.Popen(self.command(name), stderr=subprocess.DEVNULL)

    def kill(self, name: str) -> None:
        child = self.children[name]
        child.kill()
        child.wait()

    def run(self) -> str:
        writers = [f"p{which}" for which in range(PUBLISHERS)]
        self.broker.start()
        with shmbus.Bus(self.here) as here, shmbus.Bus(self.there) as there:
            here.group(NOTES, "bridge:out")
            there.group(NOTES, "sink")
            try:
                for name in ("sink", "in", "out", *writers):
                    self.start(name)
                wait(self.arrived, "the first event")
                for done in range(self.kills):
                    self.round(writers, away=self.away if done == self.kills // 2 else 0.0)
                wait(lambda: all(self.told(writer) == self.total for writer in writers), "the publishers' end")
                wait(lambda: self.arrived() >= PUBLISHERS * self.total, "the last event")
            finally:
                for name in self.children:
                    self.kill(name)
                self.broker.kill()
        for name in (self.here, self.there):
            with suppress(shmbus.BusNotFoundError):
                inspect.remove(name, force=True)
        return self.verdict(writers)

    def round(self, writers: list[str], away: float) -> None:
        name = "broker" if away else self.random.choice(["broker", "out", "in", "sink", *writers])
        time.sleep(self.random.random() * 0.5)
        if name == "broker":
            self.broker.kill()
            time.sleep(away)
            self.broker.start()
        elif self.children[name].poll() is None:
            self.kill(name)
            self.start(name)

    def arrived(self) -> int:
        return len({line.partition(b" ")[2] for line in self.written.read_bytes().splitlines()})

    def verdict(self, writers: list[str]) -> str:
        seen: dict[str, tuple[str, int]] = {}
        twice = 0
        for line in self.written.read_text().splitlines():
            id, writer, count = line.split()
            twice += id in seen
            seen.setdefault(id, (writer, int(count)))
        for writer in writers:
            counts = [count for name, count in seen.values() if name == writer]
            if set(counts) != set(range(1, self.total + 1)):
                raise AssertionError(f"{writer}: {len(set(counts))} of {self.total} events arrived")
        return f"{len(seen)} events, {self.kills} kills: each arrived; {twice} deliveries of one id beyond the first"


def wait(condition: Callable[[], Any], what: str) -> None:
    deadline, before = time.monotonic() + GRACE, None
    while not (value := condition()):
        if value != before:
            deadline, before = time.monotonic() + GRACE, value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {GRACE:g} s: {what}")
        time.sleep(0.05)


def main() -> int:
    if sys.argv[1:2] == ["--as"]:
        roles: dict[str, Callable[..., None]] = {"publish": publish, "sink": sink}
        roles[sys.argv[2]](*sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, default="nats")
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--away", type=float, default=60.0, help="seconds that the broker is away for, once")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        verdict = Campaign(KINDS[arguments.kind], Path(folder), arguments).run()
    sys.stdout.write(f"{arguments.kind}: {verdict}\nseed {arguments.seed}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
