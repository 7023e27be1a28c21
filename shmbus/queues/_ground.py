"""Ground: what the two halves of a link stand on, and what ends a queue.

May touch: the queue's words, and, to end it, its group.

Must stay true:
- What is in the queue is what the group is owed: nothing else counts it, so a death leaves no count wrong.
- Once nothing may be put and nothing is left the group goes, and with it every wait for more.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from shmbus.errors import ClosedError, ConfigError, ReclaimedError
from shmbus.gauge import Gauge
from shmbus.queues import _words
from shmbus.topic import Topic

if TYPE_CHECKING:
    from shmbus.bus import Bus
    from shmbus.queues._words import Words

GROUP: Final = "queue"
TOPIC: Final = "queue"
CAPACITY: Final = 1 << 18  # bytes of a first ring: it stays in the cache of a core
BOUND: Final = 1.0  # seconds of a sleep: what it costs that somebody died who should have ended it
LOOK: Final = 0.25  # seconds between two looks for the dead of who is held up by them
SHUT: Final = _words.SHUT // 8


class Kind:
    """What all links of a queue agree on."""

    def __init__(self, maxsize: int, tasks: int, type: Any, codec: Any, max_deliver: int) -> None:
        self.maxsize: Final = maxsize
        self.tasks: Final = tasks
        self.pickles: Final = type is None
        self.max_deliver: Final = max_deliver
        self.type: Final = type
        self.codec: Final = codec
        self.topic()  # raises ConfigError

    def topic(self, capacity: int = CAPACITY) -> Topic[Any]:
        """The one place where the topic of a queue is made."""
        if self.pickles:
            return Topic(TOPIC, bytes, capacity=capacity)
        return Topic(TOPIC, self.type, codec=self.codec or "msgpack", capacity=capacity)


class Ground:
    """One process, one queue."""

    def __init__(self, bus: Bus, kind: Kind, words: Words, prefix: str, *, make: bool) -> None:
        """`make`: its group, if need be. Whoever had the queue from another one need not: that one has done it."""
        self.bus: Final = bus
        self.kind: Final = kind
        self.words: Final = words
        self.quick: Final = words.quick
        self.prefix: Final = prefix
        self.topic: Final = kind.topic()
        self.gauge: Final = Gauge(bus, self.topic, GROUP)
        self.closed = False
        if make and not self.quick[SHUT]:
            bus.group(self.topic, GROUP)

    def require_open(self) -> None:
        """Raise ClosedError once this process has closed it."""
        if self.closed:
            raise ClosedError("the queue is closed")

    def shutdown(self, immediate: bool) -> None:
        """End it for all processes."""
        self.words.shut(_words.NO_PUTS | (_words.DISCARDED if immediate else 0))
        if immediate:
            self.end()
        else:
            self.end_if_empty()
        self.words.tell(_words.ROOM)
        self.words.tell(_words.ENDS)

    def end_if_empty(self) -> None:
        """Once nothing is left the group goes: so everybody who waits for more is told.

        A put that saw no ENDING is seen by the second look, and one that saw it raises.
        """
        if self.gauge.look()[0]:
            return
        if not self.words.shut(_words.ENDING) & _words.DISCARDED and not self.gauge.look()[0]:
            self.end()

    def end(self) -> None:
        """Remove the group: all waits for it end, and what is in it is dropped."""
        with suppress(ConfigError, ReclaimedError):  # somebody else has
            self.bus.remove_group(self.topic, GROUP, force=True)
        self.words.tell(_words.ENDS)
