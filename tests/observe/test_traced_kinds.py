"""Every kind of handle is traced, and works as without: pools, journals, services, routers, event loops."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from journals import recording, settled
from support import eventually

import shmbus

pytest.importorskip("opentelemetry.sdk", reason="the SDK of OpenTelemetry is not installed")

from opentelemetry import trace
from tracing import Traced, attributes, dropped, linked, own

NUMBERS = shmbus.Topic("numbers", int, capacity=1 << 14)
SMALL = shmbus.Topic("small", int, capacity=1 << 12)
ONWARD = shmbus.Topic("onward", int)
PRICE = shmbus.Service("price", int, str)


@pytest.fixture
def traced() -> Traced:
    return Traced()


OVERRIDES = {
    *("publish", "publish_many", "publish_now", "apublish", "apublish_many", "close", "end"),
    *("receive", "try_receive", "receive_many", "areceive", "messages", "receive_message", "settle"),
    *("_let_go", "_gap", "_undecodable", "_add_source", "_pull", "_take_messages", "_bury", "_abury", "_spoilt"),
}
"""What tracing replaces on purpose."""


def test_nothing_is_replaced_unawares(bus_name: str, traced: Traced, tmp_path: Path) -> None:
    """What tracing adds to a handle has names of its own: none that the handle, of whatever kind, has already."""
    blobs = shmbus.Topic("blobs", memoryview, pool=1 << 20)
    with shmbus.Bus(bus_name) as bus, recording(bus, tmp_path / "j", SMALL), shmbus.Journal(tmp_path / "j") as journal:
        server, client = bus.server(PRICE), bus.client(PRICE)
        handles: list[Any] = [
            bus.publisher(blobs),
            bus.subscriber(SMALL, start=journal),
            bus.subscriber(NUMBERS),
            *bus._handles,
        ]
        had = [(handle, set(dir(handle)) | set(vars(handle))) for handle in handles]
        traced.instrument(bus)
        for handle, names in had:
            kind = type(handle)
            assert kind.__name__.startswith("Traced")
            mixed = [one for one in kind.__mro__ if one.__module__.startswith("shmbus.observe")]
            added = {name for one in mixed for name in (*vars(one), *vars(one).get("__annotations__", ()))}
            assert {name for name in added & names if not name.startswith("__")} <= OVERRIDES
        server.close()
        client.close()


def parents(traced: Traced, topic: str) -> list[tuple[int, int]]:
    """Of what was sent to a topic: the spans that it was sent in."""
    spans = [s for s in traced.spans("send") if attributes(s)["messaging.destination.name"] == topic]
    return [(s.parent.trace_id, s.parent.span_id) for s in spans if s.parent]


def test_pools(bus_name: str, traced: Traced) -> None:
    """A publisher with a pool, alone and in batches, blocking and in an event loop."""
    numpy = pytest.importorskip("numpy", reason="NumPy is not installed")
    topic = shmbus.Topic("blobs", memoryview, pool=1 << 20)
    with traced.instrument(shmbus.Bus(bus_name)) as bus, bus.publisher(topic) as publisher:
        subscriber = bus.subscriber(topic, name="audit")
        buffer = publisher.buffer(4096)
        buffer[:2] = b"hi"
        publisher.publish(buffer)
        publisher.publish_many([memoryview(bytes(5000)), memoryview(numpy.zeros(5000, "u1").data)])
        asyncio.run(publisher.apublish(memoryview(bytes(3000))))
        got = [subscriber.receive(timeout=10) for _ in range(4)]
        assert [len(one) for one in got] == [4096, 5000, 5000, 3000]
        assert bytes(got[0][:2]) == b"hi"
        del got
        subscriber.close()
    sent = own(traced.spans("send"))
    assert len(sent) == 3
    assert linked(traced.spans("receive")) == [sent[0], sent[1], sent[1], sent[2]]


def test_services(bus_name: str, traced: Traced) -> None:
    """A call is one trace: the server's turn is linked to the call, the reply is sent in it, the caller's receive is
    linked to that.
    """
    with traced.instrument(shmbus.Bus(bus_name)) as bus:
        server = bus.server(PRICE)

        def serve() -> None:
            for call in server:
                call.reply(f"{call.event} EUR")

        thread = threading.Thread(target=serve)
        thread.start()
        with bus.client(PRICE) as client:
            assert client.call(3, timeout=30) == "3 EUR"
            assert asyncio.run(client.acall(4, timeout=30)) == "4 EUR"
            assert client.submit(5).result(30) == "5 EUR"
        server.close()
        thread.join()
    process, sent = traced.spans("process"), traced.spans("send")
    calls = [s for s in sent if attributes(s)["messaging.destination.name"] == "price"]
    replies = [s for s in sent if s not in calls and s.parent and s.parent.span_id in {p[1] for p in own(process)}]
    assert linked(process) == own(calls)
    assert [(s.parent.trace_id, s.parent.span_id) for s in replies if s.parent] == own(process)
    received = linked([s for s in traced.spans("receive") if s.name != "receive price"])
    assert [context for context in received if context in own(replies)] == own(replies)
    assert len(linked(traced.spans("ack"))) == 3


@pytest.mark.parametrize("asynchronous", [False, True])
def test_routers(bus_name: str, traced: Traced, asynchronous: bool) -> None:
    """A handler runs in its process span, and what it returns is sent in it, in threads and in an event loop."""
    router = shmbus.Router()
    current: list[tuple[int, int]] = []
    done = threading.Event()

    def note() -> None:
        context = trace.get_current_span().get_span_context()
        current.append((context.trace_id, context.span_id))

    if asynchronous:

        @router.worker(NUMBERS, group="pool", to=ONWARD)
        async def pass_on(number: int) -> int:
            await asyncio.sleep(0)
            note()
            return number

        @router.subscriber(ONWARD, name="audit")
        async def audit(number: int) -> None:
            if number == 4:
                done.set()
    else:

        @router.worker(NUMBERS, group="pool", to=ONWARD)
        def pass_on_too(number: int) -> int:
            note()
            return number

        @router.subscriber(ONWARD, name="audit")
        def audit_too(number: int) -> None:
            if number == 4:
                done.set()

    with traced.instrument(shmbus.Bus(bus_name)) as bus, bus.publisher(NUMBERS) as publisher:
        running = threading.Thread(target=router.run, args=(bus,))
        running.start()
        eventually(lambda: len(bus.stats().consumers) == 2, "the handlers are there")
        for n in range(5):
            publisher.publish(n)
        assert done.wait(60)
        router.cancel()
        running.join()
    process = [s for s in traced.spans("process") if s.name == "process numbers"]
    assert sorted(current) == sorted(own(process)) == sorted(parents(traced, "onward"))
    sent = [s for s in traced.spans("send") if s.name == "send numbers"]
    assert sorted(linked(process)) == sorted(own(sent))


def test_journals(bus_name: str, traced: Traced, tmp_path: Path) -> None:
    """Who writes a journal, catches up from it and repairs from it is linked to who sent each event, wherever it came
    from; what was repaired is no drop.
    """
    path = tmp_path / "numbers.journal"
    with traced.instrument(shmbus.Bus(bus_name)) as bus, recording(bus, path, SMALL), shmbus.Journal(path) as journal:
        publisher = bus.publisher(SMALL, name="web")
        lossy = bus.subscriber(SMALL, name="lossy", mode="lossy", on_gap="repair", journal=journal)
        for n in range(500):
            publisher.publish(n)
        eventually(lambda: settled(bus), "it is written")
        sent = own(traced.spans("send"))
        assert sorted(linked(traced.spans("receive"))) == sorted(sent)  # by the journal
        traced.exporter.clear()
        assert [lossy.receive(timeout=30) for _ in range(500)] == list(range(500))
        assert linked(traced.spans("receive")) == sent
        with bus.subscriber(SMALL, name="late", start=journal) as late:
            assert [message.event for _, message in zip(range(500), late.messages(), strict=False)] == list(range(500))
            publisher.publish(500)
            assert late.receive(timeout=30) == 500
        assert linked(traced.spans("process")) == sent
        assert linked(traced.spans("receive"))[-1:] == own(traced.spans("send"))
        assert not dropped(traced, "overrun")
        lossy.close()
        publisher.close()
