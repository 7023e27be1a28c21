"""W7: ping-pong between two processes, an event each way; round trips.

The one that asks sends the next event when the answer to the last one is there; encoding and decoding are in it twice.
"""

from __future__ import annotations

import time
from array import array
from itertools import islice
from typing import TYPE_CHECKING, Final

from ..contract import Received, Setup
from ..event import SequenceError, ticks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..contract import Plan, Receiver, Sender
    from ..event import Tick

SETUP: Final = Setup("echo", trial=2_000, variants=True, yardsticks=("semaphores",))


def ask(plan: Plan, sender: Sender, receiver: Receiver) -> Received:
    """Send an event, wait for the same one to come back, and so on."""
    taken = array("q")
    sender.send(_questions(plan, receiver.events(), taken))
    return Received(len(taken), time.monotonic_ns(), samples=taken)


def answer(plan: Plan, sender: Sender, receiver: Receiver) -> None:
    """Send back what comes."""
    sender.send(islice(receiver.events(), plan.events))


def _questions(plan: Plan, answers: Iterator[Tick], taken: array[int]) -> Iterator[Tick]:
    now = time.monotonic_ns
    for event in ticks(plan.events, plan.size):
        asked = now()
        yield event
        answer = next(answers)
        taken.append(now() - asked)
        if answer.seq != event.seq:
            raise SequenceError(f"another answer than to the last event: got={answer.seq}, expected={event.seq}")
