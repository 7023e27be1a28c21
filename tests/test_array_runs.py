"""Runs: rows that were published together say how many follow, so that a receiver need not look at each of them."""

from __future__ import annotations

import glob
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from events import opened
from hostile import RECORDS
from records import TRADES, books, rows_of, trades

import shmbus

np = pytest.importorskip("numpy", reason="arrays of records need NumPy")

META = RECORDS + 8
"""Of the first record of a ring: length 32, kind 8, flags 8, and 16 bits of what follows."""


@contextmanager
def ring_of(bus: str) -> Iterator[mmap.mmap]:
    """The one ring of a bus, to be written to."""
    (path,) = glob.glob(f"/dev/shm/shmbus-{bus}:{os.geteuid()}:ring-*")
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        yield memory


def test_more_than_a_record_can_say(bus_name: str) -> None:
    """A run goes on behind the 65,535 rows that its first can tell of, whole or in parts."""
    topic = shmbus.Topic("trades", TRADES.type, codec="record", capacity=1 << 26)
    rows = np.zeros(150_000, topic.dtype)
    rows["time"] = np.arange(len(rows))
    with opened(bus_name) as bus, bus.publisher(topic) as publisher, bus.subscriber(topic, name="s") as subscriber:
        assert publisher.publish_array(rows) == len(rows)
        assert subscriber.receive(0).time == 0
        arrays = subscriber.arrays(100_000)
        first = next(arrays)
        assert len(first) == 100_000
        assert np.array_equal(first["time"], rows["time"][1:100_001])
        assert np.array_equal(next(arrays)["time"], rows["time"][100_001:])
        assert books(bus, "s").delivered == 100_001


def test_a_run_goes_on_over_calls(bus_name: str) -> None:
    """Rows of several calls, of one event and of many, make one array, in order."""
    events = trades(60)
    with opened(bus_name) as bus, bus.publisher(TRADES) as publisher, bus.subscriber(TRADES) as subscriber:
        for start in range(0, 60, 20):
            publisher.publish(events[start])
            publisher.publish_array(rows_of(events[start + 1 : start + 10]))
            publisher.publish_many(events[start + 10 : start + 20])
        assert next(subscriber.arrays())["time"].tolist() == [event.time for event in events]


def test_the_newest_of_a_run(bus_name: str) -> None:
    """Who wants the newest event alone gets the last row of an array."""
    events = trades(50)
    with opened(bus_name) as bus, bus.publisher(TRADES) as publisher:
        with bus.subscriber(TRADES, mode="latest") as subscriber:
            publisher.publish_array(rows_of(events))
            assert subscriber.receive(0) == events[-1]
            assert subscriber.try_receive() is None


@pytest.mark.parametrize("says", [0, 3, 18, 20, 25, 0xFFFF])
def test_what_a_run_says_is_not_believed(bus_name: str, says: int) -> None:
    """A ring whose first row lies about how many follow shows what was published, and nothing else."""
    events = trades(20)
    with opened(bus_name) as bus, bus.publisher(TRADES) as publisher, bus.subscriber(TRADES) as subscriber:
        publisher.publish_array(rows_of(events))
        with ring_of(bus_name) as memory:
            length, kind, flags, follow = struct.unpack_from("<IBBH", memory, META)
            assert (kind, flags, follow) == (1, 2, 19)
            struct.pack_into("<IBBH", memory, META, length, kind, flags, says)
        assert next(subscriber.arrays())["time"].tolist() == [event.time for event in events]
        assert subscriber.try_receive() is None


def test_a_run_whose_end_is_another_record(bus_name: str) -> None:
    """A ring whose rows are not where the first one says is corrupt where they are not, and told so."""
    events = trades(20)
    with opened(bus_name) as bus, bus.publisher(TRADES) as publisher, bus.subscriber(TRADES) as subscriber:
        publisher.publish_array(rows_of(events))
        with ring_of(bus_name) as memory:
            length, *_ = struct.unpack_from("<IBBH", memory, META)
            span = (24 + length + 7) // 8 * 8
            for row in (5, 19):
                struct.pack_into("<Q", memory, RECORDS + row * span, 999)
        arrays = subscriber.arrays()
        assert next(arrays)["time"].tolist() == [event.time for event in events[:5]]
        with pytest.raises(shmbus.CorruptSegmentError):
            next(arrays)
