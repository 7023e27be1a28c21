"""Topics with pools, and what children of the pool's tests do; numpy is imported where it is used."""

from __future__ import annotations

import signal
import sys
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

import shmbus

MIB = 1 << 20


class Frame(msgspec.Struct):
    number: int
    image: npt.NDArray[np.uint8]


class Album(msgspec.Struct):
    name: str
    frames: list[Frame] = []
    masks: dict[str, npt.NDArray[np.bool_]] = {}
    raw: memoryview = memoryview(b"")
    cover: npt.NDArray[Any] | None = None


FRAMES = shmbus.Topic("frames", Frame, pool=8 * MIB)
ALBUMS = shmbus.Topic("albums", Album, pool=4 * MIB)
BLOBS = shmbus.Topic("blobs", memoryview, pool=MIB)


def frame(number: int, size: int = MIB) -> Frame:
    """A frame whose every byte is its number."""
    return Frame(number, np.full(size, number % 251, np.uint8))


def whole(event: Frame) -> bool:
    """Whether an event has its own bytes, all of them."""
    return bool((event.image == event.number % 251).all())


def used(bus: shmbus.Bus) -> int:
    """Bytes of all pools that somebody is owed or looks at."""
    return sum(publisher.pool_used for publisher in bus.stats().publishers)


def say(text: object) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def keeper(bus_name: str, how: str, count: int) -> None:
    """Receives `count` frames, keeps views of them, closes everything if asked to, and waits to be killed."""
    bus = shmbus.Bus.attach(bus_name)
    receiver: Any
    if how.startswith("worker"):
        receiver = bus.worker(FRAMES, group="pool", name="keeper")
    else:
        receiver = bus.subscriber(FRAMES, name="keeper")
    say("ready")
    kept = [receiver.receive(timeout=30) for _ in range(count)]
    if "acked" in how:
        receiver.ack()
    if how.endswith("closed"):
        receiver.close()
        bus.close()
    say("kept")
    for _ in sys.stdin:
        say(all(map(whole, kept)))
    signal.pause()


def lender(bus_name: str, count: int) -> None:
    """Opens loans that it never publishes, and waits to be killed."""
    bus = shmbus.Bus.attach(bus_name)
    publisher = bus.publisher(FRAMES, name="lender")
    loans = [publisher.empty(MIB) for _ in range(count)]
    publisher.publish(frame(3))
    say(len(loans))
    signal.pause()
