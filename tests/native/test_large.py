"""Records past 4 GiB, whose length the record's header cannot say: refused, in rings that could hold them."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from typing import Any

import pytest
from rings import Producer, anonymous

from shmbus import _core
from shmbus.errors import CorruptSegmentError, EventTooLargeError

CAPACITY = 1 << 36
MAP_NORESERVE = 0x4000  # mmap has it since Python 3.13
LIMIT = _core.RECORD_LIMIT


def sparse(size: int) -> mmap.mmap:
    """Memory that is there where it is written to."""
    return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)


@pytest.fixture(scope="module")
def huge() -> memoryview:
    """A bytes-like of 4 GiB and a bit that takes no memory."""
    return memoryview(sparse(LIMIT + 4096)).toreadonly()


def ring() -> _core.BroadcastRing:
    segment = sparse(_core.BroadcastRing.size(CAPACITY))
    _core.BroadcastRing.format(segment, CAPACITY, 1)
    return _core.BroadcastRing(segment)


def test_maximum() -> None:
    """A record is a quarter of its ring, and never longer than 32 bits can say, rounded up to a multiple of eight."""
    assert _core.BroadcastRing.maximum(1 << 20) == (1 << 18) - 24
    assert _core.BroadcastRing.maximum(1 << 35) == LIMIT
    assert _core.BroadcastRing.maximum(1 << 33) == (1 << 31) - 24
    assert _core.BroadcastRing.maximum(1 << 40) == LIMIT == 2**32 - 8


@pytest.mark.parametrize(
    "publish",
    [
        lambda producer, event: producer.publish(event),
        lambda producer, event: producer.publish(event, headers=b"h"),
        lambda producer, event: producer.publish_many([b"small", event]),
        lambda producer, event: producer.publish_many(each for each in (b"small", event)),
    ],
    ids=["publish", "headers", "publish_many", "generator"],
)
def test_refused_before_it_is_copied(publish: Callable[[Any, Any], Any], huge: memoryview) -> None:
    """What is too large is refused with the values by every way in, nothing is written, and no copy is made of it."""
    own = ring()
    producer = Producer(anonymous(_core.BUS_BYTES), 0, own, None, (), "bytes")
    for excess in (1, 8, 4096):
        with pytest.raises(ValueError, match=str(LIMIT)) as caught:
            publish(producer, huge[: LIMIT + excess])
        size, maximum = caught.value.args[0]
        assert maximum == LIMIT < size
    assert own.info()["tail"] == 0
    assert producer.publish(b"small") == 1


def test_headers_count() -> None:
    """A payload that would fit alone is refused with headers that make it too large."""
    own = ring()
    producer = Producer(anonymous(_core.BUS_BYTES), 0, own, None, (), "bytes")
    with pytest.raises(ValueError, match=str(LIMIT + 8)):
        producer.publish(memoryview(sparse(LIMIT)), headers=b"h")  # type: ignore[arg-type]
    assert own.info()["tail"] == 0


def test_length_that_cannot_be() -> None:
    """A hostile length just below 2**32 is refused where it does not fit, and copied whole where it does."""
    capacity = 1 << 20
    segment = anonymous(_core.BroadcastRing.size(capacity))
    _core.BroadcastRing.format(segment, capacity, 1)
    own = _core.BroadcastRing(segment)
    producer = Producer(anonymous(_core.BUS_BYTES), 0, own, None, (), "bytes")
    producer.publish(b"x" * 100)
    record = _core.BroadcastRing.size(capacity) - capacity
    meta = struct.unpack_from("<Q", segment, record + 8)[0]
    assert meta & 0xFFFFFFFF == 100
    struct.pack_into("<Q", segment, record + 8, (meta & ~0xFFFFFFFF) | 0xFFFFFFFF)
    with pytest.raises(CorruptSegmentError):
        _core.Tap(own, True).read()


@pytest.mark.parametrize("maximum", [LIMIT, (1 << 18) - 24])
def test_error_says_why(maximum: int) -> None:
    """The error names the size, the maximum, and which of the two bounds that is."""
    error = EventTooLargeError("t", maximum + 1, maximum)
    assert (error.size, error.maximum) == (maximum + 1, maximum)
    assert ("what a record can hold" in str(error)) == (maximum == LIMIT)
