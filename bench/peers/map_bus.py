"""mmbus, without its write-ahead log: takes what is there without waiting, then waits in `recv`.

A batch is one msgpack array: quicker than publish_many and recv_batch. A topic has one publisher, so several senders
have a topic each, whose receiver polls them. A subscriber cannot come before the publisher, so it connects in a thread.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import mmbus

from . import loops

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..contract import Plan, Shape
    from ..event import Tick

DISTRIBUTION: Final = "mmbus"
SHAPES: Final[frozenset[Shape]] = frozenset({"one", "all", "merge", "echo"})
CONNECTED: Final = True


@contextmanager
def wire(plan: Plan) -> Iterator[str]:
    """The folder of the bus."""
    with loops.folder() as folder:
        yield str(folder)


class _Receiver:
    def __init__(self, connecting: list[Future[Any]]) -> None:
        self._connecting = connecting

    def events(self) -> Iterator[Tick]:
        return self._receiver().events()

    def batches(self, size: int) -> Iterator[Sequence[Tick]]:
        return self._receiver().batches(size)

    def _receiver(self) -> loops.Receiver:
        ends = [connecting.result() for connecting in self._connecting]
        if len(ends) > 1:
            return loops.Receiver(loops.polled(*(end.try_recv for end in ends)))
        return loops.Receiver(loops.parked(ends[0].try_recv, ends[0].recv))


@contextmanager
def sender(plan: Plan, wiring: str, index: int) -> Iterator[loops.Trier]:
    """The publisher of its own topic, once every receiver is connected."""
    with attempts(plan, wiring, index) as attempt:
        yield loops.Trier([attempt])


@contextmanager
def attempts(plan: Plan, wiring: str, index: int) -> Iterator[Callable[[bytes], bool]]:
    """The same as the call that says whether there was room."""
    with _bus(plan, wiring).topic(_topic(index)) as topic:
        topic.wait_for_subscribers(plan.receivers)
        publish = topic.publish

        def attempt(payload: bytes) -> bool:
            try:
                publish(payload)
            except mmbus.BusFullError:
                return False
            return True

        yield attempt
        while any(topic.stats().lags):  # to leave makes `recv` fail at once, whatever is unread
            time.sleep(0.001)


@contextmanager
def receiver(plan: Plan, wiring: str, index: int) -> Iterator[_Receiver]:
    """A subscriber to every topic."""
    with connecting(plan, wiring) as ends:
        yield _Receiver(ends)


@contextmanager
def connecting(plan: Plan, wiring: str) -> Iterator[list[Future[Any]]]:
    """Its ends, which wait for their publishers."""
    bus = _bus(plan, wiring)
    with ThreadPoolExecutor(plan.senders) as pool:
        yield [pool.submit(bus.subscribe, _topic(its)) for its in range(plan.senders)]


def _bus(plan: Plan, folder: str) -> Any:
    size = loops.length(plan)
    return mmbus.Bus(
        "bench",
        base_dir=folder,
        capacity=loops.slots(plan, size),
        slot_size=size,
        max_subscribers=plan.receivers,
        wal_enabled=False,
    )


def _topic(index: int) -> str:
    return f"ticks{index}"
