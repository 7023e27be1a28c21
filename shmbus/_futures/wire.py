"""Words of the wire between an executor and its workers, and the topics that they go through.

Tasks are work of one group. A task's word in the shared table says who began it: the executor stores (id, 0) before it
publishes the task, the worker that claimed it (id, its number) before it acks. A word has one writer at a time, for a
claim is one worker's. So at a death it is known which task was in hand, and a task that comes again is begun once:

    claimed, word (id, 0)       nobody began it: whoever gets it again does
    word (id, n), not acked     n began it and is dead: whoever gets it again lets go of it; the executor decides
    acked                       it does not come again
"""

from __future__ import annotations

from typing import Final

import msgspec

from shmbus._futures.parcels import Parcel
from shmbus.topic import Topic

GROUP: Final = "workers"
SLOTS: Final = 1 << 12
"""Words of the table: tasks that may be with the workers at once."""
NUMBERS: Final = 1 << 16
"""Workers that are told apart; the numbers come again after so many."""


class Task(msgspec.Struct, array_like=True, frozen=True):
    """A call. Id 0: whoever gets it shall leave."""

    id: int
    slot: int
    parcel: Parcel


class Ready(msgspec.Struct, tag="r", array_like=True, frozen=True):
    """A worker has begun; `error` is what its initializer raised, with the traceback."""

    worker: int
    error: str = ""


class Done(msgspec.Struct, tag="d", array_like=True, frozen=True):
    """A task is done. `raised`: the parcel is the exception's."""

    worker: int
    id: int
    raised: bool
    parcel: Parcel
    free: bool
    """Nothing of the worker refers to the block of its arguments."""
    last: bool = False
    """The worker leaves: it has had as many as it may."""
    heavy: bool = False
    """It holds more memory than it may."""


class Ended(msgspec.Struct, tag="e", array_like=True, frozen=True):
    """From the executor to itself: a worker's process has ended. `code` None: nobody knows how."""

    worker: int
    code: int | None


class Look(msgspec.Struct, tag="l", array_like=True, frozen=True):
    """From the executor to itself: there is something to do."""


News = Ready | Done | Ended | Look


def topics() -> tuple[Topic[Task], Topic[Ready | Done | Ended | Look]]:
    """Tasks, and news of them: the one place where the topics of an executor are made."""
    return Topic("tasks", Task, capacity=1 << 20), Topic("news", News, capacity=1 << 18)


def word(id: int, worker: int) -> int:
    """What a task's word holds."""
    return id << 16 | worker
