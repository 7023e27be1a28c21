"""`_core` and the model, side by side through random histories: every result and all books must agree."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from model import ModelBroadcastRing, maximum
from model_work import Claim, ModelWorkRing
from rings import CoreBroadcastRing, CoreWorkRing

CAPACITY = 4096
SHORT = settings(max_examples=100, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck))
SLOTS = st.integers(0, 3)
OWNERS = st.integers(0, 2)
LARGEST = maximum(CAPACITY)
SIZES = st.one_of(st.integers(0, 64), st.integers(65, LARGEST), st.sampled_from([LARGEST - 1, LARGEST, LARGEST + 1]))
HEADERS = st.sampled_from([0, 0, 0, 1, 7, 8, 13])
SEQUENCES = st.sampled_from([1, 2**32 - 5, 2**48 - 40])
POSITIONS = st.sampled_from([0, CAPACITY - 8, CAPACITY - 40, 2**32 - 48, 2**48 - 1000])
CAUSES = ("delivered", "depth", "overrun", "refused", "undecodable", "rejected", "abandoned")


def payload(size: int, bad: bool = False) -> bytes:
    return (b"!" if bad else b"x") * size


def attempt(call: Callable[[], Any]) -> Any:
    """What the call returns, or the kind of its refusal."""
    try:
        return call()
    except queue.Full:
        return "full"
    except ValueError:
        return "too large"


def balanced(terms: dict[str, int]) -> bool:
    return terms["offered"] == sum(terms.get(cause, 0) for cause in CAUSES)


class BroadcastMachine(RuleBasedStateMachine):
    """One publisher, up to four subscribers of both kinds that come and go."""

    @initialize(sequence=SEQUENCES, position=POSITIONS)
    def start(self, sequence: int, position: int) -> None:
        self.core = CoreBroadcastRing(CAPACITY, sequence, position)
        self.model = ModelBroadcastRing(CAPACITY, sequence, position)

    def both(self, method: str, *args: Any) -> Any:
        results = [attempt(lambda r=ring: getattr(r, method)(*args)) for ring in (self.core, self.model)]  # type: ignore[misc]
        assert results[0] == results[1], method
        return results[1]

    @rule(slot=SLOTS, lossy=st.booleans(), oldest=st.booleans())
    def join(self, slot: int, lossy: bool, oldest: bool) -> None:
        if slot not in self.model.slots:
            self.both("join", slot, lossy, oldest)

    @rule(slot=SLOTS)
    def leave(self, slot: int) -> None:
        if slot in self.model.slots:
            self.both("leave", slot)

    @rule(size=SIZES, headers=HEADERS, drop=st.booleans(), bad=st.booleans())
    def publish(self, size: int, headers: int, drop: bool, bad: bool) -> None:
        self.both("publish", payload(size, bad), b"h" * headers, drop)

    @rule(sizes=st.lists(SIZES, max_size=12), drop=st.booleans())
    def publish_many(self, sizes: list[int], drop: bool) -> None:
        self.both("publish_many", [payload(size) for size in sizes], drop)

    @precondition(lambda self: self.model.slots)
    @rule(slot=SLOTS, times=st.integers(1, 10))
    def read(self, slot: int, times: int) -> None:
        for _ in range(times if slot in self.model.slots else 0):
            if self.both("read", slot) is None:
                break

    @rule()
    def reopen(self) -> None:
        """The publisher's state is in the segment: a new one carries on where the last one stood."""
        self.core.reopen()

    @rule()
    def trim(self) -> None:
        """Without a publisher what all have read goes, and its pages; a new one could still carry on."""
        self.both("trim")

    @rule(need=st.integers(0, 2 * CAPACITY))
    def blocking(self, need: int) -> None:
        self.both("blocking", need)

    @invariant()
    def books(self) -> None:
        self.both("info")
        assert self.model.tail - self.model.gate() <= CAPACITY  # B2
        for slot in self.model.slots:
            self.both("losses", slot)
            assert balanced(self.both("terms", slot)), slot


class WorkMachine(RuleBasedStateMachine):
    """One publisher, three workers of two generations that claim, settle late, settle twice, and are
    reclaimed."""

    @initialize(
        sequence=st.sampled_from([1, 2**31 - 40, 2**32 - 5, 2**48 - 400]),
        position=POSITIONS,
        max_deliver=st.sampled_from([1, 2, 5]),
    )
    def start(self, sequence: int, position: int, max_deliver: int) -> None:
        self.core = CoreWorkRing(CAPACITY, sequence, position, max_deliver)
        self.model = ModelWorkRing(CAPACITY, sequence, position, max_deliver)
        self.claims: list[tuple[Claim, Claim]] = []

    def both(self, method: str, *args: Any) -> Any:
        results = [attempt(lambda r=ring: getattr(r, method)(*args)) for ring in (self.core, self.model)]  # type: ignore[misc]
        assert results[0] == results[1], method
        return results[1]

    @rule(size=SIZES, headers=HEADERS, drop=st.booleans(), bad=st.booleans())
    def publish(self, size: int, headers: int, drop: bool, bad: bool) -> None:
        self.both("publish", payload(size, bad), b"h" * headers, drop)

    @rule(count=st.integers(1, 80))
    def publish_small(self, count: int) -> None:
        for _ in range(count):
            self.both("publish", b"x", b"", True)

    @rule(owner=OWNERS, generation=st.integers(1, 2), times=st.integers(1, 20))
    def claim(self, owner: int, generation: int, times: int) -> None:
        for _ in range(times):
            ours, theirs = self.core.claim(owner, generation), self.model.claim(owner, generation)
            assert (ours and ours._replace(word=0)) == (theirs and theirs._replace(word=0))
            if ours is None or theirs is None:
                break
            self.claims.append((ours, theirs))

    @precondition(lambda self: self.claims)
    @rule(
        how=st.sampled_from(["ack", "ack", "ack", "give_back", "delay", "take_back", "reject"]),
        which=st.integers(0, 99),
        forget=st.booleans(),
    )
    def settle(self, how: str, which: int, forget: bool) -> None:
        """Any claim ever made, settled before or not; the old ones must be refused."""
        ours, theirs = self.claims[which % len(self.claims)]
        assert getattr(self.core, how)(ours) == getattr(self.model, how)(theirs)
        if forget:
            del self.claims[which % len(self.claims)]

    @precondition(lambda self: self.claims)
    @rule(undecodable=st.booleans())
    def ack_all(self, undecodable: bool) -> None:
        for ours, theirs in self.claims:
            if undecodable and theirs.failure:
                assert self.core.reject(ours, True) == self.model.reject(theirs, True)
            assert self.core.ack(ours) == self.model.ack(theirs)
        self.claims = self.claims[-3:]

    @precondition(lambda self: self.claims)
    @rule(how=st.sampled_from(["give_back", "delay"]), which=st.integers(0, 99))
    def unseen(self, how: str, which: int) -> None:
        ours, theirs = self.claims[which % len(self.claims)]
        assert getattr(self.core, how)(ours, True) == getattr(self.model, how)(theirs, True)

    @rule()
    def pass_time(self) -> None:
        self.core.pass_time()
        self.model.pass_time()

    @precondition(lambda self: self.model.sequence % 7 == 0)  # now and then: little is left to do after it
    @rule()
    def abandon(self) -> None:
        self.both("abandon")

    @rule(owner=OWNERS, generation=st.integers(1, 2))
    def reclaim(self, owner: int, generation: int) -> None:
        self.both("reclaim", owner, generation)

    @invariant()
    def books(self) -> None:
        for owner in range(3):
            self.both("held", owner, 1)
            self.both("claims", owner, 1)
        self.both("losses")
        assert balanced(self.both("terms"))


TestBroadcast = BroadcastMachine.TestCase
TestBroadcast.settings = SHORT
TestWork = WorkMachine.TestCase
TestWork.settings = SHORT
