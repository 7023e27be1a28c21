"""Subscribers with a journal behind them: they catch up and go on, and fill in what they were overrun by."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from events import ORDERS, PATIENT, SMALL, Order, consumer, opened, orders
from journals import publish, recording, settled
from support import eventually

import shmbus
from shmbus.journal.entries import message_of
from shmbus.journal.journal import Part
from shmbus.journal.store import Entry


def test_catches_up_then_goes_on(bus_name: str, tmp_path: Path) -> None:
    """A subscriber that starts at a journal while events flow gets each of them once, in order, and no gap."""
    path = tmp_path / "small.journal"
    total = 6000
    with opened(bus_name) as bus, recording(bus, path, SMALL) as recorder:
        publisher = bus.publisher(SMALL)
        publishing = threading.Thread(target=lambda: [publisher.publish(order) for order in orders(total)])
        publishing.start()
        eventually(lambda: recorder.written > total // 4)
        with shmbus.Journal(path) as journal, bus.subscriber(SMALL, start=journal) as subscriber:
            got = [subscriber.receive(PATIENT).id for _ in range(total)]
            publishing.join()
            publisher.publish(Order(total + 1))
            assert subscriber.receive(PATIENT).id == total + 1
            assert subscriber.try_receive() is None
        publisher.close()
    assert got == list(range(1, total + 1))


def test_another_life_of_the_bus(bus_name: str, tmp_path: Path) -> None:
    """What an earlier life of the bus left in the journal comes before what this one has, though nobody writes it."""
    path = tmp_path / "orders.journal"
    with opened(bus_name) as bus, recording(bus, path), bus.publisher(ORDERS) as publisher:
        publish(publisher, orders(10))
        eventually(lambda: settled(bus))
    with opened(bus_name) as bus, bus.publisher(ORDERS) as publisher, shmbus.Journal(path) as journal:
        publish(publisher, orders(5, 11))
        with bus.subscriber(ORDERS, start=journal) as subscriber:
            assert [subscriber.receive(PATIENT).id for _ in range(15)] == list(range(1, 16))


def test_waits_for_what_is_owed(bus_name: str, tmp_path: Path) -> None:
    """What the group of a journal is owed, and no ring has for the subscriber, is awaited until it is written."""
    path = tmp_path / "small.journal"
    with opened(bus_name) as bus:
        publisher = bus.publisher(SMALL, on_full="raise")
        with recording(bus, path, SMALL):
            publisher.publish(Order(1))
            eventually(lambda: settled(bus))
        publish(publisher, orders(50, 2))
        for _ in range(6):  # their rings go as history, and stay for the group
            with bus.publisher(SMALL) as other:
                other.publish(Order(0))
        with shmbus.Journal(path) as journal, bus.subscriber(SMALL, start=journal) as subscriber:
            got = []
            while (event := subscriber.try_receive()) is not None:
                got.append(event.id)
            assert len(got) < 57
            with pytest.raises(shmbus.Empty):
                subscriber.receive(timeout=0.05)
            with recording(bus, path, SMALL):
                got += [subscriber.receive(PATIENT).id for _ in range(57 - len(got))]
                assert subscriber.try_receive() is None
        publisher.close()
    assert [id for id in got if id] == list(range(1, 52))
    assert got.count(0) == 6


@pytest.mark.parametrize("way", ["next", "messages", "many", "async", "async_messages"])
def test_every_way_to_receive(bus_name: str, tmp_path: Path, way: str) -> None:
    """Iteration, messages, lists and event loops all see the journal first, and the ring then."""
    path = tmp_path / "orders.journal"
    with opened(bus_name) as bus, recording(bus, path), bus.publisher(ORDERS) as publisher:
        publish(publisher, orders(5))
        eventually(lambda: settled(bus))
        with shmbus.Journal(path) as journal, bus.subscriber(ORDERS, start=journal) as subscriber:
            publish(publisher, orders(5, 6))
            got = _received(subscriber, way)
            subscriber.cancel()
            assert list(subscriber) == []
    assert got == list(range(1, 11))


def _received(subscriber: shmbus.Subscriber[Order], way: str) -> list[int]:
    async def collected() -> list[int]:
        found = []
        async with asyncio.timeout(PATIENT):
            if way == "async":
                async for order in subscriber:
                    found.append(order.id)
                    if len(found) == 10:
                        break
            else:
                async for message in subscriber.messages():
                    found.append(message.event.id)
                    if len(found) == 10:
                        break
        return found

    if way.startswith("async"):
        return asyncio.run(collected())
    if way == "next":
        return [order.id for _, order in zip(range(10), subscriber, strict=False)]
    if way == "messages":
        return [message.event.id for _, message in zip(range(10), subscriber.messages(), strict=False)]
    got: list[int] = []
    while len(got) < 10:
        got += [order.id for order in subscriber.receive_many(4, PATIENT)]
    return got


def test_repair_at_full_speed(bus_name: str, tmp_path: Path) -> None:
    """A lossy subscriber that is overrun all the time, with repair, sees every event in order, and none twice."""
    path = tmp_path / "small.journal"
    total = 5000
    with opened(bus_name) as bus, recording(bus, path, SMALL), shmbus.Journal(path) as journal:
        publishers = [bus.publisher(SMALL, name=name) for name in "ab"]
        with bus.subscriber(SMALL, mode="lossy", on_gap="repair", journal=journal, name="late") as subscriber:
            threads = [
                threading.Thread(target=lambda p=p: [p.publish(order) for order in orders(total)]) for p in publishers
            ]
            for thread in threads:
                thread.start()
            eventually(lambda: consumer(bus, "late").overrun > 0, "it is overrun")
            got: dict[str, list[int]] = {"a": [], "b": []}
            sequences: dict[str, list[int]] = {"a": [], "b": []}
            for message in subscriber.messages():
                got[message.publisher].append(message.event.id)
                sequences[message.publisher].append(message.sequence)
                if sum(map(len, got.values())) == 2 * total:
                    break
            for thread in threads:
                thread.join()
        for publisher in publishers:
            publisher.close()
    assert got == {"a": list(range(1, total + 1)), "b": list(range(1, total + 1))}
    assert sequences == got


def test_a_gap_larger_than_what_is_kept(bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gap of any length is handed out whole and in order, while a bounded part of it is in memory."""
    from shmbus.journal import catchup

    monkeypatch.setattr(catchup, "_MOST", 100)
    path = tmp_path / "small.journal"
    total, parts = 2000, []
    with opened(bus_name) as bus, recording(bus, path, SMALL), shmbus.Journal(path) as journal:
        part_of = journal.part

        def part(*arguments: Any) -> Part:
            found = part_of(*arguments)
            if arguments[-1] > 100:  # those that are handed out; the first look may find too much
                parts.append(len(found.entries))
            return found

        monkeypatch.setattr(journal, "part", part)
        a, b = bus.publisher(SMALL, name="a"), bus.publisher(SMALL, name="b")
        with bus.subscriber(SMALL, mode="lossy", on_gap="repair", journal=journal) as subscriber:
            for order in orders(total):
                (a if order.id % 2 else b).publish(order)
            messages = subscriber.messages()
            got = [next(messages) for _ in range(total)]
            assert subscriber.try_receive() is None
        a.close()
        b.close()
    for name, first in (("a", 1), ("b", 2)):
        mine = [message for message in got if message.publisher == name]
        assert [message.event.id for message in mine] == list(range(first, total + 1, 2))
        assert [message.sequence for message in mine] == list(range(1, total // 2 + 1))
    assert max(parts) <= 100
    assert sum(parts) > total // 2


def test_what_does_not_decode_in_a_gap(bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event of a gap that does not decode is told once, and those behind it are handed out."""
    from shmbus.journal import catchup

    read = message_of

    def failing(topic: shmbus.Topic[Order], bus: str, entry: Entry) -> shmbus.Message[Order]:
        message = read(topic, bus, entry)
        if message.event.id == 7:
            raise shmbus.DecodeError(topic.name, entry.publisher, entry.sequence, "it is seven")
        return message

    monkeypatch.setattr(catchup, "message_of", failing)
    path = tmp_path / "small.journal"
    with opened(bus_name) as bus, recording(bus, path, SMALL), shmbus.Journal(path) as journal:
        with bus.subscriber(SMALL, mode="lossy", on_gap="repair", journal=journal) as subscriber:
            with bus.publisher(SMALL) as publisher:
                publish(publisher, orders(300))
                got = [subscriber.receive(PATIENT).id for _ in range(6)]
                with pytest.raises(shmbus.DecodeError, match="it is seven"):
                    subscriber.receive(PATIENT)
                got += [subscriber.receive(PATIENT).id for _ in range(293)]
    assert got == [id for id in range(1, 301) if id != 7]


def test_what_the_journal_lacks_stays_a_gap(
    bus_name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the journal stands still, what it lacks is told as lost after a bounded wait, and the stream goes on."""
    from shmbus.journal import catchup

    monkeypatch.setattr(catchup, "PATIENCE", 0.2)
    path = tmp_path / "small.journal"
    with opened(bus_name) as bus:
        with recording(bus, path, SMALL), bus.publisher(SMALL) as first:
            first.publish(Order(1))
            eventually(lambda: settled(bus))
        name = next(c.name for c in bus.stats().consumers if c.kind == "group")
        bus.remove_group(SMALL, name)
        with shmbus.Journal(path) as journal, bus.publisher(SMALL) as publisher:
            with bus.subscriber(SMALL, mode="lossy", on_gap="repair", journal=journal, name="late") as subscriber:
                publish(publisher, orders(1000))
                got = [subscriber.receive(PATIENT).id for _ in range(10)]
    assert got == list(range(got[0], got[0] + 10))
    assert got[0] > 1
    assert f"was overrun: {got[0] - 1} events lost" in caplog.text


def test_options_that_do_not_go_together(bus_name: str, tmp_path: Path) -> None:
    """Repair without a journal, a journal without repair, and repair of a reliable subscriber are refused."""
    path = tmp_path / "orders.journal"
    with opened(bus_name) as bus, recording(bus, path), shmbus.Journal(path) as journal:
        for options in (
            {"mode": "lossy", "on_gap": "repair"},
            {"mode": "lossy", "journal": journal},
            {"on_gap": "repair", "journal": journal},
        ):
            with pytest.raises(shmbus.ConfigError, match="on_gap='repair' is for mode='lossy', with a journal"):
                bus.subscriber(ORDERS, **options)
        with bus.subscriber(ORDERS, start=journal) as subscriber:
            with pytest.raises(shmbus.ConfigError, match="hands out events, not arrays"):
                subscriber.arrays()
        with pytest.raises(shmbus.ConfigError, match="start is"):
            bus.subscriber(ORDERS, start=3)  # type: ignore[arg-type]
