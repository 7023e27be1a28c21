"""Putting: the half of a link that has the publisher.

May touch: the publisher of its bus, the bit of this process in the queue's words, files of large pickles.

Must stay true:
- Bound: whoever puts has first said so, then counted who else had, then what is in. So of two that race for the last
  place each sees the other, and the later one both; docs/queues.md has the proof. Nobody waits for anybody's lock.
- What is in a ring stays there when its publisher goes on in a larger one: it is older, and comes first.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final

from shmbus import _core
from shmbus._shm import place
from shmbus._shm.failpoint import reach
from shmbus.errors import ClosedError, EventTooLargeError, Full, NoSpaceError, QueueFull, ShutDown
from shmbus.queues import _words
from shmbus.queues._ground import BOUND, CAPACITY, LOOK, SHUT
from shmbus.queues._large import sweep, written
from shmbus.queues._pickling import PICKLING, Apart
from shmbus.topic import MAX_CAPACITY

if TYPE_CHECKING:
    from shmbus.publisher import Publisher
    from shmbus.queues._ground import Ground

_GROWS: Final = 1 << 30  # bytes of the last ring
_SHARE: Final = 4  # of what /dev/shm has left a new ring may take one part in so many; each is two and a half rings
_NAP: Final = 0.005  # seconds: the longest wait for others of whom each found no room because of the other
_YIELDS: Final = 100  # of the processor, before such a wait naps: the other one is in within microseconds, or dead
_NAPS: Final = 200  # before who does not want to wait is told that it is full: the other one is stopped
_DOZE: Final = 0.0001  # seconds; those who get take less than a ring, or half of a long queue, meanwhile
_LONG_DOZE: Final = 0.001  # while nobody gets anything
_SHORT: Final = 0.0003  # of dozes in which nobody got anything: then a sleep until somebody does, or a larger ring
_LONG: Final = (
    0.03  # the same before a larger ring, where somebody gets: who does may not run for so long, on a busy machine
)
_MANY: Final = 64  # places, from which on that pays

_IN, _FULL, _CONTENDED = range(3)


class _NoRoom(Exception):
    """The note of a large pickle found no room, so that its file goes."""


class Putting:
    """Puts, from any thread of this process."""

    def __init__(self, ground: Ground) -> None:
        self._ground: Final = ground
        self._publisher: Publisher[Any] | None = None
        self.opening: Final = threading.RLock()
        self._lock: Final = threading.Lock()
        self._next_sweep = 0.0
        self._quick: Final = ground.quick
        self._pickles: Final = ground.kind.pickles
        self._bounded: Final = ground.kind.maxsize > 0
        self._dozes: Final = not self._bounded or ground.kind.maxsize >= _MANY
        self._patience = 0.0  # seconds, of an unbounded queue; 0: to be found out
        self._end: Final = _core.Putter(
            ground.words.map,
            _words.SHUT,
            _words.ENDING | _words.DISCARDED,
            rest=self._put_the_rest,
            over=self._over,
            late=self._late,
            refusals=(Full, EventTooLargeError, ClosedError),
            at_most=ground.gauge.at_most,
            acquire=self._lock.acquire,
            release=self._lock.release,
            **(PICKLING if self._pickles else {}),
        )
        self.put: Final = self._end.put
        """Put one. Raises Full, ShutDown, and what the encoder raises."""

    def _over(self) -> None:
        raise ShutDown("the queue was shut down: nothing more can be put")

    def _late(self) -> None:
        raise ShutDown("the queue was shut down meanwhile: nobody may get what was put")

    def _put_the_rest(self, payload: Any, block: bool, timeout: float | None) -> None:
        """Put what was not put at once."""
        if self._try_put(payload, False) != _IN:
            self._put_slowly(payload, block, timeout)

    def _put_slowly(self, payload: Any, block: bool, timeout: float | None) -> None:
        """Put once there is room. While others get, doze: who is woken for each free place puts one at a time."""
        deadline = None if timeout is None else time.monotonic() + timeout
        ground, words, naps, asked = self._ground, self._ground.words, 0, False
        idle, doze, patience = 0.0, _DOZE, self._patient() if block and self._dozes else 0.0
        while True:
            seen = words.awaiting(_words.ROOM) if asked else 0
            before = ground.gauge.at_most()
            left = BOUND if deadline is None else deadline - time.monotonic()
            found = self._try_put(payload, idle >= patience or left <= 0)
            if found == _IN:
                return
            if not block or left <= 0:
                if found == _FULL or naps > _NAPS:
                    raise QueueFull(f"no room in the queue: maxsize={ground.kind.maxsize}")
                left = _NAP
            if self._quick[SHUT]:
                self._over()
            if found == _CONTENDED:
                naps += 1
                time.sleep(0 if naps < _YIELDS else min(_NAP, left))
                if naps > _YIELDS:
                    words.bury()
            elif idle < patience:
                time.sleep(min(doze, left))
                if ground.gauge.at_most() < before:
                    idle, doze, patience = 0.0, _DOZE, self._patient(got=True)
                else:
                    idle, doze = idle + doze, min(2 * doze, _LONG_DOZE)
            elif asked:
                words.wait(_words.ROOM, seen, min(left, LOOK))
                ground.require_open()
            asked = idle >= patience

    def _patient(self, *, got: bool = False) -> float:
        """How long nobody may get anything before a larger ring: long where somebody just did, short where nobody can,
        and half as long with each ring from which nobody has got anything.
        """
        if self._bounded:
            return _SHORT
        if got:
            self._patience = _LONG
        elif not self._patience:
            self._patience = _LONG if self._ground.gauge.attended() else _LONG / 8
        return self._patience

    def _try_put(self, payload: Any, grow: bool) -> int:
        if not self._bounded:
            return self._publish(payload, grow)
        maxsize, words, gauge = self._ground.kind.maxsize, self._ground.words, self._ground.gauge
        with self._lock:  # one of this process at a time: its bit is one
            try:
                others = words.begin_put()
                if gauge.at_most() + others >= maxsize:
                    there, claimed = gauge.look()
                    if self._ground.kind.tasks == _words.CLAIMED:
                        there -= claimed
                    if there + others >= maxsize:
                        return _CONTENDED if others and there < maxsize else _FULL
                reach("queue.putting")
                return self._publish(payload, grow)
            finally:
                words.end_put()

    def _publish(self, payload: Any, grow: bool) -> int:
        """Publish; beside the ring, or in a larger one, what it does not take."""
        if isinstance(payload, Apart):
            return self._publish_beside(payload, grow)
        while True:
            publisher = self._publisher or self._open_publisher()
            try:
                publisher.publish(payload)
                return _IN
            except Full:
                if not grow or not self._grow(publisher):
                    return _FULL
            except ClosedError:
                if self._publisher is publisher:  # or another thread has a larger one meanwhile
                    raise
            except EventTooLargeError as error:
                if self._pickles:
                    return self._publish_beside(payload, grow)
                if not self._grow(publisher, error.size):
                    raise

    def _publish_beside(self, payload: bytes | Apart, grow: bool) -> int:
        if time.monotonic() >= self._next_sweep:
            self._next_sweep = time.monotonic() + BOUND
            if not self._ground.gauge.look()[0]:
                sweep(self._ground.prefix, lambda: self._ground.gauge.look()[0])
        try:
            with written(self._ground.prefix, payload) as note:
                if self._publish(note, grow) == _FULL:
                    raise _NoRoom
        except _NoRoom:
            return _FULL
        return _IN

    def _open_publisher(self, capacity: int = CAPACITY) -> Publisher[Any]:
        with self.opening:
            self._ground.require_open()
            if self._publisher is not None:
                return self._publisher
            return self._go_by(self._ground.bus.publisher(self._ground.kind.topic(capacity), on_full="raise"))

    def _go_by(self, publisher: Publisher[Any]) -> Publisher[Any]:
        words, maxsize = self._ground.words, self._ground.kind.maxsize
        if self._bounded:
            self._end.bound(maxsize, *words.own_bit())
        self._publisher = publisher
        self._end.goes_by(publisher.publish)
        return publisher

    def _grow(self, full: Publisher[Any], size: int = 0) -> bool:
        """Go on in a larger ring; the old one is drained first, for it is older. False: it is as large as it may be."""
        with self.opening:
            if self._publisher is not full:
                return True  # another thread has done it
            capacity = 2 * full.topic.capacity
            while capacity // 4 < size + 64:
                capacity *= 2
            if capacity > (MAX_CAPACITY if size else _GROWS) or 5 * capacity // 2 > place.free_bytes() // _SHARE:
                return False
            topic = self._ground.kind.topic(capacity)
            try:
                larger = self._ground.bus.publisher(topic, on_full="raise")
            except NoSpaceError:
                if size:
                    raise
                return False
            self._go_by(larger)
            full.close()
            self._patience = max(_SHORT, self._patience / 2)
            return True
