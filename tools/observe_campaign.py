"""Load with kills, joins and leaves, seen from outside: metrics that never fall, and sums that agree at the end.

    python tools/observe_campaign.py [--seconds 300] [--seed N]

Publishers, subscribers of both modes and workers come, go by close() and are killed, under names that come back. The
metrics are scraped all the while, over HTTP, by this program and by a Prometheus, where there is one. All processes
write one audit log, `shmbus supervise` among them. At the end metrics, `stat --json`, the books, the log of losses and
the audit log must say the same; every kill must be a death, and a death in the audit log; Prometheus must have seen no
reset, and promtool have nothing to say of the last exposition.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

import shmbus
from shmbus import inspect, observe

TOPICS = [shmbus.Topic(f"topic-{n}", int, capacity=1 << 14) for n in range(2)]
CAUSES = ("overrun", "refused", "abandoned", "undecodable", "rejected")
RISING = ("_total", "_count", "_bucket", "_sum")

Key = tuple[str, tuple[tuple[str, str], ...]]


def publish(bus: str, topic: int, name: str, on_full: Any, seconds: float) -> None:
    stop = time.monotonic() + seconds
    with shmbus.Bus(bus) as opened, opened.publisher(TOPICS[topic], name=name, on_full=on_full, timeout=1) as publisher:
        n = 0
        while time.monotonic() < stop:
            n += 1
            try:
                publisher.publish(n)
            except shmbus.Full:
                continue
            if n % 16 == 0:
                time.sleep(0.002)


def subscribe(bus: str, topic: int, name: str, mode: Any, seconds: float) -> None:
    stop = time.monotonic() + seconds
    import logging

    logging.getLogger("shmbus").setLevel(logging.ERROR)
    with shmbus.Bus(bus) as opened, opened.subscriber(TOPICS[topic], name=name, mode=mode) as subscriber:
        while time.monotonic() < stop:
            try:
                subscriber.receive_many(100, timeout=0.1)
            except shmbus.Empty:
                continue
            if mode == "lossy":
                time.sleep(0.02)


def work(bus: str, topic: int, group: str, seconds: float) -> None:
    stop = time.monotonic() + seconds
    import logging

    logging.getLogger("shmbus").setLevel(logging.ERROR)
    with shmbus.Bus(bus) as opened, opened.worker(TOPICS[topic], group=group, max_deliver=3) as worker:
        while time.monotonic() < stop:
            try:
                worker.receive(timeout=0.1)
            except shmbus.Empty:
                continue


def job(draw: random.Random) -> tuple[Any, ...]:
    topic, seconds = draw.randrange(len(TOPICS)), draw.uniform(0.5, 5)
    kind = draw.choice(("publisher", "publisher", "subscriber", "lossy", "worker"))
    name = f"{kind}-{draw.randrange(4)}"
    if kind == "publisher":
        return publish, topic, name, draw.choice(("block", "drop")), seconds
    if kind == "worker":
        return work, topic, f"pool-{draw.randrange(2)}", seconds
    return subscribe, topic, name, "lossy" if kind == "lossy" else "reliable", seconds


class Scraper:
    """Looks at /metrics, and keeps what has fallen."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.text = ""
        self.found: dict[Key, float] = {}
        self.fallen: list[str] = []
        self.looks = 0

    def look(self) -> None:
        with urllib.request.urlopen(f"{self.url}metrics", timeout=30) as answer:
            self.text = answer.read().decode()
        now: dict[Key, float] = {}
        for family in text_string_to_metric_families(self.text):
            for sample in family.samples:
                now[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
        for key, before in self.found.items():
            if key[0].endswith(RISING) and now.get(key, -1.0) < before:
                self.fallen.append(f"look {self.looks}: {key}: {before} -> {now.get(key)}")
        self.found = now
        self.looks += 1

    def sums(self, name: str) -> dict[tuple[str, ...], float]:
        found: collections.Counter[tuple[str, ...]] = collections.Counter()
        for (sample, labels), value in self.found.items():
            if sample == name:
                found[tuple(v for k, v in labels if k != "bus")] += int(value)
        return {key: value for key, value in found.items() if value}


def compare(scraper: Scraper, bus: str) -> list[str]:
    """What does not agree, once all is quiet."""
    scraper.look()
    command = [sys.executable, "-m", "shmbus", "stat", bus, "--json"]
    stats: Any = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    wrong = []
    books = [*stats["consumers"], *stats["departed"]]
    for term in ("offered", "delivered"):
        told: collections.Counter[tuple[str, ...]] = collections.Counter()
        for entry in books:
            told[entry["name"], entry["topic"]] += entry[term]
        if scraper.sums(f"shmbus_{term}_total") != {k: v for k, v in told.items() if v}:
            wrong.append(f"{term}: metrics and stat differ")
    lost: collections.Counter[tuple[str, ...]] = collections.Counter()
    for entry in books:
        if entry["offered"] != entry["delivered"] + entry.get("depth", 0) + sum(entry[cause] for cause in CAUSES):
            wrong.append(f"the books of {entry['topic']}/{entry['name']} do not balance")
        for cause in CAUSES:
            lost[cause, entry["name"], entry["topic"]] += entry[cause]
    if scraper.sums("shmbus_dropped_total") != {k: v for k, v in lost.items() if v}:
        wrong.append("dropped: metrics and stat differ")
    logged: collections.Counter[tuple[str, ...]] = collections.Counter()
    losses = inspect.losses_of(bus)
    for loss in losses:
        logged[loss.cause, loss.consumer, loss.topic] += loss.count
    if len(losses) < 256 and logged != collections.Counter({k: v for k, v in lost.items() if v}):
        wrong.append(f"the log of losses and the books differ: {logged} {lost}")
    return wrong


def run(audit: str, target: Any, *arguments: Any) -> None:
    """A job; whose name another one has just then is none."""
    observe.audit_to(file=audit)
    with suppress(shmbus.NameTakenError):
        target(*arguments)


class Prometheus:
    """A real one that scrapes, where Debian's prometheus is installed."""

    def __init__(self, url: str, folder: Path) -> None:
        program = shutil.which("prometheus")
        self._process: subprocess.Popen[bytes] | None = None
        if program is None:
            return
        job = f"{{job_name: shmbus, static_configs: [{{targets: ['{urllib.parse.urlsplit(url).netloc}']}}]}}"
        config = folder / "prometheus.yml"
        config.write_text(f"global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs: [{job}]\n")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._url = f"http://127.0.0.1:{free.getsockname()[1]}"
        options = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}", "--log.level=error"]
        self._process = subprocess.Popen(
            [program, *options, f"--web.listen-address={self._url.removeprefix('http://')}"]
        )

    def _ask(self, path: str, **question: str) -> Any:
        where = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(question)}"
        with urllib.request.urlopen(where, timeout=30) as answer:
            return json.loads(answer.read())["data"]

    def resets(self) -> str:
        """What it has seen of counters that fell; "" for nothing."""
        if self._process is None:
            return ""
        names = [name for name in self._ask("label/__name__/values") if name.startswith("shmbus_")]
        counters = [name for name in names if name.endswith(RISING)]
        found = {name: self._ask("query", query=f"max(resets({name}[1h]))")["result"] for name in counters}
        scrapes = self._ask("query", query="count_over_time(shmbus_up[1h])")["result"]
        self.told = f"Prometheus: {len(counters)} counters, {scrapes[0]['value'][1] if scrapes else 0} scrapes"
        if not counters or not scrapes:
            return "Prometheus has scraped nothing"
        fallen = {name: one[0]["value"][1] for name, one in found.items() if one and one[0]["value"][1] != "0"}
        return f"Prometheus saw resets: {fallen}" if fallen else ""

    told = "no prometheus on PATH"

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def promtool(text: str) -> str:
    """What promtool has to say of an exposition; "" for nothing."""
    if not shutil.which("promtool"):
        return ""
    command = ["promtool", "check", "metrics"]
    checked = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    silent = not (checked.returncode or checked.stdout or checked.stderr)
    return "" if silent else f"promtool: {checked.stdout}{checked.stderr}"


class AuditLog:
    """The file that all processes write."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def compare(self, bus: str, kills: set[int]) -> list[str]:
        """What does not agree with the books, once all is quiet and the supervisor has looked."""
        deadline = time.monotonic() + 10
        while (wrong := self._compare(inspect.stats_of(bus), kills)) and time.monotonic() < deadline:
            time.sleep(0.2)
        return wrong

    def _compare(self, stats: shmbus.BusStats, kills: set[int]) -> list[str]:
        records = [json.loads(line) for line in self.path.read_text().splitlines()]
        acts = collections.Counter(record["act"] for record in records)
        self.told = ", ".join(f"{count} {act}" for act, count in sorted(acts.items()))
        wrong = []
        told: dict[tuple[str, ...], int] = {}
        sums: collections.Counter[tuple[str, ...]] = collections.Counter()
        for record in records:
            if record["act"] == "loss":
                key = record["cause"], record["name"], record["topic"]
                told[key] = record["total"]
                sums[key] += record["count"]
        booked: collections.Counter[tuple[str, ...]] = collections.Counter()
        for consumer in stats.consumers:
            for cause in CAUSES:
                booked[cause, consumer.name, consumer.topic] += getattr(consumer, cause)
        if told != {key: count for key, count in booked.items() if count}:
            wrong.append(f"losses: the audit log says {told}, the books {+booked}")
        if told != sums:
            wrong.append("losses: the counts of the audit log are not its totals")
        dead = [r["pid"] for r in records if r["act"] == "death" and r["role"] == "process"]
        if len(dead) != stats.deaths:
            wrong.append(f"{stats.deaths} deaths on the books, {len(dead)} in the audit log")
        gone = {r["pid"] for r in records if r["act"] == "leave" and r["role"] == "process"}  # just before
        if not kills <= {*dead, *gone}:
            wrong.append(f"killed, and no death in the audit log: {kills - {*dead, *gone}}")
        over = collections.Counter(self._who(r) for r in records if r["act"] in ("leave", "death"))
        begun = collections.Counter(self._who(r) for r in records if r["act"] == "join")
        here = {p.pid for p in stats.participants}
        left = [who for who in (begun - over) if who[1] not in here and who[0] != "group"]
        if left:
            wrong.append(f"joined, and never left or died: {left[:5]}")
        return wrong

    told = ""

    @staticmethod
    def _who(record: dict[str, Any]) -> tuple[Any, ...]:
        return record["role"], record["pid"], record["topic"], record["name"]


def supervisor(bus: str, audit: Path) -> subprocess.Popen[bytes]:
    """One in the foreground, in office."""
    command = [sys.executable, "-m", "shmbus", "supervise", bus, "--audit", str(audit)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while inspect.stats_of(bus).supervisor.pid != process.pid:
        if process.poll() is not None:
            raise SystemExit(f"{shlex.join(command)} ended at once: exit code {process.returncode}")
        time.sleep(0.01)
    return process


def campaign(bus: str, seconds: float, seed: int, folder: Path) -> int:
    draw = random.Random(seed)
    context = multiprocessing.get_context("spawn")
    audit = AuditLog(folder / "audit.jsonl")
    supervising = supervisor(bus, audit.path)
    command = [sys.executable, "-m", "shmbus", "serve", bus, "--listen", "127.0.0.1:0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    scraper = Scraper(server.stdout.readline().split()[-1])
    prometheus = Prometheus(scraper.url, folder)
    running: list[BaseProcess] = []
    kills: set[int] = set()
    stop = time.monotonic() + seconds
    try:
        while time.monotonic() < stop:
            running = [process for process in running if process.is_alive()]
            if len(running) < 10:
                target, *arguments = job(draw)
                running.append(context.Process(target=run, args=(str(audit.path), target, bus, *arguments)))
                running[-1].start()
            if running and draw.random() < 0.15:
                victim = draw.choice(running)
                if victim.pid in {p.pid for p in inspect.stats_of(bus).participants}:
                    os.kill(victim.pid or 0, signal.SIGKILL)
                    victim.join()
                    if victim.exitcode == -signal.SIGKILL:
                        kills.add(victim.pid or 0)
            scraper.look()
            time.sleep(0.1)
        for process in running:
            process.join()
        deadline = time.monotonic() + 30
        while len(inspect.stats_of(bus).participants) > 1 and time.monotonic() < deadline:
            time.sleep(0.1)
        wrong = [*scraper.fallen[:20], *compare(scraper, bus), *audit.compare(bus, kills)]
        deaths = inspect.stats_of(bus).deaths
        wrong += filter(None, [prometheus.resets(), promtool(scraper.text)])
    finally:
        for process in running:
            process.kill()
            process.join()
        prometheus.close()
        for child in (server, supervising):
            child.terminate()
            child.wait()
    published = sum(scraper.sums("shmbus_published_total").values())
    print(f"seed {seed}: {published:,.0f} published, {len(kills)} kills, {deaths} deaths, {scraper.looks} scrapes")
    print(f"audit log: {audit.told}\n{prometheus.told}")
    print("\n".join(wrong) or "all agree, and no counter fell")
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments = parser.parse_args()
    bus = f"observe-{os.getpid()}"
    with tempfile.TemporaryDirectory() as folder, shmbus.Bus(bus, supervise=False) as kept:
        held = [kept.publisher(topic) for topic in TOPICS]  # of a topic that is forgotten only sums are kept, no names
        code = campaign(bus, arguments.seconds, arguments.seed, Path(folder))
        assert held
    if bus in inspect.buses():  # its groups are owed events
        inspect.remove(bus, force=True)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
