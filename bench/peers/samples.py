"""iceoryx2, publish-subscribe: overflow off, and publishers that retry until every subscriber has room.

A payload is a sample of fixed size, which the receiver decodes in place; a batch is one msgpack array. `receive` does
not wait: a receiver polls ("spin"), or sleeps on a Listener that the sender notifies after every sample ("park").

Until a subscriber has once received, a publisher drops what does not fit, and takes the rest along when it leaves. So a
sender waits after its first sample until every receiver has told it of one, and looks how many each sample has reached.
"""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import iceoryx2

from ..contract import BenchError
from ..event import decode, decode_many, encode
from . import loops

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..contract import Plan, Shape
    from ..event import Tick

DISTRIBUTION: Final = "iceoryx2"
SHAPES: Final[frozenset[Shape]] = frozenset({"one", "all", "merge", "echo"})
CONNECTED: Final = True

_SERVICE: Final = "ticks"
_ARRIVALS: Final = "arrivals"


@contextmanager
def wire(plan: Plan) -> Iterator[str]:
    """The folder of the services; its name begins those of their shared memory."""
    with loops.folder() as folder:
        try:
            yield str(folder)
        finally:
            for left in Path("/dev/shm").glob(f"{folder.name}_*"):  # management data, and all of those killed
                left.unlink(missing_ok=True)


class Sender:
    """Loans a sample, copies into it, sends it; waits for all receivers after the first one."""

    def __init__(self, plan: Plan, node: Any, publisher: Any) -> None:
        self.publisher = publisher
        self.receivers = plan.receivers
        self._arrivals = _bell(node, _ARRIVALS).listener_builder().create()
        self.notify = _bell(node, _SERVICE).notifier_builder().create().notify if plan.idle == "park" else None

    def send(self, events: Iterable[object]) -> None:
        """A sample for each."""
        events = iter(events)
        self._send(islice(events, 1))
        self.await_receivers()
        self._send(events)

    send_batches = send

    def _send(self, events: Iterable[object]) -> None:
        loan, move, notify, receivers = self.publisher.loan_uninit, ctypes.memmove, self.notify, self.receivers
        for event in events:
            payload = encode(event)
            sample = loan()
            move(sample.payload_ptr, payload, len(payload))
            if (reached := sample.assume_init().send()) != receivers:
                raise BenchError(f"a sample was dropped: reached={reached}, receivers={receivers}")
            if notify:
                notify()

    def await_receivers(self) -> None:
        """Until every receiver has told of a sample."""
        missing = set(range(self.receivers))
        while missing:
            missing -= {activation.id.as_value for activation in self._arrivals.blocking_wait()}


class Receiver:
    """Looks at each sample in place."""

    def __init__(self, samples: Iterator[Any], kind: type[ctypes.Array[ctypes.c_uint8]]) -> None:
        self.samples = samples
        self.at = kind.from_address

    def events(self) -> Iterator[Tick]:
        """A sample is an event."""
        at = self.at
        return (decode(at(sample.payload_ptr)) for sample in self.samples)

    def batches(self, size: int) -> Iterator[list[Tick]]:
        """A sample is a batch."""
        at = self.at
        return (decode_many(at(sample.payload_ptr)) for sample in self.samples)


@contextmanager
def sender(plan: Plan, wiring: str, index: int) -> Iterator[Sender]:
    """A publisher, connected to every subscriber."""
    yield Sender(plan, *publisher(plan, wiring))


def publisher(plan: Plan, wiring: str) -> tuple[Any, Any]:
    """A node, and the publisher that is connected."""
    node = _node(wiring)
    made = (
        _service(plan, node)
        .publisher_builder()
        .max_loaned_samples(1)
        .backpressure_strategy(iceoryx2.BackpressureStrategy.RetryUntilDelivered)
        .create()
    )
    made.update_connections()
    return node, made


@contextmanager
def receiver(plan: Plan, wiring: str, index: int) -> Iterator[Receiver]:
    """A subscriber."""
    yield Receiver(*subscription(plan, wiring, index))


def subscription(plan: Plan, wiring: str, index: int) -> tuple[Iterator[Any], type[ctypes.Array[ctypes.c_uint8]]]:
    """The samples that come, and what they are."""
    node = _node(wiring)
    subscriber = _service(plan, node).subscriber_builder().create()
    if plan.idle == "park":
        listener = _bell(node, _SERVICE).listener_builder().create()

        def wait() -> None:
            listener.blocking_wait()

        samples = loops.parked(subscriber.receive, wait)
    else:
        samples = loops.polled(subscriber.receive)
    return chain.from_iterable(_announced(samples, node, index)), _kind(plan)


def _announced(samples: Iterator[Any], node: Any, index: int) -> Iterator[Iterable[Any]]:
    """The samples; the senders are told of the first one."""
    first = next(samples)
    notifier = _bell(node, _ARRIVALS).notifier_builder().create()
    notifier.notify_with_custom_event_id(iceoryx2.EventId.new(index))
    yield (first,)
    del first
    yield samples


def _node(folder: str) -> Any:
    iceoryx2.set_log_level(iceoryx2.LogLevel.Error)
    config = iceoryx2.config.default()
    config.global_cfg.root_path = iceoryx2.Path.new(folder)
    config.global_cfg.prefix = iceoryx2.FileName.new(f"{Path(folder).name}_")
    return iceoryx2.NodeBuilder.new().config(config).create(iceoryx2.ServiceType.Ipc)


def _service(plan: Plan, node: Any) -> Any:
    return (
        node.service_builder(iceoryx2.ServiceName.new(_SERVICE))
        .publish_subscribe(_kind(plan))
        .enable_safe_overflow(False)
        .history_size(0)
        .max_publishers(plan.senders)
        .max_subscribers(plan.receivers)
        .max_nodes(plan.senders + plan.receivers)
        .subscriber_max_borrowed_samples(2)
        .subscriber_max_buffer_size(loops.slots(plan, loops.length(plan)))
        .open_or_create()
    )


def _bell(node: Any, name: str) -> Any:
    return node.service_builder(iceoryx2.ServiceName.new(name)).event().open_or_create()


def _kind(plan: Plan) -> type[ctypes.Array[ctypes.c_uint8]]:
    return ctypes.c_uint8 * loops.length(plan)
