"""OpenTelemetry: spans by the messaging conventions around what the handles of a bus do, and their metrics.

Needs the extra `otel` (opentelemetry-api; an SDK makes something of it). `instrument(bus)` turns the bus, and its
handles, into instances of the subclasses here: who never calls it imports nothing of this and pays nothing.

    send      PRODUCER   publish, apublish; of publish_many one for all. Its context goes along as header `traceparent`
    receive   CLIENT     receive, try_receive, areceive, receive_many: linked to what sent each of the events
    process   CONSUMER   a turn of a loop, by `for`, `async for` or `messages()`: current until the next is asked for
    settle    CLIENT     ack, nack, reject, and what the library dead-letters by itself: linked to what sent the event
    drop      CLIENT     what a subscriber will not get: overrun, left behind, undecodable; linked alike (`drops`)

Every kind of handle is traced: those of pools, of services, of routers, and those that repair from a journal; each by a
class that is made of its own and of what traces it.

May touch: nothing of its own; it overrides methods and hooks of the handles.

Must stay true: an event is delivered exactly as without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from shmbus.bus import Bus
from shmbus.observe.drops import Dropping
from shmbus.observe.receiving import TracedPuller, TracedReceiver, TracedSubscriber, TracedWorker
from shmbus.observe.sending import TracedPublisher
from shmbus.observe.telemetry import Telemetry
from shmbus.publisher import Publisher
from shmbus.subscriber import Subscriber
from shmbus.worker import Worker

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider


def instrument(
    bus: Bus, *, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
) -> Bus:
    """Trace what the handles of this bus do from now on, those that are open included; returns the bus.

    The providers are the global ones unless given. Doing it twice changes nothing. Children of this process call it for
    the bus that they open.
    """
    if isinstance(bus, TracedBus):
        return bus
    if type(bus) is not Bus:
        raise TypeError(f"a Bus can be instrumented, and {type(bus).__name__} is none")
    bus.__class__ = TracedBus
    assert isinstance(bus, TracedBus)
    bus._telemetry = Telemetry(bus.name, tracer_provider, meter_provider)
    for handle in list(bus._handles):
        bus._traced(handle)
    return bus


class TracedBus(Bus):
    """A bus whose handles are traced."""

    __slots__ = ()

    _telemetry: Telemetry

    def _keep(self, handle: Any) -> Any:
        return self._traced(super()._keep(handle))

    def _traced(self, handle: Any) -> Any:
        traced = _traced_kind(type(handle))
        if traced is not None:
            handle._telemetry = self._telemetry
            traced._begin_tracing(handle)  # type: ignore[attr-defined]
            handle.__class__ = traced
        return handle


def _traced_kind(kind: type) -> type | None:
    """The traced class of a handle's; None for what is traced already, or is no handle."""
    if issubclass(kind, TracedPublisher | TracedReceiver):
        return None
    if kind not in _KINDS:
        bases = next((mixed for base, mixed in _MIXED.items() if issubclass(kind, base)), None)
        if bases is None:
            return None
        before, after = bases
        if hasattr(kind, "_pull"):  # takes events off the rings before they are asked for
            before = (TracedPuller, *before)
        own = () if kind in _MIXED and after else (kind,)  # what goes beneath is a class of that kind
        _KINDS[kind] = type(f"Traced{kind.__name__}", (*before, *own, *after), {"__slots__": ()})
    return _KINDS[kind]


_MIXED: Final[dict[type, tuple[tuple[type, ...], tuple[type, ...]]]] = {
    Publisher: ((TracedPublisher,), ()),
    Subscriber: ((TracedSubscriber,), (Dropping,)),
    Worker: ((TracedWorker,), ()),
}
"""What goes before a class of handles, and what beneath it."""
_KINDS: Final[dict[type, type]] = {}
