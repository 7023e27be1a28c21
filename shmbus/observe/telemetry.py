"""What all spans of a bus have in common: the tracer, the instruments, attributes, and links to who sent an event.

Needs the extra `otel`. May touch: nothing.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec
from opentelemetry import metrics, propagate, trace
from opentelemetry.trace import Link, SpanKind

import shmbus
from shmbus.message import decode_headers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Span, TracerProvider

PREFIX: Final = "messaging.shmbus."
MAX_LINKS: Final = 128
"""Of a span: an SDK drops those beyond, unless it is configured otherwise."""
BOUNDARIES: Final = tuple(digit * 10.0**power for power in range(-6, 2) for digit in (1, 2.5, 5))
"""Seconds: the histograms begin at a microsecond, for that is where this bus is."""


class Telemetry:
    """The tracer, the instruments, and the attributes that all spans of a bus have."""

    def __init__(self, bus: str, tracers: TracerProvider | None, meters: MeterProvider | None) -> None:
        version = shmbus.__version__
        self.bus: Final = bus
        self.tracer: Final = trace.get_tracer("shmbus", version, tracers)
        meter = metrics.get_meter("shmbus", version, meters)
        self.sent: Final = meter.create_counter("messaging.client.sent.messages", "{message}", "Events published.")
        self.consumed: Final = meter.create_counter(
            "messaging.client.consumed.messages", "{message}", "Events handed out."
        )
        self.operation: Final = meter.create_histogram(
            "messaging.client.operation.duration",
            "s",
            "Of publishing, receiving and settling.",
            explicit_bucket_boundaries_advisory=BOUNDARIES,
        )
        self.processing: Final = meter.create_histogram(
            "messaging.process.duration",
            "s",
            "From hand-out until the next event was asked for.",
            explicit_bucket_boundaries_advisory=BOUNDARIES,
        )

    def attributes(self, topic: str, operation: str, kind: str) -> dict[str, Any]:
        """What every span and every point of such an operation has."""
        return {
            "messaging.system": "shmbus",
            "messaging.destination.name": topic,
            "messaging.operation.name": operation,
            "messaging.operation.type": kind,
            f"{PREFIX}bus": self.bus,
        }

    @contextmanager
    def client(
        self, topic: str, operation: str, kind: str, links: list[Link], more: dict[str, Any] | None = None
    ) -> Iterator[Span]:
        """A span of what the handle does itself, and its duration among the metrics."""
        attributes = self.attributes(topic, operation, kind)
        span_kind = SpanKind.PRODUCER if kind == "send" else SpanKind.CLIENT
        begun = time.perf_counter()
        try:
            with self.tracer.start_as_current_span(
                f"{operation} {topic}", kind=span_kind, attributes={**attributes, **(more or {})}, links=links
            ) as span:
                yield span
        finally:
            self.operation.record(time.perf_counter() - begun, attributes)


class Seen:
    """An event that was about to be decoded: who sent it."""

    __slots__ = ("headers", "publisher", "sequence", "time_ns")

    def __init__(self, headers: bytes, sequence: int, publisher: str | None, time_ns: int) -> None:
        self.headers = headers
        self.sequence = sequence
        self.publisher = publisher or ""
        self.time_ns = time_ns


def link_to(headers: bytes | None, **attributes: Any) -> list[Link]:
    """A link to the span that sent an event, by its headers; none where it was not traced."""
    if not headers or b"traceparent" not in headers:
        return []
    try:
        carrier = {key: value for key, value in decode_headers(headers).items() if isinstance(value, str)}
    except msgspec.DecodeError:
        return []
    sender = trace.get_current_span(propagate.extract(carrier)).get_span_context()
    return [Link(sender, attributes)] if sender.is_valid else []
