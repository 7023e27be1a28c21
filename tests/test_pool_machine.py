"""Pools and `mode="latest"` beside their models through random histories: each result, all use and all books agree."""

from __future__ import annotations

import itertools
import os
from contextlib import ExitStack
from typing import Any

import hypothesis.strategies as st
import pytest
from events import books, opened
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from model_pool import BLOCK, ModelLatest, ModelPool, blocks

import shmbus

pytest.importorskip("numpy", reason="needs numpy")

from frames import Frame, frame, used, whole

BLOCKS = 64
TOPIC = shmbus.Topic("frames", Frame, pool=BLOCKS * BLOCK, capacity=1 << 17)
LATEST = shmbus.Topic("latest", bytes, capacity=1 << 17)  # more than a history has: nothing is overwritten
SHORT = settings(max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
SIZES = st.one_of(st.integers(1025, 3 * BLOCK), st.sampled_from([BLOCK, 16 * BLOCK, 33 * BLOCK, BLOCKS * BLOCK]))
NAMES = ("a", "b", "group")
PICKS = st.integers(0, 1 << 20)
_numbers = itertools.count()


class Machine(RuleBasedStateMachine):
    """A bus of its own, which is gone at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.bus = self.stack.enter_context(opened(f"machine-{os.getpid()}-{next(_numbers)}"))

    def teardown(self) -> None:
        self.stack.close()


class PoolMachine(Machine):
    """One publisher, two subscribers that come and go, a group with one worker, and views kept in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.model = ModelPool(BLOCKS, queues={"group": []})
        self.pub = self.stack.enter_context(self.bus.publisher(TOPIC, on_full="raise"))
        self.receivers: dict[str, Any] = {"group": self.stack.enter_context(self.bus.worker(TOPIC, group="group"))}
        self.kept: list[Frame] = []
        self.loans: list[tuple[int, Any]] = []
        self.serial = itertools.count(1)

    @initialize()
    def start(self) -> None:
        self.join(0)

    @rule(pick=PICKS)
    def join(self, pick: int) -> None:
        name = NAMES[pick % 2]
        if name not in self.receivers:
            self.receivers[name] = self.bus.subscriber(TOPIC, name=name)
            self.model.queues[name] = []

    @rule(pick=PICKS)
    def leave(self, pick: int) -> None:
        name = NAMES[pick % 2]
        if name in self.receivers:
            self.receivers.pop(name).close()
            self.model.leave(name)

    @rule(size=SIZES)
    def publish(self, size: int) -> None:
        number = next(self.serial)
        if self.model.fits(size):
            self.pub.publish(frame(number, size))
            self.model.publish(number, size)
        else:
            with pytest.raises(shmbus.Full):
                self.pub.publish(frame(number, size))

    @rule(size=SIZES)
    def lend(self, size: int) -> None:
        number = next(self.serial)
        if self.model.fits(size):
            loan = self.pub.empty(size)
            loan[:] = number % 251
            self.loans.append((number, loan))
            self.model.lend(number, size)
        else:
            with pytest.raises(shmbus.Full):
                self.pub.empty(size)

    @precondition(lambda self: self.loans)
    @rule(pick=PICKS, publish=st.booleans())
    def give(self, pick: int, publish: bool) -> None:
        number, loan = self.loans.pop(pick % len(self.loans))
        if publish:
            self.pub.publish(Frame(number, loan))
            self.model.publish(number, loan.nbytes)
        del loan
        self.model.let_go(number)

    @rule(pick=PICKS, times=st.integers(1, 4))
    def receive(self, pick: int, times: int) -> None:
        name = NAMES[pick % 3]
        for _ in range(times if name in self.receivers else 0):
            found, expected = self.receivers[name].try_receive(), self.model.receive(name)
            assert (found and found.number) == expected
            if found is not None:
                self.kept.append(found)

    @rule()
    def ack(self) -> None:
        self.receivers["group"].ack()
        self.model.ack()

    @precondition(lambda self: self.kept)
    @rule(pick=PICKS)
    def let_go(self, pick: int) -> None:
        gone = self.kept.pop(pick % len(self.kept))
        self.model.let_go(gone.number)

    @invariant()
    def agrees(self) -> None:
        assert all(map(whole, self.kept))
        assert used(self.bus) == self.model.used * BLOCK

    def teardown(self) -> None:
        kept, self.kept, loans, self.loans = self.kept, [], self.loans, []
        for name in self.receivers:
            self.receivers[name].close()
        assert all(map(whole, kept))
        del kept, loans
        super().teardown()


class LatestMachine(Machine):
    """Three publishers, and one subscriber that skips what it does not come to."""

    def __init__(self) -> None:
        super().__init__()
        self.model = ModelLatest()
        self.sub = self.stack.enter_context(self.bus.subscriber(LATEST, name="s", mode="latest"))
        self.pubs = [self.stack.enter_context(self.bus.publisher(LATEST, name=name)) for name in NAMES]
        self.serial = itertools.count(1)

    @rule(pick=PICKS, times=st.integers(1, 12))
    def publish(self, pick: int, times: int) -> None:
        for _ in range(times):
            number = next(self.serial)
            self.pubs[pick % 3].publish(number.to_bytes(8, "little"))
            self.model.publish(NAMES[pick % 3], number)

    @rule(times=st.integers(1, 4))
    def receive(self, times: int) -> None:
        for _ in range(times):
            found = self.sub.try_receive()
            if found is None:
                assert not self.model.candidates()
                return
            self.model.receive(int.from_bytes(found, "little"))

    @invariant()
    def agrees(self) -> None:
        model = {name: getattr(self.model, name) for name in ("offered", "delivered", "depth", "overrun")}
        assert books(self.bus, "s") == {name: count for name, count in model.items() if count}


def test_blocks() -> None:
    """The model counts whole blocks, and one for an empty array."""
    assert [blocks(size) for size in (0, 1, BLOCK, BLOCK + 1)] == [1, 1, 1, 2]


PoolMachine.TestCase.settings = SHORT
LatestMachine.TestCase.settings = SHORT
TestPool = PoolMachine.TestCase
TestLatest = LatestMachine.TestCase
