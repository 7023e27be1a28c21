"""A journal: what is written is replayed as it was, by time, by publisher, at a pace; and what is refused."""

from __future__ import annotations

import datetime
import gc
import os
import sqlite3
import time
import warnings
from pathlib import Path
from typing import Any

import msgspec
import pytest
from events import ORDERS, Order, Renamed, opened, orders
from journals import groups, ids, recording, settled
from support import eventually

import shmbus
from shmbus.journal import Recorder

WIDE = shmbus.Topic("wide", dict[str, int])


def test_replay_is_what_subscribers_got(bus_name: str, tmp_path: Path) -> None:
    """A replayed message has the event, the publisher, the stamp and the headers of the one that was received."""
    path = tmp_path / "orders.journal"
    with opened(bus_name) as bus, recording(bus, path):
        subscriber, publisher = bus.subscriber(ORDERS), bus.publisher(ORDERS, name="web")
        publisher.publish(Order(1), headers={"trace": "a", "deep": {"b": [1, 2]}})
        publisher.publish_many(orders(5, 2))
        live = [message for _, message in zip(range(6), subscriber.messages(), strict=False)]
        eventually(lambda: settled(bus), "the journal has all")
        with shmbus.Journal(path) as journal:
            replayed = list(journal.replay(ORDERS))
            assert journal.topics == ("orders",)
    for was, now in zip(live, replayed, strict=True):
        assert (was.event, was.publisher, was.time_ns, was.headers) == (
            now.event,
            now.publisher,
            now.time_ns,
            now.headers,
        )
        assert was.sequence == now.sequence


def test_acked_means_on_disk(bus_name: str, tmp_path: Path) -> None:
    """While another connection holds the file's write lock nothing is acked; then all is."""
    path = tmp_path / "orders.journal"
    with opened(bus_name) as bus, recording(bus, path), bus.publisher(ORDERS) as publisher:
        publisher.publish(Order(1))
        eventually(lambda: settled(bus))
        held = sqlite3.connect(path, isolation_level=None)
        held.execute("BEGIN IMMEDIATE")
        publisher.publish(Order(2))
        eventually(lambda: groups(bus)[0].claimed == 1, "the recorder has it in hand")
        assert ids(path) == [1]
        assert groups(bus)[0].depth == 1
        held.execute("ROLLBACK")
        held.close()
        eventually(lambda: settled(bus))
    assert ids(path) == [1, 2]


def test_spans_and_publishers(bus_name: str, tmp_path: Path) -> None:
    """`since` is in, `until` is out, as ns, seconds and datetimes; `publisher` selects; several come by time."""
    path = tmp_path / "orders.journal"
    with opened(bus_name) as bus, recording(bus, path):
        a, b = bus.publisher(ORDERS, name="a"), bus.publisher(ORDERS, name="b")
        for id in range(1, 41):
            (a if id % 3 else b).publish(Order(id))
        eventually(lambda: settled(bus))
    assert ids(path) == list(range(1, 41))
    assert ids(path, publisher="b") == list(range(3, 41, 3))
    with shmbus.Journal(path) as journal:
        stamps = [message.time_ns for message in journal.replay(ORDERS)]
    assert ids(path, since=stamps[9], until=stamps[19]) == list(range(10, 20))
    assert ids(path, since=time.time() + 60) == []
    assert ids(path, until=datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)) == list(range(1, 41))
    with pytest.raises(shmbus.ConfigError, match="since is a datetime"):
        ids(path, since="yesterday")
    with pytest.raises(shmbus.ConfigError, match="speed"):
        ids(path, speed=0)


def test_speed_keeps_pauses(bus_name: str, tmp_path: Path) -> None:
    """At half the speed a replay takes at least twice what the events took."""
    path = tmp_path / "orders.journal"
    with opened(bus_name) as bus, recording(bus, path), bus.publisher(ORDERS) as publisher:
        publisher.publish(Order(1))
        time.sleep(0.05)  # not a wait: the pause that is replayed
        publisher.publish(Order(2))
        eventually(lambda: settled(bus))
    began = time.monotonic()
    assert ids(path, speed=0.5) == [1, 2]
    assert time.monotonic() - began >= 0.1


def test_other_schema_is_refused(bus_name: str, tmp_path: Path) -> None:
    """Writing or reading with another type than the journal has is refused, and the difference is named."""
    path = tmp_path / "orders.journal"
    other = shmbus.Topic("orders", Renamed)
    with opened(bus_name) as bus:
        with recording(bus, path), bus.publisher(ORDERS) as publisher:
            publisher.publish(Order(1))
            eventually(lambda: settled(bus))
        with (
            shmbus.Journal(path) as journal,
            pytest.raises(shmbus.SchemaMismatchError, match="number: only in ours"),
        ):
            list(journal.replay(other))
        with pytest.raises(shmbus.SchemaMismatchError):
            bus.subscriber(other, start=shmbus.Journal(path))
    with opened(bus_name + "2") as bus, Recorder(bus, other, path) as recorder:
        with pytest.raises(shmbus.SchemaMismatchError, match="in journal"):
            recorder.run()


def test_a_reader_of_an_older_schema(bus_name: str, tmp_path: Path) -> None:
    """With schema="evolve" a reader with a new field that has a default reads what was written without it."""

    class Newer(msgspec.Struct, frozen=True):
        id: int
        cents: int = 0
        note: str = "none"

    path = tmp_path / "orders.journal"
    with opened(bus_name) as bus, recording(bus, path), bus.publisher(ORDERS) as publisher:
        publisher.publish(Order(1, 5))
        eventually(lambda: settled(bus))
    with shmbus.Journal(path) as journal:
        [message] = journal.replay(shmbus.Topic("orders", Newer, schema="evolve"))
    assert message.event == Newer(1, 5, "none")


def test_one_writer(bus_name: str, tmp_path: Path) -> None:
    """A second writer of a file is told who has it; a copy of the file is told who has its group."""
    path, copy = tmp_path / "orders.journal", tmp_path / "copy.journal"
    with opened(bus_name) as bus:
        with recording(bus, path):
            with pytest.raises(shmbus.JournalError, match="being written by process"):
                Recorder(bus, ORDERS, path)
            with sqlite3.connect(path) as source, sqlite3.connect(copy) as target:
                source.backup(target)
            source.close()
            target.close()
            with Recorder(bus, ORDERS, copy) as recorder, pytest.raises(shmbus.ConfigError, match="run by process"):
                recorder.run()
        Recorder(bus, ORDERS, path).close()


def test_what_is_no_journal(tmp_path: Path) -> None:
    """A file that is missing, another database, no database, and a later version are each refused in one sentence."""
    with pytest.raises(shmbus.JournalError, match="no journal at"):
        shmbus.Journal(tmp_path / "missing")
    other = tmp_path / "other"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE t (x)")
    db.close()
    with pytest.raises(shmbus.JournalError, match="is no journal of shmbus"):
        shmbus.Journal(other)
    text = tmp_path / "text"
    text.write_text("not a database " * 100)
    with pytest.raises(shmbus.JournalError, match="nothing of it can be read"):
        shmbus.Journal(text)
    assert text.read_text().startswith("not a database")


def test_a_later_version(bus_name: str, tmp_path: Path) -> None:
    """A journal of a version that this shmbus does not know is refused with both numbers, and left as it is."""
    path = tmp_path / "orders.journal"
    with opened(bus_name) as bus:
        Recorder(bus, ORDERS, path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 9")
    db.close()
    for attempt in (lambda: shmbus.Journal(path), lambda: Recorder(bus, ORDERS, path)):
        with pytest.raises(shmbus.JournalError, match="has version 9; this shmbus reads 1"):
            attempt()


def test_retention_by_age_and_size(bus_name: str, tmp_path: Path) -> None:
    """Past `max_bytes` and `max_age` the oldest events go, the newest stay, and the file shrinks."""
    path = tmp_path / "orders.journal"
    blob = shmbus.Topic("raw", bytes)
    with opened(bus_name) as bus, bus.publisher(blob) as publisher:
        with recording(bus, path, blob, max_bytes=1 << 20) as recorder:
            for _ in range(400):
                publisher.publish(bytes(10_000))
            eventually(lambda: settled(bus))
            publisher.publish(b"last")
            eventually(lambda: settled(bus) and recorder._store._bytes() <= 1 << 20)  # type: ignore[attr-defined]
        with shmbus.Journal(path) as journal:
            kept = [message.event for message in journal.replay(blob)]
        assert 0 < len(kept) < 120
        assert kept[-1] == b"last"
        with recording(bus, path, blob, max_age=1e-3):
            eventually(lambda: not _count(path, blob), "the old ones have gone")
    assert path.stat().st_size < 1 << 20


def _count(path: Path, topic: shmbus.Topic[bytes]) -> int:
    with shmbus.Journal(path) as journal:
        return sum(1 for _ in journal.replay(topic))


def test_sync_gathers(bus_name: str, tmp_path: Path) -> None:
    """With `sync` events that come apart are one batch on the disk; without it each is written as it comes."""
    path = tmp_path / "orders.journal"
    with opened(bus_name) as bus, bus.publisher(ORDERS) as publisher:
        with recording(bus, path, sync=3600.0) as recorder:
            for order in orders(5):
                publisher.publish(order)
                eventually(lambda id=order.id: groups(bus)[0].claimed == id)  # type: ignore[misc]
            assert ids(path) == []
            recorder.stop()
            eventually(lambda: recorder.written == 5, "a stop writes what is in hand")
    with shmbus.Journal(path) as journal:
        assert journal.store.last() == 1
    assert ids(path) == [1, 2, 3, 4, 5]


def test_every_codec(bus_name: str, tmp_path: Path) -> None:
    """Topics of msgpack, JSON, pickle and raw bytes come back as they were, out of one file."""
    path = tmp_path / "all.journal"
    topics: list[tuple[shmbus.Topic[Any], object]] = [
        (shmbus.Topic("one", Order), Order(1)),
        (shmbus.Topic("two", Order, codec="json"), Order(2)),
        (shmbus.Topic("three", tuple, codec="pickle"), (1, {2, 3})),
        (shmbus.Topic("four", bytes), b"\0\xff"),
        (shmbus.Topic("five", Order, codec="record"), Order(5, 6)),
    ]
    with opened(bus_name) as bus:
        for topic, event in topics:
            with recording(bus, path, topic), bus.publisher(topic) as publisher:
                publisher.publish(event)
                eventually(lambda: settled(bus))
    with shmbus.Journal(path) as journal:
        for topic, event in topics:
            [message] = journal.replay(topic)
            assert message.event == event
            assert type(message.event) is type(event)
        [record] = journal.recorded("five")
        assert record.event == {"id": 5, "cents": 6}
        with pytest.raises(shmbus.ConfigError, match="has no topic 'wide'; it has one, two, three, four"):
            journal.replay(WIDE)


def test_a_stopped_reader_holds_up_no_checkpoint(bus_name: str, tmp_path: Path) -> None:
    """While a replay stands still in the middle, the file's WAL stays as small as it is without one."""
    path = tmp_path / "orders.journal"
    blob = shmbus.Topic("raw", bytes)
    with opened(bus_name) as bus, recording(bus, path, blob), bus.publisher(blob) as publisher:
        for _ in range(50):
            publisher.publish(bytes(100_000))
        eventually(lambda: settled(bus))
        with shmbus.Journal(path) as journal:
            replay = journal.replay(blob)
            next(replay)
            for _ in range(600):
                publisher.publish(bytes(100_000))
            eventually(lambda: settled(bus))
            assert Path(f"{path}-wal").stat().st_size < 25 << 20
            assert sum(1 for _ in replay) == 49


def test_a_topic_with_a_pool_is_refused(bus_name: str, tmp_path: Path) -> None:
    """A topic whose arrays lie in a pool is refused before anything is claimed."""
    pooled = shmbus.Topic("frames", memoryview, pool=1 << 20)
    with opened(bus_name) as bus, Recorder(bus, pooled, tmp_path / "frames.journal") as recorder:
        with pytest.raises(shmbus.ConfigError, match="has a pool"):
            recorder.run()


def test_nobody_closes_it(bus_name: str, tmp_path: Path) -> None:
    """A journal that is left to the collector lets go of its file without a warning."""
    path = tmp_path / "orders.journal"
    with opened(bus_name) as bus:
        Recorder(bus, ORDERS, path).close()
    gc.collect()  # what other tests have left
    before = len(os.listdir("/proc/self/fd"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        journal = shmbus.Journal(path)
        assert len(os.listdir("/proc/self/fd")) > before
        del journal
        gc.collect()
    assert not [str(warning.message) for warning in told]
    assert len(os.listdir("/proc/self/fd")) == before
