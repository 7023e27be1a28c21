"""Failpoints: named lines at which tools/kill_campaign.py has a process die, so that no crash order is merely claimed.

May touch: its own process, by SIGKILL, and only where `arm` was called; nothing in the library calls it.

Must stay true: every name in POINTS is reached by a `reach` call, and stands where a death leaves something half-done.
"""

from __future__ import annotations

import os
import signal
from typing import Final

POINTS: Final = (
    "segment.begun",
    "segment.filled",
    "segment.linked",
    "lock.taken",
    "lock.releasing",
    "commit.written",
    "commit.stored",
    "life.begun",
    "attach.committed",
    "schema.created",
    "ring.created",
    "pool.created",
    "publisher.rings",
    "publisher.committed",
    "subscriber.joining",
    "subscriber.ring",
    "subscriber.joined",
    "lanes.created",
    "group.rings",
    "grow.ring",
    "grow.committed",
    "worker.committed",
    "server.line",
    "server.replied",
    "bury.published",
    "bury.refused",
    "letters.reopened",
    "router.handled",
    "group.leaving",
    "group.abandoned",
    "group.closed",
    "overdue.taken",
    "quarantine.committed",
    "rejoin.gated",
    "close.shrunk",
    "close.leaving",
    "close.ring",
    "close.claims",
    "close.worker",
    "sweep.given_up",
    "sweep.committed",
    "pool.dropped",
    "pool.retired",
    "pool.forgetting",
    "pool.forgotten",
    "forget.committed",
    "reclaim.begun",
    "reclaim.noted",
    "reclaim.workers",
    "reclaim.consumers",
    "reclaim.views",
    "reclaim.publishers",
    "reclaim.done",
    "office.taken",
    "office.entered",
    "remove.marked",
    "remove.unlinked",
    "remove.segment",
    "journal.written",
    "journal.committed",
    "journal.mending",
)

QUEUE_POINTS: Final = (
    "queue.putting",
    "queue.counted",
    "queue.acked",
    "large.begun",
    "large.written",
    "large.put",
)
"""Those of queues, which tests/queues/test_kills.py has somebody die at."""

_armed: str = ""
_left: int = 0


def arm(point: str, visits: int = 1) -> None:
    """Let this process die at its `visits`-th visit to a point. Raises ValueError for an unknown one."""
    global _armed, _left
    if point not in POINTS + QUEUE_POINTS:
        raise ValueError(f"no failpoint {point!r}")
    _armed, _left = point, visits


def reach(point: str) -> None:
    """Die here if armed."""
    global _left  # noqa: PLW0603
    if point != _armed:
        return
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
