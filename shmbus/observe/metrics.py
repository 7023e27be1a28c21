"""Metrics of buses from their books, for Prometheus and OpenMetrics: one collector, and no file of any process.

Needs the extra `serve` (prometheus_client). May touch: nothing; it looks through `inspect`.

Must stay true:
- A counter never falls while its bus lives: those who are gone stay on the books (`_ledger/past.py`), under their names
  while there is room, else as "(departed)"; and what a lossy reader in the middle of an event makes flicker is shown as
  the most that was seen.
- Labels are bounded: names of the living, and the last 32 publishers, subscribers and groups a topic that are gone.
- A bus that cannot be read fails no scrape: `shmbus_up` is 0 for it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.samples import Exemplar

from shmbus import inspect
from shmbus.errors import BusNotFoundError, ShmbusError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from shmbus.stats import BusStats, ConsumerStats, DepartedStats, Loss, PublisherStats

    _Adder = Callable[[str, str, str, Iterable[tuple[tuple[str, ...], float]]], None]

CAUSES: Final = ("overrun", "refused", "abandoned", "undecodable", "rejected")
_FIRST_NS: Final = 1024
"""Upper end of the first of `ConsumerStats.latencies`; each of the others is twice as wide."""
_GONE: Final = ("dead", "closed")
_STATES: Final = ("ok", "slow", "stalled", "stopped", "idle")

Labels = tuple[str, ...]
Series = defaultdict[Labels, float]


def registry(buses: Sequence[str] = ()) -> CollectorRegistry:
    """A registry of `BusCollector(buses)` alone, for `prometheus_client.exposition`."""
    found = CollectorRegistry(auto_describe=True)
    found.register(BusCollector(buses))
    return found


class BusCollector(Collector):
    """Everything that the books of the buses say; of all of this user's where none is named.

    `look` is what a bus's books are read with, `losses` its log of losses. Any thread; scrapes at once see books of
    their own.
    """

    def __init__(
        self,
        buses: Sequence[str] = (),
        look: Callable[[str], BusStats] = inspect.stats_of,
        losses: Callable[[str], list[Loss]] = inspect.losses_of,
    ) -> None:
        self.buses: Final = tuple(buses)
        self._look: Final = look
        self._losses: Final = losses
        self._most: dict[tuple[str, int], dict[tuple[str, Labels], float]] = {}
        """By bus and birth: the last counters."""

    def describe(self) -> Iterable[Metric]:
        """Names and types, without a look at any bus."""
        return _families([]).values()

    def collect(self) -> Iterator[Metric]:
        """Look at every bus once, and tell."""
        begun = time.perf_counter()
        up = GaugeMetricFamily("shmbus_up", "1 where the books of a bus can be read.", labels=["bus"])
        seen: list[BusStats] = []
        for bus in self.buses or inspect.buses():
            try:
                seen.append(self._look(bus))
            except BusNotFoundError:
                if not self.buses:  # removed since it was listed
                    continue
                up.add_metric([bus], 0)
            except (ShmbusError, OSError):
                up.add_metric([bus], 0)
            else:
                up.add_metric([bus], 1)
        yield up
        families = self._rising(seen)
        self._exemplify(families["dropped"])
        yield from families.values()
        took = time.perf_counter() - begun
        yield GaugeMetricFamily("shmbus_scrape_seconds", "Seconds that this look at all buses took.", value=took)

    def _rising(self, seen: list[BusStats]) -> dict[str, Metric]:
        """The families of all buses; no counter lower than it was told before."""
        families = _families(seen)
        before = self._most
        most: dict[tuple[str, int], dict[tuple[str, Labels], float]] = {}
        births = {stats.bus: (stats.bus, stats.created_ns) for stats in seen}
        for family in families.values():
            if family.type == "gauge":
                continue
            for at, sample in enumerate(family.samples):
                birth = births[sample.labels["bus"]]
                key = sample.name, tuple(sample.labels.values())
                told = max(sample.value, before.get(birth, {}).get(key, 0))
                most.setdefault(birth, {})[key] = told
                if told != sample.value:
                    family.samples[at] = sample._replace(value=told)
        self._most = most
        return families

    def _exemplify(self, dropped: Metric) -> None:
        """Who sent what was lost last, where that was traced: an exemplar, which OpenMetrics alone has."""
        last: dict[Labels, Loss] = {}
        for bus in {sample.labels["bus"] for sample in dropped.samples if sample.value}:
            with suppress(ShmbusError, OSError):
                found = [loss for loss in self._losses(bus) if loss.trace.count("-") == 3]  # the oldest come first
                last |= {(bus, loss.topic, loss.consumer, loss.cause): loss for loss in found}
        for at, sample in enumerate(dropped.samples):
            loss = last.get(tuple(sample.labels[name] for name in ("bus", "topic", "consumer", "cause")))
            if loss is not None:
                _, trace, span, _ = loss.trace.split("-")
                told = Exemplar({"trace_id": trace, "span_id": span}, 1.0, loss.first_ns / 1e9)
                dropped.samples[at] = sample._replace(exemplar=told)


# -- the families


def _families(seen: list[BusStats]) -> dict[str, Metric]:
    found: dict[str, Metric] = {}

    def counter(name: str, text: str, labels: str, series: Iterable[tuple[Labels, float]]) -> None:
        family = CounterMetricFamily(f"shmbus_{name}", text, labels=labels.split())
        for values, value in series:
            family.add_metric(values, value)
        found[name] = family

    def gauge(name: str, text: str, labels: str, series: Iterable[tuple[Labels, float]]) -> None:
        family = GaugeMetricFamily(f"shmbus_{name}", text, labels=labels.split())
        for values, value in series:
            family.add_metric(values, value)
        found[name] = family

    of_publisher, of_consumer = "bus topic publisher", "bus topic consumer"
    published, unrouted = _published(seen)
    counter("published", "Events that a publisher put into its ring.", of_publisher, published.items())
    counter("unrouted", "Events published while the topic had no consumer.", of_publisher, unrouted.items())
    for term, text in (("offered", "Events that were for the consumer."), ("delivered", "Events received, or acked.")):
        counter(term, text, of_consumer, _summed(seen, term).items())
    dropped = (((*key, cause), count) for cause in CAUSES for key, count in _summed(seen, cause).items())
    counter("dropped", "Events that the consumer will not get.", f"{of_consumer} cause", sorted(dropped))
    counter("deaths", "Processes that were reclaimed as dead.", "bus", (((s.bus,), s.deaths) for s in seen))
    counter("lost_rings", "Rings whose files somebody removed.", "bus", (((s.bus,), s.lost_rings) for s in seen))
    _add_publishers(gauge, seen, of_publisher)
    _add_consumers(gauge, seen, of_consumer)
    _add_buses(gauge, seen)
    found["latency"] = _latencies(seen)
    return found


def _add_publishers(gauge: _Adder, seen: list[BusStats], labels: str) -> None:
    live = [((s.bus, p.topic, p.name), p) for s in seen for p in s.publishers if p.state not in _GONE]
    gauge("blocked", "1 while the publisher waits for room.", labels, ((key, p.waiting) for key, p in live))
    gauge("ring_capacity_bytes", "Bytes of each of its rings.", labels, ((key, p.capacity) for key, p in live))
    gauge("ring_used_bytes", "Bytes of its fullest ring that wait.", labels, ((key, p.used) for key, p in live))
    pooled = [(key, p) for key, p in live if p.pool]
    gauge("pool_bytes", "Bytes of its pool that somebody is owed or looks at.", labels, _used(pooled))
    gauge("pool_capacity_bytes", "Bytes of its pool.", labels, ((key, p.pool) for key, p in pooled))
    gauge(
        "blocked_by",
        "1 for each consumer that leaves the publisher no room.",
        f"{labels} consumer",
        (((*key, consumer), 1) for key, p in live for consumer in p.blocked_by),
    )


def _used(pooled: Sequence[tuple[Labels, PublisherStats]]) -> Iterator[tuple[Labels, float]]:
    return ((key, p.pool_used) for key, p in pooled)


def _add_consumers(gauge: _Adder, seen: list[BusStats], labels: str) -> None:
    live = [((s.bus, c.topic, c.name), c) for s in seen for c in s.consumers if c.state not in _GONE]
    gauge("depth", "Events that wait for the consumer.", labels, _gauge((key, c.depth) for key, c in live))
    lag = _gauge(((key, c.lag_ns / 1e9) for key, c in live), max)
    gauge("lag_seconds", "Age of the oldest event that waits for the consumer.", labels, lag)
    gauge("blocking", "Publishers to whom it leaves no room.", labels, _gauge((key, len(c.blocks)) for key, c in live))
    quarantined = _gauge(((key, float(c.quarantined_ns != 0)) for key, c in live), max)
    gauge("quarantined", "1 for a reliable subscriber that holds up nobody, having stalled.", labels, quarantined)
    groups = [(key, c) for key, c in live if c.kind == "group"]
    gauge("claimed", "Events in the hands of workers.", labels, ((key, c.claimed) for key, c in groups))
    gauge("workers", "Workers of the group.", labels, ((key, len(c.workers)) for key, c in groups))
    states = (((*key, state), float(c.state == state)) for key, c in live for state in _STATES)
    gauge("consumer_state", "1 for the state that it is in.", f"{labels} state", _gauge(states, max))
    kinds = (((*key, c.kind, c.mode), 1.0) for key, c in live)
    gauge("consumer_info", "Subscriber or group, reliable or lossy.", f"{labels} kind mode", kinds)


def _add_buses(gauge: _Adder, seen: list[BusStats]) -> None:
    whole: dict[str, tuple[str, Callable[[BusStats], float]]] = {
        "supervisor_up": ("1 while a supervisor is at work.", lambda s: s.supervisor.state == "ok"),
        "supervisor_stalled": ("1 while one is in office and not at work.", lambda s: s.supervisor.state == "stalled"),
        "participants": ("Open Bus objects.", lambda s: len(s.participants)),
        "participants_ill": ("Those stopped or dead.", lambda s: sum(p.state != "ok" for p in s.participants)),
        "topics": ("Topics.", lambda s: len(s.topics)),
        "bytes": ("Shared memory of the bus and its rings.", lambda s: s.bytes),
        "start_time_seconds": ("When the bus was made, Unix time.", lambda s: s.created_ns / 1e9),
    }
    for name, (text, value) in whole.items():
        gauge(name, text, "bus", (((s.bus,), float(value(s))) for s in seen))


def _published(seen: list[BusStats]) -> tuple[Series, Series]:
    published, unrouted = Series(float), Series(float)
    for stats in seen:
        for p in stats.publishers:
            key = stats.bus, p.topic, p.name
            published[key] += p.published + p.before
            unrouted[key] += p.unrouted + p.unrouted_before
        for gone in stats.departed:
            if gone.published:
                key = stats.bus, gone.topic, gone.name
                published[key] += gone.published
                unrouted[key] += gone.unrouted
    return published, unrouted


def _summed(seen: list[BusStats], term: str) -> Series:
    found = Series(float)
    for bus, entry in _books(seen):
        found[bus, entry.topic, entry.name] += getattr(entry, term)
    return found


def _books(seen: list[BusStats]) -> Iterator[tuple[str, ConsumerStats | DepartedStats]]:
    for stats in seen:
        for consumer in stats.consumers:
            yield stats.bus, consumer
        for gone in stats.departed:
            if gone.offered:
                yield stats.bus, gone


def _gauge(
    series: Iterable[tuple[Labels, float]], join: Callable[[list[float]], float] = sum
) -> Iterator[tuple[Labels, float]]:
    """One value for each set of labels: a subscriber and a group may have the same name."""
    found: defaultdict[Labels, list[float]] = defaultdict(list)
    for key, value in series:
        found[key].append(value)
    return ((key, join(values)) for key, values in found.items())


def _latencies(seen: list[BusStats]) -> HistogramMetricFamily:
    """Of events as the samples stand for them; the sum is that of the middles of the octaves."""
    family = HistogramMetricFamily(
        "shmbus_latency_seconds", "From publish to hand-out, sampled.", labels=["bus", "topic", "consumer"]
    )
    found: dict[Labels, list[int]] = {}
    for bus, entry in _books(seen):
        if entry.latencies:
            key: Labels = bus, entry.topic, entry.name
            before = found.get(key, [0] * len(entry.latencies))
            found[key] = [a + b for a, b in zip(before, entry.latencies, strict=True)]
    for labels, octaves in found.items():
        so_far, total, buckets = 0, 0.0, []
        for at, count in enumerate(octaves):
            so_far += count
            total += count * 0.75 * (_FIRST_NS << at) / 1e9
            bound = "+Inf" if at == len(octaves) - 1 else repr((_FIRST_NS << at) / 1e9)
            buckets.append((bound, so_far))
        family.add_metric(list(labels), buckets, total)
    return family
