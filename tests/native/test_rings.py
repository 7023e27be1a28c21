"""What a broadcast ring promises, case by case, on the model and on `_core` alike (`rings` gives both one
face)."""

from __future__ import annotations

import queue
from collections.abc import Callable

import pytest
from model import Gap, Message, Undecodable, maximum
from rings import BROADCAST, AnyBroadcastRing, fill, until_full

CAPACITY = 4096
LARGEST = maximum(CAPACITY)
MakeBroadcast = Callable[..., AnyBroadcastRing]


@pytest.fixture(params=sorted(BROADCAST))
def broadcast(request: pytest.FixtureRequest) -> MakeBroadcast:
    """Makes an empty broadcast ring; `sequence` and `position` say where its counters start."""
    make = BROADCAST[request.param]
    return lambda **start: make(CAPACITY, **start)


def payloads(ring: AnyBroadcastRing, slot: int) -> list[bytes]:
    """Reads until there is nothing; every result must be an event."""
    found: list[bytes] = []
    while (message := ring.read(slot)) is not None:
        assert isinstance(message, Message), message
        found.append(message.payload)
    return found


def books(ring: AnyBroadcastRing, slot: int, **expected: int) -> None:
    """The terms are the expected ones, and zero where nothing is expected."""
    zero = dict.fromkeys(("offered", "delivered", "depth", "overrun", "refused", "undecodable"), 0)
    terms = ring.terms(slot)
    del terms["pending_first"], terms["pending_last"], terms["next"]
    assert terms == zero | expected


# ---- records ----


def test_events_arrive_in_order(broadcast: MakeBroadcast) -> None:
    """A reliable subscriber reads each event once, in order, with its sequence, and the books follow each
    step."""
    ring = broadcast()
    ring.join(0)
    assert [ring.publish(b"a"), ring.publish(b""), ring.publish(b"c" * 9)] == [1, 2, 3]
    books(ring, 0, offered=3, depth=3)
    assert ring.read(0) == Message(1, b"", b"a")
    books(ring, 0, offered=3, depth=2, delivered=1)
    assert [ring.read(0), ring.read(0)] == [Message(2, b"", b""), Message(3, b"", b"c" * 9)]
    assert ring.read(0) is None
    books(ring, 0, offered=3, delivered=3)


def test_wrap_around(broadcast: MakeBroadcast) -> None:
    """Records of every size pass through many laps of the ring unchanged."""
    ring = broadcast()
    ring.join(0)
    for lap in range(20):
        sizes = range(lap, LARGEST, 97)
        for size in sizes:
            ring.publish(bytes([lap + 40]) * size)
            assert payloads(ring, 0) == [bytes([lap + 40]) * size]
    assert ring.info()["tail"] > 20 * CAPACITY


@pytest.mark.parametrize("left", [8, 16, 24, 32, 40])
def test_padding_at_the_end(broadcast: MakeBroadcast, left: int) -> None:
    """A record that does not fit before the end begins at the next lap, also where no header fits before the
    end."""
    ring = broadcast(position=CAPACITY - left)
    ring.join(0)
    ring.publish(fill(48))
    assert ring.info()["tail"] == CAPACITY + 48
    books(ring, 0, offered=1, depth=1)
    ring.join(1, oldest=True)  # stands on the padding
    assert payloads(ring, 0) == payloads(ring, 1) == [fill(48)]
    books(ring, 1, offered=1, delivered=1)


def test_exact_end(broadcast: MakeBroadcast) -> None:
    """A record that ends with the ring leaves no padding."""
    ring = broadcast(position=CAPACITY - 64)
    ring.join(0)
    ring.publish(fill(64))
    assert ring.info()["tail"] == CAPACITY
    ring.publish(b"next")
    assert payloads(ring, 0) == [fill(64), b"next"]


def test_padding_is_passed_by_a_lossy_reader(broadcast: MakeBroadcast) -> None:
    """A lossy reader that stands on padding which is overwritten lost nothing, and reads the event behind
    it."""
    ring = broadcast(position=CAPACITY - 992)
    ring.join(0, lossy=True)
    ring.publish(fill(1024))  # pads 992, of which the fourth record's announcement covers a part
    for _ in range(2):
        ring.publish(fill(1016))
    ring.publish(fill(736))
    assert ring.info()["oldest"] == CAPACITY
    assert payloads(ring, 0) == [fill(1024), fill(1016), fill(1016), fill(736)]
    books(ring, 0, offered=4, delivered=4)


def test_headers(broadcast: MakeBroadcast) -> None:
    """Headers of any length come out as they went in, and count for the size of the record."""
    ring = broadcast()
    ring.join(0)
    for size in range(20):
        ring.publish(b"payload", b"h" * size)
        assert ring.read(0) == Message(size + 1, b"h" * size, b"payload")


@pytest.mark.parametrize("headers", [0, 1, 8, LARGEST])
def test_largest_record(broadcast: MakeBroadcast, headers: int) -> None:
    """The largest body, headers rounded up to eight, fits; one byte more is an error, writes nothing and
    hurts nobody."""
    ring = broadcast()
    ring.join(0)
    payload = b"x" * (LARGEST - -(-headers // 8) * 8)
    with pytest.raises(ValueError, match=str(LARGEST)):
        ring.publish(payload + b"x", b"h" * headers)
    with pytest.raises(ValueError, match=str(LARGEST)):
        ring.publish_many([b"a", b"x" * (LARGEST + 1)])
    books(ring, 0)
    ring.publish(payload, b"h" * headers)
    assert ring.read(0) == Message(1, b"h" * headers, payload)


@pytest.mark.parametrize("sequence", [1, 2**32 - 3, 2**48 - 3])
@pytest.mark.parametrize("position", [0, 2**32 - 64, 2**48 - 8])
def test_counters_of_any_size(broadcast: MakeBroadcast, sequence: int, position: int) -> None:
    """Sequences and positions cross the limits of 32 and 48 bits without a trace."""
    ring = broadcast(sequence=sequence, position=position)
    ring.join(0)
    ring.join(1, lossy=True)
    for index in range(300):
        assert ring.publish(fill(48)) == sequence + index
        assert ring.read(0) == ring.read(1) == Message(sequence + index, b"", fill(48))
    for slot in (0, 1):
        books(ring, slot, offered=300, delivered=300)


# ---- room ----


def test_exact_fill(broadcast: MakeBroadcast) -> None:
    """A ring is full to the last record that leaves room for the next sequence; nothing is lost, and one read
    makes room."""
    ring = broadcast()
    ring.join(0)
    assert until_full(lambda: ring.publish(fill(64))) == CAPACITY // 64 - 1
    assert ring.info()["room"] == 64
    assert ring.publish(fill(56)) == 64, "the frontier takes the last eight bytes"
    assert ring.info()["room"] == 8
    books(ring, 0, offered=64, depth=64)
    assert ring.read(0) == Message(1, b"", fill(64))
    assert ring.publish(fill(56)) == 65, "padding, the record and the frontier take what was freed"
    assert len(payloads(ring, 0)) == 64
    books(ring, 0, offered=65, delivered=65)


def test_reliable_gate(broadcast: MakeBroadcast) -> None:
    """The slowest reliable subscriber gates the publisher, and is the one that `blocking` names."""
    ring = broadcast()
    for slot in (0, 3, 5):
        ring.join(slot, lossy=slot == 5)
    until_full(lambda: ring.publish(fill(64)))
    assert ring.blocking(72) == 0b1001
    payloads(ring, 3)
    assert ring.blocking(72) == 0b0001
    with pytest.raises(queue.Full):
        ring.publish(fill(64))
    ring.leave(0)
    assert ring.blocking(72) == 0
    assert ring.publish(fill(64)) == 64


def test_refused_events_are_counted(broadcast: MakeBroadcast) -> None:
    """What found no room is on the books of everybody who was there, and takes no sequence."""
    ring = broadcast()
    ring.join(0)
    count = until_full(lambda: ring.publish(fill(64)))
    assert [ring.publish(fill(64), drop=True) for _ in range(3)] == [None] * 3
    books(ring, 0, offered=count + 3, depth=count, refused=3)
    ring.join(1, lossy=True)
    books(ring, 1)
    ring.read(0)
    assert ring.publish(fill(64), drop=True) == count + 1
    assert ring.losses(0)["refused"] == (3, count + 1, count + 1)
    books(ring, 0, offered=count + 4, depth=count, delivered=1, refused=3)
    books(ring, 1, offered=1, depth=1)


def test_unrouted_events_are_history(broadcast: MakeBroadcast) -> None:
    """Events that nobody was there for are counted, and stay readable for who joins at the oldest."""
    ring = broadcast()
    for index in range(5):
        ring.publish(b"%d" % index)
    assert ring.info()["unrouted"] == 5
    ring.join(0, oldest=True)
    ring.publish(b"5")
    assert ring.info()["unrouted"] == 5
    assert payloads(ring, 0) == [b"%d" % index for index in range(6)]


def test_publish_many(broadcast: MakeBroadcast) -> None:
    """A batch goes in whole, or as far as there is room: queue.Full leaves what fitted, dropping counts the
    rest."""
    ring = broadcast()
    ring.join(0)
    assert ring.publish_many([]) == 0
    assert ring.publish_many(fill(64) for _ in range(10)) == 10
    assert payloads(ring, 0) == [fill(64)] * 10
    with pytest.raises(queue.Full):
        ring.publish_many([fill(64)] * 100)
    depth = ring.terms(0)["depth"]
    assert len(payloads(ring, 0)) == depth > 50
    delivered = depth + 10
    fitted = ring.publish_many([fill(64)] * 100, drop=True)
    books(ring, 0, offered=delivered + 100, delivered=delivered, depth=fitted, refused=100 - fitted)


# ---- joining and losing ----


def test_join_latest(broadcast: MakeBroadcast) -> None:
    """Who joins at the latest sees only what comes afterwards, and its books begin there."""
    ring = broadcast()
    ring.publish(b"before")
    ring.join(0)
    books(ring, 0)
    ring.publish(b"after")
    assert payloads(ring, 0) == [b"after"]
    books(ring, 0, offered=1, delivered=1)


@pytest.mark.parametrize("events", [3, 63, 200])
def test_join_oldest(broadcast: MakeBroadcast, events: int) -> None:
    """Who joins at the oldest gets every record that is whole, and a reliable joiner gates from there at
    once."""
    ring = broadcast()
    for index in range(events):
        ring.publish(b"%060d" % index)
    ring.join(0, oldest=True)
    depth = ring.terms(0)["depth"]
    assert depth == min(events, depth)
    assert until_full(lambda: ring.publish(b"later")) + depth < CAPACITY // 24
    found = payloads(ring, 0)
    assert found[:depth] == [b"%060d" % index for index in range(events - depth, events)]
    assert set(found[depth:]) == {b"later"}


@pytest.mark.parametrize("read_before", [0, 1])
def test_overrun_is_an_exact_gap(broadcast: MakeBroadcast, read_before: int) -> None:
    """A lapped reader learns exactly what it lost, resumes at the oldest whole record, and its books say the
    same before it looks and after."""
    ring = broadcast()
    ring.join(0, lossy=True)
    for _ in range(3):
        ring.publish(fill(64))
    for _ in range(read_before):
        ring.read(0)
    for _ in range(97):
        ring.publish(fill(64))
    kept = (ring.info()["tail"] - ring.info()["oldest"]) // 64
    lost = 100 - kept - read_before
    books(ring, 0, offered=100, delivered=read_before, depth=kept, overrun=lost)
    assert ring.losses(0)["overrun"] == (0, 0, 0)
    terms = ring.terms(0)
    assert (terms["pending_first"], terms["pending_last"]) == (read_before + 1, 100 - kept)
    assert ring.read(0) == Gap(read_before + 1, 100 - kept)
    books(ring, 0, offered=100, delivered=read_before, depth=kept, overrun=lost)
    assert ring.read(0) == Message(101 - kept, b"", fill(64))
    assert len(payloads(ring, 0)) == kept - 1
    books(ring, 0, offered=100, delivered=read_before + kept, overrun=lost)
    assert ring.losses(0)["overrun"] == (lost, read_before + 1, 100 - kept)
    assert ring.terms(0)["pending_last"] == 0


def test_a_lossy_reader_never_gates(broadcast: MakeBroadcast) -> None:
    """Beside a lossy subscriber a publisher never finds the ring full."""
    ring = broadcast()
    ring.join(0, lossy=True)
    for index in range(1000):
        assert ring.publish(fill(200)) == index + 1
    assert ring.info()["room"] == CAPACITY


def test_undecodable_is_counted_and_passed(broadcast: MakeBroadcast) -> None:
    """A payload that does not decode is told once, counted, and behind the reader."""
    ring = broadcast()
    ring.join(0)
    ring.join(1, lossy=True)
    for payload in (b"a", b"!1", b"b", b"!2"):
        ring.publish(payload)
    for slot in (0, 1):
        results = [ring.read(slot) for _ in range(5)]
        assert results == [Message(1, b"", b"a"), Undecodable(2), Message(3, b"", b"b"), Undecodable(4), None]
        books(ring, slot, offered=4, delivered=2, undecodable=2)
        assert ring.losses(slot)["undecodable"] == (2, 2, 4)


def test_a_slot_starts_clean(broadcast: MakeBroadcast) -> None:
    """A slot that is used again has nothing of its last user on its books."""
    ring = broadcast()
    for lossy in (True, False):
        ring.join(0, lossy=lossy, oldest=True)
        ring.publish(b"!")
        while ring.read(0) is not None:
            pass
        ring.leave(0)
        ring.publish(b"unseen")
    ring.join(0, lossy=True, oldest=True)
    books(ring, 0, offered=4, depth=4)
    assert ring.losses(0)["undecodable"] == (0, 0, 0)


# ---- without a publisher ----


def test_trim_leaves_what_is_unread(broadcast: MakeBroadcast) -> None:
    """A ring whose publisher is gone gives up what all its subscribers have read, and they read on."""
    ring = broadcast(position=CAPACITY - 1000)
    for slot, lossy in enumerate((False, True, False)):
        ring.join(slot, lossy=lossy)
    sent = [bytes([number]) * 100 for number in range(20)]
    ring.publish_many(sent)
    for slot, count in enumerate((5, 7, 6)):
        for number in range(count):
            assert ring.read(slot) == Message(number + 1, b"", sent[number])
    before = ring.info()
    ring.trim()
    info = ring.info()
    assert info["oldest"] > before["oldest"]
    assert info["intent"] == info["oldest"] + CAPACITY
    ring.join(3, oldest=True)
    assert payloads(ring, 3) == sent[5:]
    for slot, count in enumerate((5, 7, 6)):
        assert payloads(ring, slot) == sent[count:]
        books(ring, slot, offered=20, delivered=20)
    ring.trim()
    assert ring.info()["oldest"] == ring.info()["tail"]
    assert ring.read(0) is None


def test_trim_does_not_pass_a_lapped_reader(broadcast: MakeBroadcast) -> None:
    """A lossy subscriber that was overtaken is told what it lost to its publisher, and gets the rest."""
    ring = broadcast()
    ring.join(0, lossy=True)
    ring.publish_many([bytes([number]) * 100 for number in range(100)])
    oldest = ring.info()["oldest"]
    ring.trim()
    assert ring.info()["oldest"] == oldest
    gap = ring.read(0)
    assert isinstance(gap, Gap)
    left = payloads(ring, 0)
    assert [payload[0] for payload in left] == list(range(gap.last, 100))
    books(ring, 0, offered=100, delivered=len(left), overrun=100 - len(left))
