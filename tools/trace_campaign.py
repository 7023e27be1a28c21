"""Traces under backlog: whether every delivered event is linked to its sender, and every drop.

    python tools/trace_campaign.py [--events 100000] [--off]

Hop 1: a publisher (on_full="drop") to a subscriber that passes each event on, and is slow. Hop 2: from there to a
group that rejects one in 50, a reliable subscriber that is closed with a backlog, and a lossy one that sleeps. At the
end every delivery that the books have must have a link to the span that sent that very event, and so must every drop:
refused (on the span itself), overrun, abandoned, rejected. Exit code 1 if not.

`--off` measures instead what tracing costs who never asked for it: publish and receive in a process that has loaded
`shmbus.observe` and instruments another bus, over one that has not; ratios of medians, side by side.
"""

from __future__ import annotations

import argparse
import collections
import logging
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

import shmbus
from shmbus import observe

FIRST = shmbus.Topic("first", int, capacity=1 << 16)
SECOND = shmbus.Topic("second", int, capacity=1 << 18)

Context = tuple[int, int]


class Counted(SpanExporter):
    """Keeps of each span what has to be counted: a hundred thousand spans would be a gigabyte."""

    def __init__(self) -> None:
        self.sent: dict[str, dict[Context, int]] = collections.defaultdict(dict)
        """By topic: the spans that sent, and the sequence that they had, 0 for those that were refused somewhere."""
        self.refused: collections.Counter[str] = collections.Counter()
        """By topic: sends that were an error."""
        self.links: dict[tuple[str, str, str], list[tuple[Context, int]]] = collections.defaultdict(list)
        """By topic, consumer and what became of it: events whose sender is linked, and their sequence there."""
        self._lock = threading.Lock()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with self._lock:
            for span in spans:
                self._count(span)
        return SpanExportResult.SUCCESS

    def _count(self, span: ReadableSpan) -> None:
        has: Any = span.attributes
        topic, what = has["messaging.destination.name"], span.name.split()[0]
        assert span.context is not None
        if what == "send":
            context = span.context.trace_id, span.context.span_id
            self.sent[topic][context] = has.get("messaging.shmbus.sequence", 0)
            self.refused[topic] += has.get("messaging.shmbus.dropped") == "refused"
            return
        key = topic, has["messaging.consumer.group.name"], has.get("messaging.shmbus.dropped", what)
        for link in span.links:
            told: Any = link.attributes
            found = link.context.trace_id, link.context.span_id
            self.links[key].append((found, told["messaging.shmbus.sequence"]))

    def linked(self, topic: str, consumer: str, *what: str) -> int:
        return sum(len(self.links[topic, consumer, one]) for one in what)

    def wrong(self) -> list[str]:
        """Links to what sent no event of that topic, or another one than that of this sequence."""
        found = []
        for (topic, consumer, what), links in self.links.items():
            for context, sequence in links:
                sent = self.sent[topic].get(context)
                if sent is None or (sent and consumer != "pool" and sent != sequence):  # a group counts for itself
                    found.append(f"{what} of {topic}/{consumer}: event {sequence} is linked to the sender of {sent}")
        return found


def campaign(name: str, events: int) -> int:
    kept, provider = Counted(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    with observe.instrument(shmbus.Bus(name), tracer_provider=provider) as bus:
        Load(bus, events).run()
        stats = bus.stats()
        losses = [loss for loss in bus.losses() if not loss.topic.endswith(".dead")]
    wrong = kept.wrong()[:5]
    delivered = linked = lost = dropped = 0
    for c in [c for c in stats.consumers if not c.topic.endswith(".dead")]:
        handed = c.delivered + c.rejected  # what a group rejects was handed out before
        got = kept.linked(c.topic, c.name, "receive", "process")
        delivered, linked = delivered + handed, linked + got
        if got != handed:
            wrong.append(f"{c.topic}/{c.name}: {handed} handed out, {got} linked")
        for cause in ("overrun", "abandoned", "rejected"):
            count, found = getattr(c, cause), kept.linked(c.topic, c.name, cause)
            lost, dropped = lost + count, dropped + found
            if count != found:
                wrong.append(f"{c.topic}/{c.name}: {count} {cause}, {found} linked")
    refused, told = sum(c.refused for c in stats.consumers), sum(kept.refused.values())
    if refused != told:
        wrong.append(f"{refused} refused, {told} spans say so")
    untraced = [loss for loss in losses if not loss.trace]
    wrong += [f"without a trace: {loss}" for loss in untraced[:5]]
    print(f"{events:,} events, two hops: {delivered:,} deliveries, {linked:,} linked ({linked / delivered:.2%})")
    print(f"{lost:,} drops, {dropped:,} linked ({dropped / max(1, lost):.2%}); {told:,} refused, on their own spans")
    print(f"{len(losses)} losses in the log, {len(losses) - len(untraced)} with the trace of their first event")
    print("\n".join(wrong) or "all are linked")
    return 1 if wrong else 0


class Load:
    """The events, from the first to the last close."""

    def __init__(self, bus: shmbus.Bus, events: int) -> None:
        self.bus, self.events = bus, events
        self.published = threading.Event()
        self.hop = bus.subscriber(FIRST, name="hop")
        self.onward = bus.publisher(SECOND, name="onward", timeout=60)
        self.group = bus.worker(SECOND, group="pool")
        self.leaver = bus.subscriber(SECOND, name="leaver")
        self.lossy = bus.subscriber(SECOND, name="lossy", mode="lossy", on_gap=lambda _: None)

    def run(self) -> None:
        threads = [
            threading.Thread(target=target)
            for target in (self.publish, self.pass_on, self.work, self.drain, self.doze, self.end)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def publish(self) -> None:
        with self.bus.publisher(FIRST, name="web", on_full="drop") as publisher:
            for n in range(self.events):
                publisher.publish(n)
        self.published.set()

    def pass_on(self) -> None:
        while True:
            try:
                for event in self.hop.receive_many(256, timeout=0.5):
                    self.onward.publish(event)
            except shmbus.Empty:
                if self.published.is_set():
                    break
        self.hop.close()
        self.onward.close()

    def work(self) -> None:
        for message in self.group.messages():
            if message.event % 50 == 0:
                message.reject("one in 50")
            else:
                message.ack()
        self.group.close()

    def drain(self) -> None:
        """Receives until there is no more to come, and leaves a backlog."""
        self.receive(self.leaver, 0)
        self.leaver.close()

    def doze(self) -> None:
        self.receive(self.lossy, 0.05)
        self.lossy.close()

    def receive(self, subscriber: shmbus.Subscriber[int], pause: float) -> None:
        while not self.published.is_set():
            try:
                subscriber.receive_many(64, timeout=0.1)
            except shmbus.Empty:
                continue
            time.sleep(pause)

    def end(self) -> None:
        while not self.hop.closed or any(c.depth for c in self.bus.stats().consumers if c.kind == "group"):
            time.sleep(0.05)
        self.group.cancel()


# -- what it costs who never asked

OFF = """
import sys, time
import shmbus
if sys.argv[2] == "loaded":
    from opentelemetry.sdk.trace import TracerProvider
    from shmbus import observe
    other = observe.instrument(shmbus.Bus(sys.argv[1] + "-other"), tracer_provider=TracerProvider())
topic = shmbus.Topic("t", int, capacity=1 << 20)
with shmbus.Bus(sys.argv[1]) as bus, bus.publisher(topic) as publisher, bus.subscriber(topic) as subscriber:
    for line in sys.stdin:
        begun = time.thread_time_ns()
        for n in range(2000):
            publisher.publish(n)
        middle = time.thread_time_ns()
        for n in range(2000):
            subscriber.receive()
        print((middle - begun) / 2000, (time.thread_time_ns() - middle) / 2000, flush=True)
if sys.argv[2] == "loaded":
    other.close()
"""


def cost(name: str, rounds: int) -> int:
    """Four processes take turns of some milliseconds: with tracing beside, without, and each kind once more."""
    kinds = ("plain", "loaded", "plain", "loaded")
    children = [
        subprocess.Popen(
            [sys.executable, "-c", OFF, f"{name}-{at}", kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for at, kind in enumerate(kinds)
    ]
    found: list[list[tuple[float, ...]]] = [[] for _ in kinds]
    for turn in range(rounds + 5):
        for at in random.sample(range(len(kinds)), len(kinds)):
            stdin, stdout = children[at].stdin, children[at].stdout
            assert stdin is not None
            assert stdout is not None
            stdin.write("\n")
            stdin.flush()
            row = tuple(map(float, stdout.readline().split()))
            if turn >= 5:  # warm
                found[at].append(row)
    for child in children:
        child.communicate()
    for at, what in enumerate(("publish", "receive")):
        plain, loaded, again, _ = ([row[at] for row in rows] for rows in found)
        ratio, same = (statistics.median(b / a for a, b in zip(plain, other, strict=True)) for other in (loaded, again))
        print(
            f"{what}: {statistics.median(plain):.0f} ns of CPU without, {statistics.median(loaded):.0f} beside tracing:"
            f" ratio {ratio:.3f}; without once more, over without: {same:.3f}"
        )
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--off", action="store_true", help="measure what tracing costs who never asked for it")
    parser.add_argument("--rounds", type=int, default=300)
    arguments = parser.parse_args()
    logging.getLogger("shmbus").setLevel(logging.ERROR)
    name = f"traces-{os.getpid()}"
    return cost(name, arguments.rounds) if arguments.off else campaign(name, arguments.events)


if __name__ == "__main__":
    raise SystemExit(main())
