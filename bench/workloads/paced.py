"""W2: one to one at a steady rate: one-way latency, loss, CPU.

Latency runs from the stamp before the send, so the encoder is in it; an event that the pace itself delays is not late.
"""

from __future__ import annotations

import time
from array import array
from itertools import cycle, islice
from typing import TYPE_CHECKING, Final

from ..contract import Received, Setup
from ..event import LAP, SEQUENCES, paced

if TYPE_CHECKING:
    from ..contract import Plan, Receiver, Sender

SETUP: Final = Setup("one", paced=True, variants=True, yardsticks=("spin loop", "semaphores"))


def produce(plan: Plan, sender: Sender, index: int) -> None:
    """Send every event when it is due."""
    sender.send(paced(plan.events, plan.rate, plan.size))


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
    return Received(len(taken), now(), lost=lost, samples=taken)
