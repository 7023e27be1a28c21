"""Topics with `codec="record"`: what classes may do, every way to receive, evolution, tools."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

import msgspec
import pytest
from events import drain, opened
from msgspec import Meta
from records import (
    ALL,
    EVENT,
    TRADES,
    Everything,
    Side,
    Trade,
    decode,
    encode,
    row_of,
    trades,
)

import shmbus
from shmbus import inspect
from shmbus.topic import codec_of

T = TypeVar("T")


# -- what classes may do


class Checked(msgspec.Struct, frozen=True):
    n: int

    def __post_init__(self) -> None:
        if self.n < 0:
            raise ValueError("below zero")


class Weak(msgspec.Struct, weakref=True, dict=True, frozen=True, cache_hash=True):
    n: int
    s: Annotated[str, Meta(max_length=4)] = "x"


class Light(msgspec.Struct, gc=False):
    n: int


class Box(msgspec.Struct, Generic[T]):
    item: T


class Derived(Light, kw_only=True):
    m: int = 4


class Shadowed(Light):
    if not TYPE_CHECKING:

        @property
        def n(self) -> int:
            return 99


@pytest.mark.parametrize(
    "event", [Weak(1), Light(2), Derived(3, m=5), Checked(6)], ids=lambda event: type(event).__name__
)
def test_classes(event: Any) -> None:
    """Whatever a Struct is made with, what is decoded is one that works as any other, and is freed."""
    topic = shmbus.Topic("t", type(event), codec="record")
    found = decode(topic, encode(topic, event))
    assert found == event
    assert repr(found) == repr(event)
    assert copy.copy(found) == event
    assert pickle.loads(pickle.dumps(found)) == event
    assert gc.is_tracked(found) in (False, type(event) is Weak)
    if isinstance(event, Weak):
        assert hash(found) == hash(event)
        found.__dict__["extra"] = found  # a cycle, which the collector finds
    del found
    gc.collect()


def test_post_init() -> None:
    """`__post_init__` runs, and what it raises says that there is no such event."""
    topic = shmbus.Topic("t", Checked, codec="record")
    with pytest.raises(ValueError, match="below zero"):
        decode(topic, (-1).to_bytes(8, "little", signed=True))


def test_generic() -> None:
    """A generic Struct is a record once its parameter is known."""
    topic = shmbus.Topic("t", Box[int], codec="record")
    assert decode(topic, encode(topic, Box(5))) == Box(5)


def test_shadowed_slot() -> None:
    """A property over a field's name does not get in the way of the field's slot."""
    topic = shmbus.Topic("t", Shadowed, codec="record")
    assert encode(topic, decode(topic, (7).to_bytes(8, "little"))) == (7).to_bytes(8, "little")


def test_deleted_field() -> None:
    """A field that was deleted is refused, not read."""
    event = Light(1)
    try:
        del event.n
    except AttributeError:
        pytest.skip("this msgspec does not delete fields")
    with pytest.raises(ValueError, match=r"\$\.n"):
        encode(shmbus.Topic("t", Light, codec="record"), event)


def test_same_definition(bus_name: str) -> None:
    """An event of the same definition in another class object is published, one of another class is refused."""

    def define(extra: bool) -> Any:
        fields: list[Any] = [("n", int), ("s", Annotated[str, Meta(max_length=4)])]
        return msgspec.defstruct("Local", fields + [("more", int)] * extra)

    ours, same, other = define(False), define(False), define(True)
    topic = shmbus.Topic("t", ours, codec="record")
    with opened(bus_name) as bus, bus.publisher(topic) as publisher, bus.subscriber(topic) as subscriber:
        publisher.publish(same(1, "a"))
        assert subscriber.receive(0) == ours(1, "a")
        with pytest.raises(shmbus.EventTypeError):
            publisher.publish(other(1, "a", 2))


def test_memory_is_given_back() -> None:
    """Encoding and decoding, and their refusals, keep no reference."""
    event = decode(ALL, row_of(EVENT))
    bad = copy.copy(event)
    bad.name = "thirteen chars"
    payload = encode(ALL, event)
    broken = payload[:16] + b"\2" + payload[17:]

    def once() -> None:
        decode(ALL, encode(ALL, event))
        with pytest.raises(ValueError, match="name"):
            encode(ALL, bad)
        with pytest.raises(ValueError, match="flag"):
            decode(ALL, broken)

    for _ in range(10):
        once()
    gc.collect()
    before = [sys.getrefcount(value) for value in (Everything, Side.SELL, event.name, event)]
    for _ in range(100):
        once()
    gc.collect()
    assert [sys.getrefcount(value) for value in (Everything, Side.SELL, event.name, event)] == before


# -- on a bus


def test_every_way(bus_name: str) -> None:
    """Subscribers, lossy ones, workers, messages and headers take records as they take any event."""
    with opened(bus_name) as bus, bus.publisher(TRADES) as publisher:
        reliable, lossy = bus.subscriber(TRADES), bus.subscriber(TRADES, mode="lossy")
        worker = bus.worker(TRADES, group="g")
        events = trades(30)
        for event in events[:10]:
            publisher.publish(event, headers={"a": event.time})
        assert publisher.publish_many(events[10:]) == 20
        message = next(reliable.messages())
        assert (message.event, message.headers) == (events[0], {"a": 1})
        assert drain(reliable) == events[1:]
        assert lossy.receive_many(50, 0) == events
        assert drain(worker) == events


def test_validate(bus_name: str) -> None:
    """`validate=True` has a look at what `__post_init__` says."""
    topic = shmbus.Topic("t", Checked, codec="record", validate=True)
    with opened(bus_name) as bus, bus.publisher(topic) as publisher, bus.subscriber(topic) as subscriber:
        assert publisher.publish(Checked(5)) == 1
        low = decode(shmbus.Topic("t", Light, codec="record"), (1).to_bytes(8, "little"))
        assert low == Light(1)
        bad = Checked(5)
        msgspec.structs.force_setattr(bad, "n", -5)
        with pytest.raises(shmbus.EventTypeError, match="below zero"):
            publisher.publish(bad)
        assert drain(subscriber) == [Checked(5)]


def test_undecodable(bus_name: str) -> None:
    """A row that somebody wrote past the encoder is a DecodeError with its path, is counted, and the stream goes on."""
    from shmbus.topic import encoded_topic

    with opened(bus_name) as bus, bus.subscriber(TRADES, name="s") as subscriber:
        worker = bus.worker(TRADES, group="g", max_deliver=1)
        letters = bus.subscriber(shmbus.dead_letter_topic(TRADES))
        codec = codec_of(TRADES)._replace(encode=None, decode=None, accepts=(bytes,))
        raw = bus._open_publisher(encoded_topic("trades", 1 << 20, "record"), codec, None, "block", None)
        good = encode(TRADES, trades(1)[0])
        for payload in (good[:-1] + b"\7", good[:-1], good):
            raw.publish(payload)
        for receiver in (subscriber, worker):
            with pytest.raises(shmbus.DecodeError, match=r"0 or 1, got int 7 - at `\$\.live`"):
                receiver.receive(0)
            with pytest.raises(shmbus.DecodeError, match="29 bytes, not 28"):
                receiver.receive(0)
            assert receiver.receive(0) == trades(1)[0]
        worker.ack()
        assert [letter.payload for letter in letters.receive_many(9, 1)] == [good[:-1] + b"\7", good[:-1]]
        books = next(c for c in bus.stats().consumers if c.name == "s")
        assert (books.delivered, books.undecodable) == (1, 2)


def test_another_layout(bus_name: str) -> None:
    """Another layout is another schema, under "evolve" as well, and the message says which columns part."""
    narrow = msgspec.defstruct("Trade", [("time", Annotated[int, Meta(ge=0, lt=256)]), ("more", int, 0)])
    wide = msgspec.defstruct("Trade", [("time", Annotated[int, Meta(ge=0, lt=512)]), ("more", int, 0)])
    with opened(bus_name) as bus:
        first = bus.publisher(shmbus.Topic("t", narrow, codec="record", schema="evolve"))
        for schema in ("strict", "evolve"):
            with pytest.raises(shmbus.SchemaMismatchError, match="u1" if schema == "evolve" else "lt 512"):
                bus.subscriber(shmbus.Topic("t", wide, codec="record", schema=schema))
        with pytest.raises(shmbus.ConfigError, match="codec"):
            bus.subscriber(shmbus.Topic("t", narrow))
        first.close()


def test_evolves_within_a_layout(bus_name: str) -> None:
    """Under "evolve" a reader whose limits are wider takes the rows of the same layout; a narrower one does not."""

    def topic(limit: int) -> shmbus.Topic[Any]:
        cls = msgspec.defstruct("Trade", [("n", Annotated[int, Meta(ge=0, le=limit)])])
        return shmbus.Topic("t", cls, codec="record", schema="evolve")

    with opened(bus_name) as bus, bus.publisher(topic(100)) as publisher:
        subscriber = bus.subscriber(topic(200))
        publisher.publish(topic(100).type(7))
        assert subscriber.receive(0).n == 7
        with pytest.raises(shmbus.SchemaMismatchError):
            bus.subscriber(topic(50))


def test_tail_and_pub(bus_name: str) -> None:
    """Tools that never saw the class show records by name, and publish them from JSON, defaults filled in."""
    with opened(bus_name) as bus, bus.subscriber(ALL) as subscriber, bus.publisher(ALL) as publisher:
        with inspect.Tail(bus_name, "all") as tail:
            publisher.publish(EVENT)
            shown = tail.read()[0].event
            assert shown["plainFloat"] == 2.0
            assert (shown["name"], shown["raw"], shown["spot"]) == ("six", b"seven", {"x": 8.0, "y": 9})
            text = msgspec.json.encode(EVENT)
            assert inspect.publish_json(bus_name, "all", text) == 1
            short = {key: value for key, value in msgspec.json.decode(text).items() if key not in ("kind", "type")}
            inspect.publish_json(bus_name, "all", msgspec.json.encode(short))
            assert subscriber.receive_many(9, 1) == [EVENT] * 3
            with pytest.raises(shmbus.ConfigError, match="tiny"):
                inspect.publish_json(bus_name, "all", msgspec.json.encode({**short, "tiny": 256}))


def test_pickles_and_compares() -> None:
    """A topic of records is a topic: it pickles, and equals itself."""
    assert pickle.loads(pickle.dumps(TRADES)) == TRADES
    assert shmbus.Topic("trades", Trade) != TRADES
    assert "codec='record'" in repr(TRADES)


def test_without_numpy(bus_name: str) -> None:
    """An event a call needs no NumPy; whatever needs it says what to install."""
    code = """
import sys
sys.modules["numpy"] = None
import shmbus, records
with shmbus.Bus(sys.argv[1], supervise=False) as bus:
    pub, sub = bus.publisher(records.TRADES), bus.subscriber(records.TRADES)
    pub.publish(records.trades(1)[0])
    assert sub.receive(0) == records.trades(1)[0]
    for call in (lambda: records.TRADES.dtype, lambda: next(sub.arrays()), lambda: pub.publish_array([])):
        try:
            call()
        except ImportError as error:
            assert "shmbus[numpy]" in str(error)
        else:
            raise AssertionError
"""
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    subprocess.run([sys.executable, "-c", code, bus_name], check=True, env=environment, timeout=60)
