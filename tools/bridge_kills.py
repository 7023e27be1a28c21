"""Kills bridges, brokers and buses' processes at random while events flow from one host to another over a broker.

As root the hosts are namespaces: each has a /dev/shm, IPC and a network of its own, joined by nothing but a pair of
interfaces to where the broker is (Kafka's mock cluster names itself 127.0.0.1: there the network is shared). Others get
two buses of one host. Publishers, bridges and the sink are processes, and nobody else holds a bus; each round lets the
publishers go on for its share of the events, kills somebody once some of them have arrived, and starts it again:

    broker, out, in, sink, p0, p1    one process. Kafka's mock cluster forgets all when it ends: it is stopped instead
    supervisor here, there           the supervisor of a bus, which the bus has to have again
    host here, there                 all that runs on a host, at once: the bus stays in /dev/shm, with what it owes
    users here, there                all but the supervisor, which removes a bus that owes nothing: so who publishes
                                     declares the bridge's group before, and the bridge that of the sink

Once the broker is away for longer, and then "host here" is killed with events in its memory that the broker has not.
At the end: every event that a publish had returned for is in the sink's file; what came again is counted, apart from
what a sink got again that had been killed itself, from what a bridge got again whose bus was a new one, or whose
forerunner was killed between publishing and acking, with nothing of that in the rings any more; first
arrivals of each publisher are in order where the broker has such a thing; and nothing is left of a bus, neither in
/dev/shm nor as a process.

    python tools/bridge_kills.py --kind nats                 200,000 events, 50 kills, a minute without the broker
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

import shmbus
from shmbus.bridge import Bridge

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from bridge_hosts import Host
from brokers import Broker, Kafka, Nats, Rabbit, Redis


class Frozen(Kafka):
    """Kafka's mock cluster in a process of its own, which is stopped and continued instead of killed."""

    def start(self) -> None:
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGCONT)
            return
        words = [sys.executable, __file__, "--as", "mock"]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True)
        assert self._process.stdout is not None
        self._servers = self._process.stdout.readline().decode().strip()

    def kill(self) -> None:
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGSTOP)

    def end(self) -> None:
        Broker.kill(self)


KINDS: dict[str, type[Broker]] = {"nats": Nats, "redis": Redis, "amqp": Rabbit, "kafka": Frozen}
ONCE = ("nats", "redis")
"""Brokers that drop what they have already."""
ORDERED = ("redis", "kafka")
"""Brokers that keep what a publisher sent in order, whoever dies."""
KEPT = 4000
"""Events that may be on their way when more are let go: Kafka's mock cluster keeps 5 MB of a partition, and no more."""
GRACE = 120.0
"""Seconds in which nothing may arrive before that is a failure."""
ROUND = 2.0
"""Seconds after which a round kills somebody although little has arrived: what was killed before may take longer."""
PUBLISHERS = 2
WRITERS = [f"p{which}" for which in range(PUBLISHERS)]
USERS = {"here": ["out", *WRITERS], "there": ["in", "sink"]}


class Note(msgspec.Struct, frozen=True):
    writer: str
    count: int
    filler: str = "x" * 100


NOTES = shmbus.Topic("notes", Note, capacity=1 << 20)


def publish(bus_name: str, writer: str, first: str, total: str, told: str, allowed: str) -> None:
    """Publish notes as far as a file allows, and say in another how far that is: never more than is published."""
    limit = 0
    with shmbus.Bus(bus_name) as bus, open(told, "ab", 0) as file:
        bus.group(NOTES, "bridge:out")
        publisher = bus.publisher(NOTES, name=writer)
        for count in range(int(first), int(total) + 1):
            while count > limit:
                limit = int(Path(allowed).read_text() or 0)
                if count > limit:
                    time.sleep(0.002)  # not a wait: the interval of the poll
            publisher.publish(Note(writer, count))
            if count % 50 == 0 or count in (limit, int(total)):
                file.write(b"%d\n" % count)
        publisher.flush(timeout=None)


def mock() -> None:
    """Kafka's mock cluster, until it is killed."""
    import confluent_kafka

    host = confluent_kafka.Producer({"test.mock.num.brokers": 3, "bootstrap.servers": "unused"})
    brokers = host.list_topics(timeout=GRACE).brokers.values()
    sys.stdout.write(",".join(f"{broker.host}:{broker.port}" for broker in brokers) + "\n")
    sys.stdout.flush()
    while True:
        signal.pause()


def receive(bus_name: str, url: str) -> None:
    """The bridge of the bus that events come to."""
    with shmbus.Bus(bus_name) as bus:
        bus.group(NOTES, "sink")
        Bridge(bus, url, in_=[NOTES], name="in").run()


def sink(bus_name: str, path: str) -> None:
    """Append each event to a file, then ack it."""
    with shmbus.Bus(bus_name) as bus, bus.worker(NOTES, group="sink", max_deliver=4000) as worker:
        with open(path, "ab", 0) as file:
            for message in worker.messages():
                note = message.event
                words = (message.headers["shmbus-id"], note.writer, note.count, message.attempt, message.id)
                file.write(" ".join(map(str, words)).encode() + b"\n")
                message.ack()


class Campaign:
    def __init__(self, kind: type[Broker], folder: Path, arguments: argparse.Namespace) -> None:
        self.folder, self.total = folder, arguments.events // PUBLISHERS
        self.random = random.Random(arguments.seed)
        self.away, self.kills = arguments.away, arguments.kills
        self.here, self.there = f"bkills-{os.getpid()}-a", f"bkills-{os.getpid()}-b"
        (folder / "broker").mkdir()
        self.kind = arguments.kind
        names = {"here": self.here, "there": self.there}
        netted = kind is not Frozen
        self.hosts = {side: Host(number, name, netted) for number, (side, name) in enumerate(names.items())}
        self.lives = dict.fromkeys(names, 0)
        self.outlived = ""
        self.stranded = 0
        listen = {} if self.hosts["here"].gateway == "127.0.0.1" else {"listen": "0.0.0.0"}
        self.broker = kind(folder / "broker", **listen)
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.written = folder / "sink"
        self.written.touch()
        self.allowed = folder / "allowed"
        self.killed: Counter[str] = Counter()
        self.next: list[str] = []
        self.read_to = 0
        self.seen: set[bytes] = set()

    def command(self, name: str) -> list[str]:
        where = self.hosts["there" if name in USERS["there"] else "here"]
        words = self.words(name)
        return [*where.enter, *(word.replace("127.0.0.1", where.gateway) for word in words)]

    def words(self, name: str) -> list[str]:
        own = [sys.executable, __file__, "--as"]
        if name == "out":
            line = ["bridge", self.here, self.broker.url, "--out", "notes", "--name", "out"]
            return [sys.executable, "-m", "shmbus", *line]
        if name == "in":
            return [*own, "receive", self.there, self.broker.url]
        if name == "sink":
            return [*own, "sink", self.there, str(self.written)]
        first, files = str(self.told(name) + 1), [str(self.folder / name), str(self.allowed)]
        return [*own, "publish", self.here, name, first, str(self.total), *files]

    def told(self, writer: str) -> int:
        path = self.folder / writer
        lines = path.read_text().split() if path.exists() else []
        return int(lines[-1]) if lines else 0

    def start(self, *names: str) -> None:
        for name in self.random.sample(names, len(names)):
            self.children[name] = subprocess.Popen(self.command(name), stderr=subprocess.DEVNULL)

    def kill(self, name: str) -> None:
        child = self.children[name]
        child.kill()
        child.wait()

    def run(self) -> str:
        self.broker.start()
        try:
            self.allow(1)
            self.start(*USERS["there"], *USERS["here"])
            wait(self.arrived, "the first event")
            began = time.monotonic()
            for done in range(self.kills):
                self.round(done)
            self.allow(self.total)
            wait(lambda: all(self.told(writer) == self.total for writer in WRITERS), self.state, self.arrived)
            wait(lambda: self.arrived() >= PUBLISHERS * self.total, self.state, self.arrived)
            self.took = time.monotonic() - began
            self.look()
        finally:
            for name in self.children:
                self.kill(name)
            self.broker.end() if isinstance(self.broker, Frozen) else self.broker.kill()
            for host in self.hosts.values():
                remove = [sys.executable, "-m", "shmbus", "rm", host.bus, "--force"]
                subprocess.run([*host.enter, *remove], check=False, capture_output=True)  # or it has gone by itself
        for host in self.hosts.values():
            wait(host.gone, f"the end of bus {host.bus}")
        return self.verdict()

    def state(self) -> str:
        text = f"{self.arrived()} of {PUBLISHERS * self.total} events have arrived"
        for writer in WRITERS:
            gaps = [n for n in range(1, self.told(writer) + 1) if f"{writer} {n}".encode() not in self.seen]
            if gaps:
                text += f"; of {writer} {len(gaps)} lack, from {gaps[0]} to {gaps[-1]}"
        return text

    def allow(self, count: int) -> None:
        """Let each publisher go on to this count."""
        new = self.allowed.with_suffix(".new")
        new.write_text(str(count))
        new.replace(self.allowed)

    def victim(self) -> str:
        """Somebody at random, and nobody again before all the others."""
        if not self.next:
            one = ["broker", *USERS["here"], *USERS["there"]]
            self.next = one + [f"{what} {side}" for what in ("supervisor", "host", "users") for side in USERS]
            self.random.shuffle(self.next)
        return self.next.pop()

    def round(self, done: int) -> None:
        """Kill somebody while a share of the events is on its way."""
        share = self.total / (self.kills + 1)
        if isinstance(self.broker, Frozen):
            wait(lambda: self.arrived() >= PUBLISHERS * share * done - KEPT, self.state, self.arrived)
        self.allow(int(share * (done + 1)))
        enough = PUBLISHERS * share * (done + self.random.random())
        deadline = time.monotonic() + ROUND
        while self.arrived() < enough and time.monotonic() < deadline:
            time.sleep(0.005)  # not a wait: the interval of the poll
        self.look()
        if done == self.kills // 2:
            self.allow(int(share * (done + 2)))
            self.without_broker()
        else:
            self.strike(self.victim())

    def without_broker(self) -> None:
        """The broker is away, and meanwhile all that runs where the events come from is killed."""
        self.killed["broker"] += 1
        self.broker.kill()
        time.sleep(self.away / 2)
        self.stranded = self.hosts["here"].owed()
        self.strike("host here")
        time.sleep(self.away / 2)
        self.look()
        self.broker.start()

    def strike(self, name: str) -> None:
        """Kill, and start again."""
        self.killed[name] += 1
        what, _, side = name.partition(" ")
        for child in USERS[side] if side else [name] if name != "broker" else []:
            if (code := self.children[child].poll()) is not None:
                raise AssertionError(f"{child} ended by itself: exit code {code}")
        if name == "broker":
            self.broker.kill()
            self.broker.start()
        elif not side:
            self.kill(name)
            self.start(name)
        elif what == "supervisor":
            wait(self.hosts[side].supervisors, f"the supervisor {side}, which was killed before")
            for process in self.hosts[side].supervisors():
                process.kill()
        else:
            self.hosts[side].kill(self.random, supervisors=what == "host")
            for child in USERS[side]:
                self.kill(child)
            self.outlived = side if what == "host" else ""
            self.start(*USERS[side])

    def look(self) -> None:
        """See that a bus whose host was killed is the one that it was."""
        for side, host in self.hosts.items():
            life = host.life()
            if side == self.outlived and life != self.lives[side]:
                raise AssertionError(f"the bus {side} did not outlive its host's processes")
            self.lives[side] = life
        self.outlived = ""

    def arrived(self) -> int:
        with self.written.open("rb") as file:
            file.seek(self.read_to)
            for line in file:
                if line.endswith(b"\n"):
                    self.read_to += len(line)
                    self.seen.add(b" ".join(line.split()[1:3]))
        return len(self.seen)

    def verdict(self) -> str:
        seen: dict[str, tuple[str, int, str, str]] = {}
        last: dict[str, int] = {}
        again: Counter[str] = Counter(dict.fromkeys(("once more", "bridge", "sink", "bus"), 0))
        unordered = 0
        for line in self.written.read_text().splitlines():
            id, writer, count, attempt, own = line.split()
            bus, life, _ = own.split("-", 2)  # whose publisher that is: each receiving bridge has a new one
            if id in seen:
                how = "once more" if seen[id][2:] == (bus, life) else "bridge" if seen[id][2] == bus else "bus"
                again["sink" if attempt != "1" else how] += 1
                continue
            seen[id] = (writer, int(count), bus, life)
            origin = id.rpartition("-")[0]
            unordered += int(count) < last.get(origin, 0)
            last[origin] = max(int(count), last.get(origin, 0))
        for writer in WRITERS:
            counts = {count for name, count, *_ in seen.values() if name == writer}
            if counts != set(range(1, self.total + 1)):
                raise AssertionError(f"{writer}: {len(counts)} of {self.total} events arrived")
        if self.kind in ONCE and again["once more"]:
            raise AssertionError(f"{again} events arrived again under their id, although {self.kind} drops those")
        if self.kind in ORDERED and unordered:
            raise AssertionError(f"{unordered} events arrived behind later ones of their publisher")
        killed = ", ".join(f"{name} {count}" for name, count in sorted(self.killed.items()))
        where = "two hosts" if self.hosts["here"].holder is not None else "one host"
        return (
            f"{len(seen)} events, {where}, {self.killed.total()} kills ({killed}), the broker away for {self.away:g} s,"
            f" {self.stranded} events then on a host that was killed, in {self.took:.0f} s: each arrived;"
            f" {again['once more']} of them again, {again['bridge']} more by a bridge that came after a killed one,"
            f" {again['sink']} more to a sink that had been killed,"
            f" {again['bus']} more to a bus that was new; {unordered} out of order; nothing is left"
        )


def wait(
    condition: Callable[[], Any], what: str | Callable[[], str], progress: Callable[[], Any] | None = None
) -> None:
    """Wait for a condition for as long as there is progress."""
    deadline, before = time.monotonic() + GRACE, None
    while not condition():
        now = progress() if progress is not None else None
        if now != before:
            deadline, before = time.monotonic() + GRACE, now
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {GRACE:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.05)


def main() -> int:
    if sys.argv[1:2] == ["--as"]:
        roles: dict[str, Callable[..., None]] = {"publish": publish, "sink": sink, "receive": receive, "mock": mock}
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
        campaign = Campaign(KINDS[arguments.kind], Path(folder), arguments)
        try:
            verdict = campaign.run()
        finally:
            for host in campaign.hosts.values():
                host.close()
    sys.stdout.write(f"{arguments.kind}: {verdict}\nseed {arguments.seed}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
