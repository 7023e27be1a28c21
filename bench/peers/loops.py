"""What several adapters do alike: loops that send and receive, polling, and a place for a run's files.

Must stay true: every loop costs the peer as little Python as can be; what is repeated here is what differs in nothing.
A poller lets others run now and then: with more processes than cores the one that it waits for may need its core. It
yields and does not `sleep(0)`, which lasts 50 us and more.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..event import decode, decode_many, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ..contract import Plan
    from ..event import Tick

TRIES: Final = 64
"""Attempts in vain after which a poller offers its core to others."""
_TURN: Final = 64  # payloads from one queue before the next one is looked at
_HEADERS: Final = ((1, 15), (3, 0xFFFF), (5, 0xFFFF_FFFF))  # bytes of a msgpack array's, and most items


class Sender:
    """Sends by calls that wait for room: one for each queue that gets everything. A batch is one msgpack array."""

    def __init__(self, sends: Sequence[Callable[[bytes], object]]) -> None:
        self._sends = sends

    def send(self, events: Iterable[Tick]) -> None:
        """An event a call and queue."""
        self._send(events)

    def send_batches(self, batches: Iterable[list[Tick]]) -> None:
        """A batch a call and queue."""
        self._send(batches)

    def _send(self, things: Iterable[object]) -> None:
        if len(self._sends) > 1:
            for thing in things:
                payload = encode(thing)
                for send in self._sends:
                    send(payload)
            return
        (send,) = self._sends
        for thing in things:
            send(encode(thing))


class Trier(Sender):
    """The same by calls that say at once whether there was room."""

    def __init__(self, attempts: Sequence[Callable[[bytes], object]]) -> None:
        super().__init__(attempts)

    def _send(self, things: Iterable[object]) -> None:
        if len(self._sends) > 1:
            for thing in things:
                payload = encode(thing)
                for attempt in self._sends:
                    if not attempt(payload):
                        insist(attempt, payload)
            return
        (attempt,) = self._sends
        for thing in things:
            payload = encode(thing)
            if not attempt(payload):
                insist(attempt, payload)


class Receiver:
    """Decodes what comes."""

    def __init__(self, payloads: Iterator[bytes]) -> None:
        self._payloads = payloads

    def events(self) -> Iterator[Tick]:
        """A payload is an event."""
        return map(decode, self._payloads)

    def batches(self, size: int) -> Iterator[list[Tick]]:
        """A payload is a batch."""
        return map(decode_many, self._payloads)


def insist(attempt: Callable[[bytes], object], payload: bytes) -> None:
    """Try until there is room."""
    tries = 0
    while not attempt(payload):
        tries += 1
        if tries % TRIES == 0:
            os.sched_yield()


def polled(*attempts: Callable[[], Any]) -> Iterator[Any]:
    """What some calls return that return None where there is nothing: all that one has, or a turn, then the next."""

    def turns() -> Iterator[Iterator[Any]]:
        while True:
            for _ in range(TRIES):
                for attempt in attempts:
                    yield iter(attempt, None) if len(attempts) == 1 else islice(iter(attempt, None), _TURN)
            os.sched_yield()

    return chain.from_iterable(turns())


def parked(attempt: Callable[[], Any], wait: Callable[[], Any]) -> Iterator[Any]:
    """All that a call returns that does not wait, and when that is None what one returns that waits."""

    def bursts() -> Iterator[Iterable[Any]]:
        while True:
            yield iter(attempt, None)
            payload = wait()
            if payload is not None:
                yield (payload,)

    return chain.from_iterable(bursts())


def length(plan: Plan) -> int:
    """Bytes of every payload: an event, the array of a whole batch, or a block of bytes."""
    if plan.batch == 1 or plan.shape == "rows":
        return plan.size * plan.batch
    header = next(size for size, most in _HEADERS if plan.batch <= most)
    return header + plan.size * plan.batch


def slots(plan: Plan, size: int) -> int:
    """How many slots of some bytes the capacity is, as a power of two, at least four."""
    return 1 << max(2, (plan.capacity // size).bit_length() - 1)


@contextmanager
def folder() -> Iterator[Path]:
    """A place in memory for a run's files, of which nothing stays; its name is the run's own."""
    with tempfile.TemporaryDirectory(prefix=f"bench-{os.getpid()}-", dir="/dev/shm") as path:
        yield Path(path)
