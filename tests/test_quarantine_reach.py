"""How far a quarantine goes: what is decoded or in hand meanwhile, pools, growing rings, groups, other publishers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from quarantined import AT_WILL, FITS, NUMBERS, balanced, consumer, drained, fill, quarantine

import shmbus
from shmbus import Bus


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    """A bus on which nobody is put in quarantine but by `quarantine`."""
    with Bus(bus_name, policy=AT_WILL, supervise=False) as bus:
        yield bus


# -- what it was doing


class Text:
    def __init__(self, words: str) -> None:
        self.words = words


class Page(msgspec.Struct):
    first: Text
    rest: bytes


def test_nothing_moves_below_a_decoder(bus: Bus) -> None:
    """Who is in the middle of a decode when its publisher laps the ring gets that event whole."""
    begun, go_on = threading.Event(), threading.Event()

    def decode(kind: type, value: Any) -> Text:
        begun.set()
        assert go_on.wait(60)
        return Text(value)

    topic = shmbus.Topic("pages", Page, capacity=4096, dec_hook=decode, enc_hook=lambda text: text.words)
    publisher = bus.publisher(topic, on_full="raise")
    subscriber = bus.subscriber(topic, name="sleeper")
    pages = [Page(Text(f"page {n}"), bytes([n]) * 500) for n in range(60)]
    got: list[Page] = []
    reader = threading.Thread(target=lambda: got.append(subscriber.receive(60)))
    with pytest.raises(shmbus.Full):
        publisher.publish_many(pages)
    held = consumer(bus, "sleeper").depth
    reader.start()
    assert begun.wait(60)
    quarantine(bus, "sleeper")
    publisher.publish_many(pages[held:])
    go_on.set()
    reader.join()
    got += drained(subscriber)
    assert [(page.first.words, page.rest) for page in got[:held]] == [
        (f"page {n}", bytes([n]) * 500) for n in range(held)
    ]
    assert [page.rest[0] for page in got[held:]] == list(range(60 - len(got) + held, 60))
    found = consumer(bus, "sleeper")
    assert found.overrun == 60 - len(got) > 0
    assert balanced(found)
    subscriber.close()
    publisher.close()


def test_arrays_in_hand_stay_as_they_are(bus: Bus) -> None:
    """An array of a ring that its publisher has left shows the same rows for as long as it ever would have."""
    numpy = pytest.importorskip("numpy")
    topic = shmbus.Topic("rows", Row, capacity=4096, codec="record")
    publisher = bus.publisher(topic, on_full="raise")
    gaps: list[shmbus.Gap] = []
    subscriber = bus.subscriber(topic, name="sleeper", on_gap=gaps.append)
    with pytest.raises(shmbus.Full):
        publisher.publish_many(Row(n, n / 2) for n in range(1000))
    arrays = subscriber.arrays()
    first = next(arrays)
    rows = numpy.array(first)
    quarantine(bus, "sleeper")
    publisher.publish_many(Row(n, n / 2) for n in range(1000, 2000))
    assert (first == rows).all()
    more = numpy.concatenate([numpy.array(next(arrays)) for _ in range(2)])
    assert [gap.last - gap.first + 1 for gap in gaps] == [consumer(bus, "sleeper").overrun]
    assert more["number"][-1] == 1999
    assert (more["half"] * 2 == more["number"]).all()
    with pytest.raises(shmbus.Full):  # and it is reliable: the array in hand is not overwritten
        publisher.publish_many(Row(n, n / 2) for n in range(2000, 3000))
    assert more["number"][-1] == 1999
    subscriber.close()
    publisher.close()


class Row(msgspec.Struct):
    number: int
    half: float


def test_a_pool_owes_nothing_to_who_was_left(bus: Bus) -> None:
    """A full pool is freed as a ring is; views in hand stay, and buffers that are gone are overrun."""
    topic = shmbus.Topic("blobs", memoryview, capacity=1 << 14, pool=1 << 16)
    publisher = bus.publisher(topic, on_full="raise")
    gaps: list[shmbus.Gap] = []
    subscriber = bus.subscriber(topic, name="sleeper", on_gap=gaps.append)
    other = bus.subscriber(topic, name="other")

    def send(number: int) -> None:
        publisher.publish(memoryview(bytes([number]) * 8192))

    for number in range(8):
        send(number)
    view = subscriber.receive(10)
    with pytest.raises(shmbus.Full, match="sleeper"):
        send(8)
    assert len(drained(other)) == 8
    with pytest.raises(shmbus.Full, match="sleeper"):
        send(8)
    quarantine(bus, "sleeper")
    for number in range(8, 30):
        send(number)
        assert bytes(other.receive(10)) == bytes([number]) * 8192
    assert bytes(view) == bytes(8192)
    got = [bytes(found)[0] for found in iter(subscriber.try_receive, None)]
    assert got == sorted(got)
    assert got[-1] == 29
    found = consumer(bus, "sleeper")
    assert found.overrun == sum(gap.count for gap in gaps) == 30 - 1 - len(got)
    assert balanced(found)
    assert balanced(consumer(bus, "other"))
    del view
    for handle in (subscriber, other, publisher):
        handle.close()


# -- who is concerned


def test_only_where_it_is_in_the_way(bus: Bus) -> None:
    """Of publishers that had room it loses nothing; who is healthy and slow holds its publisher as ever."""
    full, idle = bus.publisher(NUMBERS, name="full"), bus.publisher(NUMBERS, name="idle")
    gaps: list[shmbus.Gap] = []
    sleeper = bus.subscriber(NUMBERS, name="sleeper", on_gap=gaps.append)
    slow = bus.subscriber(NUMBERS, name="slow")
    number = fill(full)
    idle.publish(-5)
    quarantine(bus, "sleeper")
    with pytest.raises(shmbus.Full) as error:  # of the other one
        full.publish_now(number)
    assert set(error.value.blocked_by) == {"sleeper", "slow"}
    got = [slow.receive(10) for _ in range(number)]
    assert fill(full, number) > number
    idle.publish(-6)
    got += drained(slow)
    assert consumer(bus, "slow").overrun == 0
    assert sorted(got) == [-6, -5, *range(len(got) - 2)]
    missed = [n for n in drained(sleeper) if n < 0]
    assert missed == [-5, -6]
    assert {gap.publisher for gap in gaps} <= {"full"}
    for handle in (sleeper, slow, full, idle):
        handle.close()


def test_groups_are_left_alone(bus: Bus) -> None:
    """A group that is stalled holds its publisher, by this policy: its events are owed to whichever worker comes."""
    worker = bus.worker(NUMBERS, group="billing")
    with bus.publisher(NUMBERS) as publisher:
        fill(publisher)
        quarantine(bus, "billing")
        with pytest.raises(shmbus.Full, match="billing"):
            publisher.publish_now(1)
    worker.close()
    bus.remove_group(NUMBERS, "billing", force=True)


def test_rings_that_grow(bus: Bus) -> None:
    """A publisher whose rings grow leaves who is in quarantine, grows for who is not, and nobody's order is broken."""
    topic = shmbus.Topic("numbers", int, capacity=4096, max_capacity=1 << 14)
    gaps: list[shmbus.Gap] = []
    publisher = bus.publisher(topic, on_full="raise")
    sleeper = bus.subscriber(topic, name="sleeper", on_gap=gaps.append)
    with pytest.raises(shmbus.Full):
        publisher.publish_many(range(1000))
    number = consumer(bus, "sleeper").depth
    assert number > 2 * FITS
    quarantine(bus, "sleeper")
    late = bus.subscriber(topic, name="late")
    with pytest.raises(shmbus.Full, match="late"):
        publisher.publish_many(range(number, number + 10_000))
    end = number + consumer(bus, "late").depth
    assert drained(late) == list(range(number, end))
    got = drained(sleeper)
    lost = sum(gap.count for gap in gaps)
    assert got[:number] == list(range(number))
    assert got[number:] == list(range(number + lost, end))
    assert consumer(bus, "sleeper").overrun == lost
    for handle in (sleeper, late, publisher):
        handle.close()


def test_tasks_go_on_too(bus: Bus) -> None:
    """A task that awaits room goes on, as does one that publishes many, and a flush waits for it no longer."""
    publisher = bus.publisher(NUMBERS, timeout=60)
    sleeper = bus.subscriber(NUMBERS, name="sleeper")
    number = fill(publisher)

    async def publish() -> None:
        waiting = asyncio.create_task(publisher.apublish(number))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.to_thread(quarantine, bus, "sleeper")
        assert await waiting == number + 1
        assert await publisher.apublish_many(range(3 * FITS)) == 3 * FITS
        await publisher.aflush(10)

    asyncio.run(publish())
    publisher.flush(10)
    assert len(drained(sleeper)) >= 2 * FITS - 2
    assert balanced(consumer(bus, "sleeper"))
    sleeper.close()
    publisher.close()


def test_events_beside_it_are_not_lost(bus: Bus) -> None:
    """A publisher that comes and one that goes meanwhile are received too, as far as their rings have them."""
    first = bus.publisher(NUMBERS, name="first")
    gaps: list[shmbus.Gap] = []
    sleeper = bus.subscriber(NUMBERS, name="sleeper", on_gap=gaps.append)
    number = fill(first)
    quarantine(bus, "sleeper")
    first.publish_many(range(number, number + 10))
    first.close()
    with bus.publisher(NUMBERS, name="second") as second:
        second.publish_many(range(-10, 0))
        got = drained(sleeper)
        assert [n for n in got if n >= 0] == list(range(number + 10))
        assert [n for n in got if n < 0] == list(range(-10, 0))
        assert gaps == []
        fill(second)  # reliable again, of the second one too
        with pytest.raises(shmbus.Full, match="sleeper"):
            second.publish_now(1)
    sleeper.close()
