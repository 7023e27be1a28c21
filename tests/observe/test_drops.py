"""Drops: every event that is dropped, for whatever cause, is linked to the span that sent it, and the log of losses
says which trace the first of them belongs to.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from support import Processes, eventually, line

import shmbus

pytest.importorskip("opentelemetry.sdk", reason="the SDK of OpenTelemetry is not installed")

from opentelemetry import trace
from tracing import Traced, attributes, counted, dropped, linked, own, parent

from shmbus._shm import segment
from shmbus._shm.traces import BROADCAST, KEPT, WINDOW, Sender, TraceFile, Traces

SMALL = shmbus.Topic("small", int, capacity=4096)
SHORT = shmbus.Topic("short", Annotated[str, msgspec.Meta(max_length=3)], validate=False)  # published unchecked
GROWING = shmbus.Topic("growing", int, capacity=4096, max_capacity=1 << 16)


@pytest.fixture
def traced() -> Traced:
    return Traced()


def loss(bus: shmbus.Bus, cause: str, consumer: str | None = None) -> shmbus.Loss:
    [found] = [one for one in bus.losses() if one.cause == cause and consumer in (None, one.consumer)]
    return found


def test_what_is_refused(bus_name: str, traced: Traced) -> None:
    """A refused event is an error on the span that sent it, and the first one's trace is in the log of losses."""
    with traced.instrument(shmbus.Bus(bus_name)) as bus:
        slow, worker = bus.subscriber(SMALL, name="slow"), bus.worker(SMALL, group="pool")
        publisher = bus.publisher(SMALL, name="web", on_full="drop")
        while publisher.publish(1) is not None:
            pass
        publisher.publish(2)
        refused = [s for s in traced.spans("send") if "messaging.shmbus.dropped" in attributes(s)]
        assert [s.status.status_code for s in refused] == [trace.StatusCode.ERROR] * 2
        assert loss(bus, "refused", "slow").trace == parent(refused[0])
        if any(one.consumer == "pool" for one in bus.losses()):
            assert loss(bus, "refused", "pool").trace in map(parent, refused)
        slow.close()
        publisher.close()
        assert loss(bus, "refused", "slow").trace == parent(refused[0])  # on the books, now
        worker.close()
        bus.remove_group(SMALL, "pool")


@pytest.mark.parametrize("topic", [SMALL, GROWING])
def test_what_is_overrun(bus_name: str, traced: Traced, topic: shmbus.Topic[int]) -> None:
    """Each event that a lossy subscriber is overrun by is linked once to its span, by whatever road it was sent."""
    with traced.instrument(shmbus.Bus(bus_name)) as bus:
        lossy = bus.subscriber(topic, name="lossy", mode="lossy")
        publisher = bus.publisher(topic, name="w")

        async def some() -> None:
            await publisher.apublish(0)
            await publisher.apublish_many(range(10))

        asyncio.run(some())
        publisher.publish_many(range(10))
        publisher.publish_now(0)
        for n in range(4000):
            publisher.publish(n)
        lossy.receive(timeout=10)
        first = loss(bus, "overrun")
        for n in range(4000):
            publisher.publish(n)
        lossy.receive(timeout=10)
        for n in range(4000):
            publisher.publish(n)
        lossy.close()  # before it finds out what it has lost since
        spans = dropped(traced, "overrun")
        lost = loss(bus, "overrun")
        assert counted(spans) == lost.count > 8000
        assert len(linked(spans)) == lost.count
        sent = own(traced.spans("send"))
        by_sequence = [sent[0], *sent[1:2] * 10, *sent[2:3] * 10, *sent[3:]]
        for span in spans:
            for link in span.links:
                assert link.attributes is not None
                sequence = int(link.attributes["messaging.shmbus.sequence"])  # type: ignore[arg-type]
                assert (link.context.trace_id, link.context.span_id) == by_sequence[sequence - 1]
        assert first.trace == lost.trace == parent(traced.spans("send")[0])
        publisher.close()


def test_what_is_left_behind(bus_name: str, traced: Traced) -> None:
    """What a subscriber has not received when it is closed, or its bus is, is linked, and so is it in the log."""
    with shmbus.Bus(bus_name) as other, traced.instrument(shmbus.Bus(bus_name)) as bus:
        audit, late = bus.subscriber(SMALL, name="audit"), bus.subscriber(SMALL, name="late")
        publisher = bus.publisher(SMALL, name="web")
        for n in range(30):
            publisher.publish(n)
        audit.receive_many(10)
        audit.close()
        sent = own(traced.spans("send"))
        assert linked(dropped(traced, "abandoned")) == sent[10:]
        assert loss(other, "abandoned", "audit").trace == parent(traced.spans("send")[10])
        late.receive_many(20)
        bus.close()
        assert linked(dropped(traced, "abandoned")) == sent[10:] + sent[20:]
        assert loss(other, "abandoned", "late").trace == parent(traced.spans("send")[20])
        assert counted(dropped(traced, "abandoned")) == sum(one.count for one in other.losses())


def join(bus_name: str) -> None:
    import signal

    import shmbus

    bus = shmbus.Bus(bus_name, supervise=False)
    sleeper = bus.subscriber(shmbus.Topic("small", int, capacity=4096), name="sleeper")
    print("ready", flush=True)
    while sleeper is not None:
        signal.pause()


def test_what_the_dead_leave(bus_name: str, traced: Traced, processes: Processes) -> None:
    """Of what a killed subscriber leaves behind the log of losses has the trace, whoever reclaims it."""
    with traced.instrument(shmbus.Bus(bus_name)) as bus, bus.publisher(SMALL, name="web") as publisher:
        child = processes.spawn(join, bus_name)
        assert line(child) == "ready"
        for n in range(5):
            publisher.publish(n)
        child.kill()
        found = eventually(bus.losses, "it is reclaimed")
        assert [(one.count, one.trace) for one in found] == [(5, parent(traced.spans("send")[0]))]


def test_what_does_not_decode(bus_name: str, traced: Traced) -> None:
    """What a subscriber, and a group, cannot decode is linked, and so is it in the log of losses."""
    with traced.instrument(shmbus.Bus(bus_name)) as bus, bus.publisher(SHORT, name="web") as publisher:
        subscriber, worker = bus.subscriber(SHORT, name="audit"), bus.worker(SHORT, group="pool")
        publisher.publish("ok")
        publisher.publish("too long")
        publisher.publish("yes")
        for receiver in (subscriber, worker):
            assert receiver.receive(timeout=10) == "ok"
            with pytest.raises(shmbus.DecodeError):
                receiver.receive(timeout=10)
            assert receiver.receive(timeout=10) == "yes"
        spoilt = traced.spans("send")[1]
        assert linked(dropped(traced, "undecodable")) == own([spoilt])
        assert loss(bus, "undecodable", "audit").trace == loss(bus, "undecodable", "pool").trace == parent(spoilt)
        assert linked(traced.spans("receive")) == [own(traced.spans("send"))[n] for n in (0, 2, 0, 2)]
        worker.ack()
        worker.close()


def test_what_is_rejected(bus_name: str, traced: Traced) -> None:
    """The log of losses has the trace of the first event of a group that was dead-lettered, and keeps it."""
    with traced.instrument(shmbus.Bus(bus_name)) as bus, bus.publisher(SMALL, name="web") as publisher:
        worker = bus.worker(SMALL, group="pool")
        for n in range(3):
            publisher.publish(n)
        for message in worker.messages():
            if message.event:
                message.reject()
            else:
                message.ack()
            if message.event == 2:
                break
        assert loss(bus, "rejected").trace == parent(traced.spans("send")[1])
        worker.close()


def test_what_latest_skips(bus_name: str, traced: Traced) -> None:
    """What a subscriber of mode "latest" skips is no drop to it: it asked for that."""
    with traced.instrument(shmbus.Bus(bus_name)) as bus, bus.publisher(SMALL) as publisher:
        latest = bus.subscriber(SMALL, name="latest", mode="latest")
        publisher.publish_many(range(100))
        assert latest.receive(timeout=10) == 99
        latest.close()
    assert not traced.spans("drop")


def test_a_trace_file_lives_as_long_as_its_rings(bus_name: str, traced: Traced) -> None:
    """The file goes with the last ring of its publisher; what a death leaves behind goes with the next repair."""
    from support import entries

    def files() -> list[str]:
        return [name for name in entries(bus_name) if ":trace-" in name]

    with traced.instrument(shmbus.Bus(bus_name)) as bus:
        audit = bus.subscriber(SMALL, name="audit")
        publisher = bus.publisher(SMALL)
        publisher.publish(1)
        publisher.close()
        assert len(files()) == 1
        assert audit.receive(timeout=10) == 1
        for _ in range(5):  # the history is four rings
            bus.publisher(SMALL).close()
        audit.close()
        assert bus._session.rings.traces.remove_orphans([]) == files() or not files()
        assert not files()


def die_in_a_sweep(bus_name: str) -> None:
    from opentelemetry.sdk.trace import TracerProvider

    import shmbus
    from shmbus import observe
    from shmbus._shm import failpoint

    bus = observe.instrument(shmbus.Bus(bus_name, supervise=False), tracer_provider=TracerProvider())
    for _ in range(4):  # the history
        with bus.publisher(shmbus.Topic("small", int, capacity=4096)) as publisher:
            publisher.publish(1)
    failpoint.arm("sweep.committed", 1)
    for _ in range(4):
        with bus.publisher(shmbus.Topic("small", int, capacity=4096)) as publisher:
            publisher.publish(1)


def test_a_death_before_a_trace_file_goes(bus_name: str, processes: Processes) -> None:
    """A death between the commit that takes a publisher and the removal of its trace file leaves that to the next."""
    with shmbus.Bus(bus_name, supervise=False) as bus:
        assert processes.spawn(die_in_a_sweep, bus_name).wait() == -9
        prefix = bus._session.rings.traces.prefix

        def files() -> set[str]:
            return set(segment.names(prefix))

        def known() -> set[str]:
            return {f"{prefix}{publisher.id}" for publisher in bus._session.document().publishers}

        assert files() - known()
        bus.group(SMALL, "pool")  # takes the lock
        assert files() <= known()
        bus.remove_group(SMALL, "pool")


def test_two_hops_under_backlog() -> None:
    """Through two hops with drops, each delivery and each drop is linked: the short form of tools/trace_campaign.py."""
    tool = Path(__file__).resolve().parents[2] / "tools" / "trace_campaign.py"
    done = subprocess.run([sys.executable, str(tool), "--events", "4000"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(100.00%)" in done.stdout


def test_a_window_passes(tmp_path: Any) -> None:
    """What is older than the window is not known any more, but for what was kept; a torn entry is none."""
    with TraceFile(os.open(tmp_path / "trace", os.O_RDWR | os.O_CREAT)) as file:
        for sequence in (1, 2, 3, WINDOW + 2):
            file._write(KEPT + sequence % WINDOW, BROADCAST, sequence, Sender(sequence, 7))
        file.keep(BROADCAST, 2, Sender(2, 7, sampled=False))
        file.keep(12, 2, Sender(99, 1))
        assert file.find(BROADCAST, 1) == Sender(1, 7)
        assert file.find(BROADCAST, 2) == Sender(2, 7, sampled=False)
        assert file.find(12, 2) == Sender(99, 1)
        assert file.find(13, 2) is None
        assert list(file.senders(1, 5)) == [(1, Sender(1, 7)), (3, Sender(3, 7))]
        assert list(file.senders(WINDOW + 1, WINDOW + 3)) == [(WINDOW + 2, Sender(WINDOW + 2, 7))]
        os.pwrite(file.descriptor, b"torn", (KEPT + 3) * 48 + 16)
        assert file.find(BROADCAST, 3) is None


@pytest.mark.parametrize("made", [True, False])
def test_a_full_shm_costs_a_trace_alone(
    bus_name: str, traced: Traced, monkeypatch: pytest.MonkeyPatch, made: bool
) -> None:
    """Where no trace file can be made, or written, events are published and lost as ever, and unlinked."""
    make = Traces.make

    def full(traces: Traces, publisher: int) -> TraceFile | None:
        file = make(traces, publisher)
        if file is None or not made:
            traces.remove(publisher)
            return None
        file.close()
        return TraceFile(os.open("/dev/full", os.O_RDWR))  # each write is ENOSPC

    monkeypatch.setattr(Traces, "make", full)
    with traced.instrument(shmbus.Bus(bus_name)) as bus:
        lossy = bus.subscriber(SMALL, name="lossy", mode="lossy")
        publisher = bus.publisher(SMALL)
        for n in range(500):
            assert publisher.publish(n) == n + 1
        lossy.receive(timeout=10)
        assert counted(dropped(traced, "overrun")) == loss(bus, "overrun").count
        assert not linked(dropped(traced, "overrun"))
        assert loss(bus, "overrun").trace == ""
        lossy.close()
        publisher.close()
