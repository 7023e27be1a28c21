"""What the tests of quarantine share: a topic, and what a supervisor does once somebody was stalled for long enough."""

from __future__ import annotations

from typing import Any

import shmbus
from shmbus import Bus, Policy
from shmbus._ledger import policies
from shmbus.stats import ConsumerStats

NUMBERS = shmbus.Topic("numbers", int, capacity=4096)
FITS = 127
"""Events that a ring of NUMBERS holds, each with 32 bytes, beside the frontier."""
AT_WILL = Policy("quarantine", 1e6)


def quarantine(bus: Bus, name: str) -> None:
    """What the supervisor does with a subscriber that was stalled for so long."""
    session = bus._session
    entry = next(c for c in session.document().consumers if c.name == name)
    policies.act(session.registry, session.rings, entry, 10**18, wake=session.wake_publishers)


def consumer(bus: Bus, name: str) -> ConsumerStats:
    return next(c for c in bus.stats().consumers if c.name == name)


def balanced(found: ConsumerStats) -> bool:
    whole = found.offered == found.delivered + found.depth + found.dropped
    return whole and all(part.offered == part.delivered + part.depth + part.dropped for part in found.publishers)


def drained(subscriber: shmbus.Subscriber[Any]) -> list[Any]:
    found = []
    while (event := subscriber.try_receive()) is not None:
        found.append(event)
    return found


def fill(publisher: shmbus.Publisher[int], first: int = 0, most: int = 1000) -> int:
    """Publishes until there is no room, or so many are in; returns the number that is next."""
    for number in range(first, first + most):
        try:
            publisher.publish_now(number)
        except shmbus.Full:
            return number
    return first + most
