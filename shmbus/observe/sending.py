"""Traced publishers: a send span for what is published, whose context goes along. See `tracing`.

The C type notes that span, for who finds events gone, before it commits an event or counts a refusal (notes.c).

May touch: the trace file of its own publisher (`_shm/traces.py`), to make it, and what every publisher touches.

Must stay true: an event is published exactly as without it; what cannot be noted is published all the same.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, cast

from opentelemetry import propagate, trace
from opentelemetry.trace import Status, StatusCode

from shmbus._shm.traces import Sender
from shmbus.errors import ClosedError, Full
from shmbus.observe.telemetry import PREFIX, Telemetry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from opentelemetry.trace import Span

    from shmbus.publisher import Publisher


class TracedPublisher:
    """Sends the context of its span along. A mix-in of every kind of publisher."""

    __slots__ = ()

    _telemetry: Telemetry

    def _begin_tracing(self) -> None:
        publisher = _as_publisher(self)
        file = publisher._session.rings.traces.make(publisher._id)
        if file is not None:
            with file, suppress(ClosedError):  # another thread has just closed it
                publisher._note_in(file.descriptor, _who)
                file.release()

    @contextmanager
    def _sending(self, count: int = 0) -> Iterator[tuple[Span, dict[str, Any]]]:
        me = _as_publisher(self)
        more: dict[str, Any] = {f"{PREFIX}publisher": me.name}
        if count:
            more["messaging.batch.message_count"] = count
        with self._telemetry.client(me.topic.name, "send", "send", [], more) as span:
            carrier: dict[str, Any] = {}
            propagate.inject(carrier)
            yield span, carrier

    def _sent(self, span: Span, sequence: int | None, count: int = 1) -> None:
        topic = _as_publisher(self).topic.name
        self._telemetry.sent.add(count, self._telemetry.attributes(topic, "send", "send"))
        if sequence is None:
            span.set_attribute(f"{PREFIX}dropped", "refused")
            span.set_status(Status(StatusCode.ERROR, "refused: no room for a consumer"))
        elif count == 1:
            span.set_attribute(f"{PREFIX}sequence", sequence)

    # -- what publishes, around that of the handle

    def publish(self, event: Any, *, headers: dict[str, Any] | None = None) -> int | None:
        """As the handle has it."""
        with self._sending() as (span, carrier):
            sequence = self._publish_one(event, {**(headers or {}), **carrier})
            self._sent(span, sequence)
            return sequence

    def _publish_one(self, event: Any, headers: dict[str, Any]) -> int | None:
        return cast("int | None", super().publish(event, headers=headers))  # type: ignore[misc]

    async def apublish(self, event: Any, *, headers: dict[str, Any] | None = None) -> int | None:
        """As the handle has it."""
        with self._sending() as (span, carrier):
            sequence = await self._apublish_one(event, {**(headers or {}), **carrier})
            self._sent(span, sequence)
            return sequence

    async def _apublish_one(self, event: Any, headers: dict[str, Any]) -> int | None:
        return cast("int | None", await super().apublish(event, headers=headers))  # type: ignore[misc]

    def publish_many(self, events: Iterable[Any], /) -> int:
        """As the handle has it, one by one: each event carries the context; a timeout is that of each."""
        lot = list(events)
        with self._sending_many(len(lot)) as (told, carrier):
            for event in lot:
                told.out(self._publish_one(event, carrier))
        return told.done - told.missed

    async def apublish_many(self, events: Iterable[Any]) -> int:
        """The same in an event loop."""
        lot = list(events)
        with self._sending_many(len(lot)) as (told, carrier):
            for event in lot:
                told.out(await self._apublish_one(event, carrier))
        return told.done - told.missed

    @contextmanager
    def _sending_many(self, count: int) -> Iterator[tuple[_Told, dict[str, Any]]]:
        with self._sending(count) as (span, carrier):
            told = _Told()
            try:
                yield told, carrier
            except Full as error:
                error.published = told.done
                raise
            finally:
                self._sent(span, None if told.missed else 0, told.done)

    def publish_now(self, event: Any, *, headers: dict[str, Any] | None = None) -> int:
        """As the handle has it."""
        with self._sending() as (span, carrier):
            sequence: int = super().publish_now(event, headers={**(headers or {}), **carrier})  # type: ignore[misc]
            self._sent(span, sequence)
            return sequence


class _Told:
    """What has become of the events of one call."""

    def __init__(self) -> None:
        self.done = self.missed = 0

    def out(self, sequence: int | None) -> None:
        """One more is out, or was refused somewhere."""
        self.missed += sequence is None
        self.done += 1


def _as_publisher(traced: TracedPublisher) -> Publisher[Any]:
    return cast("Publisher[Any]", traced)


def _who() -> bytes | None:
    """The span that sends now, as the C type takes it: that of the thread or task that calls it."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return Sender(context.trace_id, context.span_id, context.trace_flags.sampled).packed()
