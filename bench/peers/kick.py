"""kickmsg: publish-subscribe that overwrites what a slow subscriber has not read, so the sender keeps to a window.

Every receiver acknowledges each half of a ring over a channel of its own, also kickmsg's; a sender that is a ring ahead
waits for it. Without that events are lost: `send` overwrites a full ring, and a pool that is smaller than a ring never
recovers from being empty. What is there is taken without waiting, then `receive` waits; several senders have a channel
each, whose receiver polls them. A batch is one msgpack array.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final

import kickmsg

from ..contract import BenchError
from ..event import encode
from . import loops

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..contract import Plan, Shape

DISTRIBUTION: Final = "kickmsg"
SHAPES: Final[frozenset[Shape]] = frozenset({"one", "all", "merge", "echo"})
CONNECTED: Final = True

_PATIENCE: Final = 60.0  # seconds
_ACK: Final = b"."
_SPARE: Final = 8  # slots of a pool beyond those that a ring holds


@dataclass(frozen=True)
class Wiring:
    """Names of shared memory."""

    channels: list[str]
    """One for each sender."""
    acks: list[list[str]]
    """By sender and receiver."""


@contextmanager
def wire(plan: Plan) -> Iterator[Wiring]:
    """The channels, and those of the acknowledgements."""
    with loops.folder() as folder:
        channels = [f"/{folder.name}-{index}" for index in range(plan.senders)]
        acks = [[f"{channel}-{index}" for index in range(plan.receivers)] for channel in channels]
        try:
            for name in channels:
                _create(name, _ring(plan), plan.receivers, loops.length(plan))
            for name in chain.from_iterable(acks):
                _create(name, 4, 1, len(_ACK))
            yield Wiring(channels, acks)
        finally:
            for name in [*channels, *chain.from_iterable(acks)]:
                kickmsg.unlink_shm(name)


class _Sender:
    def __init__(self, plan: Plan, channel: str, acks: list[str]) -> None:
        self._publisher = kickmsg.Publisher(kickmsg.SharedRegion.open(channel))
        self._acks = [kickmsg.Subscriber(kickmsg.SharedRegion.open(name)) for name in acks]
        self._half = _ring(plan) // 2

    def send(self, events: Iterable[object]) -> None:
        send, half = self._publisher.send, self._half
        events = iter(events)
        first = True
        for event in events:
            send(encode(event))
            for event in islice(events, half - 1):
                send(encode(event))
            if not first:
                self._await_room()
            first = False

    send_batches = send

    def _await_room(self) -> None:
        """Wait until every receiver has taken all but the last half of a ring."""
        for ack in self._acks:
            if ack.receive(_PATIENCE) is None:
                raise BenchError(f"a receiver took nothing in {_PATIENCE:g} s")


@contextmanager
def sender(plan: Plan, wiring: Wiring, index: int) -> Iterator[_Sender]:
    """A publisher on its own channel, and a subscriber to each acknowledgement."""
    yield _Sender(plan, wiring.channels[index], wiring.acks[index])


@contextmanager
def receiver(plan: Plan, wiring: Wiring, index: int) -> Iterator[loops.Receiver]:
    """A subscriber to each channel, and a publisher of acknowledgements for each."""
    half = _ring(plan) // 2
    ends = [kickmsg.Subscriber(kickmsg.SharedRegion.open(name)) for name in wiring.channels]
    acks = [kickmsg.Publisher(kickmsg.SharedRegion.open(its[index])) for its in wiring.acks]
    if plan.shape == "merge":
        yield loops.Receiver(_in_turn(ends, acks, half))
        return
    payloads = loops.parked(ends[0].try_receive, partial(ends[0].receive, _PATIENCE))
    yield loops.Receiver(chain.from_iterable(_halves(payloads, acks[0], half)))


def _halves(payloads: Iterator[bytes], ack: kickmsg.Publisher, half: int) -> Iterator[Iterator[bytes]]:
    while True:
        yield islice(payloads, half)
        ack.send(_ACK)


def _in_turn(ends: list[kickmsg.Subscriber], acks: list[kickmsg.Publisher], half: int) -> Iterator[bytes]:
    taken = [0] * len(ends)
    for rounds in range(1 << 62):
        for index, end in enumerate(ends):
            some: Iterator[Any] = iter(end.try_receive, None)
            for payload in islice(some, half - taken[index]):
                yield payload
                taken[index] += 1
            if taken[index] == half:
                acks[index].send(_ACK)
                taken[index] = 0
        if rounds % loops.TRIES == 0:
            os.sched_yield()


def _ring(plan: Plan) -> int:
    return loops.slots(plan, loops.length(plan))


def _create(name: str, ring: int, subscribers: int, size: int) -> None:
    config = kickmsg.Config()
    config.max_subscribers = subscribers
    config.sub_ring_capacity = ring
    config.pool_size = ring + _SPARE
    config.max_payload_size = size
    kickmsg.SharedRegion.create(name, kickmsg.ChannelType.PubSub, config)
