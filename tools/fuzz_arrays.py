"""What the threads of `thread_fuzz` do with arrays: publishers with a pool and who looks at what is in it.

Must hold, beside what holds there: an event has its own bytes, all of them; a loan is read-only once it is published,
and writable again when it was not.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt


class Pause:
    """Lets other threads run in the middle of an encoder and a decoder."""


class Frame(msgspec.Struct):
    number: int
    first: npt.NDArray[np.uint8]
    pause: Pause
    last: npt.NDArray[np.uint8]


def pause(*_: Any) -> int:
    time.sleep(0)
    return 0


def resume(expected: type, value: Any) -> Any:
    time.sleep(0)
    return Pause()


class Frames:
    """A publisher, a subscriber and a worker of one topic, which any thread uses, replaces and closes."""

    def __init__(self, shmbus: Any, bus: Any, chance: random.Random) -> None:
        self.bus = bus
        self.Full = shmbus.Full
        self.topic = shmbus.Topic("frames", Frame, pool=1 << 18, capacity=1 << 12, enc_hook=pause, dec_hook=resume)
        self.publishers = [self.publisher(on_full) for on_full in chance.choices(("block", "drop", "raise"), k=2)]
        self.receivers = [self.receiver(kind) for kind in ("reliable", "lossy", "worker")]
        self.kept: list[Frame] = []

    def publisher(self, on_full: str) -> Any:
        return self.bus.publisher(self.topic, on_full=on_full, timeout=0.02 if on_full == "block" else None)

    def receiver(self, kind: str) -> Any:
        if kind == "worker":
            return self.bus.worker(self.topic, group="g", max_deliver=4000)
        return self.bus.subscriber(self.topic, mode=kind)

    def publish(self, chance: random.Random) -> None:
        """Publish two arrays by any way there is, loans among them."""
        publisher, number = chance.choice(self.publishers), chance.randrange(256)
        arrays: list[Any] = []
        for size in chance.choices((0, 10, 2000, 20000), k=2):
            arrays.append(publisher.empty(size) if chance.random() < 0.6 else np.empty(size, np.uint8))
            arrays[-1][:] = number
        frame = Frame(number, arrays[0], Pause(), arrays[1][::-1] if chance.random() < 0.2 else arrays[1])
        way = chance.choice((publisher.publish, publisher.publish, publisher.publish_now, publisher.apublish))
        if len(arrays[0]) > 1024 and type(arrays[0].base).__name__ == "Lease":
            self.expect(way, frame, arrays[0])
        elif way == publisher.apublish:
            asyncio.run(way(frame))
        else:
            way(frame)

    def expect(self, way: Any, frame: Frame, loan: Any) -> None:
        """Publish a frame whose first array is a loan."""
        try:
            asyncio.run(way(frame)) if way.__name__ == "apublish" else way(frame)
        except self.Full:
            if not loan.flags.writeable:
                raise AssertionError("what was not published stays read-only") from None
            raise
        if loan.flags.writeable and way.__name__ != "apublish":  # which drops before it encodes for good
            raise AssertionError("what was published is writable")

    def receive(self, chance: random.Random) -> None:
        """Receive one event, look at all of it, and keep it for a while."""
        receiver = chance.choice(self.receivers)
        found = receiver.receive(timeout=0.005)
        self.whole(found)
        self.kept.append(found)
        for _ in range(chance.randrange(3)):
            if self.kept:
                self.whole(self.kept.pop(0))
        if hasattr(receiver, "ack"):
            receiver.ack()

    def whole(self, frame: Frame) -> None:
        for array in (frame.first, frame.last):
            if not (array == frame.number).all():
                raise AssertionError(f"an array of another event: number={frame.number}, {array[:10]}")

    def replace(self, chance: random.Random) -> None:
        """Close what others use."""
        place = chance.randrange(2)
        new = self.publisher("drop")
        old, self.publishers[place] = self.publishers[place], new
        old.close()
