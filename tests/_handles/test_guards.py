"""The guards of `_core`'s handles: threads, callbacks that close them, forks, ends, and what they leave
behind."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from rings import Claimer, Consumer, CoreBroadcastRing, CoreWorkRing, Producer, outcome
from support import Processes, line

from shmbus import _core
from shmbus.errors import ClosedError

CAPACITY = 4096


class Callback:
    """An encoder or decoder that nobody else refers to."""

    def __call__(self, value: Any) -> bytes:
        return bytes(value)


# ---- callbacks ----


def test_one_call_at_a_time() -> None:
    """A call on a subscriber or worker while another one decodes is turned away, and the first one goes
    on."""
    broadcast, work = CoreBroadcastRing(CAPACITY), CoreWorkRing(CAPACITY)
    broadcast.join(0)
    broadcast.publish(b"a")
    work.publish(b"a")
    handles: list[Any] = []
    turned_away: set[str] = set()

    def decode(payload: Any) -> bytes:
        (handle,) = handles
        for name in ["try_receive", "receive", "_poll", "_poll_message", "__next__"]:
            try:
                getattr(handle, name)()
            except RuntimeError as error:
                turned_away.add(f"{name}: {error}")
        return bytes(payload)

    handles[:] = [Consumer(broadcast.bus, 0, decode)]
    handles[0]._add_source(broadcast.ring, 0, "p")
    assert handles[0].try_receive() == b"a"
    handles[:] = [Claimer(work.bus, 0, decode, 0, 0, 1, 5, 1)]
    handles[0]._add_source(work.ring, "p")
    assert handles[0].try_receive() == b"a"
    assert len([text for text in turned_away if "in use by another thread" in text]) == 5 + 5
    assert handles[0].try_receive() is None
    assert work.terms()["delivered"] == 1


def test_closed_by_its_decoder() -> None:
    """A handle that its decoder closes still returns the event, and is closed then; a worker's claim is given
    back."""
    broadcast, work = CoreBroadcastRing(CAPACITY), CoreWorkRing(CAPACITY)
    broadcast.join(0)
    broadcast.publish(b"a")
    work.publish(b"a")
    handles: list[Any] = []

    def decode(payload: Any) -> bytes:
        handles[0]._release()
        return bytes(payload)

    handles[:] = [Consumer(broadcast.bus, 0, decode)]
    handles[0]._add_source(broadcast.ring, 0, "p")
    assert handles[0].try_receive() == b"a"
    assert handles[0].closed
    assert broadcast.terms(0)["delivered"] == 1
    handles[:] = [Claimer(work.bus, 0, decode, 0, 0, 1, 5, 3)]
    handles[0]._add_source(work.ring, "p")
    assert handles[0].try_receive() == b"a"
    assert handles[0].closed
    assert (work.held(0, 1), work.terms()["depth"]) == (0, 1)


def close_while_publishing(moment: str) -> None:
    from collections.abc import Iterator

    from rings import CoreBroadcastRing, Producer

    from shmbus.errors import ClosedError

    class Closing(Producer):
        def _encode_headers(self, headers: Any) -> bytes:
            self._release()
            return b""

    def encode(event: Any) -> bytes:
        if event == b"closing":
            producer._release()
        return bytes(event)

    def events() -> Iterator[bytes]:
        yield b"a"
        producer._release()

    ring = CoreBroadcastRing(4096)
    producer = Closing(ring.bus, 0, ring.ring, encode, (), "bytes")
    producer.publish(b"before")
    try:
        if moment == "encoder":
            producer.publish(b"closing")
        elif moment == "headers":
            producer.publish(b"a", headers={})
        elif moment == "batch encoder":
            producer.publish_many([b"a", b"closing", b"b"])
        else:
            producer.publish_many(events())
    except ClosedError:
        assert ring.info()["sequence"] == 2
        print("closed")


@pytest.mark.parametrize("moment", ["encoder", "headers", "batch encoder", "events"])
def test_closed_while_publishing(moment: str, processes: Processes) -> None:
    """A publisher that is closed while its event is made raises ClosedError and writes nothing."""
    assert line(processes.spawn(close_while_publishing, moment)) == "closed"


def use_unborn(kind: str) -> None:
    import contextlib

    import rings

    cls: Any = getattr(rings, kind)
    handle = cls.__new__(cls)
    shapes: tuple[tuple[Any, ...], ...] = ((), (1,), ([],), (1, 1, 1), (1, 1, 1, 1), (True, []))
    names: tuple[str, ...] = (
        "publish",
        "publish_many",
        "_full",
        "_block",
        "_unblock",
        "_encode",
        "_put",
        "_encode_many",
        "_put_many",
        "_shut",
        "_quiet",
        "_seen_epoch",
        "_set_groups",
        "try_receive",
        "receive",
    )
    names += (
        "_poll",
        "_poll_message",
        "_take",
        "_ready",
        "__next__",
        "ack",
        "_settle",
        "_give_back",
        "_payload",
        "_add_source",
        "_ask",
        "_finish",
        "_within",
    )
    for name in names:
        for arguments in shapes:
            with contextlib.suppress(Exception):
                getattr(handle, name)(*arguments)
    handle._release()
    print("alive")


@pytest.mark.parametrize("kind", ["Producer", "Consumer", "Claimer"])
def test_never_initialised(kind: str, processes: Processes) -> None:
    """A handle whose __init__ never ran, as after a subclass's error, raises at every use and never
    crashes."""
    assert line(processes.spawn(use_unborn, kind)) == "alive"


def keep_a_view(lossy: str) -> None:
    import gc

    from rings import Consumer, CoreBroadcastRing

    kept = []

    def decode(payload: object) -> bytes:
        kept.append(memoryview(payload))  # type: ignore[arg-type]
        return bytes(kept[-1])

    ring = CoreBroadcastRing(1 << 20)
    ring.join(0, lossy=bool(lossy))
    consumer = Consumer(ring.bus, 0, decode)
    consumer._add_source(ring.ring, 0, "p")
    for size in (1000, 200_000):
        ring.publish(b"x" * size)
        assert consumer.try_receive() == b"x" * size
    consumer._release()
    del consumer, ring
    gc.collect()
    print(sum(len(bytes(view)) for view in kept) > 0)


@pytest.mark.parametrize("lossy", ["", "lossy"])
def test_views_that_a_decoder_keeps(lossy: str, processes: Processes) -> None:
    """A view of the payload that a decoder keeps aside stays memory that can be read, whatever is closed."""
    assert line(processes.spawn(keep_a_view, lossy)) == "True"


# ---- forks ----


def use_after_fork() -> None:
    import os
    from functools import partial

    from rings import CoreBroadcastRing, CoreWorkRing

    from shmbus.errors import ForkedError

    broadcast, work = CoreBroadcastRing(4096), CoreWorkRing(4096)
    broadcast.join(0)
    for _ in range(3):
        broadcast.publish(b"a")
        work.publish(b"a")
    producer, consumer, claimer = broadcast.producer, broadcast.consumers[0], work.claimer(0)
    assert consumer.try_receive() == claimer.try_receive() == b"a"
    calls: list[Callable[[], Any]] = [
        lambda: producer.publish(b"child"),
        lambda: producer.publish_many([b"child"]),
    ]
    for handle in (consumer, claimer):
        calls += [
            handle.try_receive,
            handle.receive,
            handle._poll,
            handle._poll_message,
            partial(next, handle),
        ]
        calls += [partial(handle._take, 1, 0), handle._ready]
    calls += [claimer.ack, lambda: claimer._settle(2, 1, 0, 0)]
    calls += [lambda: producer._full(1), lambda: producer._block(False)]
    pid = os.fork()
    if not pid:
        refused = 0
        for call in calls:
            try:
                call()
            except ForkedError:
                refused += 1
        claimer._release()  # must not give back what the parent holds
        del producer, consumer, claimer
        os._exit(0 if refused == len(calls) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (work.held(0, 1), work.terms()["depth"]) == (1, 3)
    assert broadcast.info()["sequence"] == 4
    assert [claimer.try_receive(), claimer.try_receive(), claimer.try_receive()] == [b"a", b"a", None]
    assert [consumer.try_receive(), consumer.try_receive(), consumer.try_receive()] == [b"a", b"a", None]
    assert broadcast.publish(b"parent") == 4
    print("both went on")


def test_forked_handles(processes: Processes) -> None:
    """In a forked child each inherited handle raises ForkedError at its first use, and the parent's goes on
    undisturbed."""
    assert line(processes.spawn(use_after_fork)) == "both went on"


# ---- ends ----


def test_no_references_leak() -> None:
    """A thousand events through every path leave no reference behind, neither to what they share nor to
    memory."""
    ring, work = CoreBroadcastRing(1 << 16), CoreWorkRing(1 << 16)
    ring.join(0)
    ring.join(1, lossy=True)
    ring.producer.groups = ((work.ring, 0),)
    ring.bump()
    payload, bad, publisher = b"payload" * 9, b"!bad" * 9, "a publisher"
    for slot in (0, 1):
        ring.consumers[slot]._drop_source(1)
        ring.consumers[slot]._add_source(ring.ring, slot, publisher)
    shared = (payload, bad, publisher, ring.ring, work.ring, ring.producer, ring.consumers[0], _core.NOTHING)

    def cycle() -> None:
        for index in range(250):
            ring.publish(payload, b"headers")
            ring.publish(bad)
            ring.publish_many([payload, payload])
            for slot in (0, 1):
                ring.read(slot)
                ring.read(slot)
                outcome(lambda s=slot, n=1 + index % 2: ring.consumers[s]._take(n, 0))  # type: ignore[misc]
                outcome(ring.consumers[slot].try_receive)
            claim = work.claim(1)
            assert claim is not None
            work.give_back(claim)
            outcome(work.claimer(2)._poll)
            outcome(work.claimer(2).ack)
            while (claim := work.claim(1)) is not None:
                work.reject(claim) if claim.failure else work.ack(claim)
            with pytest.raises(ValueError, match="16360"):
                ring.publish(bytes(1 << 15))
            with pytest.raises(TypeError):
                ring.producer.publish(None)  # type: ignore[arg-type]
            _core.Tap(ring.ring, True).read()
            ring.ring.info(), ring.ring.terms(0), ring.ring.losses(0), work.ring.terms(), work.ring.losses()

    cycle()
    gc.collect()
    before = [sys.getrefcount(thing) for thing in shared]
    tracemalloc.start()
    cycle()
    gc.collect()
    grown = []
    for _ in range(3):
        base = tracemalloc.get_traced_memory()[0]
        for _ in range(4):
            cycle()
        gc.collect()
        grown.append(tracemalloc.get_traced_memory()[0] - base)
    tracemalloc.stop()
    assert [sys.getrefcount(thing) for thing in shared] == before
    # A leak is in each of them; what is made once, a table that grows, say, is not.
    assert min(grown) < 16_000, f"{grown} bytes after 1,000 rounds each: the smallest object takes 16"


def test_handles_let_go() -> None:
    """A handle that goes releases its rings, its bus and its callables."""
    ring, work = CoreBroadcastRing(CAPACITY), CoreWorkRing(CAPACITY)
    callables = [Callback() for _ in range(3)]
    shared = (ring.bus, work.bus, ring.ring, work.ring, *callables)
    before = [sys.getrefcount(thing) for thing in shared]
    for closing in (True, False):
        for _ in range(50):
            producer = Producer(ring.bus, 0, ring.ring, callables[0], (), "")
            producer._set_groups(True, [(work.ring, 0)])
            consumer = Consumer(ring.bus, 0, callables[1])
            consumer._add_source(ring.ring, 0, "p")
            claimer = Claimer(work.bus, 0, callables[2], 0, 0, 1, 5, 1)
            claimer._add_source(work.ring, "p")
            if closing:
                for handle in (producer, consumer, claimer):
                    handle._release()
                    handle._release()
                    assert handle.closed
        handle = None  # type: ignore[assignment]
        del producer, consumer, claimer
        gc.collect()
        assert [sys.getrefcount(thing) for thing in shared] == before


def test_closed_handles() -> None:
    """Every method of a closed handle raises ClosedError, and iteration ends."""
    ring, work = CoreBroadcastRing(CAPACITY), CoreWorkRing(CAPACITY)
    ring.join(0)
    producer, consumer, claimer = ring.producer, ring.consumers[0], work.claimer(0)
    for handle in (producer, consumer, claimer):
        handle._release()
    assert list(consumer) == list(claimer) == []
    calls: list[Callable[[], Any]] = [
        lambda: producer.publish(b""),
        lambda: producer.publish_many([]),
        lambda: producer._full(1),
        lambda: producer._set_groups(True, []),
        lambda: consumer._add_source(ring.ring, 0, "p"),
        lambda: claimer._add_source(work.ring, "p"),
        lambda: claimer._settle(2, 1, 0, 0),
        lambda: claimer._payload(2, 1, 0),
        claimer.ack,
        lambda: producer._block(True),
        lambda: producer._encode(b"", None),
        lambda: producer._put((b"", None), False),
        lambda: producer._put_many([], 0, False),
        producer._seen_epoch,
    ]
    for handle in (consumer, claimer):
        calls += [handle.try_receive, handle.receive, handle._poll, handle._poll_message, handle._ready]
        calls += [lambda h=handle: h._take(1, 0), handle._seen_epoch]  # type: ignore[misc]
    for call in calls:
        with pytest.raises(ClosedError):
            call()
