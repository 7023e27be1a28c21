"""Link: what one process has of a queue: a bus, and on it what puts and what gets, each opened when needed.

May touch: its bus.

Must stay true: whoever waits in a thread of this process is woken before the words are let go of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shmbus.queues import _words
from shmbus.queues._getting import Getting
from shmbus.queues._ground import Ground
from shmbus.queues._putting import Putting

if TYPE_CHECKING:
    from shmbus.bus import Bus
    from shmbus.queues._ground import Kind
    from shmbus.queues._words import Words


class Link:
    """One process, one queue."""

    def __init__(self, bus: Bus, kind: Kind, words: Words, prefix: str, *, make: bool) -> None:
        """The bus is the link's from now on. `make`: see Ground."""
        try:
            self._ground: Final = Ground(bus, kind, words, prefix, make=make)
        except BaseException:
            bus.close()
            raise
        putting, getting = Putting(self._ground), Getting(self._ground)
        self._opening: Final = (putting.opening, getting.opening)
        self.put: Final = putting.put
        self.get: Final = getting.get
        self.task_done: Final = getting.task_done
        self.join: Final = getting.join
        self.unfinished: Final = getting.unfinished
        self.shutdown: Final = self._ground.shutdown

    def qsize(self) -> int:
        """How many could be got."""
        depth, claimed = self._ground.gauge.look()
        return depth - claimed if self._ground.kind.tasks == _words.CLAIMED else depth

    def interrupt(self) -> None:
        """Before the words are let go of: nobody is to wait for them."""
        self._ground.closed = True
        for opening in self._opening:  # what another thread is about to open, it opens, and closes with the bus
            with opening:
                pass
        for at in (_words.ROOM, _words.ENDS):
            self._ground.words.tell(at)

    def close(self) -> None:
        """Leave; what runs in other threads ends with ClosedError."""
        self._ground.bus.close()
