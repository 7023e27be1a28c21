"""OpenTelemetry: spans by the messaging conventions around what the handles of a bus do, and their metrics.

Needs the extra `otel` (opentelemetry-api; an SDK makes something of it). `instrument(bus)` turns the bus, and its
handles, into instances of the subclasses here: who never calls it imports nothing of this and pays nothing.

    send      PRODUCER   publish, apublish; of publish_many one for all. Its context goes along as header `traceparent`
    receive   CLIENT     receive, try_receive, areceive, receive_many: linked to what sent each of the events
    process   CONSUMER   a turn of a loop, by `for`, `async for` or `messages()`: current until the next is asked for
    settle    CLIENT     ack, nack, reject, and what the library dead-letters by itself: linked to what sent the event
    drop      CLIENT     events that a lossy subscriber finds overrun: they are gone, and with them who sent them

May touch: nothing of its own; it overrides methods and hooks of the handles.

Must stay true: an event is delivered exactly as without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

from opentelemetry import propagate
from opentelemetry.trace import Status, StatusCode

from shmbus.bus import Bus
from shmbus.errors import Full
from shmbus.message import Message
from shmbus.observe.receiving import TracedReceiver, TracedSubscriber, TracedWorker
from shmbus.observe.telemetry import PREFIX, Telemetry
from shmbus.publisher import Publisher
from shmbus.subscriber import Subscriber
from shmbus.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Span, TracerProvider

T = TypeVar("T")
M = TypeVar("M", bound=Message[Any])


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
        traced = _TRACED.get(type(handle))
        if traced is not None:
            handle.__class__ = traced
            handle._telemetry = self._telemetry
            if isinstance(handle, TracedReceiver):
                handle._begin_tracing()
        return handle


class TracedPublisher(Publisher[T]):
    """Sends the context of its span along."""

    __slots__ = ()

    _telemetry: Telemetry

    @contextmanager
    def _sending(self, count: int = 0) -> Iterator[tuple[Span, dict[str, Any]]]:
        more: dict[str, Any] = {f"{PREFIX}publisher": self.name}
        if count:
            more["messaging.batch.message_count"] = count
        with self._telemetry.client(self.topic.name, "send", "send", [], more) as span:
            carrier: dict[str, Any] = {}
            propagate.inject(carrier)
            yield span, carrier

    def _sent(self, span: Span, sequence: int | None, count: int = 1) -> None:
        self._telemetry.sent.add(count, self._telemetry.attributes(self.topic.name, "send", "send"))
        if sequence is None:
            span.set_attribute(f"{PREFIX}dropped", "refused")
            span.set_status(Status(StatusCode.ERROR, "refused: no room for a consumer"))
        elif count == 1:
            span.set_attribute(f"{PREFIX}sequence", sequence)

    def publish(self, event: T, *, headers: dict[str, Any] | None = None) -> int | None:
        """As `Publisher.publish`."""
        with self._sending() as (span, carrier):
            sequence = super().publish(event, headers={**(headers or {}), **carrier})
            self._sent(span, sequence)
            return sequence

    async def apublish(self, event: T, *, headers: dict[str, Any] | None = None) -> int | None:
        """As `Publisher.apublish`."""
        with self._sending() as (span, carrier):
            sequence = await super().apublish(event, headers={**(headers or {}), **carrier})
            self._sent(span, sequence)
            return sequence

    def publish_many(self, events: Iterable[T], /) -> int:
        """As `Publisher.publish_many`, one by one: each event carries the context; a timeout is that of each."""
        lot = list(events)
        done = missed = 0
        with self._sending(len(lot)) as (span, carrier):
            try:
                for event in lot:
                    missed += super().publish(event, headers=carrier) is None
                    done += 1
            except Full as error:
                error.published = done
                raise
            finally:
                self._sent(span, None if missed else 0, done)
        return done - missed

    async def apublish_many(self, events: Iterable[T]) -> int:
        """As `Publisher.apublish_many`, one by one."""
        lot = list(events)
        done = missed = 0
        with self._sending(len(lot)) as (span, carrier):
            try:
                for event in lot:
                    missed += await super().apublish(event, headers=carrier) is None
                    done += 1
            except Full as error:
                error.published = done
                raise
            finally:
                self._sent(span, None if missed else 0, done)
        return done - missed


_TRACED: Final[dict[type, type]] = {Publisher: TracedPublisher, Subscriber: TracedSubscriber, Worker: TracedWorker}
