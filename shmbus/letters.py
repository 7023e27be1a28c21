"""Letters: how this process writes the dead letters of one topic. Made by `Bus`; its workers of the topic share it.

May touch: one publisher of the dead-letter topic, which it opens at first use, and again where a letter needs a larger
ring.

Must stay true:
- Nobody waits here for longer than `PATIENCE`, a call that blocks an event loop not at all: a dead-letter topic without
  room must not stop the group. What finds no room is an error, and the event is its worker's to give back.
- A letter that no ring can hold is cut, and says so, rather than be in the way for ever.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from shmbus._shm.failpoint import reach
from shmbus.errors import CapacityError, ClosedError, EventTooLargeError, Full, NoSpaceError
from shmbus.topic import DeadLetter, dead_letter_topic

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmbus._ledger.document import Document
    from shmbus.publisher import Publisher
    from shmbus.topic import Topic

PATIENCE: Final = 1.0
"""Seconds that a letter waits for room: the timeout of the publishers."""
RESPITE: Final = 10.0
"""Seconds after such a wait in vain in which the next ones do not wait: a worker loses a tenth of its time at most."""
_SLACK: Final = 16  # bytes that a longer length and `truncated` may take in the encoding
_TRIES: Final = 3  # as it is, in a larger ring, cut


class Letters:
    """The way to a dead-letter topic. Any number of threads."""

    def __init__(
        self,
        topic: Topic[Any],
        open_publisher: Callable[[Topic[DeadLetter]], Publisher[DeadLetter]],
        document: Callable[[], Document],
    ) -> None:
        self._topic = topic
        self._open_publisher = open_publisher
        self._document = document
        self._lock = threading.RLock()
        self._publisher: Publisher[DeadLetter] | None = None
        self._capacity = 0
        self._hasty_until = 0.0

    def write(self, letter: DeadLetter) -> DeadLetter:
        """Publish a letter; returns it as it was written, maybe cut.

        Raises Full after `PATIENCE`, in an event loop at once, and what opening a publisher raises.
        """
        publisher = self._opened()
        for _ in range(_TRIES):
            waits = not (_in_event_loop() or self._hasty())
            try:
                if waits:
                    publisher.publish(letter)
                else:
                    publisher.publish_now(letter)
                return self._written(letter)
            except (EventTooLargeError, ClosedError, Full) as error:
                publisher, letter = self._after(error, publisher, letter, waits)
        raise ClosedError(f"the publisher of {letter.topic!r}'s dead letters is closed again and again")

    async def awrite(self, letter: DeadLetter) -> DeadLetter:
        """`write` in an event loop, which goes on while this waits. A cancelled call has written it or not."""
        publisher = self._opened()
        for _ in range(_TRIES):
            waits = not self._hasty()
            try:
                if waits:
                    await publisher.apublish(letter)
                else:
                    publisher.publish_now(letter)
                return self._written(letter)
            except (EventTooLargeError, ClosedError, Full) as error:
                publisher, letter = self._after(error, publisher, letter, waits)
        raise ClosedError(f"the publisher of {letter.topic!r}'s dead letters is closed again and again")

    def _hasty(self) -> bool:
        return time.monotonic() < self._hasty_until

    def _written(self, letter: DeadLetter) -> DeadLetter:
        self._hasty_until = 0.0
        return letter

    def _after(
        self,
        error: EventTooLargeError | ClosedError | Full,
        publisher: Publisher[DeadLetter],
        letter: DeadLetter,
        waited: bool,
    ) -> tuple[Publisher[DeadLetter], DeadLetter]:
        """What to try next: another publisher, since this one is closed or too small, or less of the letter."""
        if isinstance(error, Full):
            if waited:
                self._hasty_until = time.monotonic() + RESPITE
            raise error
        if isinstance(error, ClosedError):  # by another thread, which opened a larger one
            return self._opened(), letter
        larger = self._larger(publisher)
        return larger, letter if larger is not publisher else _cut(letter, error.maximum)

    def _opened(self) -> Publisher[DeadLetter]:
        with self._lock:
            if self._publisher is None or self._publisher.closed:
                self._publisher, self._capacity = self._open(self._largest_ring())
            return self._publisher

    def _open(self, largest: int) -> tuple[Publisher[DeadLetter], int]:
        """A publisher for letters out of the largest ring, or, where there is no room for that, a usual one."""
        topic, usual = dead_letter_topic(self._topic, capacity=largest), dead_letter_topic(self._topic)
        try:
            return self._open_publisher(topic), topic.capacity
        except NoSpaceError:
            if topic == usual:
                raise
            return self._open_publisher(usual), usual.capacity

    def _largest_ring(self) -> int:
        """Capacity of the largest ring that a letter may come out of."""
        document = self._document()
        entry = document.topic_named(self._topic.name)
        return max((r.capacity for r in document.rings if entry is not None and r.topic == entry.index), default=0)

    def _larger(self, publisher: Publisher[DeadLetter]) -> Publisher[DeadLetter]:
        """A publisher with larger rings, if somebody's events need them by now and there is room; else the same."""
        with self._lock:
            if self._publisher is not publisher:
                return self._opened()
            topic = dead_letter_topic(self._topic, capacity=self._largest_ring())
            if topic.capacity <= self._capacity:
                return publisher
            try:
                self._publisher = self._open_publisher(topic)
            except (NoSpaceError, CapacityError):
                return publisher
            self._capacity = topic.capacity
        reach("letters.reopened")
        publisher.close()  # its letters stay for who reads them
        return self._publisher


def _in_event_loop() -> bool:
    asyncio = sys.modules.get("asyncio")  # no loop runs where it was never loaded, and that takes 30 ms
    return asyncio is not None and asyncio._get_running_loop() is not None


def _cut(letter: DeadLetter, maximum: int) -> DeadLetter:
    """The letter with as much of its payload as goes into `maximum` bytes."""
    rest = len(msgspec.msgpack.encode(msgspec.structs.replace(letter, payload=b"")))
    room = max(0, maximum - rest - _SLACK)
    return msgspec.structs.replace(letter, payload=letter.payload[:room], truncated=len(letter.payload) - room)
