"""Records as arrays where rings overtake their reader, and where somebody wrote what is no row."""

from __future__ import annotations

import pytest
from events import opened
from records import SMALL, TRADES, Trade, books, rows_of, trades
from support import Processes

import shmbus

pytest.importorskip("numpy", reason="arrays of records need NumPy")


@pytest.mark.parametrize("call", ["arrays", "receive_array"])
def test_lossy(bus_name: str, call: str) -> None:
    """A lossy subscriber gets copies; what was overrun is a gap, and what it gets is whole and in order."""
    gaps: list[shmbus.Gap] = []
    with opened(bus_name) as bus, bus.publisher(SMALL) as publisher:
        subscriber = bus.subscriber(SMALL, mode="lossy", name="l", on_gap=gaps.append)
        publisher.publish_array(rows_of(trades(500)))
        rows = next(subscriber.arrays()) if call == "arrays" else subscriber.receive_array(500, 0)
        kept = rows["time"].tolist()
        assert rows.flags.writeable == (call == "receive_array")
        publisher.publish_array(rows_of(trades(500, 501)))
        assert rows["time"].tolist() == kept == list(range(501 - len(kept), 501))
        assert sum(gap.count for gap in gaps) == 500 - len(kept)
        assert books(bus, "l").delivered == len(kept)


def test_lossy_under_load(bus_name: str, processes: Processes) -> None:
    """While a publisher laps it, a lossy subscriber never sees half a row, and its books are exact."""
    code = """
import sys, shmbus
import numpy as np, records
topic = shmbus.Topic("small", records.Trade, codec="record", capacity=4096)
with shmbus.Bus(sys.argv[1], supervise=False) as bus, bus.publisher(topic) as p:
    rows = np.zeros(50, p.topic.dtype)
    for n in range(3000):
        rows["time"] = rows["price"] = rows["size"] = n
        p.publish_array(rows)
"""
    gaps: list[shmbus.Gap] = []
    with opened(bus_name) as bus:
        subscriber = bus.subscriber(SMALL, mode="lossy", name="l", on_gap=gaps.append)
        child = processes.spawn(code, bus_name)
        seen, last = 0, -1
        while seen + sum(gap.count for gap in gaps) < 150000:
            try:
                rows = subscriber.receive_array(64, 20)
            except shmbus.Empty:
                break
            assert (rows["time"] == rows["price"]).all()
            assert (rows["time"] == rows["size"]).all()
            assert rows["time"][0] >= last
            last, seen = rows["time"][-1], seen + len(rows)
        assert child.wait(20) == 0
        assert seen + sum(gap.count for gap in gaps) == 150000
        assert seen > 0


def test_undecodable(bus_name: str) -> None:
    """A record of another length ends an array, and is a DecodeError of its own; what came before it is not lost."""
    from shmbus.topic import codec_of, encoded_topic

    with opened(bus_name) as bus, bus.subscriber(TRADES, name="s") as subscriber:
        worker = bus.worker(TRADES, group="g", max_deliver=1)
        codec = codec_of(TRADES)._replace(encode=None, decode=None, accepts=(bytes,))
        raw = bus._open_publisher(encoded_topic("trades", 1 << 20, "record"), codec, None, "block", None)
        good = rows_of(trades(3)).tobytes()
        for payload in (good[:29], good[29:58], b"short", good[58:]):
            raw.publish(payload)
        handles: tuple[shmbus.Subscriber[Trade] | shmbus.Worker[Trade], ...] = (subscriber, worker)
        for handle in handles:
            assert next(handle.arrays())["time"].tolist() == [1, 2]
            with pytest.raises(shmbus.DecodeError, match="29 bytes, not 5"):
                next(handle.arrays())
            assert next(handle.arrays())["time"].tolist() == [3]
            assert handle.try_receive() is None
        assert books(bus, "s").undecodable == 1
        other = bus.subscriber(TRADES, start="oldest")
        assert other.receive_array(9, 0)["time"].tolist() == [1, 2]
        with pytest.raises(shmbus.DecodeError):
            other.receive_array(9, 0)
        assert other.receive_array(9, 0)["time"].tolist() == [3]
