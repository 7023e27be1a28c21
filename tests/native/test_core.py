"""Words, segments, slots and rings of `_core`: bounds, read-only memory, and arguments that cannot be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from model import maximum
from rings import Claimer, Consumer, CoreBroadcastRing, CoreWorkRing, Producer, anonymous

from shmbus import _core
from shmbus.errors import AccessError, CorruptSegmentError

CAPACITY = 4096


def broadcast_ring(capacity: int = CAPACITY) -> _core.BroadcastRing:
    segment = anonymous(_core.BroadcastRing.size(capacity))
    _core.BroadcastRing.format(segment, capacity, 1)
    return _core.BroadcastRing(segment)


# ---- words ----


def test_words() -> None:
    """Every operation on a word returns what was there before, and counts modulo 2**64."""
    memory = anonymous(4096)
    _core.store(memory, 8, 2**64 - 1)
    assert _core.load(memory, 8) == 2**64 - 1
    assert _core.fetch_add(memory, 8, 3) == 2**64 - 1
    assert _core.fetch_or(memory, 8, 0b1100) == 2
    assert _core.fetch_and(memory, 8, 0b0110) == 0b1110
    assert (_core.load(memory, 8), _core.load(memory, 0), _core.load(memory, 16)) == (0b0110, 0, 0)
    assert _core.load(b"\1" + bytes(7), 0) == 1


@pytest.mark.parametrize("offset", [-8, -1, 1, 4, 4089, 4096, 2**62, -(2**62)])
def test_words_are_bounded(offset: int) -> None:
    """There is no word outside of the buffer, and none between two words."""
    memory = anonymous(4096)
    with pytest.raises(IndexError):
        _core.load(memory, offset)
    for change in (_core.store, _core.fetch_add, _core.fetch_or, _core.fetch_and):
        with pytest.raises(IndexError):
            change(memory, offset, 1)
    assert not any(memory[:])


def test_words_need_memory() -> None:
    """Short, read-only and foreign objects are refused, and nothing is written."""
    frozen = bytes(8)
    for change in (_core.store, _core.fetch_add, _core.fetch_or, _core.fetch_and):
        with pytest.raises((BufferError, TypeError)):
            change(frozen, 0, 1)
        with pytest.raises(IndexError):
            change(bytearray(7), 0, 1)
        with pytest.raises(TypeError):
            change(None, 0, 1)
    assert frozen == bytes(8)


# ---- segments ----


@pytest.mark.parametrize("kind", [_core.BroadcastRing, _core.WorkRing])
@pytest.mark.parametrize("capacity", [0, 1, 2048, 4095, 4097, 3 * 4096, 2**41, 2**64 - 1])
def test_capacities_that_cannot_be(kind: Any, capacity: int) -> None:
    """A capacity that is no power of two from 4 KiB to 1 TiB is refused before anything is written."""
    memory = bytearray(1 << 16)
    assert kind.size(capacity) == 0
    with pytest.raises(ValueError, match=str(capacity)):
        kind.format(memory, capacity, 1)
    assert not any(memory)


@pytest.mark.parametrize("kind", [_core.BroadcastRing, _core.WorkRing])
def test_format_needs_room(kind: Any) -> None:
    """A segment that is a byte too small, a position between two words or a read-only buffer is refused
    untouched."""
    size = kind.size(CAPACITY)
    for memory, position in ((bytearray(size - 1), 0), (bytearray(size), 4)):
        with pytest.raises(ValueError, match="4096"):
            kind.format(memory, CAPACITY, 1, position=position)
        assert not any(memory)
    with pytest.raises(BufferError):
        kind.format(bytes(size), CAPACITY, 1)


def test_maximum_is_the_specified_one() -> None:
    """The largest body is a quarter of the ring less the record's header."""
    for capacity in (4096, 1 << 20, 1 << 40):
        assert _core.BroadcastRing.maximum(capacity) == maximum(capacity)


def test_read_only_broadcast() -> None:
    """A read-only segment shows books and history, and whatever would write is refused."""
    origin = CoreBroadcastRing(CAPACITY)
    origin.join(0)
    origin.publish(b"a", b"h")
    ring = _core.BroadcastRing(memoryview(origin.segment).toreadonly())
    assert (ring.info(), ring.terms(0)) == (origin.ring.info(), origin.ring.terms(0))
    assert ring.losses(0) == origin.ring.losses(0)
    record = _core.Tap(ring, True).read()
    assert record is not None
    assert (record[0], record[2], record[3]) == (1, b"h", b"a")
    assert ring.release_publisher() is False
    for call in (
        lambda: ring.join(1),
        lambda: ring.leave(0),
        lambda: Producer(origin.bus, 0, ring, None, (), ""),
        lambda: Consumer(origin.bus, 0, None)._add_source(ring, 0, "p"),
    ):
        with pytest.raises(AccessError):
            call()
    assert origin.terms(0)["depth"] == 1


def test_read_only_work() -> None:
    """A read-only work segment shows its books, and is neither claimed from nor reclaimed."""
    origin = CoreWorkRing(CAPACITY)
    origin.publish(b"a")
    ring = _core.WorkRing(memoryview(origin.segment).toreadonly())
    assert (ring.terms(), ring.losses(), ring.held(0, 1)) == (origin.ring.terms(), origin.ring.losses(), 0)
    with pytest.raises(AccessError):
        ring.reclaim(0, 1)
    with pytest.raises(AccessError):
        origin.claimer(0)._add_source(ring, "p")
    with pytest.raises(AccessError):
        origin.producer._set_groups(True, [(ring, 0)])


def test_handles_need_a_bus() -> None:
    """A bus segment that is too small, read-only, or has no such topic line is refused."""
    ring = broadcast_ring()
    makers: tuple[Callable[[Any, int], Any], ...] = (
        lambda bus, topic: Producer(bus, topic, ring, None, (), ""),
        lambda bus, topic: Consumer(bus, topic, None),
        lambda bus, topic: Claimer(bus, topic, None, 0, 0, 1, 5, 1),
    )
    for make in makers:
        with pytest.raises(CorruptSegmentError):
            make(anonymous(4096), 0)
        with pytest.raises(CorruptSegmentError):
            make(anonymous(_core.BUS_BYTES), _core.MAX_TOPICS)
        with pytest.raises(BufferError):
            make(memoryview(anonymous(_core.BUS_BYTES)).toreadonly(), 0)


@pytest.mark.parametrize("slot", [64, 65, 1 << 32])
def test_slots_that_do_not_exist(slot: int) -> None:
    """A slot beyond the last is an error, and never another slot."""
    ring = CoreBroadcastRing(CAPACITY)
    ring.join(0)
    ring.join(1)
    before = ring.info()
    for call in (ring.ring.join, ring.ring.leave, ring.ring.terms, ring.ring.losses):
        with pytest.raises((CorruptSegmentError, IndexError, OverflowError, ValueError)):
            call(slot)
        assert ring.info() == before, call


@pytest.mark.parametrize("owner", [256, 257, 1 << 32])
def test_owners_that_do_not_exist(owner: int) -> None:
    """A worker slot beyond the last is an error, and never another worker."""
    ring = CoreWorkRing(CAPACITY)
    ring.publish(b"a")
    assert ring.claim(0) is not None
    assert ring.claim(1) is None
    for call in (lambda: ring.held(owner, 1), lambda: ring.reclaim(owner, 1), lambda: ring.claim(owner)):
        with pytest.raises((IndexError, OverflowError, ValueError)):
            call()
    assert ring.held(0, 1) == 1


def test_kinds_of_rings_are_checked() -> None:
    """A handle takes the ring of its kind and nothing else."""
    broadcast, work = CoreBroadcastRing(CAPACITY), CoreWorkRing(CAPACITY)
    for call in (
        lambda: Producer(work.bus, 0, work.ring, None, (), ""),  # type: ignore[arg-type]
        lambda: broadcast.producer._set_groups(True, [(broadcast.ring, 0)]),  # type: ignore[list-item]
        lambda: Consumer(work.bus, 0, None)._add_source(work.ring, 0, "p"),  # type: ignore[arg-type]
        lambda: work.claimer(0)._add_source(broadcast.ring, "p"),  # type: ignore[arg-type]
        lambda: _core.Tap(work.ring),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match="Ring"):
            call()
