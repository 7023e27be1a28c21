"""How the ordered consumers of others failed their users, tried against groups with a key (docs/reliability.md)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from events import PATIENT, opened
from test_keys import MOVES, Move, held, kept, numbers, publisher

import shmbus
from shmbus import Bus, Topic
from shmbus.topic import dead_letter_topic

OTHERS = Topic("other-moves", Move)


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    with opened(bus_name) as bus:
        yield bus
    kept.clear()


def test_workers_come_and_go_beside_keys_in_hand(bus: Bus) -> None:
    """Workers that join and leave while keys are in hand stop nobody, and no key loses its order (pulsar#8115)."""
    pub = publisher(bus, MOVES)
    found: dict[int, list[int]] = {account: [] for account in range(4)}
    with ExitStack() as stack, bus.worker(MOVES, group="g", key="account") as stays:
        pub.publish_many(Move(number % 4, number) for number in range(80))
        for _ in range(10):
            comes = stack.enter_context(bus.worker(MOVES, group="g"))
            for worker in (stays, comes, stays):
                message = worker.receive_message(PATIENT)
                found[message.event.account].append(message.event.number)
                message.ack()
            assert held(comes) is not None
            comes.close()  # with a key in hand
        rest = numbers(stays)
    for account, before in found.items():
        assert [*before, *(n for n in rest if n % 4 == account)] == list(range(account, 80, 4))


def test_a_key_goes_on_after_its_dead_letters(bus: Bus) -> None:
    """A key whose events went to the dead letters takes new ones (google-cloud-dotnet#11793)."""
    pub = publisher(bus, MOVES)
    with (
        bus.subscriber(dead_letter_topic(MOVES)) as letters,
        bus.worker(MOVES, group="g", key="account", max_deliver=5) as worker,
    ):
        for number, account in enumerate([1, 2, 1, 3, 1, 2]):
            pub.publish(Move(account, number))
            for attempt in range(1, 6):
                message = worker.receive_message(PATIENT)
                assert (message.event.number, message.attempt) == (number, attempt)
                message.nack()
            assert held(worker) is None
            assert letters.receive(PATIENT).attempts == 5
        pub.publish(Move(1, 6))
        assert numbers(worker) == [6]


def test_everybody_was_too_slow(bus: Bus) -> None:
    """When each worker has held its event for too long, each goes on, and keys in order (rabbitmq-server#17317)."""
    with (
        bus.worker(MOVES, group="g", key="account", ack_within=60) as one,
        bus.worker(MOVES, group="g", ack_within=60) as two,
    ):
        publisher(bus, MOVES).publish_many(Move(number % 2, number) for number in range(6))
        slow = [one.receive_message(PATIENT), two.receive_message(PATIENT)]
        session = bus._session
        group = next(c for c in session.document().consumers if c.kind == "group")
        ring = session.rings.work(session.document().rings_of(group)[0])
        with session.locked():
            for message in slow:
                assert ring.take_back(message.claim[1], message.claim[2], session.rings.lanes.map(group.id))
        for message in slow:
            with pytest.raises(shmbus.ReclaimedError):
                message.ack()
        first, second = one.receive_message(PATIENT), two.receive_message(PATIENT)
        assert (first.event.number, second.event.number) == (0, 1)
        first.ack()
        second.ack()
        assert numbers(two) == [2, 3, 4, 5]


def test_the_same_key_of_two_topics(bus: Bus) -> None:
    """A key of one topic does not wait for the same one of another (confluentinc/parallel-consumer#184)."""
    with bus.worker(MOVES, group="g", key="account") as one, bus.worker(OTHERS, group="g", key="account") as other:
        for topic in (MOVES, OTHERS):
            publisher(bus, topic).publish_many(Move(1, number) for number in range(333))
        in_hand = one.receive_message(PATIENT)
        assert numbers(other) == list(range(333))
        in_hand.ack()
        assert numbers(one) == list(range(1, 333))


def test_one_that_always_fails_holds_up_its_key_alone(bus: Bus) -> None:
    """An event that fails again and again stops its own key, not the group (RobotLocomotion/drake#11192)."""
    found: list[int] = []
    with bus.worker(MOVES, group="g", key="account", max_deliver=4000) as worker:
        events = [Move(1, 0), Move(1, 1), *(Move(2 + number % 5, number) for number in range(2, 42))]
        publisher(bus, MOVES).publish_many(events)
        while len(found) < 40:
            message = worker.receive_message(PATIENT)
            if message.event.account == 1:
                assert message.event.number == 0
                message.nack(delay=0.0001)
            else:
                found.append(message.event.number)
                message.ack()
    assert found == list(range(2, 42))
