"""A real exporter and a real receiver: traces leave as OTLP over HTTP, and arrive with their links."""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import shmbus
from shmbus import observe

pytest.importorskip("opentelemetry.sdk", reason="the SDK of OpenTelemetry is not installed")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the exporter of OTLP is not installed")

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

SMALL = shmbus.Topic("small", int, capacity=4096)


class Receiver(ThreadingHTTPServer):
    """What a collector is: it takes what is posted to /v1/traces."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Requests)
        self.spans: list[Any] = []


class _Requests(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        request = ExportTraceServiceRequest.FromString(body)
        assert isinstance(self.server, Receiver)
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                assert scope.scope.name == "shmbus"
                self.server.spans += scope.spans
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200 if self.path == "/v1/traces" else 404)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *_: Any) -> None:
        """Say nothing."""


def test_traces_arrive_with_their_links(bus_name: str) -> None:
    """What is delivered, and what is dropped, is linked to its sender on the wire too; no span is lost on the way."""
    with Receiver() as receiver:
        thread = threading.Thread(target=receiver.serve_forever)
        thread.start()
        exporter = OTLPSpanExporter(f"http://127.0.0.1:{receiver.server_port}/v1/traces", timeout=60)
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(exporter))
        with observe.instrument(shmbus.Bus(bus_name), tracer_provider=provider) as bus:
            lossy = bus.subscriber(SMALL, name="lossy", mode="lossy")
            publisher = bus.publisher(SMALL, name="web")
            for n in range(300):
                publisher.publish(n)
            got = lossy.receive_many(300, timeout=10)
            [loss] = bus.losses()
            lossy.close()
        provider.shutdown()
        receiver.shutdown()
        thread.join()
    sent = [(s.trace_id, s.span_id) for s in receiver.spans if s.name == "send small"]
    links: dict[str, list[tuple[bytes, bytes]]] = {"receive small": [], "drop small": []}
    for span in receiver.spans:
        links.get(span.name, []).extend((link.trace_id, link.span_id) for link in span.links)
    assert len(sent) == 300
    assert links["drop small"] == sent[: loss.count]
    assert links["receive small"] == sent[-len(got) :]
    assert loss.trace == f"00-{sent[0][0].hex()}-{sent[0][1].hex()}-01"
