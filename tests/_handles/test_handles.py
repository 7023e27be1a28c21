"""Events through the handles of `_core`: wrong types and shapes, headers, ages, views, batches, workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from rings import REJECT, Claimer, Consumer, CoreBroadcastRing, CoreWorkRing, Producer, fill, until_full
from support import Processes, child_environment, line

from shmbus import _core
from shmbus.errors import EventTypeError, ReclaimedError

CAPACITY = 4096


class Event(msgspec.Struct, array_like=True, frozen=True):
    number: int
    blob: msgspec.Raw


def consumer_of(ring: CoreBroadcastRing, slot: int, decode: Callable[[Any], Any] | None) -> Consumer:
    consumer = Consumer(ring.bus, 0, decode)
    consumer._add_source(ring.ring, slot, "p")
    return consumer


# ---- events ----


def test_events_of_another_type() -> None:
    """An event of another type, a subclass included, is an error that names both; nothing is written."""
    ring = CoreBroadcastRing(CAPACITY)
    encode = msgspec.msgpack.Encoder().encode
    producer = Producer(ring.bus, 0, ring.ring, encode, (int, str), "expected int or str")
    for event, name in ((1.5, "float"), (True, "bool"), (None, "NoneType")):
        with pytest.raises(EventTypeError, match=f"expected int or str, got {name}"):
            producer.publish(event)  # type: ignore[arg-type]
    with pytest.raises(EventTypeError):
        producer.publish_many([1, "a", 1.5])  # type: ignore[list-item]
    assert ring.info()["sequence"] == 1
    assert producer.publish(1) == 1  # type: ignore[arg-type]


def test_encoders_that_fail() -> None:
    """What an encoder raises reaches the caller; what is no bytes is refused; nothing is written either way."""
    ring = CoreBroadcastRing(CAPACITY)
    for encode, error in ((int, ValueError), (list, EventTypeError)):
        producer = Producer(ring.bus, 0, ring.ring, encode, (), "expected bytes")  # type: ignore[arg-type]
        with pytest.raises(error):
            producer.publish(b"x")
        with pytest.raises(error):
            producer.publish_many([b"x"])
    with pytest.raises(TypeError):
        ring.producer.publish_many(None)  # type: ignore[arg-type]
    assert ring.info()["sequence"] == 1


def test_calls_of_another_shape() -> None:
    """A wrong number of arguments or an unknown keyword is a TypeError."""
    ring = CoreBroadcastRing(CAPACITY)
    ring.join(0)
    publish: Any = ring.producer.publish
    receive: Any = ring.consumers[0].receive
    for call, arguments, keywords in (
        (publish, (), {}),
        (publish, (b"", b""), {}),
        (publish, (b"",), {"header": None}),
        (receive, (1, 2), {}),
        (receive, (), {"time": 1}),
    ):
        with pytest.raises(TypeError):
            call(*arguments, **keywords)


def test_headers_have_a_limit() -> None:
    """Headers beyond what a record can say of them, or that are no bytes, are an error; nothing is
    written."""

    class Loose(Producer):
        def _encode_headers(self, headers: Any) -> Any:
            return headers

    ring = CoreBroadcastRing(1 << 20)
    ring.join(0)
    producer = Loose(ring.bus, 0, ring.ring, None, (), "")
    for headers in (b"h" * (_core.MAX_HEADERS + 1), "text", 5):
        with pytest.raises((TypeError, ValueError)):
            producer.publish(b"", headers=headers)  # type: ignore[arg-type]
        assert ring.info()["sequence"] == 1
    longest = b"h" * _core.MAX_HEADERS
    producer.publish(b"payload", headers=longest)  # type: ignore[arg-type]
    message = ring.read(0)
    assert message is not None
    assert message[1:] == (longest, b"payload")


def test_refused_by_one_ring() -> None:
    """An event that one ring refuses still reaches the others, and is on the books of the one alone."""
    ring = CoreWorkRing(CAPACITY)
    broadcast = CoreBroadcastRing(CAPACITY)
    broadcast.join(0)
    broadcast.producer.groups = ((ring.ring, 0),)
    broadcast.bump()
    until_full(lambda: broadcast.publish(b""))  # descriptors run out
    assert broadcast.publish(b"one more", drop=True) is None
    assert ring.terms()["refused"] == 1
    terms = broadcast.terms(0)
    assert (terms["refused"], terms["depth"]) == (0, ring.terms()["depth"] + 1)


def test_a_waiting_publisher_is_seen() -> None:
    """A publisher without room says what it needs and who holds it; whoever frees room releases it once."""
    ring = CoreBroadcastRing(CAPACITY)
    ring.join(2)
    until_full(lambda: ring.publish(fill(64)))
    ring.producer._block(False)
    assert ring.producer._full(40) == (False, 0b100, [])
    assert (ring.ring.info()["waiting"], ring.ring.info()["need"]) == (1, 72)
    assert ring.ring.release_publisher()
    assert not ring.ring.release_publisher()
    ring.producer._block(True)
    ring.producer._unblock(False)
    assert (ring.ring.info()["waiting"], ring.ring.info()["need"]) == (2, 72)
    ring.producer._unblock(True)
    assert (ring.ring.info()["waiting"], ring.ring.info()["need"]) == (0, 0)


def test_age_is_of_the_next_event() -> None:
    """`oldest_ns` is the time of the event that is read next, also behind padding, and 0 when there is
    none."""
    ring = CoreBroadcastRing(CAPACITY, position=CAPACITY - 40)
    work = CoreWorkRing(CAPACITY)
    for slot in (0, 1):
        ring.join(slot, lossy=slot == 1)
    for index in range(3):
        ring.publish(fill(48 + index))
        work.publish(fill(48))
    for _ in range(3):
        for slot in (0, 1):
            age = ring.ring.terms(slot)["oldest_ns"]
            assert ring.consumers[slot]._poll_message()[3] == age > 0
        age = work.ring.terms()["oldest_ns"]
        assert work.claimer(0)._poll_message()[3] == work.ring.terms()["oldest_ns"] == age > 0
        work.reclaim(0, 1)
        claim = work.claim(1)
        assert claim is not None
        work.ack(claim)
    assert ring.ring.terms(0)["oldest_ns"] == ring.ring.terms(1)["oldest_ns"] == work.ring.terms()["oldest_ns"] == 0


# ---- decoded events outlive the ring ----


@pytest.mark.parametrize("lossy", [False, True])
@pytest.mark.parametrize("decode", [msgspec.msgpack.Decoder(Event).decode, memoryview], ids=["Raw", "memoryview"])
def test_views_outlive_the_ring(decode: Callable[[Any], Any], lossy: bool) -> None:
    """An event that refers to its payload keeps its value when the ring is overwritten and gone."""
    ring = CoreBroadcastRing(CAPACITY)
    ring.join(0, lossy=lossy)
    consumer = consumer_of(ring, 0, decode)
    payload = msgspec.msgpack.encode(Event(7, msgspec.Raw(msgspec.msgpack.encode("b" * 50))))
    ring.publish(payload)
    event: Any = consumer.try_receive()
    for _ in range(100):
        ring.publish(b"?" * 60)
        consumer._take(10, 0) if decode is memoryview else None
        ring.ring.leave(0)
    consumer._release()
    if isinstance(event, Event):
        assert msgspec.msgpack.decode(event.blob) == "b" * 50
    else:
        assert bytes(event) == payload


def test_views_outlive_a_claim() -> None:
    """An event of a worker that refers to its payload keeps its value after the ack."""
    ring = CoreWorkRing(CAPACITY)
    claimer = Claimer(ring.bus, 0, memoryview, 0, 0, 1, 5, 1)
    claimer._add_source(ring.ring, "p")
    ring.publish(b"first" * 10)
    event: Any = claimer.try_receive()
    claimer.ack()
    for _ in range(100):
        ring.publish(b"?" * 50)
        claimer.try_receive()
    assert bytes(event) == b"first" * 10


# ---- workers ----


def test_prefetch_and_release() -> None:
    """A worker claims ahead, acks what it handed out when asked for the next, and gives the rest back when it
    closes."""
    ring = CoreWorkRing(CAPACITY)
    for index in range(10):
        ring.publish(b"%d" % index)
    claimer = ring.claimer(0, prefetch=4)
    assert claimer.try_receive() == b"0"
    assert (ring.held(0, 1), ring.terms()["delivered"]) == (4, 0)
    assert claimer.try_receive() == b"1"
    assert (ring.held(0, 1), ring.terms()["delivered"]) == (3, 1)
    claimer._release()
    assert (ring.held(0, 1), ring.terms()["delivered"], ring.terms()["depth"]) == (0, 1, 9)
    claim = ring.claim(1)
    assert claim is not None
    assert (claim.payload, claim.attempt) == (b"1", 2)


def test_reclaimed_worker() -> None:
    """A worker whose claim was reclaimed is told at its next ack, once, and works on."""
    ring = CoreWorkRing(CAPACITY)
    ring.publish(b"a")
    ring.publish(b"b")
    claimer = ring.claimer(0)
    assert claimer.try_receive() == b"a"
    assert ring.reclaim(0, 1) == 1
    with pytest.raises(ReclaimedError, match="1"):
        claimer.try_receive()
    assert claimer._take(5, 0) == [b"a", b"b"]
    claimer.ack()
    assert ring.terms()["delivered"] == 2


def test_errors_wait_for_what_came_before() -> None:
    """A batch returns the events before one that does not decode; the next call raises, the one after goes
    on."""
    broadcast, work = CoreBroadcastRing(CAPACITY), CoreWorkRing(CAPACITY)
    broadcast.join(0)
    for payload in (b"a", b"!", b"b"):
        broadcast.publish(payload)
        work.publish(payload)
    for handle in (broadcast.consumers[0], work.claimer(0)):
        assert handle._take(10, 0) == [b"a"]
        with pytest.raises(Exception, match="2") as info:
            handle._take(10, 0)
        if isinstance(handle, Claimer):
            assert work.reject(info.value.value, True)  # type: ignore[attr-defined]
        assert handle._take(10, 0) == [b"b"]


def test_settlements_that_cannot_be() -> None:
    """A settlement of another ring, sequence or word is refused and counted nowhere."""
    ring = CoreWorkRing(CAPACITY)
    ring.publish(b"a")
    claim = ring.claim(0)
    assert claim is not None
    word: Any = claim.word
    settle, payload = ring.claimer(0)._settle, ring.claimer(0)._payload
    for arguments in ((9, 1, word), (2, 2, word), (2, 1, word ^ 1), (2, 2**64 - 1, word)):
        assert settle(*arguments, REJECT) is False
        assert payload(*arguments) is None
    assert (ring.terms()["rejected"], ring.terms()["claimed"]) == (0, 1)
    assert ring.losses()["rejected"] == (0, 0, 0)
    assert ring.ack(claim)


def release_while_releasing() -> None:
    import weakref

    from rings import CoreBroadcastRing, CoreWorkRing

    producer = CoreBroadcastRing(4096).producer
    works = [CoreWorkRing(4096, ring_id=id) for id in range(2, 6)]
    producer._set_groups(True, [(work.ring, line, (("id",), repr)) for line, work in enumerate(works)])
    again = [weakref.ref(work.ring, lambda _: producer._release()) for work in works]
    works.clear()
    producer._release()
    assert [ring() for ring in again] == [None] * 4
    print("alive")


def test_released_while_it_is_released(processes: Processes) -> None:
    """A publisher that is released again by what the end of its rings calls, or by another thread, drops each once."""
    child = processes.spawn(release_while_releasing, env=child_environment() | {"PYTHONMALLOC": "debug"})
    assert line(child) == "alive"
