"""subetha-ipc: SpscRing with push_buffer and pop_buffer, a payload in as many of its 64-byte slots as it takes.

Nothing else there carries 256 bytes as quickly; `Channel`, which could wait, and the work-stealing queues carry 52 an
item. Several receivers that see all, and several senders, have a ring each. Nothing shares out such events to workers:
a `Ring` hands all frames of one producer to one consumer. A batch is one msgpack array.

Rings do not wait: a receiver polls ("spin"), or sleeps on a Notifier that the sender signals after every payload
("park").
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from subetha import NotifierSet, SpscRing

from ..contract import UnableError
from ..event import encode
from . import loops

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from subetha import Notifier

    from ..contract import Plan, Shape

DISTRIBUTION: Final = "subetha-ipc"
SHAPES: Final[frozenset[Shape]] = frozenset({"one", "all", "merge", "echo"})
CONNECTED: Final = True

_SLOT: Final = 64  # SpscRing.payload_size


@contextmanager
def wire(plan: Plan) -> Iterator[str]:
    """The folder of the rings, which exist. Raises UnableError."""
    if plan.idle == "park" and plan.shape != "one":
        raise UnableError(f"a Notifier wakes one receiver of one ring here: shape={plan.shape}")
    with loops.folder() as folder:
        for index in range(max(plan.senders, plan.receivers)):
            SpscRing(f"{folder}/{index}", loops.slots(plan, _SLOT))
        yield str(folder)


class _Stream:
    """A ring as a stream of payloads that all have the same length."""

    def __init__(self, plan: Plan, folder: str, index: int) -> None:
        self.ring = SpscRing.open(f"{folder}/{index}", loops.slots(plan, _SLOT))
        self._length = loops.length(plan)
        self.count = -(-self._length // _SLOT)
        self.whole = self._length % _SLOT == 0

    def push(self, payload: bytes) -> None:
        """Push a payload; wait for room."""
        payload = payload.ljust(self.count * _SLOT, b"\0")  # the same object where it has the size
        self.insist(payload, self.count)

    def popper(self) -> Callable[[], bytes | None]:
        """A call that pops the next payload, or returns None."""
        pop, count, length, whole = self.ring.pop_buffer, self.count, self._length, self.whole

        def attempt() -> bytes | None:
            data: bytes
            data, taken = pop(count)
            if taken == 0:
                return None
            while taken < count:
                more, added = pop(count - taken)
                data += more
                taken += added
            return data if whole else data[:length]

        return attempt

    def insist(self, payload: bytes, left: int) -> None:
        """Push the slots of a payload that are left; wait for room."""
        tries = 0
        while left := left - self.ring.push_buffer(payload[-left * _SLOT :], _SLOT):
            tries += 1
            if tries % loops.TRIES == 0:
                os.sched_yield()


class _Sender(loops.Sender):
    """Pushes to its own ring in one frame of Python; to several by a call each."""

    def __init__(self, streams: list[_Stream], signal: Callable[[], object] | None) -> None:
        super().__init__([stream.push for stream in streams])
        self._first = streams[0]
        self._signal = signal

    def _send(self, things: Iterable[object]) -> None:
        first, signal = self._first, self._signal
        if len(self._sends) > 1:
            super()._send(things)
            return
        push, count, size = first.ring.push_buffer, first.count, 0 if first.whole else first.count * _SLOT
        for thing in things:
            payload = encode(thing)
            if size:
                payload = payload.ljust(size, b"\0")
            if left := count - push(payload, _SLOT):
                first.insist(payload, left)
            if signal:
                signal()


@contextmanager
def sender(plan: Plan, wiring: str, index: int) -> Iterator[loops.Sender]:
    """Pushes to its own ring, or to that of every receiver."""
    indices = range(plan.receivers) if plan.shape == "all" else [index]
    signal = NotifierSet(f"{wiring}/bell").signal if plan.idle == "park" else None
    yield _Sender([_Stream(plan, wiring, its) for its in indices], signal)


@contextmanager
def receiver(plan: Plan, wiring: str, index: int) -> Iterator[loops.Receiver]:
    """Pops from its own ring, or from those of all senders in turn."""
    indices = range(plan.senders) if plan.shape == "merge" else [index]
    poppers = [_Stream(plan, wiring, its).popper() for its in indices]
    if plan.idle == "park":
        bell = NotifierSet(f"{wiring}/bell").attach()
        yield loops.Receiver(loops.parked(poppers[0], partial(_sleep, bell)))
    else:
        yield loops.Receiver(loops.polled(*poppers))


def _sleep(bell: Notifier) -> None:
    """Wait for a signal, then look again: what is pushed after that signals anew."""
    bell.wait()
    bell.drain()
