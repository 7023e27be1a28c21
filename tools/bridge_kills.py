"""Kills bridges, brokers and buses' processes at random while events flow from one host to another over a broker.

As root the hosts are namespaces: each has a /dev/shm, IPC and a network of its own, joined by nothing but a pair of
interfaces to where the broker is (Kafka's mock cluster names itself 127.0.0.1: there the network is shared). Others get
two buses of one host. Publishers, bridges and the sink are processes; each round lets the publishers go on for its
share of the events, kills one process, or the broker, once some of them have arrived, and starts it again; once the
broker is away for longer. Kafka's mock cluster forgets all when it ends: it is stopped by a signal, not killed. At the
end: every event that a publish had returned for is in the sink's file; what came again is counted, apart from what a
sink got again that had been killed itself; first arrivals of each publisher are in order where the broker has such a
thing; and nothing is left of a bus, neither in /dev/shm nor as a process.

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
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

import shmbus
from shmbus import inspect

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
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
GRACE = 120.0
"""Seconds in which nothing may arrive before that is a failure."""
ROUND = 2.0
"""Seconds after which a round kills somebody although little has arrived: what was killed before may take longer."""
PUBLISHERS = 2


class Note(msgspec.Struct, frozen=True):
    writer: str
    count: int
    filler: str = "x" * 100


NOTES = shmbus.Topic("notes", Note, capacity=1 << 20)


def publish(bus_name: str, writer: str, first: str, total: str, told: str, allowed: str) -> None:
    """Publish notes as far as a file allows, and say in another how far that is: never more than is published."""
    limit = 0
    with shmbus.Bus(bus_name) as bus, bus.publisher(NOTES, name=writer) as publisher, open(told, "ab", 0) as file:
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


def sit(bus_name: str, group: str) -> None:
    """Make a bus with a group, and hold it until standard input ends; then remove it, and say what is left of it."""
    with shmbus.Bus(bus_name) as bus:
        bus.group(NOTES, group)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.read()
    with suppress(shmbus.BusNotFoundError):
        inspect.remove(bus_name, force=True)
    sys.stdout.write(" ".join(name for name in os.listdir("/dev/shm") if bus_name in name) + "\n")


def sink(bus_name: str, path: str) -> None:
    """Append each event to a file, then ack it."""
    with shmbus.Bus(bus_name) as bus, bus.worker(NOTES, group="sink", max_deliver=4000) as worker:
        with open(path, "ab", 0) as file:
            for message in worker.messages():
                note = message.event
                line = (message.headers["shmbus-id"].encode(), note.writer.encode(), note.count, message.attempt)
                file.write(b"%s %s %d %d\n" % line)
                message.ack()


class Host:
    """A host of its own, where we may make one: what runs in it sees its own /dev/shm and network."""

    def __init__(self, number: int, netted: bool) -> None:
        self.gateway, self.holder = "127.0.0.1", None
        self.enter: list[str] = []
        if os.geteuid() != 0:
            return
        kinds = ["-m", "-i", "-u", *(["-n"] if netted else [])]
        script = "mount -t tmpfs tmpfs /dev/shm && echo ready && exec sleep infinity"
        words = ["unshare", *kinds, "--propagation", "private", "sh", "-c", script]
        self.holder = subprocess.Popen(words, stdout=subprocess.PIPE)
        assert self.holder.stdout is not None
        if self.holder.stdout.readline() != b"ready\n":
            raise AssertionError("no namespaces")
        self.enter = ["nsenter", "-t", str(self.holder.pid), *kinds, "--"]
        if netted:
            name, net = f"bk{os.getpid() % 100000}{number}", f"10.213.{os.getpid() % 250}.{4 * number}"
            self.gateway, inside = (net.rpartition(".")[0] + f".{4 * number + last}" for last in (1, 2))
            command("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(self.holder.pid))
            command("ip", "addr", "add", f"{self.gateway}/30", "dev", name)
            command("ip", "link", "set", name, "up")
            command(*self.enter, "ip", "addr", "add", f"{inside}/30", "dev", "eth0")
            for device in ("lo", "eth0"):
                command(*self.enter, "ip", "link", "set", device, "up")

    def processes(self) -> list[int]:
        """Who runs in it, beside what keeps it."""
        if self.holder is None:
            return []
        own = os.readlink(f"/proc/{self.holder.pid}/ns/mnt")
        found = []
        for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
            with suppress(OSError):
                if pid != self.holder.pid and os.readlink(f"/proc/{pid}/ns/mnt") == own:
                    found.append(pid)
        return found

    def alone(self) -> bool:
        """Nobody runs in it any more."""
        return not self.processes()

    def close(self) -> None:
        if self.holder is not None:
            self.holder.kill()
            self.holder.wait()


def command(*words: str) -> None:
    subprocess.run(words, check=True)


class Campaign:
    def __init__(self, kind: type[Broker], folder: Path, arguments: argparse.Namespace) -> None:
        self.folder, self.total = folder, arguments.events // PUBLISHERS
        self.random = random.Random(arguments.seed)
        self.away, self.kills = arguments.away, arguments.kills
        self.here, self.there = f"bkills-{os.getpid()}-a", f"bkills-{os.getpid()}-b"
        (folder / "broker").mkdir()
        self.kind = arguments.kind
        self.hosts = {name: Host(number, kind is not Frozen) for number, name in enumerate((self.here, self.there))}
        listen = {} if self.hosts[self.here].gateway == "127.0.0.1" else {"listen": "0.0.0.0"}
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
        where = self.hosts[self.there if name in ("in", "sink") else self.here]
        words = self.words(name)
        return [*where.enter, *(word.replace("127.0.0.1", where.gateway) for word in words)]

    def words(self, name: str) -> list[str]:
        bridge = [sys.executable, "-m", "shmbus", "bridge"]
        if name == "out":
            return [*bridge, self.here, self.broker.url, "--out", "notes", "--name", "out"]
        if name == "in":
            return [*bridge, self.there, self.broker.url, "--in", "notes", "--name", "in"]
        own = [sys.executable, __file__, "--as"]
        if name == "sink":
            return [*own, "sink", self.there, str(self.written)]
        first, files = str(self.told(name) + 1), [str(self.folder / name), str(self.allowed)]
        return [*own, "publish", self.here, name, first, str(self.total), *files]

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
        sitting = [self.sit(self.here, "bridge:out"), self.sit(self.there, "sink")]
        try:
            self.allow(1)
            for name in ("sink", "in", "out", *writers):
                self.start(name)
            wait(self.arrived, "the first event")
            began = time.monotonic()
            for done in range(self.kills):
                self.round(done, writers)
            self.allow(self.total)
            wait(lambda: all(self.told(writer) == self.total for writer in writers), self.state, self.arrived)
            wait(lambda: self.arrived() >= PUBLISHERS * self.total, self.state, self.arrived)
            self.took = time.monotonic() - began
        finally:
            for name in self.children:
                self.kill(name)
            self.broker.end() if isinstance(self.broker, Frozen) else self.broker.kill()
            left = [child.communicate()[0].decode().strip() for child in sitting]
        for host in self.hosts.values():
            wait(host.alone, "the end of what runs on the hosts")
            host.close()
        if any(left):
            raise AssertionError(f"left in /dev/shm: {left}")
        return self.verdict(writers)

    def sit(self, bus: str, group: str) -> subprocess.Popen[bytes]:
        words = [*self.hosts[bus].enter, sys.executable, __file__, "--as", "sit", bus, group]
        child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        return child

    def state(self) -> str:
        return f"{self.arrived()} of {PUBLISHERS * self.total} events have arrived"

    def allow(self, count: int) -> None:
        """Let each publisher go on to this count."""
        new = self.allowed.with_suffix(".new")
        new.write_text(str(count))
        new.replace(self.allowed)

    def victim(self, writers: list[str]) -> str:
        """Somebody at random, and nobody again before all the others."""
        if not self.next:
            self.next = ["broker", "out", "in", "sink", *writers]
            self.random.shuffle(self.next)
        return self.next.pop()

    def round(self, done: int, writers: list[str]) -> None:
        """Kill somebody while a share of the events is on its way."""
        share = self.total / (self.kills + 1)
        self.allow(int(share * (done + 1)))
        enough = PUBLISHERS * share * (done + self.random.random())
        deadline = time.monotonic() + ROUND
        while self.arrived() < enough and time.monotonic() < deadline:
            time.sleep(0.005)  # not a wait: the interval of the poll
        away = self.away if done == self.kills // 2 else 0.0
        name = "broker" if away else self.victim(writers)
        self.killed[name] += 1
        if name == "broker":
            self.broker.kill()
            time.sleep(away)
            self.broker.start()
            return
        if self.children[name].poll() is not None:
            raise AssertionError(f"{name} ended by itself: exit code {self.children[name].returncode}")
        self.kill(name)
        self.start(name)

    def arrived(self) -> int:
        with self.written.open("rb") as file:
            file.seek(self.read_to)
            for line in file:
                if line.endswith(b"\n"):
                    self.read_to += len(line)
                    self.seen.add(b" ".join(line.split()[1:3]))
        return len(self.seen)

    def verdict(self, writers: list[str]) -> str:
        seen: dict[str, tuple[str, int]] = {}
        last: dict[str, int] = {}
        twice = again = unordered = 0
        for line in self.written.read_text().splitlines():
            id, writer, count, attempt = line.split()
            if id in seen:
                twice, again = (twice + 1, again) if attempt == "1" else (twice, again + 1)
                continue
            seen[id] = (writer, int(count))
            origin = id.rpartition("-")[0]
            unordered += int(count) < last.get(origin, 0)
            last[origin] = max(int(count), last.get(origin, 0))
        for writer in writers:
            counts = {count for name, count in seen.values() if name == writer}
            if counts != set(range(1, self.total + 1)):
                raise AssertionError(f"{writer}: {len(counts)} of {self.total} events arrived")
        if self.kind in ONCE and twice:
            raise AssertionError(f"{twice} events arrived again under their id, although {self.kind} drops those")
        if self.kind in ORDERED and unordered:
            raise AssertionError(f"{unordered} events arrived behind later ones of their publisher")
        killed = ", ".join(f"{name} {count}" for name, count in sorted(self.killed.items()))
        where = "two hosts" if self.hosts[self.here].holder is not None else "one host"
        return (
            f"{len(seen)} events, {where}, {self.kills} kills ({killed}), the broker away for {self.away:g} s,"
            f" in {self.took:.0f} s: each arrived;"
            f" {twice} of them again, and {again} more to a sink that had been killed; {unordered} out of order;"
            " nothing is left"
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
        roles: dict[str, Callable[..., None]] = {"publish": publish, "sink": sink, "sit": sit, "mock": mock}
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
