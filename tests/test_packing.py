"""How an event with arrays becomes a payload: what is sealed and given back, and who encodes at the same time."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from frames import FRAMES, MIB, Frame, frame, used, whole

import shmbus


class Held:
    """What only a topic's own hook knows."""

    def __init__(self, image: Any) -> None:
        self.image = image


class Wrapped(msgspec.Struct):
    number: int
    first: npt.NDArray[np.uint8]
    held: Held
    last: npt.NDArray[np.uint8]


def _fill(pub: shmbus.Publisher[Any], event: Any) -> None:
    with suppress(shmbus.Full):
        while True:
            pub.publish_now(event)


def _loans(pub: shmbus.Publisher[Any], count: int) -> list[Any]:
    loans = [pub.empty(2 * MIB) for _ in range(count)]
    for number, loan in enumerate(loans):
        loan[:] = number
    return loans


@pytest.mark.parametrize("on_full", ["block", "raise", "drop"])
def test_publish_now_waits_for_no_pool(bus_name: str, on_full: Any) -> None:
    """`publish_now` raises Full at once where the pool has no room, whatever `on_full` is, and names who has it."""
    with (
        shmbus.Bus(bus_name) as bus,
        bus.subscriber(FRAMES, name="slow") as sub,
        bus.publisher(FRAMES, on_full=on_full) as pub,
    ):
        for number in range(8):
            pub.publish_now(frame(number))
        with pytest.raises(shmbus.Full) as full:
            pub.publish_now(frame(8))
        assert full.value.blocked_by == ("slow",)
        assert whole(sub.receive(timeout=5))
        pub.publish_now(frame(9))
        assert all(consumer.refused == 0 for consumer in bus.stats().consumers)


def test_what_is_not_published_is_writable_again(bus_name: str) -> None:
    """A loan whose event was refused is as it was: itself, its views and its buffers; and only those of that event."""
    topic = shmbus.Topic("pairs", tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]], pool=8 * MIB, capacity=4096)
    with shmbus.Bus(bus_name) as bus, bus.subscriber(topic, name="slow"), bus.publisher(topic, on_full="raise") as pub:
        out, free = _loans(pub, 2)
        view = free[16:].reshape(2, -1)
        _fill(pub, (out, out[5000:]))
        with pytest.raises(shmbus.Full):
            pub.publish((out, view))
        assert not out.flags.writeable
        assert view.flags.writeable
        assert free.flags.writeable
        free[:] = 7
        with pytest.raises(ValueError, match="read-only"):
            out[0] = 1


def test_a_loan_in_two_events(bus_name: str) -> None:
    """What was published stays read-only, whatever becomes of a second event with the same loan."""
    with shmbus.Bus(bus_name) as bus, bus.subscriber(FRAMES) as sub, bus.publisher(FRAMES, on_full="raise") as pub:
        (loan,) = _loans(pub, 1)
        _fill(pub, Frame(0, loan))
        with pytest.raises(ValueError, match="read-only"):
            loan[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            loan.flags.writeable = True
        assert whole(sub.receive(timeout=5))


@pytest.mark.parametrize("how", ["cancelled", "timed out"])
def test_a_task_that_gives_up(bus_name: str, how: str) -> None:
    """A loan is writable again once its task was cancelled or ran out of time, while the error is still at hand."""
    topic = shmbus.Topic("frames", Frame, pool=8 * MIB, capacity=4096)

    async def publish(pub: shmbus.Publisher[Frame], loan: Any) -> None:
        _fill(pub, Frame(0, np.zeros(10, np.uint8)))
        task = asyncio.ensure_future(pub.apublish(Frame(1, loan)))
        await asyncio.sleep(0)  # it has encoded its event, and waits
        assert not loan.flags.writeable
        if how == "cancelled":
            task.cancel()
        with pytest.raises((asyncio.CancelledError, shmbus.Full)) as raised:
            await task
        assert loan.flags.writeable
        assert raised.value is not None

    with (
        shmbus.Bus(bus_name) as bus,
        bus.subscriber(topic),
        bus.publisher(topic, timeout=None if how == "cancelled" else 0.05) as pub,
    ):
        asyncio.run(publish(pub, _loans(pub, 1)[0]))


def test_hooks_that_publish(bus_name: str) -> None:
    """A topic's own hook may publish with the same publisher, in the middle of an event: each has its own arrays."""
    inner: list[int | None] = []

    def enc_hook(value: Any) -> Any:
        if value.image is not None:
            inner.append(pub.publish(Wrapped(-1, value.image[:5000], Held(None), value.image[1:])))
        return len(inner)

    topic = shmbus.Topic(
        "wrapped", Wrapped, pool=8 * MIB, enc_hook=enc_hook, dec_hook=lambda expected, value: Held(value)
    )
    with shmbus.Bus(bus_name) as bus, bus.subscriber(topic) as sub, bus.publisher(topic) as pub:
        for number in range(3):
            images = [np.full(3000 + k, 10 * number + k, np.uint8) for k in range(3)]
            pub.publish(Wrapped(number, images[0], Held(images[1]), images[2]))
            within, outer = sub.receive(timeout=5), sub.receive(timeout=5)
            assert (within.number, outer.number) == (-1, number)
            assert (len(within.first), len(within.last)) == (3001, 3000)
            for got, sent in ((within.first, images[1]), (outer.first, images[0]), (outer.last, images[2])):
                assert (got == sent[0]).all()
                assert len(got) == len(sent[: len(got)])


def test_threads_encode_at_once(bus_name: str) -> None:
    """Threads that share a publisher, each in the middle of its encoder, mix nothing up."""
    meet = threading.Barrier(4)

    def enc_hook(value: Any) -> Any:
        meet.wait(30)
        return 0

    topic = shmbus.Topic(
        "wrapped", Wrapped, pool=8 * MIB, enc_hook=enc_hook, dec_hook=lambda expected, value: Held(value)
    )

    def publish(who: int) -> None:
        for _ in range(20):
            pub.publish(Wrapped(who, np.full(2000 + who, who, np.uint8), Held(None), np.full(64, who, np.uint8)))

    with (
        shmbus.Bus(bus_name) as bus,
        bus.subscriber(topic) as sub,
        bus.publisher(topic) as pub,
        ThreadPoolExecutor(4) as threads,
    ):
        list(threads.map(publish, range(4)))
        for _ in range(80):
            got = sub.receive(timeout=5)
            assert got.first.tolist() == [got.number] * (2000 + got.number)
            assert got.last.tolist() == [got.number] * 64


def test_more_buffers_than_a_few(bus_name: str) -> None:
    """An event has any number of arrays: short and long, in any order of memory, of loans and of its own."""
    topic = shmbus.Topic("many", list[npt.NDArray[np.uint8]], pool=8 * MIB)
    with shmbus.Bus(bus_name) as bus, bus.subscriber(topic) as sub, bus.publisher(topic) as pub:
        for count in (1, 4, 5, 40):
            sent: list[Any] = []
            for number in range(count):
                loan = pub.empty((3, 1000))
                loan[:] = number
                plain = np.full((60, 100), number, np.uint8)
                sent += [loan[1], plain, plain[::2, ::3], plain[:3, ::7], loan.T, np.zeros(0, np.uint8)]
            for _ in range(2):  # seen, and known
                pub.publish(sent)
                got = sub.receive(timeout=5)
                assert all(np.array_equal(a, b) for a, b in zip(got, sent, strict=True))
                del got
            del sent, loan
            with pytest.raises(shmbus.Empty):
                sub.receive(timeout=0)  # what it had is behind it
            assert used(bus) == 0


def test_a_hook_that_fails(bus_name: str) -> None:
    """An event that a hook refuses in the middle leaves nothing in the pool, and the next one has its own arrays."""

    def enc_hook(value: Any) -> Any:
        if value.image is None:
            raise ValueError("no image")
        return 0

    topic = shmbus.Topic(
        "wrapped", Wrapped, pool=8 * MIB, enc_hook=enc_hook, dec_hook=lambda expected, value: Held(value)
    )
    image = np.full(5000, 3, np.uint8)
    with shmbus.Bus(bus_name) as bus, bus.subscriber(topic) as sub, bus.publisher(topic) as pub:
        with pytest.raises(shmbus.EventTypeError, match="no image"):
            pub.publish(Wrapped(1, image, Held(None), image))
        assert used(bus) == 0
        pub.publish(Wrapped(2, image, Held(image), image[:2000]))
        got = sub.receive(timeout=5)
        assert (len(got.first), len(got.last)) == (5000, 2000)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        (5, "u1"),
        ((4, 3), np.float32),
        ([4, 3], "f8"),
        ((), ">i2"),
        (0, "u1"),
        (7, [("a", "<i4"), ("b", "S3")]),
        (7, {"names": ["a"], "formats": ["<f8"]}),
        ((2, 3, 4, 5, 6), np.dtype("M8[ns]")),
    ],
    ids=["int", "class", "list", "scalar", "none", "fields", "dict", "dtype"],
)
def test_empty_as_numpy_has_it(bus_name: str, shape: Any, dtype: Any) -> None:
    """`empty` takes shapes and dtypes as NumPy does, the first time and the next, and they arrive so."""
    same: Any = np.zeros(shape, dtype)
    topic = shmbus.Topic("any", np.ndarray, pool=MIB)
    with shmbus.Bus(bus_name) as bus, bus.subscriber(topic) as sub, bus.publisher(topic) as pub:
        for _ in range(3):
            array = pub.empty(shape, dtype)
            array[...] = same
            assert (array.shape, array.dtype) == (same.shape, same.dtype)
            pub.publish(array)
            got = sub.receive(timeout=5)
            assert (got.shape, got.dtype, got.tobytes()) == (same.shape, same.dtype, same.tobytes())
    with pytest.raises(shmbus.ClosedError, match="publisher"):
        pub.empty(shape, dtype)


def test_fields_renamed_where_they_are_received(bus_name: str) -> None:
    """Who renames the fields of an array that it has received renames those of no other."""
    topic = shmbus.Topic("any", np.ndarray, pool=MIB)
    sent = np.zeros(300, [("a", "<i4"), ("b", [("c", "<f8")])])
    with shmbus.Bus(bus_name) as bus, bus.subscriber(topic) as sub, bus.publisher(topic) as pub:
        for _ in range(3):
            pub.publish(sent)
            got = sub.receive(timeout=5)
            assert got.dtype.names == ("a", "b")
            assert got["b"].dtype.names == ("c",)
            got.dtype.names = ("x", "y")
