"""Hostile segments, for children of test_hostile.py: a crash or an endless loop there is a signal here.

Each example is a healthy image, a few of whose words are overwritten while handles look at it. `main` runs
one target; the example that runs is written to a file first, so that a death has a name."""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import signal
import sys
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings
from rings import Claimer, Consumer, CoreBroadcastRing, CoreWorkRing, Outcome, Producer, anonymous

from shmbus import _core
from shmbus.errors import CorruptSegmentError, LayoutMismatchError, ReclaimedError

CAPACITY = 4096
WATCHDOG = 60
"""Seconds for one example, of which a thousandth is enough: SIGALRM ends the process beyond."""

LIBC = ctypes.CDLL(None, use_errno=True)
PAGE = 4096
TAIL, INTENT, OLDEST, POSITION, MEMBERS, RELIABLE, NEXT, GATE, HEADER_END = 64, 72, 80, 88, 152, 160, 256, 320, 448
CURSORS, CURSOR_BYTES, RECORDS = 4096, 320, 4096 + 64 * 320
DESCRIPTORS, DESCRIPTORS_END, WORK_RECORDS = 4096, 4096 + 64 * 16, 8192
EVENT, PAD = 1 << 32, 2 << 32
"""Written out again on purpose: the layout is ABI, and layout.h must not change it unnoticed."""

DOCUMENTED = (CorruptSegmentError, LayoutMismatchError, ReclaimedError, queue.Full, Outcome)
WORDS = st.one_of(
    st.integers(0, 100),
    st.integers(0, 64).map(lambda n: n * 8),
    st.sampled_from([CAPACITY - 8, CAPACITY, CAPACITY + 8, 2 * CAPACITY, 2**32, 2**48]),
    st.sampled_from([2**63, 2**64 - 8, 2**64 - 1]),
    st.builds(lambda kind, length, headers: kind | length | headers << 48,
              st.sampled_from([0, EVENT, PAD]), st.integers(0, 5000), st.sampled_from([0, 0, 8, 0xFFFF])),
    st.builds(lambda lap, state, attempt, holder: lap << 39 | state << 36 | attempt << 24 | holder,
              st.integers(0, 3), st.integers(0, 7), st.integers(0, 6), st.integers(0, 3)),
    st.integers(0, 2**64 - 1),
)  # fmt: skip


def words(start: int, end: int) -> st.SearchStrategy[int]:
    return st.integers(start // 8, end // 8 - 1).map(lambda index: index * 8)


def damage(hot: list[int], *ranges: tuple[int, int]) -> st.SearchStrategy[list[tuple[int, int]]]:
    """Up to five changed words: any of the ranges, but mostly those that steer a reader."""
    offsets = st.one_of(st.sampled_from(hot), st.sampled_from(hot), *[words(*span) for span in ranges])
    return st.lists(st.tuples(offsets, WORDS), min_size=1, max_size=5)


def fenced(image: bytes) -> memoryview:
    """A copy of a segment in memory of its own, between two pages that nobody may touch."""
    memory = anonymous(PAGE + len(image) + PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for fence in (start, start + PAGE + len(image)):
        assert LIBC.mprotect(ctypes.c_void_p(fence), ctypes.c_size_t(PAGE), 0) == 0
    segment = memoryview(memory)[PAGE:-PAGE]
    segment[:] = image
    return segment


def overwrite(segment: Any, changes: list[tuple[int, int]]) -> None:
    for offset, value in changes:
        _core.store(segment, offset, value)


def tolerated(call: Callable[[], Any], times: int = 1) -> None:
    """Calls until there is nothing more; documented errors are answers too."""
    for _ in range(times):
        try:
            if call() in (None, _core.NOTHING):
                return
        except DOCUMENTED:
            pass


SPAN = 64
"""Bytes of every record in an image, so that the damage finds their headers."""


def healthy_broadcast(position: int) -> bytes:
    """An image full of records, with a reliable subscriber ten events behind and a lossy one that is overrun."""
    ring = CoreBroadcastRing(CAPACITY, position=position)
    ring.join(0)
    ring.join(1, lossy=True)
    for index in range(100):
        ring.publish(b"x" * (SPAN - 32), b"h" * 8)
        if index >= 10:
            ring.read(0)
    return bytes(ring.segment)


def healthy_work(sequence: int) -> bytes:
    """An image with READY, CLAIMED and DONE words, in its second lap."""
    ring = CoreWorkRing(CAPACITY, sequence=sequence)
    for index in range(100):
        ring.publish(b"x" * (SPAN - 24))
        if index < 60:
            claim = ring.claim(0)
            assert claim is not None
            ring.ack(claim)
    claims = [ring.claim(index % 3) for index in range(20)]
    for claim in claims[1::2]:
        assert claim is not None
        ring.ack(claim)
    return bytes(ring.segment)


def second_words(records: int) -> list[int]:
    """Where the records say how long they are."""
    return list(range(records + 8, records + CAPACITY, SPAN))


BROADCAST_HOT = [TAIL, INTENT, OLDEST, MEMBERS, RELIABLE, CURSORS, CURSORS + 64, CURSORS + 72, CURSORS + CURSOR_BYTES]
WORK_HOT = [TAIL, POSITION, NEXT, GATE, OLDEST]
BUS = anonymous(_core.BUS_BYTES)
ASIDE = anonymous(_core.BroadcastRing.size(CAPACITY))
BROADCAST_IMAGES = [healthy_broadcast(position) for position in (0, CAPACITY - 16, 2**48 + 2240)]
WORK_IMAGES = [healthy_work(sequence) for sequence in (1, 2**32)]


def use_broadcast(image: bytes, changes: list[tuple[int, int]], early: bool) -> None:
    """Every path over one broadcast segment; `early` opens the handles before the damage."""
    segment = fenced(image)
    if not early:
        overwrite(segment, changes)
    try:
        ring = _core.BroadcastRing(segment)
    except (CorruptSegmentError, LayoutMismatchError):
        return
    calls: list[tuple[Callable[[], Any], int]] = []

    def prepare(make: Callable[[], list[tuple[Callable[[], Any], int]]]) -> None:
        tolerated(lambda: calls.extend(make()))

    for slot in (0, 1, 63):
        consumer = Consumer(BUS, 0, None)
        prepare(lambda c=consumer, s=slot: [c._add_source(ring, s, "p"), (c._poll_message, 100)][1:])  # type: ignore[misc]
        calls.append((lambda s=slot: ring.terms(s), 1))  # type: ignore[misc]
        calls.append((lambda s=slot: ring.losses(s), 1))  # type: ignore[misc]
    for oldest in (False, True):
        prepare(lambda o=oldest: [(_core.Tap(ring, o).read, 200)])  # type: ignore[misc]
        calls.append((lambda o=oldest: ring.join(5, lossy=o, oldest=o), 1))  # type: ignore[misc]
    calls.append((ring.info, 1))
    calls.append((lambda: ring.blocking(100), 1))

    def publisher() -> list[tuple[Callable[[], Any], int]]:
        producer = Producer(BUS, 0, ring, None, (), "bytes")
        return [(lambda: producer.publish(b"x" * 900), 20)]

    prepare(publisher)
    overwrite(segment, changes)
    for call, times in calls + calls:
        tolerated(call, times)


def use_work(image: bytes, changes: list[tuple[int, int]], early: bool) -> None:
    """Every path over one work segment."""
    segment = fenced(image)
    if not early:
        overwrite(segment, changes)
    try:
        ring = _core.WorkRing(segment)
    except (CorruptSegmentError, LayoutMismatchError):
        return
    _core.BroadcastRing.format(ASIDE, CAPACITY, 1)
    producer = Producer(BUS, 0, _core.BroadcastRing(ASIDE), None, (), "bytes")
    producer.groups = ((ring, 0),)
    claimer = Claimer(BUS, 0, None, 0, 1, 1, 3, 4)
    claimer._add_source(ring, "p")
    if early:
        tolerated(lambda: producer.publish(b"early"))
        tolerated(claimer._poll)
        overwrite(segment, changes)
    for call, times in (
        (ring.terms, 1),
        (ring.losses, 1),
        (claimer._poll, 100),
        (lambda: ring.held(1, 1), 1),
        (lambda: producer.publish(b"x" * 900), 20),
        (lambda: ring.reclaim(0, 1), 1),
        (claimer._poll_message, 100),
        (claimer._ready, 1),
        (lambda: producer.publish(b""), 100),
        (ring.terms, 1),
    ):
        tolerated(call, times)


def open_noise(noise: bytes, kind: Any) -> None:
    """A segment of random bytes, with and without the right first words."""
    for segment in (bytearray(noise), bytearray(BROADCAST_IMAGES[0][:32] + noise)):
        with contextlib.suppress(CorruptSegmentError, LayoutMismatchError):
            kind(segment)


CASES: dict[str, tuple[Callable[..., None], tuple[st.SearchStrategy[Any], ...]]] = {
    "broadcast": (
        use_broadcast,
        (
            st.sampled_from(BROADCAST_IMAGES),
            damage(
                BROADCAST_HOT * 5 + second_words(RECORDS),
                (0, HEADER_END),
                (CURSORS, CURSORS + 2 * CURSOR_BYTES),
                (RECORDS, RECORDS + CAPACITY),
            ),
            st.booleans(),
        ),
    ),
    "work": (
        use_work,
        (
            st.sampled_from(WORK_IMAGES),
            damage(
                WORK_HOT * 10 + second_words(WORK_RECORDS),
                (0, HEADER_END),
                (DESCRIPTORS, DESCRIPTORS_END),
                (WORK_RECORDS, WORK_RECORDS + CAPACITY),
            ),
            st.booleans(),
        ),
    ),
    "noise": (
        open_noise,
        (st.binary(max_size=40_000), st.sampled_from([_core.BroadcastRing, _core.WorkRing])),
    ),
}  # fmt: skip


def main(target: str, examples: int, record: str) -> None:
    """Runs one target; `record` receives the example that runs."""
    use, strategies = CASES[target]
    file = os.open(record, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.tuples(*strategies))
    def run(arguments: tuple[Any, ...]) -> None:
        text = repr(arguments[1:]).encode()
        os.pwrite(file, text.ljust(4096), 0)
        signal.alarm(WATCHDOG)
        use(*arguments)

    run()
    signal.alarm(0)
    os.close(file)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
