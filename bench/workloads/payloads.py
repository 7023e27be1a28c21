"""W6f: what an array in a pool costs shmbus, by its size, by the number of its subscribers and with a group beside.

As in W8 all ends are handles in this one process and take turns, and all places on a curve too. Frames have 6 MB and
are copied in; where it is the size that grows, nothing is written but a mark: what remains is what a loan costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

import shmbus

from .growth import Costs, Place, axis, take, timed

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    from ..results import Growth

_FRAME: Final = 6_220_800  # bytes of 1080p in three colours
_FEW: Final = 2  # frames that are out at once
_TIMES: Final = 4  # a run
_LOANS: Final = 100  # a run
_WARM: Final = 2
_GROUP: Final = "group"


def measure(rounds: int, progress: Callable[[str], None]) -> list[Growth]:
    """Every curve, each place the median of `rounds` runs."""
    return [
        axis("w6f", "loan", "bytes", _sizes, rounds, progress),
        axis("w6f", "subscribers", "", _subscribers, rounds, progress),
    ]


def _type() -> Any:
    import numpy as np
    from numpy.typing import NDArray

    return msgspec.defstruct("Frame", [("number", int), ("image", NDArray[np.uint8])])


def _sizes(bus: shmbus.Bus, stack: ExitStack) -> list[Place]:
    kind = _type()

    def place(size: int) -> Place:
        topic = shmbus.Topic(f"loans-{size}", kind, pool=2 * size)
        reader = stack.enter_context(bus.subscriber(topic))
        pub = stack.enter_context(bus.publisher(topic, on_full="raise"))

        def loan() -> None:
            image = pub.empty(size)
            image[0] = 1
            pub.publish(kind(1, image))

        def run() -> Costs:
            sent = got = 0
            for _ in range(_LOANS):
                sent += timed(loan)
                got += timed(lambda: take(reader, 1))
            return {"empty, publish": sent / _LOANS, "receive": got / _LOANS}

        return Place(size, run, _WARM)

    return [place(1 << bits) for bits in (16, 20, 23, 26)]


def _subscribers(bus: shmbus.Bus, stack: ExitStack) -> list[Place]:
    import numpy as np

    kind, source = _type(), np.ones(_FRAME, np.uint8)

    def place(count: int) -> Place:
        bare, grouped = path(f"{count}", count, group=False), path(f"{count}-and-group", count, group=True)

        def run() -> Costs:
            (alone, got), (beside, _) = bare(), grouped()
            return {"publish": alone, "publish, a group beside": beside, "receive, each": got / count}

        return Place(count, run, _WARM)

    def path(name: str, count: int, *, group: bool) -> Callable[[], tuple[float, float]]:
        topic = shmbus.Topic(f"frames-{name}", kind, pool=4 * _FRAME)
        readers = [stack.enter_context(bus.subscriber(topic)) for _ in range(count)]
        worker = stack.enter_context(bus.worker(topic, group=_GROUP)) if group else None
        publish = stack.enter_context(bus.publisher(topic, on_full="raise")).publish

        def send() -> None:
            for number in range(_FEW):
                publish(kind(number, source))

        def drain() -> None:
            for reader in readers:
                take(reader, _FEW)

        def run() -> tuple[float, float]:
            sent = got = 0
            for _ in range(_TIMES):
                sent += timed(send)
                got += timed(drain)
                if worker is not None:
                    take(worker, _FEW)
                    worker.ack()
            return sent / _FEW / _TIMES, got / _FEW / _TIMES

        return run

    return [place(count) for count in (1, 2, 4)]
