"""Notes: whoever can see an event, or that it is gone, finds who sent it, wherever its publisher is stopped or dies.

The publishers here are held in `_care`: of a bus without a supervisor it is called once a second, when the event of
that call is out, or is refused, and before the call returns.
"""

from __future__ import annotations

import signal
import threading
from contextlib import suppress
from typing import Any

import pytest
from support import Processes, eventually, line

import shmbus

pytest.importorskip("opentelemetry.sdk", reason="the SDK of OpenTelemetry is not installed")

from tracing import Traced, counted, dropped, linked, own, parent

SMALL = shmbus.Topic("small", int, capacity=4096)
HELD = pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL], ids=lambda how: how.name)


def publish_and_halt(bus_name: str, what: str, how: str) -> None:
    """Says the trace of its last event, publishes that, and gets no further."""
    import os
    import time
    from contextlib import suppress

    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    import shmbus
    from shmbus import observe

    provider = TracerProvider()
    bus = observe.instrument(shmbus.Bus(bus_name, supervise=False), tracer_provider=provider)
    publisher = bus.publisher(shmbus.Topic("small", int, capacity=4096), name="web", on_full="drop")
    if what == "refused":
        with suppress(shmbus.Full):
            while True:
                publisher.publish_now(0)
        filled = time.time_ns()
        while time.time_ns() - filled <= 1_000_000_000:
            time.sleep(0.1)  # not a wait: the interval of the poll; `_care` is due again after a second
    publisher._care = lambda: os.kill(os.getpid(), int(how))  # type: ignore[method-assign]
    with provider.get_tracer("test").start_as_current_span("request") as span:
        print(trace.format_trace_id(span.get_span_context().trace_id), flush=True)
        publisher.publish(-1)
    print("went on", flush=True)


@HELD
def test_an_event_that_is_left(bus_name: str, processes: Processes, how: signal.Signals) -> None:
    """What a subscriber leaves is linked and traced though its publisher got no further than to commit it."""
    traced = Traced()
    with traced.instrument(shmbus.Bus(bus_name, supervise=False)) as bus:
        audit = bus.subscriber(SMALL, name="audit")
        child = processes.spawn(publish_and_halt, bus_name, "left", int(how))
        trace = line(child)
        eventually(lambda: bus.stats().consumers[0].depth == 1, "it is out")
        audit.close()
        [(linked_to, _)] = linked(dropped(traced, "abandoned"))
        assert f"{linked_to:032x}" == trace
        [found] = bus.losses()
        assert (found.cause, found.count, found.trace.split("-")[1]) == ("abandoned", 1, trace)
    bury(bus_name, processes)


@HELD
def test_an_event_that_is_refused(bus_name: str, processes: Processes, how: signal.Signals) -> None:
    """The log of losses has the trace of the first refusal though its publisher got no further than to count it."""
    with shmbus.Bus(bus_name, supervise=False) as bus:
        slow = bus.subscriber(SMALL, name="slow")
        child = processes.spawn(publish_and_halt, bus_name, "refused", int(how))
        trace = line(child)
        [found] = eventually(bus.losses, "it is refused")
        assert (found.cause, found.count, found.trace.split("-")[1]) == ("refused", 1, trace)
        slow.close()
        assert {one.trace.split("-")[1] for one in bus.losses() if one.cause == "refused"} == {trace}
    bury(bus_name, processes)


def bury(bus_name: str, processes: Processes) -> None:
    """Nothing is left of the publisher, and of its bus."""
    processes.kill_all()
    shmbus.Bus(bus_name).close()


def test_threads_that_share_a_publisher(bus_name: str) -> None:
    """An event whose thread is held once it is out is overrun by those of another, and linked to its own span."""
    traced, out, goes_on = Traced(), threading.Event(), threading.Event()
    with traced.instrument(shmbus.Bus(bus_name, supervise=False)) as bus:
        lossy = bus.subscriber(SMALL, name="lossy", mode="lossy", on_gap=lambda _: None)
        publisher = bus.publisher(SMALL)

        def hold() -> None:
            if not out.is_set():
                out.set()
                assert goes_on.wait(60)

        publisher._care = hold  # type: ignore[method-assign]
        held = threading.Thread(target=publisher.publish, args=(-1,))
        held.start()
        try:
            assert out.wait(60)
            for n in range(1000):
                publisher.publish(n)
            lossy.receive(timeout=60)
            spans = dropped(traced, "overrun")
        finally:
            goes_on.set()
            held.join()
        [first] = [span for span in traced.spans("send") if sequence(span) == 1]
        assert linked(spans)[:1] == own([first])
        assert len(linked(spans)) == counted(spans) > 500
        [found] = bus.losses()
        assert found.trace == parent(first)
        lossy.close()


def sequence(span: Any) -> int:
    return int(span.attributes["messaging.shmbus.sequence"])


def test_threads_that_are_refused(bus_name: str) -> None:
    """Of threads that are refused at once the log of losses has the trace of the first."""
    traced = Traced()
    with traced.instrument(shmbus.Bus(bus_name)) as bus:
        slow = bus.subscriber(SMALL, name="slow")
        publisher = bus.publisher(SMALL, on_full="drop")
        with suppress(shmbus.Full):
            while True:
                publisher.publish_now(0)
        both = threading.Barrier(2)
        refuse = publisher._make_room

        def decide(length: int, since: int, committed: int) -> bool:
            with suppress(threading.BrokenBarrierError):
                both.wait(60)  # both are inside, once
            both.abort()
            return refuse(length, since, committed)

        publisher._make_room = decide  # type: ignore[method-assign]
        threads = [threading.Thread(target=publisher.publish, args=(n,)) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        refused = [s for s in traced.spans("send") if "messaging.shmbus.dropped" in (s.attributes or {})]
        [found] = bus.losses()
        assert found.count == len(refused) == 2
        assert found.trace in map(parent, refused)
        slow.close()


def test_an_event_that_is_rejected(bus_name: str) -> None:
    """The log of losses has the trace of the first rejection from the moment that it is counted."""
    traced = Traced()
    seen: list[str] = []
    with traced.instrument(shmbus.Bus(bus_name)) as bus, bus.publisher(SMALL) as publisher:
        worker = bus.worker(SMALL, group="pool")
        settle = worker._settle

        def look(*arguments: Any) -> bool:
            done = settle(*arguments)
            seen.extend(one.trace for one in bus.losses() if one.cause == "rejected")
            return done

        worker._settle = look  # type: ignore[method-assign]
        publisher.publish(1)
        worker.receive_message(timeout=60).reject()
        assert seen == [parent(traced.spans("send")[0])]
        worker.close()
        bus.remove_group(SMALL, "pool")
