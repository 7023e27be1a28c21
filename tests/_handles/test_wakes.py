"""Who is woken, by whom, and how often: the C types over anonymous memory, with parked bits set by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import rings
from rings import CoreBroadcastRing, CoreWorkRing, Outcome

from shmbus import _core

PARKED = _core.GROUP_LINES + _core.GROUP_PARKED
AWAITING = _core.GROUP_LINES + _core.GROUP_AWAITING
SUBSCRIBERS = _core.TOPIC_LINES + _core.TOPIC_PARKED


class Posts:
    """What the hook was asked for, and what was posted again without it."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.again: list[int] = []
        self.fails = False
        self.instead: Callable[[], object] = lambda: None

    def hook(self, group: int, slot: int) -> Callable[[], object]:
        self.asked.append((group, slot))
        self.instead()
        return lambda: self.post(slot)

    def post(self, slot: int) -> None:
        if self.fails:
            raise OSError("closed")
        self.again.append(slot)


@pytest.fixture
def posts(monkeypatch: pytest.MonkeyPatch) -> Posts:
    posts = Posts()
    for kind in (rings.Producer, rings.Claimer):
        monkeypatch.setattr(kind, "_post", lambda self, group, slot: posts.hook(group, slot), raising=False)
    return posts


@pytest.fixture
def ring() -> CoreWorkRing:
    return CoreWorkRing(4096)


def park(ring: CoreWorkRing, *slots: int) -> None:
    for slot in slots:
        _core.fetch_or(ring.bus, PARKED + slot // 64 * 8, 1 << slot % 64)


def parked(ring: CoreWorkRing) -> list[int]:
    words = [_core.load(ring.bus, PARKED + index * 8) for index in range(_core.MAX_WORKERS // 64)]
    return [slot for slot in range(_core.MAX_WORKERS) if words[slot // 64] >> slot % 64 & 1]


def test_first_of_a_backlog_wakes_one(ring: CoreWorkRing, posts: Posts) -> None:
    """The first event of a backlog wakes one worker, the next ones nobody."""
    park(ring, 3, 70, 200)
    for _ in range(3):
        ring.publish(b"a")
    assert posts.asked == [(0, 3)]
    assert parked(ring) == [70, 200]


def test_every_backlog_wakes(ring: CoreWorkRing, posts: Posts) -> None:
    """When all that there was has been claimed, the next event wakes a worker again."""
    for slot in (3, 4):
        park(ring, slot)
        ring.publish(b"a")
        assert ring.claim(0)
    assert posts.asked == [(0, 3), (0, 4)]


def test_claim_wakes_the_next(ring: CoreWorkRing, posts: Posts) -> None:
    """A claim that leaves something wakes one parked worker, one that leaves nothing wakes nobody."""
    for _ in range(3):
        ring.publish(b"a")
    park(ring, 7, 8, 9)
    claims = [ring.claim(0), ring.claim(1)]
    assert all(claims)
    assert posts.asked == [(0, 7), (0, 8)]
    assert ring.claim(0)
    assert parked(ring) == [9]


def test_batch_wakes_as_many(ring: CoreWorkRing, posts: Posts) -> None:
    """A batch wakes as many workers as it has events."""
    park(ring, 1, 2, 64, 128, 255)
    ring.producer.publish_many([b"a"] * 3)
    assert posts.asked == [(0, 1), (0, 2), (0, 64)]
    ring.producer.publish_many([b"a"] * 3)
    assert parked(ring) == [128, 255]


def test_pass_on(ring: CoreWorkRing, posts: Posts) -> None:
    """A worker that will not look after all passes the wake-up on, if there is something to look at."""
    claimer = ring.claimer(0)
    claimer.try_receive()
    park(ring, 5, 6)
    claimer._pass_on()
    assert posts.asked == []
    ring.publish(b"a")
    claimer._pass_on()
    assert posts.asked == [(0, 5), (0, 6)]


def test_posts_again_without_the_hook(ring: CoreWorkRing, posts: Posts) -> None:
    """What posted a worker once posts it from then on, until it fails; then the hook is asked."""
    for fails in (False, False, True, False):
        posts.fails = fails
        park(ring, 3)
        ring.publish(b"a")
        assert ring.claim(0)
    assert posts.asked == [(0, 3), (0, 3)]
    assert posts.again == [3, 3]


def test_awaiting_worker(ring: CoreWorkRing, posts: Posts) -> None:
    """A worker that awaits in an event loop is posted by the hook each time, for it may sleep on its semaphore next."""
    _core.fetch_or(ring.bus, AWAITING, 1 << 3)
    for _ in range(2):
        park(ring, 3)
        ring.publish(b"a")
        assert ring.claim(0)
    assert posts.asked == [(0, 3), (0, 3)]
    assert posts.again == []


def test_all_subscribers_wake(posts: Posts) -> None:
    """An event wakes every parked subscriber, each once."""
    ring = CoreBroadcastRing(4096)
    _core.fetch_or(ring.bus, SUBSCRIBERS, 0b1011)
    for _ in range(2):
        ring.publish(b"a")
    assert posts.asked == [(-1, 0), (-1, 1), (-1, 3)]
    assert _core.load(ring.bus, SUBSCRIBERS) == 0


def test_close_while_waking(posts: Posts) -> None:
    """A publisher that is closed while it wakes somebody wakes the others too, and the event stays published."""
    ring = CoreBroadcastRing(4096)
    ring.join(0)
    ring.publish(b"a")
    _core.fetch_or(ring.bus, SUBSCRIBERS, 0b110)
    posts.instead = ring.producer._release
    assert ring.publish(b"b") == 2
    assert posts.asked == [(-1, 1), (-1, 2)]
    assert ring.info()["sequence"] == 3


def test_groups_change_while_waking(ring: CoreWorkRing, posts: Posts) -> None:
    """What posts a worker of one group is not taken for that of another group which gets its place meanwhile."""
    ring.publish(b"a")
    assert ring.claim(0)
    other = CoreWorkRing(4096, ring_id=3)
    park(ring, 3)

    def regroup() -> None:
        posts.instead = lambda: None
        ring.producer._set_groups(True, [(other.ring, 1)])

    posts.instead = regroup
    ring.publish(b"b")
    line = _core.GROUP_LINES + _core.LINE + _core.GROUP_PARKED
    _core.fetch_or(ring.bus, line, 1 << 3)
    ring.publish(b"c")
    assert posts.asked == [(0, 3), (1, 3)]
    assert posts.again == []


@pytest.mark.parametrize(
    ("offset", "size", "idle", "error"),
    [
        (-8, 32, "park", IndexError),
        (4, 32, "park", IndexError),
        (_core.BUS_BYTES, 32, "park", IndexError),
        (PARKED, 8, "park", ValueError),
        (PARKED, 32, "sometimes", ValueError),
    ],
)
def test_no_such_place_to_sleep(ring: CoreWorkRing, offset: int, size: int, idle: str, error: type[Exception]) -> None:
    """A handle is bound to a word of the bus segment, a whole semaphore and a known way to wait, or to nothing."""
    claimer = ring.claimer(0)
    with pytest.raises(error):
        claimer._bind(bytearray(size), offset, 1, idle)
    claimer._bind(bytearray(32), PARKED, 1, "park")
    with pytest.raises(IndexError):
        claimer._bind(bytearray(32), PARKED, 1, "park")


@pytest.mark.parametrize("timeout", [float("nan"), "1", object()])
def test_timeout_is_a_number(ring: CoreWorkRing, timeout: Any) -> None:
    """A timeout that is no number of seconds is refused, and nothing is taken."""
    ring.publish(b"a")
    with pytest.raises((TypeError, ValueError)):
        ring.claimer(0).receive(timeout=timeout)
    assert ring.terms()["claimed"] == 0


def test_unbound_handle_does_not_wait(ring: CoreWorkRing) -> None:
    """A handle without a place to sleep finds nothing at once, however long it may wait."""
    assert list(ring.claimer(0)) == []
    assert ring.claimer(0)._next_message() is _core.NOTHING


def test_hook_that_fails(ring: CoreWorkRing, posts: Posts) -> None:
    """What the hook raises goes up, and the event is published all the same."""

    def fail() -> None:
        raise Outcome("no")

    posts.instead = fail
    park(ring, 3)
    with pytest.raises(Outcome):
        ring.publish(b"a")
    assert ring.terms()["depth"] == 1
