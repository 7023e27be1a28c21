"""The bare spin loop: what the clock of this machine shows to a process that does nothing but look at it.

The sender keeps the pace and only encodes. The receiver looks at the clock until the next event is due and gives it
out by itself, stamped with the time that it was due; what it is late then is a gap between two looks, which no
transport can do anything about.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from itertools import cycle, islice
from typing import TYPE_CHECKING, Final

from ..event import FIRST, SEQUENCES, tick
from .ceiling import CONNECTED, DISTRIBUTION, sender, wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..contract import Plan, Shape
    from ..event import Tick

__all__ = ["CONNECTED", "DISTRIBUTION", "SHAPES", "receiver", "sender", "wire"]

SHAPES: Final[frozenset[Shape]] = frozenset({"one"})


class _Receiver:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def events(self) -> Iterator[Tick]:
        now = time.monotonic_ns
        event = tick(FIRST, self._plan.size)
        start = now()
        for number, seq in enumerate(islice(cycle(SEQUENCES), self._plan.events)):
            event.seq = seq
            event.ts = start + number * 1_000_000_000 // self._plan.rate
            while now() < event.ts:
                pass
            yield event

    def batches(self, size: int) -> Iterator[list[Tick]]:
        raise NotImplementedError("a pace has no batches")


@contextmanager
def receiver(plan: Plan, wiring: None, index: int) -> Iterator[_Receiver]:
    """One that looks at the clock."""
    yield _Receiver(plan)
