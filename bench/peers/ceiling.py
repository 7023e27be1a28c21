"""The codec ceiling: the same loops without a transport. The sender only encodes, each receiver only decodes.

What it takes is what no transport between processes can take less than; what a peer takes beyond it is its own.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from itertools import chain, cycle, islice, repeat
from typing import TYPE_CHECKING, Final

from bench.event import SEQUENCES, STOP, decode, encode, tick

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager

    from bench.contract import Plan, Shape
    from bench.event import Tick

DISTRIBUTION: Final = "msgspec"
SHAPES: Final[frozenset[Shape]] = frozenset({"one", "all", "shared"})
CONNECTED: Final = False


def wire(plan: Plan) -> AbstractContextManager[None]:
    """Nothing: the two ends never meet."""
    return nullcontext()


class _Sender:
    def send(self, events: Iterable[Tick]) -> None:
        for event in events:
            encode(event)

    def send_batches(self, batches: Iterable[list[Tick]]) -> None:
        for batch in batches:
            list(map(encode, batch))


class _Receiver:
    def __init__(self, plan: Plan, index: int) -> None:
        self._payloads = [encode(tick(seq)) for seq in SEQUENCES]
        self._share = (index, plan.events, plan.receivers) if plan.shape == "shared" else (0, None, 1)

    def events(self) -> Iterator[Tick]:
        return map(decode, chain(islice(cycle(self._payloads), *self._share), repeat(encode(tick(STOP)))))

    def batches(self, size: int) -> Iterator[list[Tick]]:
        payloads = cycle(self._payloads)
        while True:
            yield list(map(decode, islice(payloads, size)))


@contextmanager
def sender(plan: Plan, wiring: None) -> Iterator[_Sender]:
    """Only encodes."""
    yield _Sender()


@contextmanager
def receiver(plan: Plan, wiring: None, index: int) -> Iterator[_Receiver]:
    """Only decodes payloads that were made before: all of them, or its share."""
    yield _Receiver(plan, index)
