"""A look at the books while others come and go all the time, and where somebody removed a ring by hand."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator

import pytest
from events import ORDERS, Order, books, drain, opened, orders, publisher, take
from support import SHM, Processes, entries, eventually, line

import shmbus
from shmbus import Bus, inspect
from shmbus._ledger import books as _books
from shmbus._ledger import members
from shmbus._ledger.look import Look
from shmbus._ledger.registry import Registry
from shmbus._shm.names import object_prefix
from shmbus._shm.rings import Rings


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    with opened(bus_name) as bus:
        yield bus


def come_and_go(name: str, kind: str) -> None:
    """Others that come and go as fast as they can, until stdin is closed."""
    import sys
    import threading

    from events import ORDERS, Order

    import shmbus

    ended = threading.Event()

    def watch() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=watch, daemon=True).start()
    with shmbus.Bus(name, supervise=False) as bus:
        print("ready", flush=True)
        while not ended.is_set():
            if kind == "publishers":
                with bus.publisher(ORDERS, name="churn") as pub:
                    pub.publish_many([Order(1), Order(2)])
            elif kind == "subscribers":
                with bus.subscriber(ORDERS, name="churn") as sub, bus.subscriber(ORDERS, mode="lossy"):
                    sub.try_receive()
            else:
                topic = shmbus.Topic("other", Order, capacity=4096)
                with bus.publisher(topic), bus.worker(topic, group="h"):
                    pass


@pytest.mark.parametrize("kind", ["publishers", "subscribers", "others"])
def test_stats_under_churn(bus: Bus, kind: str, processes: Processes) -> None:
    """However often the document changes, every look comes to its end, every consumer's books balance, and what it was
    offered never goes back."""
    with bus.publisher(ORDERS) as pub, bus.subscriber(ORDERS, name="s") as sub, bus.worker(ORDERS, group="g") as worker:
        child = processes.spawn(come_and_go, bus.name, kind)
        assert line(child) == "ready"
        seen = {"s": 0, "g": 0}
        versions = set()
        for number in range(300):
            pub.publish(Order(number))
            found = bus.stats() if number % 2 else inspect.stats_of(bus.name)
            bus.losses()
            versions.add(bus._session.registry.read().next_id)
            for consumer in found.consumers:
                assert consumer.offered == consumer.delivered + consumer.depth + consumer.dropped, consumer
                for source in consumer.publishers:
                    assert source.offered == source.delivered + source.depth + source.dropped, source
            for name, before in seen.items():
                (mine,) = [c for c in found.consumers if c.name == name]
                assert mine.offered >= before
                seen[name] = mine.offered
            drain(sub)
            drain(worker)
        assert len(versions) > 20, "the bus did change"
        child.communicate()
        drain(sub)
        drain(worker)
        final = bus.stats()
        assert all(c.depth == 0 for c in final.consumers if c.name in seen)


def ring_file(bus: Bus, group: bool) -> int:
    """Remove the file of the first broadcast ring, or of the first work ring; returns its id."""
    ring = next(r for r in bus._session.registry.read().rings if bool(r.group) == group)
    (SHM / f"{object_prefix(bus.name)}ring-{ring.id}").unlink()
    return ring.id


@pytest.mark.parametrize("group", [False, True])
def test_missing_ring(bus: Bus, group: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A ring that somebody removed by hand is told of, once in the log, and keeps no look from what there still is."""
    caplog.set_level(logging.ERROR, "shmbus.loss")
    with bus.publisher(ORDERS, name="p") as pub, bus.publisher(ORDERS, name="q") as other:
        with bus.subscriber(ORDERS, name="s") as sub, bus.worker(ORDERS, group="g"):
            pub.publish_many(orders(3))
            other.publish_many(orders(2))
            take(sub, 5)
            ring = ring_file(bus, group)
            found = inspect.stats_of(bus.name)
            assert found.lost_rings == 1
            by_name = {c.name: c for c in found.consumers}
            assert by_name["s"].delivered == (5 if group else 2)
            assert by_name["g"].offered == (2 if group else 5)
            assert {p.name for p in found.publishers} == {"p", "q"}
            registry, rings = Registry.peek(bus.name), Rings(object_prefix(bus.name), writable=False)
            for _ in range(3):
                assert len(_books.progress(registry, rings)) == 2
                assert _books.losses(registry, rings) == []
            registry.close()
            lines = [record.getMessage() for record in caplog.records]
            assert len([text for text in lines if f"ring {ring}" in text]) == 2, "once for each who looked"
    assert not [c for c in bus.stats().consumers if c.state == "ok"]


def test_supervisor_and_a_missing_ring(bus_name: str, processes: Processes) -> None:
    """A supervisor buries the dead of a bus of which a ring is missing, and goes on when everybody has left."""
    with opened(bus_name) as bus:
        child = processes.run([sys.executable, "-m", "shmbus", "supervise", bus_name])
        eventually(lambda: bus.stats().supervisor.pid)
        code = """
            import sys
            from events import *
            bus = shmbus.Bus(sys.argv[1], supervise=False)
            handles = bus.subscriber(ORDERS, name="victim"), bus.publisher(ORDERS, name="victim")
            print("ready")
            sys.stdin.read()
        """
        victim = processes.spawn(code, bus_name)
        assert line(victim) == "ready"
        with bus.publisher(ORDERS, name="p"):
            ring_file(bus, group=False)
            victim.kill()
            victim.wait()
            eventually(lambda: len(bus.stats().participants) == 1)
            assert publisher(bus, "p").state == "ok"
            assert child.poll() is None
    eventually(lambda: not entries(bus_name))
    assert child.wait() == 0


def test_removed_while_looking(bus_name: str) -> None:
    """A bus that is removed in the middle of a look is closed; one that was removed before is not there."""
    with opened(bus_name) as opened_bus, opened_bus.publisher(ORDERS):
        registry = Registry.peek(bus_name)
        inspect.remove(bus_name, force=True)
        with pytest.raises(shmbus.ClosedError):
            _books.stats(registry, Rings(object_prefix(bus_name), writable=False))
        registry.close()
        with pytest.raises(shmbus.BusNotFoundError):
            inspect.stats_of(bus_name)


def test_books_of_one_that_leaves(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subscriber that leaves in the middle of a look is on the books once, with all that it got and lost."""
    with bus.publisher(ORDERS, name="p") as pub:
        sub = bus.subscriber(ORDERS, name="s")
        pub.publish_many(orders(5))
        take(sub, 2)
        terms = Look.terms

        def leaving(self: Look, *arguments: object) -> object:
            sub.close()
            return terms(self, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(Look, "terms", leaving)
        assert books(bus, "s") == {"offered": 5, "delivered": 2, "abandoned": 3}
        sub = bus.subscriber(ORDERS, name="t")
        pub.publish_many(orders(4))
        (lost,) = [loss for loss in bus.losses() if loss.consumer == "t"]
        assert (lost.cause, lost.count) == ("abandoned", 4)


def test_books_of_one_that_comes_back(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that leaves in the middle of a look and is back under its name is on the books once, with its totals."""
    with bus.publisher(ORDERS, name="p") as pub:
        subs = [bus.subscriber(ORDERS, name="s")]
        pub.publish_many(orders(5))
        take(subs[0], 2)
        terms = Look.terms

        def coming_back(self: Look, *arguments: object) -> object:
            subs[0].close()
            if len(subs) < 4:  # and is gone again when it is looked up, three times
                subs.insert(0, bus.subscriber(ORDERS, name="s"))
            return terms(self, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(Look, "terms", coming_back)
        assert [(c.name, c.delivered, c.abandoned) for c in bus.stats().consumers] == [("s", 2, 3)]
        monkeypatch.undo()


def test_books_of_one_that_is_just_coming(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each moment of a subscriber's return the books have what went under its name, once."""
    seen = []

    def look(point: str) -> None:
        seen.append([(c.name, c.offered) for c in bus.stats().consumers])

    with bus.publisher(ORDERS, name="p") as pub:
        with bus.subscriber(ORDERS, name="s"):
            pub.publish_many(orders(5))
        monkeypatch.setattr(members, "reach", look)
        with bus.subscriber(ORDERS, name="s"):
            pass
    assert seen == [[("s", 5)]] * 3


def die_joining(name: str, point: str) -> None:
    from events import ORDERS

    from shmbus import Bus
    from shmbus._shm import failpoint

    bus = Bus(name, supervise=False)
    failpoint.arm(point)
    bus.subscriber(ORDERS, name="s")


@pytest.mark.parametrize("point", ["subscriber.joining", "subscriber.ring", "subscriber.joined"])
def test_one_that_dies_coming_back(bus: Bus, processes: Processes, point: str) -> None:
    """Who is killed while it comes back under a name leaves the totals of that name as they were, and one entry."""
    with bus.publisher(ORDERS, name="p") as pub:
        with bus.subscriber(ORDERS, name="s"):
            pub.publish_many(orders(5))
        assert processes.spawn(die_joining, bus.name, point).wait() == -signal.SIGKILL
        with bus._session.locked() as change:
            bus._session.reclaim_dead(change)
        assert [(c.name, c.state, c.offered) for c in bus.stats().consumers] == [("s", "dead", 5)]
        with bus.subscriber(ORDERS, name="s"):
            pub.publish_many(orders(2))
        assert [(c.name, c.state, c.offered) for c in bus.stats().consumers] == [("s", "closed", 7)]
