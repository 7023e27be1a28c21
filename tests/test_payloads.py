"""Arrays and buffers beside their events: what arrives, and what is refused."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from frames import ALBUMS, BLOBS, FRAMES, MIB, Album, Frame, frame, used, whole
from support import Processes, entries, line

import shmbus

# -- what arrives


def test_a_view_is_of_the_publishers_bytes(bus_name: str) -> None:
    """Subscribers, lossy ones and workers see what was published; an array from `empty` is read-only once it is."""
    with (
        shmbus.Bus(bus_name) as bus,
        bus.subscriber(FRAMES) as reliable,
        bus.subscriber(FRAMES, mode="lossy") as lossy,
        bus.worker(FRAMES, group="pool") as worker,
        bus.publisher(FRAMES) as pub,
    ):
        image = pub.empty((480, 640, 3), np.uint8)
        image[:] = 9
        pub.publish(Frame(9, image))
        pub.publish(Frame(2, np.arange(6000, dtype=np.uint8).reshape(60, 100)[::2, ::-1]))
        assert not image.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            image[0] = 1
        for receiver in (reliable, lossy, worker):
            first, second = receiver.receive(timeout=5), receiver.receive(timeout=5)
            assert first.image.shape == (480, 640, 3)
            assert whole(first)
            assert (second.image == np.arange(6000, dtype=np.uint8).reshape(60, 100)[::2, ::-1]).all()
            assert not first.image.flags.writeable
            with pytest.raises(ValueError, match="WRITEABLE"):
                first.image.flags.writeable = True
        worker.ack()
        assert len({np.shares_memory(image, image)}) == 1


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 7)),
        np.array(3.5),
        np.arange(5),
        np.arange(4000, dtype=">i4"),
        np.array(["2024-01-01", "2025-06-07"] * 400, dtype="M8[s]"),
        np.array(["ab", "cde"] * 900),
        np.zeros(300, [("a", "<i4"), ("b", "<f8", (2,)), ("c", [("d", "S3")])]),
        np.zeros(300, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
        np.asfortranarray(np.arange(3000.0).reshape(30, 100)),
        np.ones((64, 64), np.complex128)[::-3, 5:],
        np.ones(3000, np.bool_),
        np.broadcast_to(np.arange(100), (50, 100)),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_any_dtype_and_shape(bus_name: str, array: np.ndarray[Any, Any]) -> None:
    """Every dtype but object, every shape and order arrives as it was."""
    topic = shmbus.Topic("any", np.ndarray, pool=MIB)
    with shmbus.Bus(bus_name) as bus, bus.subscriber(topic) as sub, bus.publisher(topic) as pub:
        pub.publish(array)
        got = sub.receive(timeout=5)
    assert got.dtype == array.dtype
    assert got.shape == array.shape
    assert (got == array).all()


def test_nested(bus_name: str) -> None:
    """Arrays and buffers lie in nested Structs, lists and dicts, small ones and large ones, any number of them."""
    album = Album(
        "a",
        [frame(number, 3000 * number) for number in range(6)],
        {"x": np.ones((100, 100), np.bool_), "y": np.zeros(3, np.bool_)},
        memoryview(bytes(range(256)) * 100),
    )
    with (
        shmbus.Bus(bus_name) as bus,
        bus.subscriber(ALBUMS) as sub,
        bus.subscriber(ALBUMS, mode="lossy") as lossy,
        bus.publisher(ALBUMS) as pub,
    ):
        pub.publish(album)
        pub.publish(Album("empty"))
        for receiver in (sub, lossy):
            got = receiver.receive(timeout=5)
            assert [f.image.size for f in got.frames] == [3000 * number for number in range(6)]
            assert all(map(whole, got.frames))
            assert got.masks["x"].all()
            assert not got.masks["y"].any()
            assert bytes(got.raw) == bytes(range(256)) * 100
            assert got.raw.readonly
            assert receiver.receive(timeout=5).cover is None


class Mixed(msgspec.Struct):
    any: npt.NDArray[Any]
    bare: np.ndarray
    real: npt.NDArray[np.float32 | np.float64]
    number: npt.NDArray[np.number[Any]]


def test_array_types_that_name_more_than_one_dtype(bus_name: str) -> None:
    """`NDArray[Any]` takes every dtype, a union its own, an abstract one all below it; another is undecodable."""
    mixed = shmbus.Topic("mixed", Mixed, pool=MIB)
    texts = np.array(["a", "b"])
    with shmbus.Bus(bus_name) as bus, bus.subscriber(mixed) as sub, bus.publisher(mixed) as pub:
        pub.publish(Mixed(texts, texts, np.zeros(2, np.float32), np.zeros(2, np.int16)))
        pub.publish(Mixed(np.zeros(2), np.zeros(2), np.zeros(2), np.zeros(2, complex)))
        pub.publish(Mixed(texts, texts, np.zeros(2, np.int8), np.zeros(2)))
        assert (sub.receive(timeout=5).any == texts).all()
        assert sub.receive(timeout=5).number.dtype == complex
        with pytest.raises(shmbus.DecodeError, match="Expected `ndarray` of float32 or float64, got int8"):
            sub.receive(timeout=5)


def test_buffers(bus_name: str) -> None:
    """`buffer` is a memoryview whose publication costs no copy and makes it read-only; anything with bytes is one."""
    with shmbus.Bus(bus_name) as bus, bus.subscriber(BLOBS) as sub, bus.publisher(BLOBS) as pub:
        mine = pub.buffer(5000)
        mine[:3] = b"abc"
        pub.publish(mine)
        with pytest.raises(TypeError, match="read-only"):
            mine[0] = 1
        got = sub.receive(timeout=5)
        assert (bytes(got[:3]), len(got), got.readonly) == (b"abc", 5000, True)
        pub.publish(memoryview(b"x" * 100_000))
        assert bytes(sub.receive(timeout=5)) == b"x" * 100_000
        pub.publish(memoryview(b""))
        assert len(sub.receive(timeout=5)) == 0


def test_messages_and_batches(bus_name: str) -> None:
    """`messages`, `receive_many` and `publish_many` carry arrays too."""
    with (
        shmbus.Bus(bus_name) as bus,
        bus.subscriber(FRAMES) as sub,
        bus.worker(FRAMES, group="pool") as worker,
        bus.publisher(FRAMES) as pub,
    ):
        assert pub.publish_many([frame(n, 5000) for n in range(4)]) == 4
        assert [f.number for f in sub.receive_many(10, timeout=5) if whole(f)] == [0, 1, 2, 3]
        for number, message in enumerate(worker.messages()):
            assert whole(message.event)
            message.ack()
            if number == 3:
                break


def test_pickled_buffers(bus_name: str) -> None:
    """What pickles out of band goes to the pool under codec="pickle"."""
    topic = shmbus.Topic("objects", dict, codec="pickle", pool=4 * MIB)
    with shmbus.Bus(bus_name) as bus, bus.subscriber(topic) as sub, bus.publisher(topic) as pub:
        pub.publish({"a": np.arange(100_000), "b": [np.ones(5)], "c": "text"})
        got = sub.receive(timeout=5)
        assert used(bus) >= 800_000
        assert (got["a"] == np.arange(100_000)).all()
        assert got["c"] == "text"
        assert not got["a"].flags.writeable


def test_arrow(bus_name: str) -> None:
    """Record batches and tables are read where they lie."""

    class Tables(msgspec.Struct):
        batch: pa.RecordBatch
        table: pa.Table

    topic = shmbus.Topic("tables", Tables, pool=4 * MIB)
    batch = pa.RecordBatch.from_pydict({"n": list(range(5000)), "s": ["x", None] * 2500})
    table = pa.table({"f": [float(n) for n in range(9000)]})
    with shmbus.Bus(bus_name) as bus, bus.subscriber(topic) as sub, bus.publisher(topic) as pub:
        pub.publish(Tables(batch, table))
        got = sub.receive(timeout=5)
        assert got.batch.equals(batch)
        assert got.table.equals(table)
        assert used(bus) > 0
        pub.publish(Tables(batch.slice(0, 0), table.slice(0, 0)))
        empty = sub.receive(timeout=5)
        assert (empty.batch.num_rows, empty.table.num_rows) == (0, 0)
        assert empty.batch.schema == batch.schema


def test_a_large_event_is_bounded_by_the_pool(bus_name: str) -> None:
    """What is too large for a quarter of the ring goes to the pool as a whole."""

    class Long(msgspec.Struct):
        text: str

    topic = shmbus.Topic("long", Long, capacity=4096, pool=4 * MIB)
    with shmbus.Bus(bus_name) as bus, bus.subscriber(topic) as sub, bus.publisher(topic) as pub:
        for size in (10, 1000, 5000, 2 * MIB):
            pub.publish(Long("x" * size))
            assert sub.receive(timeout=5).text == "x" * size


# -- what is refused


def test_what_is_refused(bus_name: str) -> None:
    """An object array, an array of another type, an event larger than the pool: an error, and nothing written."""
    with shmbus.Bus(bus_name) as bus, bus.subscriber(FRAMES) as sub, bus.publisher(FRAMES) as pub:
        with pytest.raises(shmbus.EventTypeError, match=r"objects.*at `\$\.image`"):
            pub.publish(Frame(1, np.array([object()])))
        with pytest.raises(shmbus.EventTypeError, match=r"at `\$\.image`"):
            pub.publish(Frame(1, np.ma.masked_array([1], [True])))
        with pytest.raises(shmbus.EventTooLargeError, match="pool"):
            pub.publish(frame(1, 9 * MIB))
        with pytest.raises(shmbus.EventTooLargeError, match="pool"):
            pub.empty(9 * MIB)
        with pytest.raises(shmbus.ConfigError):
            pub.empty(3, object)
        with pytest.raises(shmbus.Empty):
            sub.receive(timeout=0)
        pub.publish(Frame(1, np.ones(5000)))  # type: ignore[arg-type]  # the field says uint8
        with pytest.raises(shmbus.DecodeError, match="uint8"):
            sub.receive(timeout=5)
        assert used(bus) == 0


def test_types_that_cannot_be() -> None:
    """A field of objects is refused when the topic is made, by name; so are pools where nothing could lie in them."""

    class Objects(msgspec.Struct):
        inner: list[np.ndarray[Any, np.dtype[np.object_]]]

    with pytest.raises(shmbus.ConfigError, match=r"Objects\.inner"):
        shmbus.Topic("o", Objects, pool=MIB)
    with pytest.raises(shmbus.ConfigError, match="type="):
        shmbus.Topic("o", Frame)
    for options in ({"codec": "json"}, {"validate": True}, {"pool": -1}, {"pool": True}, {"pool": "1"}):
        with pytest.raises(shmbus.ConfigError):
            shmbus.Topic("o", Frame, **{"pool": MIB, **options})  # type: ignore[arg-type]
    with pytest.raises(shmbus.ConfigError):
        shmbus.Topic("o", bytes, pool=MIB)


def test_without_a_pool(bus_name: str) -> None:
    """A publisher of a topic without a pool has no memory to lend."""
    topic = shmbus.Topic("plain", int)
    with shmbus.Bus(bus_name) as bus, bus.publisher(topic) as pub:
        with pytest.raises(shmbus.ConfigError, match="no pool"):
            pub.empty(3)
        with pytest.raises(shmbus.ConfigError, match="no pool"):
            pub.buffer(3)


def test_without_numpy(bus_name: str, processes: Processes) -> None:
    """A receiver without NumPy is told what to install, and the stream goes on."""
    topic = shmbus.Topic("anything", dict[str, Any], pool=MIB)

    def child(bus_name: str) -> None:
        import sys
        from typing import Any

        sys.modules["numpy"] = None  # type: ignore[assignment]
        import shmbus

        topic = shmbus.Topic("anything", dict[str, Any], pool=1 << 20)
        with shmbus.Bus.attach(bus_name) as bus, bus.subscriber(topic) as sub:
            print("ready")
            try:
                sub.receive(timeout=30)
            except shmbus.DecodeError as error:
                print(error)
            print(sub.receive(timeout=30))

    with shmbus.Bus(bus_name) as bus, bus.publisher(topic) as pub:
        process = processes.spawn(child, bus_name)
        assert line(process) == "ready"
        pub.publish({"a": np.arange(1000)})
        pub.publish({"b": 1})
        assert "pip install 'shmbus[numpy]'" in line(process)
        assert line(process) == "{'b': 1}"


def test_a_hostile_slip(bus_name: str) -> None:
    """A record that names another extent, or more of it than there is, opens nothing: an error or a gap, no bytes."""
    with shmbus.Bus(bus_name) as bus, bus.subscriber(FRAMES) as sub, bus.publisher(FRAMES) as pub:
        names = [name for name in entries(bus_name) if ":ring-" in name]
        with open(f"/dev/shm/{names[0]}", "r+b") as ring:
            for word in range(4):  # block, generation, offset, length of the first slip
                for value in (0, 1, 255, 2**32, 2**63, 2**64 - 1):
                    before, _ = pub.publish(frame(7, 50_000)), pub.publish(frame(9, 50_000))
                    ring.seek(0)
                    data = ring.read()
                    at = data.index(struct.pack("<5Q", 1, *_slip_of(data, before)))
                    ring.seek(at + 8 + 8 * word)
                    ring.write(struct.pack("<Q", value))
                    ring.flush()
                    corrupt = False
                    for _ in range(2):
                        try:
                            event = sub.receive(timeout=0)
                        except (shmbus.CorruptSegmentError, shmbus.DecodeError, shmbus.Empty):
                            corrupt = True
                            ring.seek(at)
                            ring.write(data[at : at + 40])  # as it was: the stream goes on
                            ring.flush()
                            event = sub.try_receive()  # type: ignore[assignment]
                        assert event is None or whole(event)
                    del event
                    assert corrupt or sub.try_receive() is None


def _slip_of(data: bytes, sequence: int | None) -> tuple[int, ...]:
    """The slip of the last record of that sequence in a ring."""
    at = -1
    while (at := data.find(struct.pack("<Q", sequence or 0), at + 1)) >= 0:
        if at % 8 == 0 and at >= 24_576 and data[at + 13] == 1:  # a record with the flag
            return struct.unpack_from("<4Q", data, at + 32)
    raise AssertionError(f"no record {sequence}")


def test_a_dead_letter_has_its_arrays(bus_name: str) -> None:
    """What a worker rejects is in the dead letter with its arrays: these are gone from the pool by then."""
    letters = shmbus.dead_letter_topic(FRAMES)
    with (
        shmbus.Bus(bus_name) as bus,
        bus.worker(FRAMES, group="pool") as worker,
        bus.subscriber(letters) as dead,
        bus.publisher(FRAMES) as pub,
    ):
        pub.publish(frame(65, 5000))
        message = next(worker.messages())
        message.reject("no")
        letter = dead.receive(timeout=5)
        assert letter.payload.count(b"A" * 5000) == 1
        assert letter.truncated == 0


def test_stat_names_who_looks(bus_name: str) -> None:
    """`stat` and `--json` say how full a pool is, and who looks at how much of it since when."""
    with shmbus.Bus(bus_name) as bus, bus.subscriber(FRAMES, name="viewer") as sub, bus.publisher(FRAMES) as pub:
        pub.publish(frame(1))
        event = sub.receive(timeout=5)
        loan = pub.buffer(5000)
        publisher = bus.stats().publishers[0]
        assert (publisher.pool, publisher.pool_used) == (8 * MIB, MIB + 8192)
        viewers = {viewer.name: viewer for viewer in publisher.viewers}
        assert viewers["viewer"].views == viewers[publisher.name].views == 1
        assert viewers["viewer"].pid == os.getpid()
        assert 0 < viewers["viewer"].since_ns < time.time_ns()
        done = subprocess.run(
            [sys.executable, "-m", "shmbus", "stat", bus_name], capture_output=True, text=True, check=True
        )
        assert "viewer (pid" in done.stdout
        assert "looks at 1 extent of it, 1.0 MiB" in done.stdout
        assert whole(event)
        assert len(loan) == 5000
