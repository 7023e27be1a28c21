"""The codec ceiling: the same loops without a transport. Each sender only encodes, each receiver only decodes.

What it takes is what no transport between processes can take less than; what a peer takes beyond it is its own.
"""

from __future__ import annotations

import struct
from contextlib import contextmanager, nullcontext
from itertools import chain, cycle, islice, repeat
from typing import TYPE_CHECKING, Final

from ..event import LAP, SEQUENCES, STOP, decode, encode, tick

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager

    from ..contract import Plan, Shape
    from ..event import Tick

DISTRIBUTION: Final = "msgspec"
SHAPES: Final[frozenset[Shape]] = frozenset({"one", "all", "shared", "merge"})
CONNECTED: Final = False

_MOST: Final = 64 << 20  # bytes of payloads that are made before
_SEQUENCE: Final = 2  # offset of Tick.seq in a payload


def wire(plan: Plan) -> AbstractContextManager[None]:
    """Nothing: the two ends never meet."""
    return nullcontext()


class Sender:
    """Only encodes."""

    def send(self, events: Iterable[Tick]) -> None:
        """Each for itself."""
        for event in events:
            encode(event)

    def send_batches(self, batches: Iterable[list[Tick]]) -> None:
        """A list at once."""
        for batch in batches:
            list(map(encode, batch))


class Receiver:
    """Only decodes payloads that were made before: all of them, or its share."""

    def __init__(self, plan: Plan, index: int) -> None:
        large = LAP * plan.size > _MOST
        self._payloads: Iterator[bytes | bytearray] = _patched(plan.size) if large else cycle(_payloads(plan))
        self._share = (index, plan.events, plan.receivers) if plan.shape == "shared" else (0, None, 1)

    def events(self) -> Iterator[Tick]:
        """One after the other; after a share there is an end."""
        payloads: Iterator[bytes | bytearray] = islice(self._payloads, *self._share)
        return map(decode, chain(payloads, repeat(encode(tick(STOP)))))

    def batches(self, size: int) -> Iterator[list[Tick]]:
        """In lists of `size`."""
        while True:
            yield list(map(decode, islice(self._payloads, size)))


def _payloads(plan: Plan) -> list[bytes]:
    """Those of all senders, in turn."""
    return [encode(tick(seq, plan.size, index)) for seq in SEQUENCES for index in range(plan.senders)]


def _patched(size: int) -> Iterator[bytearray]:
    """One payload whose sequence changes: all of them would not fit."""
    payload = bytearray(encode(tick(SEQUENCES[0], size)))
    for seq in cycle(SEQUENCES):
        struct.pack_into(">Q", payload, _SEQUENCE, seq)
        yield payload


@contextmanager
def sender(plan: Plan, wiring: None, index: int) -> Iterator[Sender]:
    """One that only encodes."""
    yield Sender()


@contextmanager
def receiver(plan: Plan, wiring: None, index: int) -> Iterator[Receiver]:
    """One that only decodes."""
    yield Receiver(plan, index)
