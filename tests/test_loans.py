"""Loans in several events at once, and buffers of unusual make: what becomes read-only, and when it no longer is."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from frames import MIB, used

import shmbus


class Held:
    """What only a topic's own hook knows."""


class Wrapped(msgspec.Struct):
    number: int
    held: Held
    image: npt.NDArray[np.uint8]


class View(msgspec.Struct):
    data: memoryview


SHORT = np.zeros(0, np.uint8)
ARRAYS = shmbus.Topic("arrays", list[np.ndarray], pool=8 * MIB, capacity=4096)


def fill(pub: shmbus.Publisher[Any]) -> int:
    """Fills the ring with events; how many."""
    count = 0
    with suppress(shmbus.Full):
        while True:
            pub.publish_now([SHORT])
            count += 1
    return count


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("raw", [False, True], ids=["array", "memoryview"])
@pytest.mark.parametrize("ends", ["first", "second", "both"])
def test_a_loan_in_two_events_that_wait(bus_name: str, ends: str, raw: bool) -> None:
    """A loan in two events that wait is writable again when both were given up, and not before."""

    async def publish(pub: shmbus.Publisher[Any], sub: shmbus.Subscriber[Any]) -> None:
        loan: Any = np.frombuffer(pub.buffer(20000), np.uint8) if raw else pub.empty(20000)
        loan[:] = 1
        views, kept = [loan[100:], loan[:5000]], loan[9:]
        kept.flags.writeable = False
        waiting = fill(pub)
        tasks = [asyncio.ensure_future(pub.apublish([view, SHORT])) for view in views]
        await asyncio.sleep(0)  # they have encoded their events, and wait
        assert not any(one.flags.writeable for one in (loan, *views))
        for task in tasks if ends == "both" else tasks[ends == "second" :][:1]:
            assert not any(one.flags.writeable for one in (loan, *views))
            await cancelled(task)
        again = ends == "both"
        assert all(one.flags.writeable is again for one in (loan, *views))
        assert not kept.flags.writeable
        if not again:
            for _ in range(waiting):
                sub.receive(timeout=5)
            await tasks[ends == "first"]
            got = (await sub.areceive(timeout=5))[0]
            assert not any(one.flags.writeable for one in (loan, *views))
            with pytest.raises(ValueError, match="WRITEABLE"):
                loan.flags.writeable = True
            assert got.tobytes() == views[ends == "first"].tobytes()

    with shmbus.Bus(bus_name) as bus, bus.subscriber(ARRAYS) as sub, bus.publisher(ARRAYS, timeout=None) as pub:
        asyncio.run(publish(pub, sub))


def test_a_loan_that_is_published_while_another_event_waits(bus_name: str) -> None:
    """What was published stays read-only when an event that had it first is given up."""

    async def publish(pub: shmbus.Publisher[Any], sub: shmbus.Subscriber[Any]) -> None:
        loan = pub.empty(20000)
        loan[:] = 1
        fill(pub)
        task = asyncio.ensure_future(pub.apublish([loan, np.zeros(900, np.uint8)]))
        await asyncio.sleep(0)
        assert not loan.flags.writeable
        for _ in range(3):  # room for the one, and not for the other
            sub.receive(timeout=5)
        pub.publish_now([loan])
        await cancelled(task)
        assert not loan.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            loan[0] = 2

    with shmbus.Bus(bus_name) as bus, bus.subscriber(ARRAYS) as sub, bus.publisher(ARRAYS, timeout=None) as pub:
        asyncio.run(publish(pub, sub))


def test_views_of_another_class(bus_name: str) -> None:
    """A view of a loan that is of a subclass of NumPy's arrays seals the loan, and all between the two."""
    topic = shmbus.Topic("any", list[Any], pool=MIB)
    with shmbus.Bus(bus_name) as bus, bus.subscriber(topic), bus.publisher(topic) as pub:
        loan: Any = pub.empty(5000)
        view = loan.view(np.recarray)
        pub.publish([view])
        assert not loan.flags.writeable
        assert not view.flags.writeable


def test_views_that_only_say_where_their_bytes_are(bus_name: str) -> None:
    """A strided view of a loan, which does not lead to it, is copied as any other array."""
    topic = shmbus.Topic("any", np.ndarray, pool=MIB)
    tricks = np.lib.stride_tricks
    with shmbus.Bus(bus_name) as bus, bus.subscriber(topic) as sub, bus.publisher(topic) as pub:
        loan: Any = pub.empty(5000)
        loan[:] = np.arange(5000) % 250
        for view in (tricks.as_strided(loan, (50, 100), (100, 1)), tricks.sliding_window_view(loan, 5000)):
            pub.publish(view)
            assert np.array_equal(sub.receive(timeout=5), view)
        loan[0] = 1


@pytest.mark.parametrize("side", [20, 200], ids=["short", "long"])
def test_buffers_with_suboffsets(bus_name: str, side: int) -> None:
    """A memoryview whose rows lie behind pointers arrives as its bytes."""
    buffers: Any = pytest.importorskip("_testbuffer", reason="this Python has no test modules")
    topic = shmbus.Topic("views", View, pool=MIB)
    items = [number % 100 for number in range(side * side)]
    view = memoryview(buffers.ndarray(items, shape=[side, side], format="B", flags=buffers.ND_PIL))
    with shmbus.Bus(bus_name) as bus, bus.subscriber(topic) as sub, bus.publisher(topic) as pub:
        pub.publish(View(view))
        assert bytes(sub.receive(timeout=5).data) == bytes(items)


@pytest.mark.parametrize("inner", ["publish", "publish_now"])
def test_a_publish_within_publish_now(bus_name: str, inner: str) -> None:
    """What a hook publishes amid `publish_now` waits for room, or not, as it says itself; so does the outer event."""
    results: list[object] = []

    def enc_hook(value: Any) -> Any:
        if not results:
            results.append(0)
            image = np.zeros(50000 if inner == "publish" else 10, np.uint8)
            try:
                results.append(getattr(pub, inner)(Wrapped(2, Held(), image)))
            except shmbus.Full as full:
                results.append(full)
        return 0

    topic = shmbus.Topic("wrapped", Wrapped, pool=64 * 1024, enc_hook=enc_hook, dec_hook=lambda expected, value: Held())
    on_full: Any = "raise" if inner == "publish" else "block"
    with shmbus.Bus(bus_name) as bus, bus.subscriber(topic), bus.publisher(topic, on_full=on_full, timeout=None) as pub:
        held = pub.empty(50000)
        if inner == "publish":
            pub.publish_now(Wrapped(1, Held(), np.zeros(10, np.uint8)))
            assert isinstance(results[1], shmbus.Full)
        else:
            with pytest.raises(shmbus.Full):
                pub.publish_now(Wrapped(1, Held(), np.zeros(50000, np.uint8)))
            assert isinstance(results[1], int)
        assert held.flags.writeable


@pytest.mark.parametrize(("count", "items"), [(300, 250), (3000, 9), (40, 250)], ids=["long", "many", "few"])
def test_small_arrays_that_a_record_has_no_room_for(bus_name: str, count: int, items: int) -> None:
    """However many small arrays an event has, it is bounded by the pool: whoever copies or looks gets each, aligned."""
    topic = shmbus.Topic("small", list[npt.NDArray[np.float64]], pool=MIB, capacity=1 << 18 if count == 40 else 1 << 20)
    sent = [np.full(items if number % 7 else 0, number, np.float32).astype(np.float64)[:125] for number in range(count)]
    with (
        shmbus.Bus(bus_name) as bus,
        bus.subscriber(topic) as looks,
        bus.subscriber(topic, mode="lossy") as copies,
        bus.worker(topic, group="g") as worker,
        bus.publisher(topic, on_full="raise") as pub,
    ):
        for _ in range(2):  # seen, and known
            pub.publish(sent)
            for receiver in (looks, copies):
                got = receiver.receive(timeout=5)
                assert all(np.array_equal(a, b) and a.flags.aligned for a, b in zip(got, sent, strict=True))
            message = next(worker.messages())
            assert all(np.array_equal(a, b) for a, b in zip(message.event, sent, strict=True))
            message.ack()
        del got, message
        for receiver in (looks, copies):
            with pytest.raises(shmbus.Empty):
                receiver.receive(timeout=0)  # what it had is behind it
        assert used(bus) == 0


def test_small_arrays_wait_for_the_pool(bus_name: str) -> None:
    """Small arrays that go to the pool wait for room there, or are too large for it, as long ones do."""
    topic = shmbus.Topic("small", list[npt.NDArray[np.uint8]], pool=128 * 1024, capacity=1 << 16)
    sent = [np.full(1000, number, np.uint8) for number in range(80)]
    with shmbus.Bus(bus_name) as bus, bus.subscriber(topic) as sub, bus.publisher(topic, on_full="raise") as pub:
        loan: Any = pub.empty(100_000)
        for _ in range(2):
            with pytest.raises(shmbus.Full):
                pub.publish(sent)
        with pytest.raises(shmbus.EventTooLargeError, match="pool"):
            pub.publish(sent * 2)
        del loan
        pub.publish(sent)
        assert all(np.array_equal(a, b) for a, b in zip(sub.receive(timeout=5), sent, strict=True))


@pytest.mark.parametrize("kind", ["subscriber", "worker"])
def test_messages_that_are_let_go(bus_name: str, kind: str) -> None:
    """An iterator over messages keeps no views of the one that it gave last, nor does one that nobody has any more."""
    topic = shmbus.Topic("frames", np.ndarray, pool=MIB)
    with shmbus.Bus(bus_name) as bus, bus.publisher(topic) as pub:
        receiver: Any = bus.subscriber(topic) if kind == "subscriber" else bus.worker(topic, group="g")
        with receiver:
            lasting = receiver.messages()
            gc.disable()
            try:
                for messages in (lasting, lasting, receiver.messages()):
                    pub.publish(np.zeros(5000))
                    message = next(messages)
                    assert message.event.nbytes == 40000
                    if kind == "worker":
                        message.ack()
                    del message, messages
                    assert not bus.stats().publishers[0].viewers
            finally:
                gc.enable()
