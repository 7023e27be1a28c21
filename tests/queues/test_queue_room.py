"""What a put does that finds its ring full: how long it waits for others to get, and when it takes a larger ring."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import queue_workers as workers

import shmbus
from shmbus.queues import Queue, _putting

THING = b"x" * 200
MORE = 2000  # of them than a first ring has room for


@pytest.fixture
def queue() -> Iterator[Queue[bytes]]:
    made: Queue[bytes] = Queue()
    yield made
    made.close()
    workers.nothing_left(made.name)


class Dozes:
    """Stands in for the sleep of a put: time passes at once, and `then` is done after so much of it."""

    def __init__(self, seconds: float = 0.0, then: Callable[[], object] = lambda: None) -> None:
        self.slept = 0.0
        self._seconds = seconds
        self._then = then

    def stand_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = SimpleNamespace(sleep=self, monotonic=time.monotonic)
        monkeypatch.setattr("shmbus.queues._putting.time", clock)

    def __call__(self, seconds: float) -> None:
        self.slept += seconds
        if self._seconds and self.slept >= self._seconds:
            self._then()
            self.slept = 0.0


def capacity(queue: Queue[bytes]) -> int:
    with shmbus.Bus.attach(queue.name) as bus:
        return max(ring.capacity for ring in bus._session.document().rings)


def test_a_ring_stays_where_somebody_gets_now_and_then(queue: Queue[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """That who gets does not run for a while is no reason for a larger ring, which is in no cache."""
    got: list[bytes] = []

    def get_some() -> None:
        got.extend(queue.get() for _ in range(100))

    queue.put(THING)
    got.append(queue.get())
    first = capacity(queue)
    Dozes(_putting._LONG / 2, get_some).stand_in(monkeypatch)
    for _ in range(MORE):
        queue.put(THING)
    assert len(got) > 1
    assert capacity(queue) == first
    assert len(got) + queue.qsize() == MORE + 1


def test_a_ring_grows_where_nobody_gets(queue: Queue[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Who could get and does not is waited for half as long with each ring."""
    queue.put(THING)
    queue.get()
    first, dozes = capacity(queue), Dozes()
    dozes.stand_in(monkeypatch)
    for _ in range(16 * MORE):
        queue.put(THING)
    assert capacity(queue) >= 16 * first
    assert _putting._LONG <= dozes.slept <= 3 * _putting._LONG
    assert queue.qsize() == 16 * MORE


def test_a_ring_grows_sooner_where_nobody_can_get(queue: Queue[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that puts all there is before anybody gets hardly waits."""
    dozes = Dozes()
    dozes.stand_in(monkeypatch)
    for _ in range(16 * MORE):
        queue.put(THING)
    assert 0 < dozes.slept < _putting._LONG
    assert queue.qsize() == 16 * MORE


def test_who_does_not_want_to_wait_does_not(queue: Queue[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """`put_nowait` takes a larger ring at once."""
    dozes = Dozes()
    dozes.stand_in(monkeypatch)
    for _ in range(MORE):
        queue.put_nowait(THING)
    assert dozes.slept == 0
    assert queue.qsize() == MORE


def test_a_queue_without_a_bound_is_never_full(queue: Queue[bytes]) -> None:
    """Who waits for less long than others may take to get has a larger ring in the end, and no Full."""
    queue.put(THING)
    queue.get()
    for _ in range(2 * MORE):
        queue.put(THING, True, 0.001)
    assert queue.qsize() == 2 * MORE


def test_a_group_is_attended(bus_name: str) -> None:
    """A gauge says whether anybody could take what a group is owed."""
    topic = shmbus.Topic("t", int)
    with shmbus.Bus(bus_name, supervise=False) as bus:
        gauge = shmbus.Gauge(bus, topic, "g")
        assert not gauge.attended()
        bus.group(topic, "g")
        other = bus.worker(topic, group="other")
        assert not gauge.attended()
        with bus.worker(topic, group="g"):
            assert gauge.attended()
        assert not gauge.attended()
        other.close()
