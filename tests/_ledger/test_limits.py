"""Limits: more topics, groups and consumers than a bus has memory for at first."""

from __future__ import annotations

import os
from collections.abc import Iterator

import msgspec
import pytest
from events import Order, opened
from support import SHM

import shmbus
from shmbus import Bus, _core
from shmbus._ledger import members, slots
from shmbus._ledger.document import (
    COMMAND,
    ConsumerEntry,
    Document,
    Participant,
    PublisherEntry,
    RingEntry,
    TopicEntry,
)
from shmbus._shm import segment
from shmbus.errors import NoSpaceError


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    with opened(bus_name) as bus:
        yield bus


def topic_entry(index: int) -> TopicEntry:
    return TopicEntry(
        index=index,
        id=index + 1,
        name=f"a-topic-with-a-name-of-a-usual-length/{index}",
        capacity=1 << 20,
        codec="msgpack",
        fingerprint=2**64 - 1 - index,
        type="shmbus.events.Something",
    )


def test_the_document_of_a_full_bus_fits() -> None:
    """A document of all that there may be at once leaves the room that leaving needs, and reads as it was written."""
    command = "/usr/bin/python3 -m a.service.of.some.kind --with options".ljust(COMMAND)
    document = Document(
        participants=[
            Participant(id=n + 1, life=n + 1, pid=4_000_000 + n, namespace=4_026_531_836, command=command)
            for n in range(members.MAX_PARTICIPANTS)
        ],
        topics=[topic_entry(index) for index in range(_core.MAX_TOPICS)],
        publishers=[
            PublisherEntry(id=n + 1, slot=n, topic=n, name=f"publisher-{n}", participant=n + 1)
            for n in range(_core.MAX_TOPICS)
        ],
        consumers=[
            ConsumerEntry(
                id=n + 1,
                line=n,
                topic=n % _core.MAX_TOPICS,
                kind="group" if n < _core.MAX_GROUPS else "subscriber",
                name=f"consumer-{n}",
                slot=n if n < _core.MAX_GROUPS else n // _core.MAX_TOPICS,
                participant=n + 1,
                state="active",
            )
            for n in range(_core.MAX_CONSUMERS)
        ],
        rings=[
            RingEntry(id=2 * n + group, topic=n, publisher=n + 1, group=group * (n + 1), capacity=1 << 20)
            for n in range(_core.MAX_TOPICS)
            for group in (0, 1)
        ],
    )
    body = slots.encode(document)
    assert len(body) + slots.reserve(document) <= slots.ROOM
    found = slots.decode(body)
    for table in ("participants", "topics", "publishers", "consumers", "rings"):
        assert sorted(getattr(found, table), key=lambda entry: entry.id) == getattr(document, table)
    assert len(slots.encode(Document(topics=[topic_entry(0)]))) < 1000


def allocated(bus_name: str) -> int:
    [name] = [n for n in os.listdir(SHM) if bus_name in n and n.endswith(f":{os.geteuid()}")]
    return (SHM / name).stat().st_blocks * 512


def test_past_the_old_limits(bus: Bus, bus_name: str) -> None:
    """Past 128 topics and 64 groups a bus goes on as before, and each topic works."""
    topics = [shmbus.Topic(f"topic-{n}", Order, capacity=4096) for n in range(140)]
    for topic in topics:
        bus.group(topic, "g")
    last = topics[-1]
    with bus.publisher(last) as pub, bus.worker(last, group="g") as worker, bus.subscriber(last) as sub:
        pub.publish(Order(1))
        assert worker.receive(0) == sub.receive(0) == Order(1)
    assert len(bus.stats().topics) == 140
    assert allocated(bus_name) < 4 << 20


def test_many_groups_of_one_topic(bus: Bus) -> None:
    """A publisher writes into the rings of more groups than a bus had once."""
    topic = shmbus.Topic("t", Order, capacity=4096)
    for number in range(70):
        bus.group(topic, f"g{number}")
    with bus.publisher(topic) as pub:
        pub.publish(Order(1))
        assert [c.depth for c in bus.stats().consumers] == [1] * 70


def test_memory_comes_when_it_is_needed(bus: Bus, bus_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bus takes more memory when its document does, and whoever finds none is refused with nothing changed."""
    before = allocated(bus_name)
    monkeypatch.setattr(_core, "FIRST_DOCUMENT_BYTES", 0)
    monkeypatch.setattr(_core, "FIRST_CONSUMERS", 0)
    real = segment.Segment.reserve

    def refused(self: segment.Segment, *spans: tuple[int, int]) -> None:
        raise NoSpaceError(28, self.name, 1, 0)

    monkeypatch.setattr(segment.Segment, "reserve", refused)
    with pytest.raises(NoSpaceError):
        bus.group(shmbus.Topic("t", Order), "g")
    assert not bus.stats().topics
    monkeypatch.setattr(segment.Segment, "reserve", real)
    with bus._session.locked() as change:
        slots.give_memory(change.registry.segment, 3 << 20)
        slots.give_line(change.registry.segment, _core.MAX_CONSUMERS - 1)
        raw = change.registry.map
        at = _core.DOCUMENTS + (change.version + 1 & 1) * _core.DOCUMENT_BYTES + (3 << 20)
        raw[at : at + 8] = bytes(8)
    assert allocated(bus_name) >= before + (4 << 20)
    bus.group(shmbus.Topic("t", Order), "g")
    assert msgspec.json.encode(bus.stats())
