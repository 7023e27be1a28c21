"""What tests of traces share: a provider whose spans are kept, and how to read them. Needs OpenTelemetry's SDK."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import shmbus
from shmbus import observe


class Traced:
    """A provider whose spans are kept."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader])

    def instrument(self, bus: shmbus.Bus) -> shmbus.Bus:
        return observe.instrument(bus, tracer_provider=self.provider, meter_provider=self.meters)

    def spans(self, operation: str) -> list[ReadableSpan]:
        return [s for s in self.exporter.get_finished_spans() if s.name.split()[0] == operation]


def linked(spans: list[ReadableSpan]) -> list[tuple[int, int]]:
    """Trace and span that each link points to."""
    return [(link.context.trace_id, link.context.span_id) for span in spans for link in span.links]


def own(spans: list[ReadableSpan]) -> list[tuple[int, int]]:
    return [(s.context.trace_id, s.context.span_id) for s in spans if s.context]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def dropped(traced: Traced, cause: str) -> list[ReadableSpan]:
    """Spans of events that were dropped for a cause."""
    return [s for s in traced.spans("drop") if attributes(s)["messaging.shmbus.dropped"] == cause]


def counted(spans: list[ReadableSpan]) -> int:
    """Events that drop spans tell of."""
    return sum(int(attributes(span)["messaging.batch.message_count"]) for span in spans)


def parent(span: ReadableSpan) -> str:
    """What a span that sent has as the header `traceparent`."""
    assert span.context is not None
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-01"
