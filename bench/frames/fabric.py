"""shmbus itself: arrays through a pool, rows straight from the ring."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

import shmbus

from ..peers import fabric
from ..rows import row_type

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..contract import Frames, Plan, Shape

DISTRIBUTION: Final = "shmbus"
SHAPES: Final[frozenset[Shape]] = frozenset({"frames", "loans", "rows"})
CONNECTED: Final = True

wire = fabric.wire


class Frame(msgspec.Struct):
    """What is sent."""

    image: npt.NDArray[np.uint8]


class _Sender:
    def __init__(self, publisher: shmbus.Publisher[Any], size: int) -> None:
        self._publisher = publisher
        self._size = size

    def copy(self, frames: Frames) -> None:
        publish = self._publisher.publish
        for frame in frames:
            publish(Frame(frame))

    def loan(self, marks: Iterable[bytes]) -> None:
        publish, empty, size = self._publisher.publish, self._publisher.empty, self._size
        for mark in marks:
            image: Any = empty(size)
            memoryview(image)[:8] = mark
            publish(Frame(image))

    def rows(self, arrays: Frames) -> None:
        publish = self._publisher.publish_array
        for rows in arrays:
            publish(rows)


class _Receiver:
    def __init__(self, subscriber: shmbus.Subscriber[Any]) -> None:
        self._subscriber = subscriber

    def frames(self) -> Iterator[Any]:
        return (frame.image for frame in self._subscriber)

    def rows(self) -> Iterator[Any]:
        return iter(self._subscriber.arrays())


@contextmanager
def sender(plan: Plan, wiring: str, index: int) -> Iterator[_Sender]:
    """A publisher."""
    with shmbus.Bus(wiring, idle=plan.idle) as bus, bus.publisher(_topic(plan)) as publisher:
        fabric.await_supervisor(bus)
        yield _Sender(publisher, plan.size)


@contextmanager
def receiver(plan: Plan, wiring: str, index: int) -> Iterator[_Receiver]:
    """A subscriber."""
    with shmbus.Bus(wiring, idle=plan.idle) as bus, bus.subscriber(_topic(plan)) as subscriber:
        yield _Receiver(subscriber)


def _topic(plan: Plan) -> shmbus.Topic[Any]:
    if plan.shape == "rows":
        return shmbus.Topic("rows", row_type(plan.size), codec="record", capacity=plan.capacity)
    return shmbus.Topic("frames", Frame, pool=plan.capacity)
