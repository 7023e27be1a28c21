"""Deduplicate: an event that was handled already is done.

Must stay true: an event counts as handled once its handler has returned; one that failed, or died, may come again.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, Protocol

from shmbus._log import logger
from shmbus.errors import ConfigError
from shmbus.middleware.protocol import Redeliver, Sleep, check_count, check_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from shmbus.middleware.protocol import Delivery, Steps

_BUSY: Final = 0.05
"""Seconds until an event is looked at again whose twin is being handled right now."""

_log = logger("shmbus.router")


class Seen(Protocol):
    """What Deduplicate remembers in: a database, say, where the processes of a group are to remember together."""

    def __contains__(self, key: Hashable, /) -> bool:
        """Whether the key was added, within the window that this store is for."""
        ...

    def add(self, key: Hashable, /) -> object:
        """Remember a key."""
        ...


class Window:
    """The keys of the last `seconds`, `most` of them at most; the oldest are forgotten first. Any number of threads."""

    def __init__(self, seconds: float, most: int) -> None:
        self._seconds = seconds
        self._most = most
        self._lock = threading.Lock()
        self._added: OrderedDict[Hashable, float] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        with self._lock:
            self._forget()
            return key in self._added

    def add(self, key: Hashable) -> None:
        """Remember a key, as of now."""
        with self._lock:
            self._added[key] = time.monotonic()
            self._added.move_to_end(key)
            self._forget()

    def _forget(self) -> None:
        oldest = time.monotonic() - self._seconds
        while self._added and (len(self._added) > self._most or next(iter(self._added.values())) < oldest):
            self._added.popitem(last=False)


class Deduplicate:
    """Takes an event for done whose `key` was handled within the last `window` seconds: by `Message.id`, or by what
    `key` makes of the event.

    Remembers `most` keys in this process; `seen` is another memory, which decides by itself how long it keeps what. An
    event whose twin is being handled waits for the outcome: a worker's is given back for a moment, at no attempt.
    """

    def __init__(
        self,
        key: Callable[[Any], Hashable] | None = None,
        *,
        window: float = 300.0,
        most: int = 100_000,
        seen: Seen | None = None,
    ) -> None:
        if key is not None and not callable(key):
            raise ConfigError(f"key is None or a callable that takes the event: key={key!r}")
        self.key: Final = key
        self.seen: Final = Window(check_seconds("window", window), check_count("most", most)) if seen is None else seen
        self._lock = threading.Lock()
        self._busy: set[Hashable] = set()

    def __call__(self, delivery: Delivery[Any]) -> Steps:
        """See Middleware."""
        key = (delivery.consumer, delivery.id if self.key is None else self.key(delivery.event))
        while not self._begin(key):
            if delivery.can_come_again:
                raise Redeliver(_BUSY, counts=False)
            yield Sleep(_BUSY)
        try:
            if key in self.seen:
                _log.info("%s, event %s: handled already: key=%r", delivery.handler, delivery.id, key[1])
                return None
            result = yield
            self.seen.add(key)
            return result
        finally:
            with self._lock:
                self._busy.discard(key)

    def _begin(self, key: Hashable) -> bool:
        with self._lock:
            if key in self._busy:
                return False
            self._busy.add(key)
            return True
