"""The event that every peer carries: a msgspec Struct, 256 bytes as msgpack, its codec, its sequence and the check.

Sequences run from FIRST for LAP events and begin again, so that the ceiling can decode payloads that were made before.
Must stay true: the loops here are everybody's; what differs between two peers is the transport alone.
"""

from __future__ import annotations

import time
from itertools import cycle, islice
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SIZE: Final = 256  # bytes of msgpack
LAP: Final = 4096  # their payloads fill about one default ring
STOP: Final = 1 << 32  # from here on every sequence takes nine bytes, so every event has the same size
FIRST: Final = STOP + 1
SEQUENCES: Final = range(FIRST, FIRST + LAP)
LOT: Final = 1000
"""Tick.size of sender 0; the index of the sender is added."""
_FAR: Final = 200_000  # ns; a sleep can be late by less than that, as a rule
_NOTES: Final = ((1, 31), (2, 0xFF), (3, 0xFFFF), (5, 0xFFFF_FFFF))  # bytes of header, longest note


class Tick(msgspec.Struct, array_like=True):
    """A trade, say."""

    seq: int
    ts: int
    """CLOCK_MONOTONIC in ns where the workload measures latency, otherwise the same for all."""
    symbol: str
    price: float
    size: int
    note: str


class SequenceError(Exception):
    """A receiver met another event than the next one."""


encode: Final = msgspec.msgpack.Encoder().encode
decode: Final = msgspec.msgpack.Decoder(Tick).decode
decode_many: Final = msgspec.msgpack.Decoder(list[Tick]).decode


def tick(seq: int, size: int = SIZE, index: int = 0) -> Tick:
    """One event of `size` bytes, marked with its sender. Raises ValueError where no note makes it as large."""
    event = Tick(seq, 1 << 60, "EURUSD", 1.0825, LOT + index, "")
    bare = len(encode(event)) - 1
    for header, longest in _NOTES:
        if 0 <= size - bare - header <= longest:
            event.note = "n" * (size - bare - header)
            break
    if len(encode(event)) != size:
        raise ValueError(f"no event has this size: size={size}")
    return event


def ticks(count: int, size: int = SIZE, index: int = 0) -> Iterator[Tick]:
    """`count` events in sequence: the same object each time, so that making events costs next to nothing."""
    event = tick(FIRST, size, index)
    for seq in islice(cycle(SEQUENCES), count):
        event.seq = seq
        yield event


def stops(count: int) -> Iterator[Tick]:
    """The events that tell `count` competing workers to stop, one each."""
    return (tick(STOP) for _ in range(count))


def batches(count: int, size: int) -> Iterator[list[Tick]]:
    """The same sequence in lists of `size`, always the same list; `count` must be a multiple of `size`."""
    batch = [tick(FIRST) for _ in range(size)]
    sequences = cycle(SEQUENCES)
    for _ in range(count // size):
        for event, seq in zip(batch, sequences, strict=False):
            event.seq = seq
        yield batch


def paced(count: int, rate: int, size: int = SIZE) -> Iterator[Tick]:
    """`count` events at `rate` a second, each stamped when it is handed over; what is late waits no longer.

    The pace is kept by looking at the clock; it sleeps only where the next event is far off.
    """
    now, sleep = time.monotonic_ns, time.sleep
    event = tick(FIRST, size)
    start = now()
    for number, seq in enumerate(islice(cycle(SEQUENCES), count)):
        due = start + number * 1_000_000_000 // rate
        while (left := due - now()) > 0:
            if left > _FAR:
                sleep((left - _FAR) / 1e9)
        event.seq = seq
        event.ts = now()
        yield event


def verify(events: Iterable[Tick], count: int) -> None:
    """Take `count` events and make sure that they are the sequence. Raises SequenceError."""
    sequences = islice(cycle(SEQUENCES), count)
    for expected, event in zip(sequences, events, strict=False):  # in this order: not one event too many
        if event.seq != expected:
            raise SequenceError(f"another event than the next one: sequence={event.seq}, expected={expected}")


def verify_merged(events: Iterable[Tick], count: int, senders: int) -> None:
    """Take `count` events and make sure that those of each sender are the sequence. Raises SequenceError."""
    following = {LOT + index: cycle(SEQUENCES).__next__ for index in range(senders)}
    for _, event in zip(range(count), events, strict=False):
        if event.seq != (expected := following[event.size]()):
            sender = event.size - LOT
            raise SequenceError(
                f"another event than sender {sender}'s next one: sequence={event.seq}, expected={expected}"
            )


def checksum(count: int) -> int:
    """Sum of the first `count` sequences."""
    laps, rest = divmod(count, LAP)
    return laps * sum(SEQUENCES) + sum(SEQUENCES[:rest])
