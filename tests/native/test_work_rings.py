"""What a work ring promises, case by case, on the model and on `_core` alike (`rings` gives both one
face)."""

from __future__ import annotations

import queue
from collections.abc import Callable

import pytest
from model import maximum
from model_work import Claim
from rings import WORK, AnyWorkRing, fill, until_full

CAPACITY = 4096
LARGEST = maximum(CAPACITY)
MakeWork = Callable[..., AnyWorkRing]


@pytest.fixture(params=sorted(WORK))
def work(request: pytest.FixtureRequest) -> MakeWork:
    """Makes an empty work ring; `sequence`, `position` and `max_deliver` as the adapters take them."""
    make = WORK[request.param]
    return lambda **start: make(CAPACITY, **start)


def books(ring: AnyWorkRing, **expected: int) -> None:
    """The terms are the expected ones, and zero where nothing is expected."""
    names = ("offered", "delivered", "depth", "claimed", "delayed", "refused", "rejected", "undecodable", "abandoned")
    zero = dict.fromkeys(names, 0)
    terms = ring.terms()
    del terms["room"], terms["next"]
    assert terms == zero | expected


def claimed(ring: AnyWorkRing, owner: int = 0, generation: int = 1) -> Claim:
    claim = ring.claim(owner, generation)
    assert claim is not None
    return claim


def test_claims_in_order(work: MakeWork) -> None:
    """Each event goes to one worker, lowest sequence first, and the books follow each step."""
    ring = work()
    for index in range(3):
        assert ring.publish(b"%d" % index, b"head")
    books(ring, offered=3, depth=3)
    first, second = claimed(ring, 0), claimed(ring, 1)
    assert (first.sequence, second.sequence) == (1, 2)
    assert (first.payload, first.headers, first.attempt) == (b"0", b"head", 1)
    assert (ring.held(0, 1), ring.held(1, 1), ring.held(2, 1)) == (1, 1, 0)
    books(ring, offered=3, depth=3, claimed=2)
    assert ring.ack(first)
    books(ring, offered=3, depth=2, claimed=1, delivered=1)
    assert claimed(ring, 0).sequence == 3
    assert ring.claim(2) is None


def test_settled_once(work: MakeWork) -> None:
    """A claim is settled by the first who does it; every later settlement is refused and changes no books."""
    ring = work()
    ring.publish(b"a")
    claim = claimed(ring)
    assert ring.ack(claim)
    assert not any([ring.ack(claim), ring.give_back(claim), ring.reject(claim), ring.reject(claim, True)])
    books(ring, offered=1, delivered=1)
    assert ring.losses()["rejected"] == ring.losses()["undecodable"] == (0, 0, 0)


def test_ack_out_of_order(work: MakeWork) -> None:
    """The gate waits for the oldest claim and then passes all that is done: room comes back at once."""
    ring = work()
    until_full(lambda: ring.publish(fill(128)))
    claims = [claimed(ring) for _ in range(CAPACITY // 128)]
    room = ring.terms()["room"]
    for claim in reversed(claims[1:]):
        assert ring.ack(claim)
        assert ring.terms()["room"] == room
    with pytest.raises(queue.Full):
        ring.publish(fill(128))
    assert ring.ack(claims[0])
    assert ring.terms()["room"] == CAPACITY
    assert ring.publish(fill(128))


def test_descriptors_run_out_first(work: MakeWork) -> None:
    """Records below 64 bytes exhaust the descriptors: the ring is full with bytes to spare, and says that it
    has no room."""
    ring = work()
    assert until_full(lambda: ring.publish(b"")) == CAPACITY // 64
    assert ring.terms()["room"] == 0
    assert not ring.publish(b"", drop=True)
    books(ring, offered=CAPACITY // 64 + 1, depth=CAPACITY // 64, refused=1)
    assert ring.ack(claimed(ring))
    assert ring.terms()["room"] == CAPACITY - 24 * (CAPACITY // 64 - 1)
    assert ring.publish(b"")


def test_bytes_run_out_first(work: MakeWork) -> None:
    """Large records fill the ring to the last byte, and one byte more does not go in."""
    ring = work()
    assert until_full(lambda: ring.publish(fill(1024))) == 4
    assert ring.terms()["room"] == 0
    assert not ring.publish(b"", drop=True)
    assert ring.losses()["refused"] == (1, 5, 5)


@pytest.mark.parametrize("left", [8, 16, 24, 32])
def test_work_record_does_not_wrap(work: MakeWork, left: int) -> None:
    """A record that does not fit before the end of the ring begins at the next lap."""
    ring = work(position=CAPACITY - left)
    ring.publish(fill(48))
    ring.publish(b"next")
    assert [claimed(ring).payload, claimed(ring).payload] == [fill(48), b"next"]


def test_give_back(work: MakeWork) -> None:
    """What is given back is first in line again, with its attempt counted, and the old claim is worthless."""
    ring = work()
    ring.publish(b"a")
    ring.publish(b"b")
    old = claimed(ring, 0)
    assert ring.give_back(old)
    books(ring, offered=2, depth=2)
    new = claimed(ring, 0)
    assert (new.sequence, new.attempt) == (1, 2)
    assert not ring.ack(old)
    assert not ring.give_back(old)
    assert ring.ack(new)


def test_reclaim(work: MakeWork) -> None:
    """Reclaim gives others what one generation of a worker held: attempts kept, lowest first, stale claims
    refused."""
    ring = work()
    for index in range(6):
        ring.publish(b"%d" % index)
    dead = [claimed(ring, 7, 1) for _ in range(3)]
    alive = claimed(ring, 7, 2)
    assert ring.reclaim(7, 3) == 0
    assert ring.reclaim(7, 1) == 3
    assert ring.reclaim(7, 1) == 0
    books(ring, offered=6, depth=6, claimed=1)
    again = [claimed(ring, 1) for _ in range(3)]
    assert [(claim.sequence, claim.attempt) for claim in again] == [(1, 2), (2, 2), (3, 2)]
    assert not any(ring.ack(claim) or ring.give_back(claim) or ring.reject(claim) for claim in dead)
    assert ring.ack(alive)
    assert all(ring.ack(claim) for claim in again)
    books(ring, offered=6, depth=2, delivered=4)


def test_unseen(work: MakeWork) -> None:
    """What is given back unseen costs no attempt, whoever claims it next, and whether that one returns it or dies."""
    ring = work(max_deliver=2)
    ring.publish(b"a")
    for _ in range(20):
        assert ring.give_back(claimed(ring), True)
    claim = claimed(ring, 3)
    assert (claim.attempt, claim.failure) == (1, "")
    assert ring.reclaim(3, 1) == 1
    assert ring.give_back(claimed(ring), True)
    assert claimed(ring, 3).attempt == 2
    assert ring.reclaim(3, 1) == 1
    assert claimed(ring).failure == "exhausted"


def test_unseen_of_another_lap(work: MakeWork) -> None:
    """What was given back unseen a lap ago says nothing of the record that has its place now."""
    ring = work()
    for _ in range(CAPACITY // 64 * 2):
        ring.publish(b"a")
        first = claimed(ring)
        assert (first.attempt, ring.give_back(first)) == (1, True)
        second = claimed(ring)
        assert (second.attempt, ring.give_back(second, True)) == (2, True)
        assert ring.ack(claimed(ring))


def test_delay(work: MakeWork) -> None:
    """A delayed record is depth and nobody's until it is due; then it is first in line, with the next attempt."""
    ring = work()
    ring.publish(b"a")
    ring.publish(b"b")
    old = claimed(ring)
    assert ring.delay(old)
    books(ring, offered=2, depth=2, delayed=1)
    assert not any(settle(old) for settle in (ring.ack, ring.delay, ring.give_back))
    other = claimed(ring)
    assert (other.payload, ring.claim(0)) == (b"b", None)
    assert ring.reclaim(0, 1) == 1
    assert claimed(ring, 1).payload == b"b"
    assert ring.claim(1) is None
    ring.pass_time()
    claim = claimed(ring, 1)
    assert (claim.payload, claim.attempt) == (b"a", 2)
    assert ring.ack(claim)


def test_delay_unseen(work: MakeWork) -> None:
    """What is delayed unseen costs no attempt either."""
    ring = work(max_deliver=1)
    ring.publish(b"a")
    for _ in range(3):
        assert ring.delay(claimed(ring), True)
        assert ring.claim(0) is None
        ring.pass_time()
    assert claimed(ring).attempt == 1


def test_a_delayed_record_keeps_its_place(work: MakeWork) -> None:
    """The publisher does not pass a delayed record, and stops at a whole ring behind it."""
    ring = work()
    ring.publish(b"a")
    assert ring.delay(claimed(ring))
    assert until_full(lambda: ring.publish(b"")) == CAPACITY // 64 - 1
    ring.pass_time()
    assert ring.ack(claimed(ring))
    assert ring.publish(b"")


@pytest.mark.parametrize("capacity", [4096, 1 << 14, 1 << 16])
def test_notes_lie_beside_the_records(capacity: int) -> None:
    """What is noted of a record, in any place of a ring of any size, changes no record."""
    ring = WORK["core"](capacity)
    count = until_full(lambda: ring.publish(b"x" * 40), capacity)
    held = [claimed(ring) for _ in range(count)]
    for unseen in (True, False):
        for claim in held:
            assert ring.delay(claim, unseen)
        ring.pass_time()
        held = [claimed(ring) for _ in range(count)]
    assert {(claim.attempt, claim.payload) for claim in held} == {(2, b"x" * 40)}
    assert [claim.sequence for claim in held] == list(range(1, count + 1))


def test_take_back(work: MakeWork) -> None:
    """A claim that is taken back goes to others with the next attempt, and is worth nothing to who had it."""
    ring = work()
    ring.publish(b"a")
    old = claimed(ring, 4)
    assert (ring.claims(4, 1), ring.claims(4, 2)) == ([1], [])
    assert ring.take_back(old)
    assert not ring.take_back(old)
    assert not ring.ack(old)
    assert ring.claims(4, 1) == []
    new = claimed(ring, 5)
    assert new.attempt == 2
    assert ring.ack(new)


def test_abandon(work: MakeWork) -> None:
    """Whatever is READY, claimed or delayed is abandoned, counted, and nobody's; what was done stays delivered."""
    ring = work()
    for _ in range(5):
        ring.publish(b"a")
    assert ring.ack(claimed(ring))
    held = claimed(ring)
    assert ring.delay(claimed(ring))
    assert ring.abandon() == 4
    assert ring.abandon() == 0
    books(ring, offered=5, delivered=1, abandoned=4)
    assert ring.losses()["abandoned"] == (4, 2, 5)
    assert not ring.ack(held)
    assert ring.claim(0) is None
    assert until_full(lambda: ring.publish(b"")) == CAPACITY // 64


def test_max_deliver(work: MakeWork) -> None:
    """A record whose attempts are used up is not handed out but told as exhausted, and its rejection is on
    the books."""
    ring = work(max_deliver=2)
    ring.publish(b"poison", b"h")
    for attempt in (1, 2):
        claim = claimed(ring)
        assert (claim.attempt, claim.failure) == (attempt, "")
        ring.give_back(claim)
    claim = claimed(ring)
    assert (claim.attempt, claim.failure, claim.payload) == (3, "exhausted", b"poison")
    assert ring.reject(claim)
    books(ring, offered=1, rejected=1)
    assert ring.losses()["rejected"] == (1, 1, 1)


def test_undecodable_work(work: MakeWork) -> None:
    """A payload that does not decode is told with its claim, and settled as undecodable."""
    ring = work()
    ring.publish(b"!bad")
    ring.publish(b"good")
    claim = claimed(ring)
    assert (claim.failure, claim.payload) == ("undecodable", b"!bad")
    assert ring.reject(claim, True)
    assert ring.ack(claimed(ring))
    books(ring, offered=2, delivered=1, undecodable=1)


def test_largest_work_record(work: MakeWork) -> None:
    """The largest record fits a work ring wherever the last one ended, and one byte more is an error."""
    ring = work(position=CAPACITY - 1000)
    for _ in range(20):
        assert ring.publish(b"x" * LARGEST)
        assert ring.ack(claimed(ring))
    with pytest.raises(ValueError, match=str(LARGEST)):
        ring.publish(b"x" * (LARGEST + 1))


@pytest.mark.parametrize("sequence", [2**31 - 70, 2**32 - 70, 2**48 - 70], ids=["laps", "32 bits", "48 bits"])
def test_work_counters_of_any_size(work: MakeWork, sequence: int) -> None:
    """Sequences cross the limits of a claim word's lap (25 bits of laps of 64), of 32 bits and of the hint
    (48 bits)."""
    ring = work(sequence=sequence, position=2**48 - 64)
    stale: list[Claim] = []
    for index in range(300):
        ring.publish(b"%d" % index)
        stale.append(claimed(ring))
        assert ring.give_back(stale[-1])
        claim = claimed(ring)
        assert (claim.sequence, claim.payload, claim.attempt) == (sequence + index, b"%d" % index, 2)
        assert ring.ack(claim)
    assert not any(ring.ack(claim) for claim in stale)
    books(ring, offered=300, delivered=300)
