"""Stops subscribers under the policy "quarantine", wakes or kills them, and audits what they saw and were told.

    python tools/quarantine_campaign.py [--seconds 300] [--seed N] [--supervisor present|absent]

Publishers that block, drop, raise and grow write bodies whose bytes follow from their number. Reliable subscribers take
events, or arrays of records in place, and write down each event and each Gap. A process is stopped for up to thrice as
long as the policy waits, and goes on or is killed. In the end all of this must hold: each event was whole; of each
publisher they came in order and once; what is missing was told, once; the books say the same; no publisher has waited
much longer than the policy lets it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from itertools import pairwise
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import msgspec

import shmbus
from shmbus import inspect

AFTER = 1.0
"""Seconds; the least that a policy can be told."""
PATIENCE = AFTER + 1.0 + 8.0
"""That, a look of the supervisor, and what a busy machine and a stopped holder of the bus lock may take."""


class Row(msgspec.Struct):
    writer: int
    number: int
    check: int


BODIES = shmbus.Topic("bodies", bytes, capacity=1 << 14)
GROWING = shmbus.Topic("growing", bytes, capacity=1 << 13, max_capacity=1 << 16)
ROWS = shmbus.Topic("rows", Row, capacity=1 << 13, codec="record")
TOPICS: list[shmbus.Topic[Any]] = [BODIES, GROWING, ROWS]
MODES = ("block", "drop", "raise")


def event(topic: shmbus.Topic[Any], writer: int, number: int) -> Any:
    """A writer's event; its number is its sequence too."""
    if topic is ROWS:
        return Row(writer, number, 3 * number + writer)
    return (writer.to_bytes(8, "little") + number.to_bytes(8, "little")) * (1 + number % 30)


def publish(bus: str, topic: int, writer: int, supervise: bool, until: float, out: str) -> None:
    longest, number, mode = 0.0, 0, MODES[writer % 3]
    with (
        shmbus.Bus(bus, supervise=supervise) as opened,
        opened.publisher(TOPICS[topic], name=str(writer), on_full=mode) as publisher,  # type: ignore[arg-type]
    ):
        since = time.monotonic()
        while time.time() < until:
            with suppress(shmbus.Full):
                if publisher.publish(event(TOPICS[topic], writer, number + 1)) is not None:
                    number += 1
                    longest, since = max(longest, time.monotonic() - since), time.monotonic()
                    if number % 32:
                        continue
            time.sleep(0.001)
    Path(out).write_text(json.dumps({"writer": writer, "longest": longest, "published": number}))


class Seen:
    """What a subscriber has received, and was told of, as runs of numbers by writer."""

    def __init__(self, topic: shmbus.Topic[Any]) -> None:
        self.topic = topic
        self.runs: defaultdict[str, list[list[Any]]] = defaultdict(list)
        self.torn = 0

    def note(self, what: str, writer: str, first: int, last: int) -> None:
        runs = self.runs[writer]
        if runs and runs[-1][0] == what and runs[-1][2] + 1 == first:
            runs[-1][2] = last
        else:
            runs.append([what, first, last])

    def gap(self, told: shmbus.Gap) -> None:
        self.note("gap", told.publisher, told.first, told.last)

    def take(self, got: Any) -> None:
        if self.topic is ROWS:
            writer, number = got.writer, got.number
        else:
            writer, number = (int.from_bytes(got[at : at + 8], "little") for at in (0, 8))
        self.torn += got != event(self.topic, writer, number)
        self.note("got", str(writer), number, number)

    def take_rows(self, array: Any) -> None:
        """Of one writer, and looked at twice: it is in place."""
        for _ in range(2):
            self.torn += int((array["check"] != 3 * array["number"] + array["writer"]).sum())
            time.sleep(random.random() * 0.004)
        self.torn += int((array["number"][1:] != array["number"][:-1] + 1).sum())
        self.note("got", str(array["writer"][0]), int(array["number"][0]), int(array["number"][-1]))


def subscribe(bus: str, topic: int, name: str, supervise: bool, out: str) -> None:
    import logging

    logging.getLogger("shmbus").setLevel(logging.CRITICAL)
    seen = Seen(TOPICS[topic])
    with (
        shmbus.Bus(bus, supervise=supervise) as opened,
        opened.subscriber(TOPICS[topic], name=name, on_gap=seen.gap) as subscriber,
    ):
        signal.signal(signal.SIGTERM, lambda *_: subscriber.cancel())
        if TOPICS[topic] is ROWS:
            for array in subscriber.arrays():
                seen.take_rows(array)
        for got in subscriber:
            seen.take(got)
        while (got := subscriber.try_receive()) is not None:  # the publishers are gone by now
            seen.take(got)
        mine = next(c for c in opened.stats().consumers if c.name == name and c.pid == os.getpid())
    Path(out).write_text(
        json.dumps({"name": name, "torn": seen.torn, "runs": seen.runs, "books": msgspec.to_builtins(mine)})
    )


def audit(found: dict[str, Any]) -> list[str]:
    """What is wrong with what a subscriber saw."""
    books, wrong = found["books"], []
    got = told = 0
    for writer, runs in found["runs"].items():
        for before, after in pairwise(runs):
            if after[1] != before[2] + 1:
                wrong.append(f"{found['name']}: {before} then {after} of writer {writer}")
        got += sum(last - first + 1 for what, first, last in runs if what == "got")
        told += sum(last - first + 1 for what, first, last in runs if what == "gap")
    if (got, told, 0) != (books["delivered"], books["overrun"], books["depth"]):
        wrong.append(f"{found['name']}: got {got}, was told of {told}; {books}")
    if books["offered"] != books["delivered"] + books["overrun"] + books["refused"]:
        wrong.append(f"{found['name']}: its books do not balance: {books}")
    if found["torn"]:
        wrong.append(f"{found['name']}: {found['torn']} events were torn")
    return wrong


class Campaign:
    """One run on a bus of its own."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options, self.scratch = options, scratch
        self.bus = f"quarantine-{os.getpid()}"
        self.draw = random.Random(options.seed)
        self.context = multiprocessing.get_context("spawn")
        self.running: dict[str, tuple[BaseProcess, int]] = {}
        self.made = self.stops = self.kills = self.quarantined = 0

    @property
    def supervise(self) -> bool:
        return bool(self.options.supervisor == "present")

    def start(self, topic: int) -> None:
        self.made += 1
        name = f"sub-{self.made}"
        out = self.scratch / name
        process = self.context.Process(target=subscribe, args=(self.bus, topic, name, self.supervise, str(out)))
        process.start()
        self.running[name] = process, topic

    def there(self) -> set[str]:
        return {c.name for c in inspect.stats_of(self.bus).consumers if c.pid}

    def disturb(self) -> None:
        """Stop one for a while, and wake it or kill it; or kill one as it is."""
        there = self.there()
        name = self.draw.choice(sorted(self.running))
        process, topic = self.running[name]
        if name not in there or process.pid is None:
            time.sleep(0.1)
            return
        if self.draw.random() < 0.9:
            self.stops += 1
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(self.draw.uniform(0, 3 * (AFTER + 1)))
            self.quarantined += sum(c.quarantined_ns != 0 for c in inspect.stats_of(self.bus).consumers)
        if self.draw.random() < 0.2:
            self.kills += 1
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            del self.running[name]
            self.start(topic)
        else:
            os.kill(process.pid, signal.SIGCONT)
            time.sleep(self.draw.uniform(0, 1))

    def run(self) -> list[str]:
        until = time.time() + self.options.seconds
        writers: list[BaseProcess] = []
        for writer in range(6):
            out = self.scratch / f"writer-{writer}"
            arguments = (self.bus, writer % 3, writer + writer // 3, self.supervise, until, str(out))
            writers.append(self.context.Process(target=publish, args=arguments))
            writers[-1].start()
        for at in range(6):
            self.start(at % 3)
        while time.time() < until:
            self.disturb()
        wrong = []
        for process in writers:
            process.join(60)
            wrong += [f"writer {process.pid} hangs"] * process.is_alive()
        deadline = time.monotonic() + 60
        while self.running.keys() - self.there() and time.monotonic() < deadline:
            time.sleep(0.05)  # one that was made just now has to be ready for its signal
        for process, _ in self.running.values():
            process.terminate()
        for name, (process, _) in self.running.items():
            process.join(60)
            if process.exitcode:
                wrong.append(f"{name}: exit code {process.exitcode}")
        wrong += self.audit()
        for process in [*writers, *(process for process, _ in self.running.values())]:
            process.kill()
            process.join()
        return wrong

    def audit(self) -> list[str]:
        """What is wrong with what all have written down."""
        wrong: list[str] = []
        for path in sorted(self.scratch.iterdir()):
            found = json.loads(path.read_text())
            if "books" in found:
                wrong += audit(found)
            elif found["longest"] > PATIENCE:
                wrong.append(f"writer {found['writer']} has waited for {found['longest']:.1f} s")
        return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--supervisor", choices=("present", "absent"), default="present")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        campaign = Campaign(options, Path(name))
        policy = shmbus.Policy("quarantine", AFTER)
        with shmbus.Bus(campaign.bus, policy=policy, supervise=campaign.supervise) as bus:
            wrong = campaign.run()
            published = bus.stats()
            for consumer in published.consumers:
                if consumer.offered != consumer.delivered + consumer.depth + consumer.dropped:
                    wrong.append(f"the books do not balance: {consumer}")
            overrun = sum(c.overrun for c in published.consumers)
            delivered = sum(c.delivered for c in published.consumers)
        if campaign.bus in inspect.buses():
            wrong.append("the bus is still there")
    print(
        f"seed {options.seed}: {campaign.stops} stops, {campaign.quarantined} in quarantine, {campaign.kills} kills, "
        f"{delivered:,} events delivered, {overrun:,} overrun"
    )
    print("\n".join(wrong) or "whole, in order, once; told of all that is missing")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
