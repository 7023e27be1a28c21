"""W2: one to one at a steady rate: one-way latency, loss, CPU.

Latency runs from the stamp before the send, so the encoder is in it; an event that the pace itself delays is not late.
"""

from __future__ import annotations

import time
from array import array
from itertools import cycle, islice
from typing import TYPE_CHECKING, Final

from bench.contract import Latency, Received
from bench.event import LAP, SEQUENCES, paced

if TYPE_CHECKING:
    from bench.contract import Plan, Receiver, Sender, Shape

SHAPE: Final[Shape] = "one"
RECEIVERS: Final = 1
BATCH: Final = 1
PACED: Final = True
CEILING: Final = False


def produce(plan: Plan, sender: Sender) -> None:
    """Send every event when it is due."""
    sender.send(paced(plan.events, plan.rate))


def consume(plan: Plan, receiver: Receiver) -> Received:
    """Look at the clock after every event, and count what is missing between two."""
    now, events = time.monotonic_ns, receiver.events()
    taken = array("q")
    lost = 0
    sequences = islice(cycle(SEQUENCES), plan.events)
    for expected in sequences:
        event = next(events)
        taken.append(now() - event.ts)
        gap = (event.seq - expected) % LAP
        if gap:
            lost += gap
            next(islice(sequences, gap - 1, gap), None)
    return Received(len(taken), now(), lost=lost, latency=_latency(taken))


def _latency(taken: array[int]) -> Latency:
    ordered = sorted(taken)

    def at(share: float) -> int:
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]

    return Latency(at(0.5), at(0.99), at(0.999), ordered[-1])
