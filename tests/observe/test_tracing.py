"""Traces: every event that is delivered, and every one that is dead-lettered, is linked to the span that sent it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from typing import Annotated, Any

import msgspec
import pytest

import shmbus
from shmbus import observe

pytest.importorskip("opentelemetry.sdk", reason="the SDK of OpenTelemetry is not installed")

from opentelemetry import trace
from tracing import Traced, attributes, linked, own

NUMBERS = shmbus.Topic("numbers", int, capacity=1 << 16)
SMALL = shmbus.Topic("small", int, capacity=4096)
SHORT = shmbus.Topic("short", Annotated[str, msgspec.Meta(max_length=3)], validate=False)  # published unchecked


@pytest.fixture
def traced() -> Traced:
    return Traced()


def test_every_delivery_is_linked(bus_name: str, traced: Traced) -> None:
    """Under backlog, each event that a subscriber and a group are handed is linked to the span that sent it."""
    with traced.instrument(shmbus.Bus(bus_name)) as bus, bus.publisher(NUMBERS, name="web") as publisher:
        audit, worker = bus.subscriber(NUMBERS, name="audit"), bus.worker(NUMBERS, group="billing")
        for n in range(300):
            publisher.publish(n, headers={"n": n})
        assert audit.receive_many(300) == list(range(300))
        assert worker.receive_many(300) == list(range(300))
        worker.ack()
        audit.close()
        worker.close()
    sent = own(traced.spans("send"))
    assert len(sent) == 300
    assert linked(traced.spans("receive")) == sent * 2
    span = traced.spans("send")[0]
    assert span.kind is trace.SpanKind.PRODUCER
    assert attributes(span)["messaging.system"] == "shmbus"
    assert attributes(span)["messaging.destination.name"] == "numbers"
    assert traced.spans("receive")[0].kind is trace.SpanKind.CLIENT


def test_a_turn_of_a_loop_is_a_process_span(bus_name: str, traced: Traced) -> None:
    """Within a loop the process span is current, so what the turn sends belongs to it; its link is the sender."""
    with traced.instrument(shmbus.Bus(bus_name)) as bus, bus.publisher(NUMBERS) as publisher:
        subscriber = bus.subscriber(NUMBERS, name="audit")
        onward = bus.publisher(SMALL)
        for n in range(3):
            publisher.publish(n)
        for event in subscriber:
            onward.publish(event)
            if event == 2:
                break
        assert trace.get_current_span().get_span_context().is_valid  # the turn goes on until the next is asked for
        subscriber.close()
        assert not trace.get_current_span().get_span_context().is_valid
    process = traced.spans("process")
    assert [span.kind for span in process] == [trace.SpanKind.CONSUMER] * 3
    first, second = traced.spans("send")[:3], traced.spans("send")[3:]
    assert linked(process) == own(first)
    assert [(s.parent.trace_id, s.parent.span_id) for s in second if s.parent] == own(process)
    assert {attributes(span)["messaging.consumer.group.name"] for span in process} == {"audit"}


def test_tasks_have_turns_of_their_own(bus_name: str, traced: Traced) -> None:
    """Two tasks that iterate one worker each have their own current span, and every event is linked once."""

    async def main() -> list[int]:
        with traced.instrument(shmbus.Bus(bus_name)) as bus, bus.publisher(NUMBERS) as publisher:
            worker = bus.worker(NUMBERS, group="pool")
            got: list[int] = []

            async def work() -> None:
                async for event in worker:
                    mine = trace.get_current_span()
                    await asyncio.sleep(0)
                    assert trace.get_current_span() is mine
                    got.append(event)
                    if len(got) == 20:
                        worker.cancel()

            tasks = [asyncio.create_task(work()) for _ in range(2)]
            for n in range(20):
                await publisher.apublish(n)
            await asyncio.gather(*tasks)
            worker.close()
            return got

    assert sorted(asyncio.run(main())) == list(range(20))
    assert sorted(linked(traced.spans("process"))) == sorted(own(traced.spans("send")))


def test_settling_and_dead_letters_are_linked(bus_name: str, traced: Traced) -> None:
    """Acks, nacks, rejects and what is delivered too often are settle spans, each linked to who sent the event."""
    with traced.instrument(shmbus.Bus(bus_name)) as bus, bus.publisher(NUMBERS) as publisher:
        worker = bus.worker(NUMBERS, group="billing", max_deliver=2)
        for n in range(3):
            publisher.publish(n)
        sent = dict(enumerate(own(traced.spans("send"))))
        for message in worker.messages():
            if message.event == 0:
                message.ack()
            elif message.event == 1:
                message.reject("no")
            else:
                message.nack()
                if message.attempt == 2:
                    break
        assert worker.try_receive() is None  # buried on the way
        assert bus.stats().consumers[0].rejected == 2
        worker.close()
    assert linked(traced.spans("ack")) == [sent[0]]
    assert linked(traced.spans("nack")) == [sent[2], sent[2]]
    assert linked(traced.spans("reject")) == [sent[1], sent[2]]
    assert [attributes(s)["messaging.shmbus.dropped"] for s in traced.spans("reject")] == ["rejected"] * 2
    letters = [s for s in traced.spans("send") if s.name == "send numbers.dead"]
    assert [(s.parent.trace_id, s.parent.span_id) for s in letters if s.parent] == own(traced.spans("reject"))


def test_what_does_not_decode_is_linked(bus_name: str, traced: Traced) -> None:
    """An event that a group cannot decode is linked to who sent it."""
    with traced.instrument(shmbus.Bus(bus_name)) as bus:
        worker = bus.worker(SHORT, group="billing")
        with bus.publisher(SHORT, name="web") as publisher:
            publisher.publish("too long")
        with pytest.raises(shmbus.DecodeError):
            worker.receive(timeout=10)
        worker.close()
    assert linked(traced.spans("reject")) == own(traced.spans("send"))[:1]


def test_batches_and_metrics(bus_name: str, traced: Traced) -> None:
    """A batch is one send span whose context every event carries; counters count events, histograms begin at 1 µs."""
    with traced.instrument(shmbus.Bus(bus_name)) as bus, bus.publisher(NUMBERS) as publisher:
        subscriber = bus.subscriber(NUMBERS, name="audit")
        assert publisher.publish_many(range(10)) == 10
        assert subscriber.receive_many(10) == list(range(10))
        subscriber.close()
    assert Counter(linked(traced.spans("receive"))) == {own(traced.spans("send"))[0]: 10}
    assert attributes(traced.spans("send")[0])["messaging.batch.message_count"] == 10
    data = traced.reader.get_metrics_data()
    assert data is not None
    found = {m.name: m.data.data_points for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics}
    assert sum(p.value for p in found["messaging.client.sent.messages"]) == 10  # type: ignore[misc, union-attr]
    assert sum(p.value for p in found["messaging.client.consumed.messages"]) == 10  # type: ignore[misc, union-attr]
    assert found["messaging.client.operation.duration"][0].explicit_bounds[0] == 1e-6  # type: ignore[union-attr]


def test_open_handles_are_traced_too_and_once(bus_name: str, traced: Traced) -> None:
    """Handles that were open before are traced from then on; instrumenting twice changes nothing."""
    with shmbus.Bus(bus_name) as bus, bus.publisher(NUMBERS) as publisher:
        publisher.publish(0)
        assert traced.instrument(traced.instrument(bus)) is bus
        publisher.publish(1)
        assert isinstance(publisher, shmbus.Publisher)
    assert len(traced.spans("send")) == 1
    with pytest.raises(TypeError, match="none"):
        observe.instrument("shop")  # type: ignore[arg-type]


def test_a_hook_that_raises_keeps_nothing_back(bus_name: str) -> None:
    """What hears of headers and raises is told of as unraisable, and the event is delivered."""
    with shmbus.Bus(bus_name) as bus, bus.publisher(NUMBERS) as publisher:
        subscriber, worker = bus.subscriber(NUMBERS, name="audit"), bus.worker(NUMBERS, group="billing")
        publisher.publish(7, headers={"a": "b"})
        heard: list[tuple[bytes, int, str, int]] = []

        def hook(*told: Any) -> None:
            heard.append(told)
            raise ValueError("no")

        subscriber._tell_headers(hook)
        worker._tell_headers(hook)
        with Unraisable() as caught:
            assert subscriber.receive(timeout=10) == 7
            assert worker.receive(timeout=10) == 7
        assert [told[1:3] for told in heard] == [(1, publisher.name)] * 2
        assert len(caught) == 2
        subscriber._tell_headers(None)
        worker.ack()
        worker.close()


class Unraisable:
    """Catches what could not be raised."""

    def __enter__(self) -> list[BaseException | None]:
        self.caught: list[BaseException | None] = []
        self.before, sys.unraisablehook = sys.unraisablehook, lambda told: self.caught.append(told.exc_value)
        return self.caught

    def __exit__(self, *_: object) -> None:
        sys.unraisablehook = self.before


def test_without_it_nothing_is_imported(bus_name: str) -> None:
    """A process that never instruments a bus imports nothing of OpenTelemetry."""
    code = (
        "import shmbus, shmbus.observe, sys\n"
        "with shmbus.Bus(sys.argv[1]) as bus, bus.publisher(shmbus.Topic('t', int)) as publisher:\n"
        "    publisher.publish(1)\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    subprocess.run([sys.executable, "-c", code, bus_name], check=True)
