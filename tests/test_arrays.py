"""Records as arrays: `publish_array`, `arrays`, `receive_array`, and how they go together with an event a call."""

from __future__ import annotations

import gc
import threading
from typing import Annotated, Any

import msgspec
import pytest
from events import ORDERS, drain, opened
from hypothesis import given, settings
from msgspec import Meta
from records import ALL, SMALL, STRIDE, TRADES, books, everything, row_of, rows_of, trades

import shmbus

np = pytest.importorskip("numpy", reason="arrays of records need NumPy")


# -- dtype


def test_dtype() -> None:
    """The dtype is packed and little-endian, by the names on the wire, Structs inside of Structs as they are."""
    assert (
        np.dtype([("time", "<i8"), ("price", "<f8"), ("size", "<u4"), ("symbol", "S8"), ("live", "?")]) == TRADES.dtype
    )
    assert TRADES.dtype.itemsize == 29
    assert ALL.dtype["spot"] == np.dtype([("x", "<f8"), ("y", "i1")])
    assert "plainFloat" in (ALL.dtype.names or ())
    with pytest.raises(shmbus.ConfigError, match="codec='record'"):
        _ = ORDERS.dtype


@given(everything())
@settings(max_examples=30)
def test_dtype_reads_rows(event: Any) -> None:
    """NumPy reads from a row what the encoder was given."""
    row = np.frombuffer(row_of(event), ALL.dtype)[0]
    assert (row["signed"], row["tiny"], row["small"], row["wide"]) == (
        event.signed,
        event.tiny,
        event.small,
        event.wide,
    )
    assert (row["name"], row["raw"]) == (event.name.encode(), event.raw)
    assert (row["spot"]["x"], row["spot"]["y"]) == (event.spot.x, event.spot.y)
    assert (row["side"], row["level"]) == (event.side.value.encode(), event.level.value)


# -- publishing


def test_published_rows_are_events(bus_name: str) -> None:
    """Each row is an event: sequences go on, and every consumer gets it by whatever call."""
    events = trades(50)
    with opened(bus_name) as bus, bus.publisher(TRADES) as publisher:
        one, two, lossy = (bus.subscriber(TRADES, mode=m) for m in ("reliable", "reliable", "lossy"))
        worker = bus.worker(TRADES, group="g")
        assert publisher.publish(events[0]) == 1
        assert publisher.publish_array(rows_of(events[1:])) == 50
        assert drain(one) == events
        assert drain(lossy) == events
        assert drain(worker) == events
        messages = [next(two.messages()) for _ in range(50)]
        assert [message.sequence for message in messages] == list(range(1, 51))
        assert publisher.publish_array(rows_of([])) == 50


@pytest.mark.parametrize(
    "make", [lambda r: r[::2], lambda r: r[::-1], np.asfortranarray, lambda r: r.view(np.recarray)]
)
def test_any_array_of_the_dtype(bus_name: str, make: Any) -> None:
    """Strides, order and subclass of an array do not matter."""
    rows = make(rows_of(trades(9)))
    with opened(bus_name) as bus, bus.publisher(TRADES) as publisher, bus.subscriber(TRADES) as subscriber:
        publisher.publish_array(rows)
        assert subscriber.receive_array(99, 0).tolist() == rows.tolist()


def _swapped() -> Any:
    return np.zeros(3, TRADES.dtype.newbyteorder(">"))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (lambda: np.zeros(3), "dtype float64"),
        (_swapped, "dtype"),
        (lambda: np.zeros(3, np.dtype(TRADES.dtype.descr, align=True)), "dtype"),
        (lambda: np.zeros(3, [("time", "<i8")]), "dtype"),
        (lambda: np.zeros((2, 2), TRADES.dtype), "one dimension"),
        (lambda: np.zeros((), TRADES.dtype), "one dimension"),
        (lambda: np.zeros(3, TRADES.dtype)[0], "not void"),
        (lambda: np.ma.masked_array(np.zeros(3, TRADES.dtype)), "masked"),
        (lambda: [trades(1)[0]], "not list"),
        (lambda: b"x" * 29, "not bytes"),
        (lambda: np.zeros(3, object), "dtype object"),
    ],
)
def test_other_arrays_are_refused(bus_name: str, rows: Any, words: str) -> None:
    """Anything but one dimension of the topic's dtype is an EventTypeError, and nothing is written."""
    with opened(bus_name) as bus, bus.publisher(TRADES) as publisher, bus.subscriber(TRADES) as subscriber:
        with pytest.raises(shmbus.EventTypeError, match=words):
            publisher.publish_array(rows())
        assert subscriber.try_receive() is None
    assert _swapped().dtype != TRADES.dtype


class Limited(msgspec.Struct):
    n: Annotated[int, Meta(ge=10, le=20)]
    name: Annotated[str, Meta(max_length=4, min_length=1)]
    flag: bool
    f: Annotated[float, Meta(ge=0)]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("n", 9, "10 to 20, got int 9"),
        ("n", 21, "got int 21"),
        ("name", b"\xff", "UTF-8"),
        ("name", b"", "length of at least 1"),
        ("f", -1.0, "got float -1.0"),
        ("f", np.nan, "got float nan"),
        ("flag", 2, "0 or 1, got int 2"),
    ],
)
def test_rows_are_checked(bus_name: str, field: str, value: Any, words: str) -> None:
    """A row that no receiver would get is refused with its index, and none of the rows is written."""
    topic = shmbus.Topic("limited", Limited, codec="record")
    rows = np.zeros(100, topic.dtype)
    rows["n"], rows["name"] = 15, "é".encode()
    with opened(bus_name) as bus, bus.publisher(topic) as publisher, bus.subscriber(topic) as subscriber:
        assert publisher.publish_array(rows) == 100
        target = rows.view([("n", "u1"), ("name", "S4"), ("flag", "u1"), ("f", "<f8")])
        target[field][57] = value
        with pytest.raises(shmbus.EventTypeError, match=words) as refusal:
            publisher.publish_array(rows)
        assert refusal.value.path == f"$[57].{field}"
        assert len(subscriber.receive_array(999, 0)) == 100


def test_other_codecs(bus_name: str) -> None:
    """Arrays are of topics of records; any other topic says so."""
    with opened(bus_name) as bus, bus.publisher(ORDERS) as publisher:
        subscriber, worker = bus.subscriber(ORDERS), bus.worker(ORDERS, group="g")
        for call in (
            lambda: publisher.publish_array(np.zeros(1)),
            subscriber.arrays,
            worker.arrays,
            lambda: subscriber.receive_array(1, 0),
        ):
            with pytest.raises(shmbus.ConfigError, match="codec='record'"):
                call()


@pytest.mark.parametrize("most", [0, -1, 1.5, True, "1"])
def test_most(bus_name: str, most: Any) -> None:
    """An array has at least one row."""
    with opened(bus_name) as bus, bus.subscriber(TRADES) as subscriber, bus.worker(TRADES, group="g") as worker:
        for call in (subscriber.arrays, worker.arrays, subscriber.receive_array):
            with pytest.raises(shmbus.ConfigError, match="most="):
                call(most)


def test_full(bus_name: str) -> None:
    """`on_full` decides as ever: raise says how many are in, drop counts the others as refused."""
    events = trades(200)
    with opened(bus_name) as bus:
        subscriber = bus.subscriber(SMALL, name="s")
        with bus.publisher(SMALL, on_full="raise") as publisher:
            with pytest.raises(shmbus.Full) as full:
                publisher.publish_array(rows_of(events))
            assert full.value.blocked_by == ("s",)
            assert 60 < full.value.published < 80
            assert drain(subscriber) == events[: full.value.published]
        with bus.publisher(SMALL, on_full="drop") as publisher:
            assert publisher.publish_array(rows_of(events)) is None
            got = drain(subscriber)
            assert got == events[: len(got)]
            assert books(bus, "s").refused == 200 - len(got)
        with bus.publisher(SMALL, timeout=0.05) as publisher, pytest.raises(shmbus.Full):
            publisher.publish_array(rows_of(events))


def test_larger_than_the_ring(bus_name: str) -> None:
    """A batch larger than the ring is split, and waits for room as often as it takes."""
    events = trades(1000)
    with opened(bus_name) as bus, bus.publisher(SMALL) as publisher:
        subscriber, worker = bus.subscriber(SMALL, name="s"), bus.worker(SMALL, group="g")
        sent: list[int | None] = []
        thread = threading.Thread(target=lambda: sent.append(publisher.publish_array(rows_of(events))))
        thread.start()
        got: dict[str, list[Any]] = {"s": [], "w": []}

        def collect(name: str, arrays: Any) -> None:
            while len(got[name]) < 1000:
                got[name] += next(arrays)["time"].tolist()

        other = threading.Thread(target=collect, args=("w", worker.arrays()))
        other.start()
        collect("s", subscriber.arrays())
        thread.join()
        other.join()
        assert sent == [1000]
        assert got["s"] == got["w"] == [event.time for event in events]
        worker.ack()
        subscriber.try_receive()
        assert books(bus, "s").delivered == books(bus, "g").delivered == 1000


# -- in place


def test_in_place(bus_name: str) -> None:
    """An array is a read-only view of the ring, of one stride; the cursor moves when the next is asked for."""
    events = trades(20)
    with opened(bus_name) as bus, bus.publisher(TRADES) as publisher, bus.subscriber(TRADES, name="s") as subscriber:
        publisher.publish_array(rows_of(events))
        arrays = subscriber.arrays(8)
        rows = next(arrays)
        assert rows.dtype == TRADES.dtype
        assert rows.strides == (STRIDE,)
        assert rows.tolist() == rows_of(events)[:8].tolist()
        with pytest.raises(ValueError, match="read-only"):
            rows["time"] = 5
        with pytest.raises(ValueError, match="WRITEABLE"):
            rows.flags.writeable = True
        assert books(bus, "s").delivered == 0
        assert next(arrays)["time"].tolist() == list(range(9, 17))
        assert books(bus, "s").delivered == 8
        assert subscriber.try_receive() == events[16]
        assert books(bus, "s").delivered == 17
        assert subscriber.receive_array(9, 0)["time"].tolist() == [18, 19, 20]
        assert books(bus, "s").delivered == 20


def test_runs_end(bus_name: str) -> None:
    """An array ends with the lap of the ring, at padding, and on either side of an event with headers."""
    events = trades(400)
    with opened(bus_name) as bus, bus.publisher(SMALL) as publisher, bus.subscriber(SMALL) as subscriber:
        arrays = subscriber.arrays()
        seen: list[int] = []
        lengths: list[int] = []
        for start in range(0, 400, 40):
            publisher.publish_array(rows_of(events[start : start + 20]))
            publisher.publish(events[start + 20], headers={"k": 1})
            publisher.publish(events[start + 21], headers={"k": 2})
            publisher.publish(events[start + 22], headers={"key": "longer than the others"})
            publisher.publish_many(events[start + 23 : start + 40])
            while len(seen) < start + 40:
                rows = next(arrays)
                seen += rows["time"].tolist()
                lengths.append(len(rows))
        assert seen == [event.time for event in events]
        assert 2 in lengths
        assert 1 in lengths
        assert 20 in lengths
        assert any(length not in (20, 2, 1, 17) for length in lengths)  # those that the end of the ring cut


def test_sampled(bus_name: str) -> None:
    """Arrays are in the latencies like events."""
    with opened(bus_name) as bus, bus.publisher(TRADES) as publisher, bus.subscriber(TRADES, name="s") as subscriber:
        worker = bus.worker(TRADES, group="g")
        publisher.publish_array(rows_of(trades(5000)))
        next(subscriber.arrays())
        next(worker.arrays(5000))
        for name in ("s", "g"):
            latency = books(bus, name).latency
            assert latency is not None
            assert latency.count > 1000


def test_outlives(bus_name: str) -> None:
    """An array that is kept stays readable: past the next one, past the handle, past the bus and its rings."""
    events = trades(30)
    with opened(bus_name) as bus:
        publisher, subscriber = bus.publisher(SMALL), bus.subscriber(SMALL)
        publisher.publish_array(rows_of(events))
        kept = next(subscriber.arrays())
        column = kept["price"][::2]
        publisher.close()
        subscriber.close()
    del publisher, subscriber
    gc.collect()
    assert kept["time"].tolist() == [event.time for event in events]
    del kept
    gc.collect()
    assert column.tolist() == [event.price for event in events[::2]]


def test_overwritten(bus_name: str) -> None:
    """An array that is kept past the next one shows what the publisher writes there, and nothing crashes."""
    with opened(bus_name) as bus, bus.publisher(SMALL) as publisher, bus.subscriber(SMALL) as subscriber:
        publisher.publish_array(rows_of(trades(20)))
        kept = next(subscriber.arrays())
        for round in range(20):
            publisher.publish_array(rows_of(trades(20, 1000 + 20 * round)))
            assert len(subscriber.receive_array(20, 0)) == 20
        assert kept["time"].tolist() != list(range(1, 21))


def test_holds_the_publisher(bus_name: str) -> None:
    """What is in hand is not overwritten: the publisher waits until the next array is asked for."""
    with opened(bus_name) as bus, bus.subscriber(SMALL, name="s") as subscriber:
        publisher = bus.publisher(SMALL, on_full="raise")
        with pytest.raises(shmbus.Full):
            publisher.publish_array(rows_of(trades(100)))
        rows = next(subscriber.arrays(10))
        with pytest.raises(shmbus.Full):
            publisher.publish(trades(1)[0])
        assert rows["time"].tolist() == list(range(1, 11))
        next(subscriber.arrays(1))
        publisher.publish_array(rows_of(trades(5)))


def test_closing_delivers(bus_name: str) -> None:
    """What was handed out when a subscriber closes has been delivered; what was not is abandoned."""
    with opened(bus_name) as bus, bus.publisher(TRADES) as publisher, bus.subscriber(TRADES):
        subscriber = bus.subscriber(TRADES, name="s")
        publisher.publish_array(rows_of(trades(20)))
        next(subscriber.arrays(8))
        subscriber.close()
        found = books(bus, "s")
        assert (found.delivered, found.abandoned) == (8, 12)


def test_ends(bus_name: str) -> None:
    """Iteration ends on close() and cancel(), by another thread too."""
    for end in ("close", "cancel"):
        with opened(f"{bus_name}-{end}") as bus, bus.subscriber(TRADES) as subscriber:
            worker = bus.worker(TRADES, group="g")
            for handle in (subscriber, worker):
                timer = threading.Timer(0.05, getattr(handle, end))
                timer.start()
                assert list(handle.arrays()) == []
                timer.join()


def test_receive_array(bus_name: str) -> None:
    """It is a copy of the caller's own, out of every ring; Empty when there is nothing."""
    with opened(bus_name) as bus, bus.subscriber(TRADES, name="s") as subscriber:
        with pytest.raises(shmbus.Empty):
            subscriber.receive_array(10, timeout=0.01)
        with pytest.raises(shmbus.Empty):
            subscriber.receive_array(10, timeout=0)
        publishers = [bus.publisher(TRADES, name=f"p{i}") for i in range(3)]
        for i, publisher in enumerate(publishers):
            publisher.publish_array(rows_of(trades(2000, 10000 * i)))
        first, rest = subscriber.receive_array(2500), subscriber.receive_array(99999)
        assert first.shape == (2500,)
        assert sorted([*first["time"], *rest["time"]]) == [10000 * i + n for i in range(3) for n in range(2000)]
        first["price"] = 7.0
        assert first.strides == (29,)
        assert books(bus, "s").delivered == 6000
