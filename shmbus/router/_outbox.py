"""Outbox: the publishers of one run of a router, one a topic, shared by all its handlers.

May touch: publishers that it opens. Must stay true: no lock is held while an event is published.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from shmbus.errors import ClosedError
from shmbus.middleware.protocol import current

if TYPE_CHECKING:
    from shmbus.bus import Bus
    from shmbus.publisher import Publisher
    from shmbus.topic import Topic


class Outbox:
    """Any number of threads and tasks."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._lock = threading.Lock()
        self._publishers: dict[Topic[Any], Publisher[Any]] = {}
        self._closed = False

    def open(self, topic: Topic[Any]) -> Publisher[Any]:
        """The publisher of a topic, opened at its first use."""
        found = self._publishers.get(topic)
        if found is not None:
            return found
        opened = self._bus.publisher(topic)
        with self._lock:
            kept = opened if self._closed else self._publishers.setdefault(topic, opened)
        if kept is not opened or self._closed:  # another thread was faster
            opened.close()
        return kept

    def publish(self, topic: Topic[Any], event: Any, headers: dict[str, Any] | None = None) -> int | None:
        """Publish with the headers that the event in hand passes on. Raises what `Publisher.publish` does."""
        return self.open(topic).publish(event, headers=_merged(headers))

    async def apublish(self, topic: Topic[Any], event: Any, headers: dict[str, Any] | None = None) -> int | None:
        """The same in an event loop."""
        return await self.open(topic).apublish(event, headers=_merged(headers))

    def close(self) -> None:
        """Close all; whoever waits for room in one gets ClosedError."""
        with self._lock:
            self._closed = True
            publishers = list(self._publishers.values())
        for publisher in publishers:
            publisher.close()


def _merged(headers: dict[str, Any] | None) -> dict[str, Any] | None:
    delivery = current.get()
    if delivery is None:
        return headers
    if delivery.over:
        raise ClosedError(f"the time of {delivery.handler} for event {delivery.id} is up: nothing more is published")
    return {**delivery.outgoing, **(headers or {})} or None
