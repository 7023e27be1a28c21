"""Groups with a key: events of one key are handled one at a time and in each publisher's order."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import msgspec
import pytest
from events import PATIENT, opened
from support import eventually

import shmbus
from shmbus import Bus, Topic, _core, inspect
from shmbus._schema import keys
from shmbus.topic import dead_letter_topic


class Move(msgspec.Struct, frozen=True):
    account: int
    number: int = 0


class Inner(msgspec.Struct, frozen=True):
    id: str = ""


class Nested(msgspec.Struct):
    inner: Inner | None = None
    number: int = 0


@dataclasses.dataclass
class Plain:
    account: str
    number: int


class Pair(NamedTuple):
    account: str
    number: int


class Keyed(TypedDict, total=False):
    account: str
    number: int


MOVES = Topic("moves", Move)
SMALL = Topic("small-moves", Move, capacity=4096, max_capacity=1 << 16)
ROWS = Topic("rows", Move, codec="record")


kept: list[Any] = []
"""Handles that the bus closes: one that nothing refers to is collected before."""


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    with opened(bus_name) as bus:
        yield bus
    kept.clear()


def publisher(bus: Bus, topic: Topic[Any]) -> shmbus.Publisher[Any]:
    """One that lives as long as the bus."""
    kept.append(bus.publisher(topic))
    return kept[-1]  # type: ignore[no-any-return]


def held(worker: shmbus.Worker[Any]) -> Any:
    """The next message, if there is one for this worker now."""
    with contextlib.suppress(shmbus.Empty):
        return worker.receive_message(0)
    return None


def numbers(worker: shmbus.Worker[Any]) -> list[int]:
    """Of the events that are there now, each acked before the next."""
    found = []
    while (message := held(worker)) is not None:
        found.append(message.event.number)
        message.ack()
    return found


def all_held(worker: shmbus.Worker[Any]) -> list[int]:
    """Numbers of the events that this worker may have at once."""
    found = []
    while (message := held(worker)) is not None:
        found.append(message.event.number)
    return found


# -- order


def test_one_at_a_time(bus: Bus) -> None:
    """While an event is in hand, the next of its key is nobody's to have; another key's is."""
    with bus.worker(MOVES, group="g", key="account") as one, bus.worker(MOVES, group="g") as two:
        pub = publisher(bus, MOVES)
        pub.publish_many(Move(account, number) for number in range(3) for account in (1, 2))
        first, second = one.receive_message(PATIENT), two.receive_message(PATIENT)
        assert [first.event, second.event] == [Move(1, 0), Move(2, 0)]
        assert held(one) is None
        assert held(two) is None
        first.ack()
        assert two.receive_message(PATIENT).event == Move(1, 1)
        second.ack()
        assert one.receive_message(PATIENT).event == Move(2, 1)


def test_one_at_a_time_over_publishers(bus: Bus) -> None:
    """The next event of a key waits, whoever published the two."""
    with bus.worker(MOVES, group="g", key="account", prefetch=8) as one, bus.worker(MOVES, group="g") as two:
        a, b = publisher(bus, MOVES), publisher(bus, MOVES)
        a.publish_many([Move(1, 0), Move(1, 1)])
        b.publish_many([Move(1, 10), Move(1, 11)])
        message = one.receive_message(PATIENT)
        assert held(two) is None
        message.ack()
        rest = numbers(two)
        assert sorted([message.event.number, *rest]) == [0, 1, 10, 11]
        assert [n for n in [message.event.number, *rest] if n < 10] == [0, 1]


def test_given_back_comes_first(bus: Bus) -> None:
    """What is given back comes before the later events of its key, at once or delayed; other keys go on meanwhile."""
    with bus.worker(MOVES, group="g", key="account") as worker:
        pub = publisher(bus, MOVES)
        pub.publish_many([Move(1, 0), Move(1, 1), Move(2, 5), Move(1, 2)])
        worker.receive_message(PATIENT).nack()
        again = worker.receive_message(PATIENT)
        assert (again.event.number, again.attempt) == (0, 2)
        again.nack(delay=60)
        assert numbers(worker) == [5]


def test_delayed_holds_up_its_key(bus: Bus) -> None:
    """A key whose event is delayed is waited for by whoever is idle, and goes on in order then."""
    with bus.worker(MOVES, group="g", key="account") as worker:
        pub = publisher(bus, MOVES)
        pub.publish_many([Move(1, n) for n in range(3)])
        worker.receive_message(PATIENT).nack(delay=0.05)
        found = []
        for _ in range(3):
            message = worker.receive_message(PATIENT)
            found.append(message.event.number)
            message.ack()
        assert found == [0, 1, 2]


def test_dead_letter_frees_its_key(bus: Bus) -> None:
    """An event that is given up on, or rejected, goes to the dead letters, and its key goes on."""
    letters = bus.subscriber(dead_letter_topic(MOVES))
    with bus.worker(MOVES, group="g", key="account", max_deliver=2) as worker:
        pub = publisher(bus, MOVES)
        pub.publish_many([Move(1, n) for n in range(4)])
        worker.receive_message(PATIENT).nack()
        worker.receive_message(PATIENT).nack()
        second = worker.receive_message(PATIENT)
        assert second.event.number == 1
        second.reject("no")
        assert numbers(worker) == [2, 3]
    with letters:
        assert [letters.receive(PATIENT).attempts for _ in range(2)] == [2, 1]


@pytest.mark.parametrize("prefetch", [1, 5])
def test_order_across_growing_rings(bus: Bus, prefetch: int) -> None:
    """Events keep the order of their key where their publisher goes on in another ring, one given back among them."""
    with bus.worker(SMALL, group="g", key="account", prefetch=prefetch) as worker:
        pub = publisher(bus, SMALL)
        pub.publish(Move(7, 0))
        first = worker.receive_message(PATIENT)
        pub.publish_many(Move(7 if n % 2 else 8, n) for n in range(1, 400))
        assert next(p.grown for p in bus.stats().publishers) > 0
        assert numbers(worker) == list(range(2, 400, 2))
        first.nack(delay=0.1)
        again = worker.receive_message(PATIENT)
        assert again.event.number == 0
        again.ack()
        assert numbers(worker) == list(range(1, 400, 2))


@pytest.mark.parametrize("publishers", [1, 3])
def test_much_waits_for_a_key(bus: Bus, publishers: int) -> None:
    """A key that is held for long is passed over, however much of it waits, and has its order when it is let go of."""
    count = 600  # more than a worker remembers
    with bus.worker(MOVES, group="g", key="account") as one, bus.worker(MOVES, group="g") as two:
        pubs = [publisher(bus, MOVES) for _ in range(publishers)]
        for number in range(count):
            pubs[number % publishers].publish(Move(1 + (number % 10 == 9), number))
        first = one.receive_message(PATIENT)
        others = [n for n in range(count) if n % 10 == 9]
        assert sorted(numbers(two)) == others
        first.nack()
        found = numbers(two)
    assert sorted([*found, *others]) == list(range(count))
    for at in range(publishers):
        mine = [n for n in found if n % publishers == at]
        assert mine == sorted(mine)


def test_a_group_made_while_publishers_live(bus: Bus) -> None:
    """A publisher that lives learns of the key with the group, and so does one in the middle of its events."""
    pub = publisher(bus, MOVES)
    pub.publish(Move(1, 0))
    bus.group(MOVES, "g", key="account")
    bus.group(MOVES, "h", key="number")
    bus.group(MOVES, "i")
    pub.publish_many([Move(1, 1), Move(1, 2), Move(2, 3)])
    for name, expected in (("g", [1, 3]), ("h", [1, 2, 3]), ("i", [1, 2, 3])):
        with bus.worker(MOVES, group=name) as worker:
            assert all_held(worker) == expected


def test_a_parked_worker_is_told(bus: Bus) -> None:
    """Who sleeps while a key is in hand is woken when it is let go of, by ack, by nack and by close."""
    with bus.worker(MOVES, group="g", key="account", idle="park") as sleeper:
        pub = publisher(bus, MOVES)
        holder = bus.worker(MOVES, group="g")
        found: list[int] = []

        for let_go in (lambda m: m.ack(), lambda m: m.nack(), lambda m: holder.close()):
            pub.publish_many([Move(1, 0), Move(1, 1)])
            message = holder.receive_message(PATIENT)
            thread = threading.Thread(target=lambda: found.append(sleeper.receive_message(PATIENT).event.number))
            thread.start()
            began = time.monotonic()
            eventually(lambda: parked(bus))
            let_go(message)
            thread.join(PATIENT)
            assert found, time.monotonic() - began
            found.clear()
            sleeper.ack()
            for left in list(sleeper._open.values()):
                left.ack()
            numbers(sleeper)


def parked(bus: Bus) -> bool:
    """Whether a worker of the first group sleeps."""
    return _core.load(bus._session.map, _core.GROUP_LINES + _core.GROUP_PARKED) != 0


# -- what a key may be


@pytest.mark.parametrize(
    ("topic", "key"),
    [
        (MOVES, "acount"),
        (MOVES, ""),
        (MOVES, "account."),
        (MOVES, "account.id"),
        (Topic("nested", Nested), "inner.name"),
        (Topic("numbers", int), "account"),
        (Topic("raw", bytes), "account"),
    ],
)
def test_a_key_that_no_event_has(bus: Bus, topic: Topic[Any], key: str) -> None:
    """A path that the topic's events do not have is a ConfigError that names it, and nothing is made."""
    for attempt in (lambda: bus.worker(topic, group="g", key=key), lambda: bus.group(topic, "g", key=key)):
        with pytest.raises(shmbus.ConfigError, match=f"key='{key}'"):
            attempt()
    assert not bus.stats().consumers
    with pytest.raises(shmbus.ConfigError, match="key=5"):
        bus.worker(MOVES, group="g", key=5)  # type: ignore[arg-type]


def test_another_key(bus: Bus) -> None:
    """A group keeps its key for as long as it exists; who gives none takes it as it is."""
    bus.group(MOVES, "g", key="account")
    bus.group(MOVES, "h")
    with bus.worker(MOVES, group="g") as worker:
        assert worker.key == "account"
        with pytest.raises(shmbus.ConfigError, match=r"'g' of topic 'moves' has the key 'account'.*key='number'"):
            bus.worker(MOVES, group="g", key="number")
        with pytest.raises(shmbus.ConfigError, match="orders its events by key"):
            worker.oldest_first()
    with pytest.raises(shmbus.ConfigError, match="no key"):
        bus.worker(MOVES, group="h", key="account")
    bus.remove_group(MOVES, "g")
    bus.group(MOVES, "g", key="number")


@pytest.mark.parametrize(
    ("topic", "key", "first", "other"),
    [
        (Topic("a", Plain), "account", Plain("x", 0), Plain("y", 2)),
        (Topic("b", Pair), "account", Pair("x", 0), Pair("y", 2)),
        (Topic("c", Keyed), "account", Keyed(account="x", number=0), Keyed(number=2)),
        (Topic("d", dict[str, Any]), "user.id", {"user": {"id": "é"}}, {"user": 3}),
        (Topic("e", Nested), "inner.id", Nested(Inner("x"), 0), Nested(None, 2)),
        (Topic("f", Plain, codec="pickle"), "account", Plain("x", 0), Plain("y", 2)),
        (Topic("g", Plain, codec="json"), "account", Plain("x", 0), Plain("y", 2)),
        (Topic("h", Plain, pool=1 << 16), "account", Plain("x", 0), Plain("y", 2)),
        (Topic("i", dict[str, Any]), "k", {"k": [1, {"a": 2.5}]}, {"k": [1, {"a": 3.5}]}),
        (Topic("j", dict[str, Any]), "k", {"k": 1 << 63}, {"k": True}),
        (ROWS, "account", Move(1, 0), Move(2, 2)),
    ],
)
def test_kinds_of_events(bus: Bus, topic: Topic[Any], key: str, first: Any, other: Any) -> None:
    """The key is looked up in whatever an event is, by every way of publishing; what is not there is a key too."""
    with bus.worker(topic, group="g", key=key) as worker:
        pub = publisher(bus, topic)

        async def later() -> None:
            await pub.apublish(first)
            await pub.apublish_many(iter([first, other]))

        for publish in (
            lambda: pub.publish_many(iter([first, first, other])),
            lambda: [pub.publish(event) for event in (first, first, other)],
            lambda: asyncio.run(later()),
        ):
            publish()
            got = [held(worker), held(worker)]
            assert [m.event for m in got] == [first, other]
            assert held(worker) is None
            got[0].ack()
            last = held(worker)
            assert last.event == first
            got[1].ack()
            last.ack()


def test_arrays(bus: Bus) -> None:
    """Rows of a record topic have keys too, and an array has no two of one key."""
    np = pytest.importorskip("numpy")
    rows = np.array([(1, 0), (1, 1), (2, 2), (1, 3)], dtype=ROWS.dtype)
    with bus.worker(ROWS, group="g", key="account", prefetch=4) as worker:
        publisher(bus, ROWS).publish_array(rows)
        found = [array["number"].tolist() for _, array in zip(range(4), worker.arrays(), strict=False)]
    assert found[0][0] == 0
    assert sorted(number for numbers in found for number in numbers) == [0, 1, 2, 3]
    assert all(not {0, 1, 3} & set(f) or len({0, 1, 3} & set(f)) == 1 for f in found)


def test_every_python_finds_the_same() -> None:
    """What is hashed of a value does not depend on the process: no hash seed, no order of a set."""
    _, resolve = keys.resolver("k", None)
    assert resolve({"k": {"b", "a"}}) == msgspec.msgpack.encode(["a", "b"])
    assert resolve({"k": {"b": 1, "a": 2}}) == msgspec.msgpack.encode({"a": 2, "b": 1})
    assert resolve({"k": object()}) is None
    assert resolve({}) is None


def test_shown(bus: Bus) -> None:
    """The books name the key of a group."""
    bus.group(MOVES, "g", key="account")
    bus.group(MOVES, "h")
    assert {c.name: c.key for c in bus.stats().consumers} == {"g": "account", "h": ""}


def test_router(bus: Bus) -> None:
    """A Router's worker takes a key, and checks it where it is registered."""
    router = shmbus.Router()
    with pytest.raises(shmbus.ConfigError, match="key='nope'"):
        router.worker(MOVES, group="g", key="nope")
    seen: list[int] = []

    @router.worker(MOVES, group="g", key="account")
    def handle(move: Move) -> None:
        seen.append(move.number)

    pub = publisher(bus, MOVES)
    bus.group(MOVES, "g", key="account")
    pub.publish_many(Move(1, n) for n in range(5))
    running = threading.Thread(target=router.run, args=(bus,))
    running.start()
    eventually(lambda: len(seen) == 5)
    router.cancel()
    running.join(PATIENT)
    assert seen == [0, 1, 2, 3, 4]
    assert next(c.key for c in bus.stats().consumers if c.name == "g") == "account"


def test_the_page(bus_name: str) -> None:
    """The program of docs/keys.md runs as it stands."""
    text = (Path(__file__).parents[1] / "docs" / "keys.md").read_text(encoding="utf-8")
    program = text.split("```python\n", 1)[1].split("```", 1)[0].replace('"bank"', repr(bus_name))
    try:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    finally:
        inspect.remove(bus_name, force=True)
    assert done.stdout.split() == ["10", "30", "20"]
