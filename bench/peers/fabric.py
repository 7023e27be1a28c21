"""shmbus itself: its public API with nothing set but what the workload needs.

The parent does not open the bus: one more participant would change how the others wait. The sender waits for the
supervisor, whose start would otherwise fall into the measured time.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager, suppress
from itertools import count
from typing import TYPE_CHECKING, Final

import shmbus
import shmbus.inspect

from ..contract import BenchError
from ..event import Tick

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..contract import Plan, Shape

DISTRIBUTION: Final = "shmbus"
SHAPES: Final[frozenset[Shape]] = frozenset({"one", "all", "shared", "merge", "echo"})
CONNECTED: Final = True

_GROUP: Final = "workers"
_SUPERVISOR_SECONDS: Final = 10.0
_numbers = count(1)


@contextmanager
def wire(plan: Plan) -> Iterator[str]:
    """The name of the bus."""
    name = f"bench-{os.getpid()}-{next(_numbers)}"
    try:
        yield name
    finally:
        with suppress(shmbus.BusNotFoundError):  # as it should be: the last to leave has removed it
            shmbus.inspect.remove(name, force=True)


class _Sender:
    def __init__(self, publisher: shmbus.Publisher[Tick]) -> None:
        self._publisher = publisher

    def send(self, events: Iterable[Tick]) -> None:
        publish = self._publisher.publish
        for event in events:
            publish(event)

    def send_batches(self, batches: Iterable[list[Tick]]) -> None:
        publish_many = self._publisher.publish_many
        for batch in batches:
            publish_many(batch)


class _Receiver:
    def __init__(self, source: shmbus.Subscriber[Tick] | shmbus.Worker[Tick]) -> None:
        self._source = source

    def events(self) -> Iterator[Tick]:
        return iter(self._source)

    def batches(self, size: int) -> Iterator[list[Tick]]:
        while True:
            yield self._source.receive_many(size)


@contextmanager
def sender(plan: Plan, wiring: str, index: int) -> Iterator[_Sender]:
    """A publisher."""
    with _bus(plan, wiring) as bus, bus.publisher(_topic(plan)) as publisher:
        await_supervisor(bus)
        yield _Sender(publisher)


@contextmanager
def receiver(plan: Plan, wiring: str, index: int) -> Iterator[_Receiver]:
    """A subscriber, or a worker where events are shared."""
    with _bus(plan, wiring) as bus:
        if plan.shape != "shared":
            with bus.subscriber(_topic(plan)) as subscriber:
                yield _Receiver(subscriber)
            return
        with bus.worker(_topic(plan), group=_GROUP) as worker:
            yield _Receiver(worker)
            worker.ack()  # the last one, after which it did not ask for another


def _bus(plan: Plan, name: str) -> shmbus.Bus:
    return shmbus.Bus(name, idle=plan.idle)


def _topic(plan: Plan) -> shmbus.Topic[Tick]:
    return shmbus.Topic("ticks", Tick, capacity=plan.capacity)


def await_supervisor(bus: shmbus.Bus) -> None:
    """Until it is there: its start would fall into the measured time."""
    deadline = time.monotonic() + _SUPERVISOR_SECONDS
    while not bus.stats().supervisor.pid:
        if time.monotonic() > deadline:
            raise BenchError(f"no supervisor on bus {bus.name!r} within {_SUPERVISOR_SECONDS:g} s")
        time.sleep(0.01)
