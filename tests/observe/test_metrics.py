"""Metrics: what a scrape says agrees with the books, and no counter ever falls."""

from __future__ import annotations

import signal
from collections import defaultdict
from collections.abc import Iterator

import pytest
from support import Processes, eventually, line

import shmbus
from shmbus import inspect
from shmbus._ledger import past

pytest.importorskip("prometheus_client", reason="the extra serve is not installed")

from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry

from shmbus.observe import metrics

NUMBERS = shmbus.Topic("numbers", int, capacity=1 << 14)

Key = tuple[str, frozenset[tuple[str, str]]]


def scrape(registry: CollectorRegistry) -> dict[Key, float]:
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(found: dict[Key, float], name: str, **labels: str) -> float:
    return found[f"shmbus_{name}", frozenset(labels.items())]


def total(found: dict[Key, float], name: str, **labels: str) -> float:
    return sum(v for (n, ls), v in found.items() if n == f"shmbus_{name}" and set(labels.items()) <= ls)


class Watched:
    """Scrapes, each of which must have no counter below that of the one before."""

    def __init__(self, bus: str) -> None:
        self.registry = metrics.registry([bus])
        self.before: dict[Key, float] = {}

    def look(self) -> dict[Key, float]:
        found = scrape(self.registry)
        fallen = {
            key: (then, found.get(key))
            for key, then in self.before.items()
            if key[0].endswith(("_total", "_bucket", "_count", "_sum")) and found.get(key, -1) < then
        }
        assert not fallen
        self.before = found
        return found


def test_a_scrape_has_what_the_books_have(bus_name: str) -> None:
    """Published, delivered, dropped, depth, lag, blocked and latencies carry the labels and figures of the books."""
    with shmbus.Bus(bus_name) as bus, bus.publisher(NUMBERS, name="web", on_full="drop") as publisher:
        audit = bus.subscriber(NUMBERS, name="audit")
        lossy = bus.subscriber(NUMBERS, name="monitor", mode="lossy")
        group = bus.worker(NUMBERS, group="billing")
        for n in range(2000):
            publisher.publish(n)
        full = scrape(metrics.registry([bus_name]))
        audit.receive_many(200)
        lossy.receive_many(200)
        group.receive_many(200)
        stats = bus.stats()
        found = scrape(metrics.registry([bus_name]))
        names = {"bus": bus_name, "topic": "numbers"}
        assert value(found, "published_total", **names, publisher="web") == stats.publishers[0].published
        for consumer in stats.consumers:
            labels = {**names, "consumer": consumer.name}
            assert value(found, "offered_total", **labels) == consumer.offered
            assert value(found, "delivered_total", **labels) == consumer.delivered
            assert value(found, "depth", **labels) == consumer.depth
            assert value(found, "lag_seconds", **labels) > 0
            for cause in metrics.CAUSES:
                assert value(found, "dropped_total", **labels, cause=cause) == getattr(consumer, cause)
            assert value(found, "latency_seconds_count", **labels) == sum(consumer.latencies) > 0
        assert value(found, "up", bus=bus_name) == 1
        assert value(found, "blocked", **names, publisher="web") == 0
        assert value(full, "blocked_by", **names, publisher="web", consumer="audit") == 1
        assert value(found, "participants", bus=bus_name) == 1
        group.close()
        bus.remove_group(NUMBERS, "billing")


def test_openmetrics_is_well_formed(bus_name: str) -> None:
    """What is told in OpenMetrics parses under its strict rules, labels with quotes and backslashes included."""
    with shmbus.Bus(bus_name) as bus, bus.subscriber(NUMBERS, name='a"b\\c') as odd:
        with bus.publisher(NUMBERS) as publisher:
            publisher.publish(1)
            assert odd.receive(timeout=10) == 1
            text = openmetrics.generate_latest(  # type: ignore[no-untyped-call]
                metrics.registry([bus_name])
            ).decode()
    families = {family.name: family for family in parse_openmetrics(text)}  # type: ignore[no-untyped-call]
    assert families["shmbus_delivered"].type == "counter"
    assert families["shmbus_latency_seconds"].type == "histogram"
    assert {s.labels["consumer"] for s in families["shmbus_depth"].samples} == {'a"b\\c'}


def test_losses_have_exemplars(bus_name: str) -> None:
    """In OpenMetrics the counter of a loss has the trace that sent its first event; what is untraced has none."""
    pytest.importorskip("opentelemetry.sdk", reason="the SDK of OpenTelemetry is not installed")
    from tracing import Traced, parent

    traced = Traced()
    with shmbus.Bus(bus_name) as other, traced.instrument(shmbus.Bus(bus_name)) as bus:
        publisher, plain = bus.publisher(NUMBERS, name="web"), other.publisher(NUMBERS, name="plain")
        for name, by in (("traced", publisher), ("untraced", plain)):
            with bus.subscriber(NUMBERS, name=name):
                by.publish(1)
        registry = metrics.registry([bus_name])
        text = openmetrics.generate_latest(registry).decode()  # type: ignore[no-untyped-call]
        families = {family.name: family for family in parse_openmetrics(text)}  # type: ignore[no-untyped-call]
        told = {s.labels["consumer"]: s for s in families["shmbus_dropped"].samples if s.labels["cause"] == "abandoned"}
        assert [told[name].value for name in ("traced", "untraced")] == [1, 1]
        _, trace, span, _ = parent(traced.spans("send")[0]).split("-")
        exemplar = told["traced"].exemplar
        assert (exemplar.labels, exemplar.value) == ({"trace_id": trace, "span_id": span}, 1)
        [loss] = [one for one in bus.losses() if one.trace]
        assert float(exemplar.timestamp) == pytest.approx(loss.first_ns / 1e9)
        assert told["untraced"].exemplar is None
        assert len([s for family in families.values() for s in family.samples if s.exemplar]) == 1
        assert total(scrape(registry), "dropped_total", cause="abandoned") == 2
        plain.close()


def test_counters_survive_joins_and_leaves(bus_name: str) -> None:
    """Publishers and consumers that leave and come back under their names, or under others, take no count with them."""
    with shmbus.Bus(bus_name) as bus:
        bus.group(NUMBERS, "keeps")
        watched = Watched(bus_name)
        published = 0
        for turn in range(6):
            publisher = bus.publisher(NUMBERS, name=("web", "web", "other")[turn % 3])
            subscriber = bus.subscriber(NUMBERS, name="audit")
            worker = bus.worker(NUMBERS, group="keeps")
            publisher.publish_many(range(50))
            published += 50
            watched.look()
            subscriber.receive_many(30)
            worker.receive_many(50)
            worker.ack()
            watched.look()
            for handle in (publisher, subscriber, worker):
                handle.close()
                watched.look()
        found = watched.look()
        assert total(found, "published_total") == published
        assert value(found, "delivered_total", bus=bus_name, topic="numbers", consumer="keeps") == published
        assert value(found, "delivered_total", bus=bus_name, topic="numbers", consumer="audit") == 180
        assert total(found, "dropped_total", consumer="audit", cause="abandoned") == published - 180


def test_pools(bus_name: str) -> None:
    """What is in a publisher's pool is told in bytes, and what there is room for; who has none has no such series."""
    blobs = shmbus.Topic("blobs", memoryview, pool=1 << 20)
    with shmbus.Bus(bus_name) as bus, bus.publisher(blobs, name="camera") as publisher, bus.publisher(NUMBERS):
        subscriber = bus.subscriber(blobs, name="audit")
        publisher.publish(memoryview(bytes(5000)))
        found = scrape(metrics.registry([bus_name]))
        labels = {"bus": bus_name, "topic": "blobs", "publisher": "camera"}
        [stats] = [p for p in bus.stats().publishers if p.pool]
        assert value(found, "pool_bytes", **labels) == stats.pool_used >= 5000
        assert value(found, "pool_capacity_bytes", **labels) == stats.pool >= 1 << 20
        assert len([key for key in found if key[0] == "shmbus_pool_bytes"]) == 1
        subscriber.close()
        eventually(lambda: bus.stats().publishers[0].pool_used == 0, "it is free")
        assert value(scrape(metrics.registry([bus_name])), "pool_bytes", **labels) == 0


def test_who_is_just_leaving_is_there(bus_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that meets a subscriber between the two commits of its departure tells of it all the same."""
    from shmbus._ledger import books, departures

    with shmbus.Bus(bus_name) as bus:
        subscriber = bus.subscriber(NUMBERS, name="audit")
        look = books._Books(bus._session.registry, bus._session.rings)

        def die(point: str) -> None:
            if point == "close.leaving":
                raise ZeroDivisionError

        monkeypatch.setattr(departures, "reach", die)
        with pytest.raises(ZeroDivisionError):
            subscriber.close()
        assert [(c.name, c.state) for c in look.consumers()] == [("audit", "closed")]
        monkeypatch.undo()
        subscriber.close()


def test_a_killed_process_takes_no_count_with_it(bus_name: str, processes: Processes) -> None:
    """A publisher and a subscriber that are killed keep their counts, and are counted as one death."""
    with shmbus.Bus(bus_name) as bus, bus.subscriber(NUMBERS, name="audit") as audit:
        watched = Watched(bus_name)
        child = processes.spawn(publish_and_wait, bus_name)
        assert line(child) == "ready"
        watched.look()
        child.send_signal(signal.SIGKILL)
        eventually(lambda: all(p.state == "dead" for p in bus.stats().publishers) or None, "the death is noticed")
        watched.look()
        assert len(audit.receive_many(100)) == 100
        eventually(lambda: len(bus.stats().participants) == 1, "the dead is reclaimed")
        found = watched.look()
        assert value(found, "published_total", bus=bus_name, topic="numbers", publisher="web") == 100
        assert (
            value(found, "dropped_total", bus=bus_name, topic="numbers", consumer="sleeper", cause="abandoned") == 100
        )
        assert value(found, "deaths_total", bus=bus_name) == 1


def publish_and_wait(bus_name: str) -> None:
    import signal

    import shmbus

    topic = shmbus.Topic("numbers", int, capacity=1 << 14)
    bus = shmbus.Bus(bus_name)
    sleeper = bus.subscriber(topic, name="sleeper")
    publisher = bus.publisher(topic, name="web")
    publisher.publish_many(range(100))
    print("ready", flush=True)
    while sleeper is not None:
        signal.pause()


def test_names_of_the_gone_are_bounded(bus_name: str) -> None:
    """Past 32 names of publishers that are gone the oldest are merged, and the sum stays."""
    with shmbus.Bus(bus_name) as bus:
        bus.group(NUMBERS, "all")
        registry = metrics.registry([bus_name])
        with bus.worker(NUMBERS, group="all") as worker:
            for turn in range(60):
                with bus.publisher(NUMBERS, name=f"job-{turn}") as publisher:
                    publisher.publish_many(range(10))
                assert len(worker.receive_many(10)) == 10
                worker.ack()
                assert total(scrape(registry), "published_total") == 10 * (turn + 1)
        found = scrape(registry)
        named = [key for key in found if key[0] == "shmbus_published_total"]
        assert len(named) <= past.MAX_DEPARTED + 6  # the newest are history, and still there themselves
        assert value(found, "published_total", bus=bus_name, topic="numbers", publisher=past.DEPARTED) > 100


def test_a_forgotten_topic_keeps_its_sums(bus_name: str) -> None:
    """A topic that nobody needs any more leaves its totals under its name, and goes on with them when it comes back."""
    with shmbus.Bus(bus_name) as bus:
        registry = metrics.registry([bus_name])
        for turn in range(3):
            with bus.subscriber(NUMBERS, name="audit") as audit, bus.publisher(NUMBERS, name="web") as publisher:
                publisher.publish_many(range(200))
                assert len(audit.receive_many(199)) == 199
            give_up_history(bus)
            assert not bus.stats().topics
            found = scrape(registry)
            assert total(found, "published_total", topic="numbers") == 200 * (turn + 1)
            assert total(found, "delivered_total", topic="numbers") == 199 * (turn + 1)
            assert total(found, "dropped_total", topic="numbers", cause="abandoned") == turn + 1
        assert total(scrape(registry), "latency_seconds_count", topic="numbers") > 0


def give_up_history(bus: shmbus.Bus) -> None:
    """What somebody does who finds no room."""
    from shmbus._ledger import departures, retired, topics

    session = bus._session
    with session.registry.locked() as change:
        departures.release(change, session.rings, retired.history(change.document, session.rings))
        topics.forget_unused(change)


def test_forgotten_topics_are_bounded(bus_name: str) -> None:
    """Past 64 topics that were forgotten the oldest are merged, and the sum stays."""
    with shmbus.Bus(bus_name) as bus:
        for turn in range(past.MAX_FORGOTTEN + 6):
            with bus.publisher(shmbus.Topic(f"job-{turn}", int, capacity=4096)) as publisher:
                publisher.publish(turn)
            give_up_history(bus)
        stats = bus.stats()
        assert len(stats.departed) == past.MAX_FORGOTTEN + 1
        by_topic: defaultdict[str, int] = defaultdict(int)
        for gone in stats.departed:
            by_topic[gone.topic] += gone.published
        assert by_topic[past.FORGOTTEN] == 6
        assert sum(by_topic.values()) == past.MAX_FORGOTTEN + 6


def test_what_cannot_be_read_fails_no_scrape(bus_name: str) -> None:
    """A bus that is not there is told as down beside one that is."""
    with shmbus.Bus(bus_name) as bus:
        found = scrape(metrics.registry([bus.name, f"{bus_name}-no"]))
    assert value(found, "up", bus=bus_name) == 1
    assert value(found, "up", bus=f"{bus_name}-no") == 0


def test_a_counter_that_flickers_does_not_fall(bus_name: str) -> None:
    """A count that a reader in the middle of an event takes back is told as the most that was seen."""
    with shmbus.Bus(bus_name) as bus, bus.subscriber(NUMBERS, name="audit") as audit:
        assert audit.try_receive() is None
        base = inspect.stats_of(bus_name)
        looks: Iterator[int] = iter((5, 4, 6))
        consumer = base.consumers[0]

        def look(_: str) -> shmbus.BusStats:
            import msgspec

            changed = msgspec.structs.replace(consumer, overrun=next(looks))
            return msgspec.structs.replace(base, consumers=(changed,))

        registry = CollectorRegistry(auto_describe=True)
        registry.register(metrics.BusCollector([bus_name], look))
        seen = [total(scrape(registry), "dropped_total", cause="overrun") for _ in range(3)]
    assert seen == [5, 5, 6]
