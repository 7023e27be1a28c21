"""Corrupt and hostile segments never crash a process, never hold it up, and raise nothing that is not
documented."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile import CAPACITY, CURSORS, INTENT, OLDEST, PAD, RECORDS, TAIL, healthy_broadcast, healthy_work
from support import Processes

from shmbus import _core
from shmbus.errors import CorruptSegmentError, LayoutMismatchError

PATIENT = 300.0
EXAMPLES = 3000
BROADCAST, WORK = healthy_broadcast(0), healthy_work(1)


@pytest.mark.parametrize("target", ["broadcast", "work", "noise"])
def test_random_damage(target: str, processes: Processes, tmp_path: Path) -> None:
    """Whatever words of a segment change while handles use it, each call returns or raises a documented
    error."""
    record = tmp_path / "example"
    code = "import sys, hostile; hostile.main(sys.argv[1], int(sys.argv[2]), sys.argv[3])"
    child = processes.spawn(code, target, EXAMPLES, record, cwd=tmp_path)
    status = child.wait(PATIENT)
    assert status == 0, f"exit status {status}, last example {record.read_text().strip()[:2000]}"


def endless_padding(reader: str) -> None:
    import signal

    from hostile import CAPACITY, INTENT, OLDEST, PAD, RECORDS, TAIL, tolerated
    from rings import CoreBroadcastRing

    from shmbus import _core

    ring = CoreBroadcastRing(CAPACITY)
    ring.join(0, lossy=reader == "lossy")
    for offset, value in (
        (RECORDS, 1),
        (RECORDS + 8, PAD | CAPACITY - 24),
        (OLDEST, 0),
        (INTENT, 8),
        (TAIL, 1 << 62),
    ):
        _core.store(ring.segment, offset, value)
    signal.alarm(20)
    if reader == "tap":
        tolerated(_core.Tap(ring.ring, True).read)
    else:
        tolerated(ring.consumers[0]._poll)


@pytest.mark.parametrize("reader", ["reliable", "lossy", "tap"])
def test_endless_padding(reader: str, processes: Processes) -> None:
    """A ring that is nothing but padding, up to a tail of years away, does not keep a reader in a loop."""
    child = processes.spawn(endless_padding, reader)
    assert child.wait(PATIENT) == 0


@pytest.mark.parametrize("kind", [_core.BroadcastRing, _core.WorkRing])
@pytest.mark.parametrize("size", [0, 1, 7, 8, 64, 4095, 4096, 1 << 16])
def test_foreign_segments(kind: type, size: int) -> None:
    """A segment that does not begin as ours, of whatever size, is of another layout."""
    for fill in (b"\0", b"\xff"):
        with pytest.raises(LayoutMismatchError):
            kind(bytearray(fill * size))


def changed(image: bytes, offset: int, value: int, width: int = 8) -> bytearray:
    copy = bytearray(image)
    copy[offset : offset + width] = value.to_bytes(width, "little")
    return copy


@pytest.mark.parametrize(("kind", "image"), [(_core.BroadcastRing, BROADCAST), (_core.WorkRing, WORK)])
def test_headers_that_cannot_be(kind: type, image: bytes) -> None:
    """Another version is another layout; a kind, capacity, slot count or size that cannot be is
    corruption."""
    kind(bytearray(image))
    with pytest.raises(LayoutMismatchError):
        kind(changed(image, 8, _core.LAYOUT_VERSION + 1, 4))
    for offset, values, width in (
        (12, (0, 3), 4),
        (16, (0, 1, 2048, 4095, 8192, 2**41, 2**64 - 1), 8),
        (24, (0, 63, 65, 128), 8),
    ):
        for value in values:
            with pytest.raises(CorruptSegmentError):
                kind(changed(image, offset, value, width))
    for size in (len(image) - 1, len(image) - CAPACITY, 4096):
        with pytest.raises(CorruptSegmentError):
            kind(bytearray(image[:size]))


def test_kinds_are_not_mixed() -> None:
    """A work segment is no broadcast ring, and the other way round."""
    with pytest.raises(CorruptSegmentError):
        _core.BroadcastRing(bytearray(WORK))
    with pytest.raises(CorruptSegmentError):
        _core.WorkRing(bytearray(BROADCAST))


def test_layout_is_abi() -> None:
    """The offsets that these tests damage are those of the segment: a healthy image has its counters
    there."""
    ring = _core.BroadcastRing(bytearray(BROADCAST))
    info = ring.info()
    words = [_core.load(BROADCAST, offset) for offset in (TAIL, INTENT, OLDEST)]
    assert words == [info["tail"], info["intent"], info["oldest"]]
    assert _core.load(BROADCAST, RECORDS) == 65, "the second lap begins"
    assert 0 < _core.load(BROADCAST, CURSORS) <= info["tail"]
    assert len(BROADCAST) == RECORDS + CAPACITY == _core.BroadcastRing.size(CAPACITY)
    assert PAD == 2 << 32
