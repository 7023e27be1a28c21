"""Load with kills, joins and leaves, seen from outside: metrics that never fall, and sums that agree at the end.

    python tools/observe_campaign.py [--seconds 300] [--seed N]

Publishers, subscribers of both modes and workers come, go by close() and are killed, under names that come back. The
metrics are scraped all the while, over HTTP. At the end metrics, `stat --json`, the books and the log of losses must
say the same, and every kill must be a death. promtool, where it is there, checks the last exposition.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from multiprocessing.process import BaseProcess
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

import shmbus
from shmbus import inspect

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
                self.fallen.append(f"{key}: {before} -> {now.get(key)}")
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


def run(target: Any, *arguments: Any) -> None:
    """A job; whose name another one has just then is none."""
    with suppress(shmbus.NameTakenError):
        target(*arguments)


def campaign(bus: str, seconds: float, seed: int) -> int:
    draw = random.Random(seed)
    context = multiprocessing.get_context("spawn")
    command = [sys.executable, "-m", "shmbus", "serve", bus, "--listen", "127.0.0.1:0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    scraper = Scraper(server.stdout.readline().split()[-1])
    running: list[BaseProcess] = []
    kills = 0
    stop = time.monotonic() + seconds
    try:
        while time.monotonic() < stop:
            running = [process for process in running if process.is_alive()]
            if len(running) < 10:
                target, *arguments = job(draw)
                running.append(context.Process(target=run, args=(target, bus, *arguments)))
                running[-1].start()
            elif draw.random() < 0.3:
                victim = draw.choice(running)
                if victim.pid in {p.pid for p in inspect.stats_of(bus).participants}:
                    os.kill(victim.pid or 0, signal.SIGKILL)
                    victim.join()
                    kills += victim.exitcode == -signal.SIGKILL
            scraper.look()
            time.sleep(0.1)
        for process in running:
            process.join()
        deadline = time.monotonic() + 30
        while len(inspect.stats_of(bus).participants) > 1 and time.monotonic() < deadline:
            time.sleep(0.1)
        wrong = [*scraper.fallen[:20], *compare(scraper, bus)]
        deaths = inspect.stats_of(bus).deaths
        if not kills <= deaths <= kills + 1:  # one may have been killed that was just about to leave
            wrong.append(f"{kills} kills, {deaths} deaths")
        if shutil.which("promtool"):
            checked = subprocess.run(
                ["promtool", "check", "metrics"], input=scraper.text, capture_output=True, text=True, check=False
            )
            if checked.returncode or checked.stdout or checked.stderr:
                wrong.append(f"promtool: {checked.stdout}{checked.stderr}")
    finally:
        for process in running:
            process.kill()
            process.join()
        server.terminate()
        server.wait()
    published = sum(scraper.sums("shmbus_published_total").values())
    print(f"seed {seed}: {published:,.0f} published, {kills} kills, {deaths} deaths, {scraper.looks} scrapes")
    print("\n".join(wrong) or "all agree, and no counter fell")
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments = parser.parse_args()
    bus = f"observe-{os.getpid()}"
    with shmbus.Bus(bus):
        code = campaign(bus, arguments.seconds, arguments.seed)
    if bus in inspect.buses():  # its groups are owed events
        inspect.remove(bus, force=True)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
