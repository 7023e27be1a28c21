"""Queues with the interface of multiprocessing's, on a bus: a killed process hurts nobody who uses them.

    _queue       what users hold: Queue, JoinableQueue, SimpleQueue
    _home        a queue in one process, and what of it a fork inherits
    _link        what a process has of it: _putting, with a publisher, and _getting, with a worker, on their _ground
    _words       flags, wake-ups and slots that the processes share
    _large       pickles that no ring takes
    _pickling    pickles with the reducers of multiprocessing

docs/queues.md says where they differ from what they stand in for.
"""

from __future__ import annotations

from queue import Empty, Full

from shmbus.errors import QueueClosedError, ShutDown
from shmbus.queues._queue import JoinableQueue, Queue, SimpleQueue

__all__ = ["Empty", "Full", "JoinableQueue", "Queue", "QueueClosedError", "ShutDown", "SimpleQueue"]
