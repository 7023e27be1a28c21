"""Topics come with whoever is first and go with who is last, their types beside them, and are read one by one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from events import ORDERS, RAW, SMALL, Order, Renamed, close_all, document, drain, opened, orders, schema_files, take
from support import SHM

import shmbus
from shmbus import Bus, Topic, _core, inspect
from shmbus._ledger.registry import Registry


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    with opened(bus_name) as bus:
        yield bus


# -- topics that nobody needs


@pytest.mark.parametrize("opening", ["publisher", "subscriber", "lossy", "removed group"])
def test_topic_is_forgotten(bus: Bus, opening: str) -> None:
    """A topic is gone with the last handle on it that leaves no event behind: its name may carry another type, and its
    schema has left /dev/shm."""
    with bus.publisher(RAW):
        kept = schema_files(bus)
        if opening == "publisher":
            bus.publisher(ORDERS).close()
        elif opening == "subscriber":
            bus.subscriber(ORDERS).close()
        elif opening == "lossy":
            bus.subscriber(ORDERS, mode="lossy").close()
        else:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("shmbus._core.MAX_WORKERS", 0)
                with pytest.raises(shmbus.CapacityError):
                    bus.worker(ORDERS, group="g")
        assert [t.name for t in document(bus).topics] == ["raw"]
        assert schema_files(bus) == kept
        with bus.subscriber(Topic("orders", Renamed, codec="json")) as sub:
            with bus.publisher(Topic("orders", Renamed, codec="json")) as pub:
                pub.publish(Renamed(1))
            assert take(sub, 1) == [Renamed(1)]


def test_topics_come_and_go(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times as many topics as a bus has room for may follow one another, their events in history or not."""
    monkeypatch.setattr(_core, "MAX_TOPICS", 128)
    for number in range(10 * 128):
        with bus.publisher(Topic(f"t{number}", Order, capacity=4096)) as pub:
            if number % 2:
                pub.publish(Order(number))
    found = document(bus)
    assert len(found.topics) <= 128
    assert len(schema_files(bus)) == len(found.topics)


def test_topics_in_use_are_not_given_away(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every topic has a handle, the next one is refused, with who holds them."""
    monkeypatch.setattr(_core, "MAX_TOPICS", 128)
    handles = [bus.publisher(Topic(f"t{number}", bytes, capacity=4096)) for number in range(128)]
    with pytest.raises(shmbus.CapacityError, match=rf"128 of 128 in use; held by process {os.getpid()} .*\(128\)"):
        bus.subscriber(RAW)
    handles[5].close()
    bus.subscriber(RAW).close()
    close_all(handles)


def test_another_type_ends_history(bus: Bus) -> None:
    """History of publishers that are gone does not keep a topic's name from a new definition."""
    with bus.publisher(ORDERS) as pub, bus.subscriber(ORDERS) as sub:
        pub.publish_many(orders(3))
        drain(sub)
    with Bus.attach(bus.name, supervise=False) as other:
        with other.subscriber(ORDERS, start="oldest") as sub:
            assert take(sub, 3) == orders(3)
        with other.publisher(Topic("orders", Renamed)) as new:
            new.publish(Renamed(1))
            with pytest.raises(shmbus.SchemaMismatchError):
                bus.publisher(ORDERS)


def test_owed_events_keep_a_topic(bus: Bus) -> None:
    """A group that is there, with or without events or workers, keeps the type of its topic."""
    bus.group(ORDERS, "g")
    for _ in range(2):
        different: list[Topic[Any]] = [Topic("orders", Renamed), Topic("orders", Order, codec="json")]
        for topic in different:
            with pytest.raises((shmbus.SchemaMismatchError, shmbus.ConfigError)):
                bus.publisher(topic)
        with bus.publisher(ORDERS) as pub:
            pub.publish_many(orders(3))
    with bus.worker(ORDERS, group="g") as worker:
        assert sorted(take(worker, 6)) == sorted(orders(3) * 2)


def test_losses_outlive_their_topic(bus: Bus) -> None:
    """What subscribers of a forgotten topic lost stays in the table of losses."""
    with bus.publisher(SMALL, name="p") as pub, bus.subscriber(SMALL, name="s"):
        pub.publish_many(orders(3))
    bus.subscriber(Topic("small", Renamed)).close()
    assert not document(bus).topics
    (lost,) = bus.losses()
    assert (lost.consumer, lost.publisher, lost.cause, lost.count) == ("s", "p", "abandoned", 3)


def test_tail_follows_a_topic(bus: Bus) -> None:
    """A reader from outside goes on with a topic that was forgotten and has come back with another type."""
    with bus.publisher(RAW) as pub, inspect.Tail(bus.name, "raw") as tail:
        pub.publish(b"x")
        assert [t.event for t in tail.read()] == [b"x"]
        pub.close()
        bus.subscriber(Topic("raw", Order)).close()
        with bus.publisher(Topic("other", Order)), bus.publisher(Topic("raw", Order)) as again:
            again.publish(Order(1))
            assert [t.event for t in tail.read()] == [{"id": 1, "cents": 0}]


# -- schemas


def big_type(fields: int) -> Any:
    return msgspec.defstruct("Big", [(f"a_field_with_a_name_of_its_own_{number}", int) for number in range(fields)])


def test_a_schema_weighs_nothing_in_the_document(bus: Bus) -> None:
    """What the document says of a topic does not grow with its type, and readers find the whole type all the same."""
    big = Topic("big", big_type(5000))
    with bus.publisher(big), bus.publisher(Topic("small", big_type(1))):
        sizes = [len(msgspec.msgpack.encode(topic)) for topic in document(bus).topics]
        assert max(sizes) < 200
        with pytest.raises(shmbus.SchemaMismatchError, match="_4999"):
            bus.subscriber(Topic("big", big_type(4999)))
        with pytest.raises(shmbus.ConfigError, match="_own_0: required"):
            inspect.publish_json(bus.name, "big", '{"a_field_with_a_name_of_its_own_7": "x"}')


@pytest.mark.parametrize("damage", ["gone", "cut", "magic", "bytes", "symlink"])
def test_hostile_schema(bus: Bus, damage: str) -> None:
    """A schema that somebody damaged gives errors of ours to who needs it; events pass all the same."""
    with bus.publisher(ORDERS) as pub, bus.subscriber(ORDERS) as sub:
        (name,) = schema_files(bus)
        path = SHM / name
        content = path.read_bytes()
        if damage in ("gone", "symlink"):
            path.unlink()
        if damage == "symlink":
            path.symlink_to("/etc/hostname")
        if damage == "cut":
            path.write_bytes(content[:10])
        if damage == "magic":
            path.write_bytes(b"x" + content[1:])
        if damage == "bytes":
            path.write_bytes(content[:-1] + b"x")
        expected = (shmbus.SchemaMismatchError, shmbus.CorruptSegmentError, shmbus.AccessError)
        with pytest.raises(expected):
            bus.publisher(Topic("orders", Renamed))
        for reader in (lambda: inspect.Tail(bus.name, "orders"), lambda: inspect.publish_json(bus.name, "orders", "1")):
            with pytest.raises((*expected, shmbus.BusNotFoundError)):
                reader()
        with bus.publisher(ORDERS) as second:
            pub.publish(Order(1))
            second.publish(Order(2))
        assert sorted(take(sub, 2)) == orders(2)
        assert bus.stats().topics[0].type == "Order"
        path.unlink(missing_ok=True)


# -- a part of the document


def test_membership(bus: Bus) -> None:
    """What a handle reads of its topic is what the whole document says of it, and is read anew when it changes."""
    registry: Registry = bus._session.registry
    assert registry.membership(0) is None
    with bus.publisher(ORDERS), bus.subscriber(ORDERS), bus.subscriber(RAW), bus.worker(ORDERS, group="g"):
        found, whole = registry.membership(0), document(bus)
        assert found is not None
        assert found.topic == whole.topic_named("orders")
        assert found.consumers == [c for c in whole.consumers if c.topic == 0]
        assert (found.publishers, found.workers, found.rings) == (whole.publishers, whole.workers, whole.rings)
        with bus.subscriber(RAW):
            assert registry.membership(0) is found, "nothing was decoded for somebody else's change"
        with bus.subscriber(ORDERS):
            assert len(registry.membership(0).consumers) == 3  # type: ignore[union-attr]
    assert registry.membership(0) is not None, "a group is there"
    assert registry.membership(1) is None
    assert registry.membership(2) is None
