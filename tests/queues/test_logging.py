"""The logging of many processes through one queue, as the standard library's cookbook has it."""

from __future__ import annotations

import logging
import logging.handlers
import multiprocessing
from typing import Any

import pytest
import queue_workers

from shmbus.queues import Queue


class Kept(logging.Handler):
    """What a listener passed on."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_queue_handler_and_listener(method: str) -> None:
    """Every record of every process reaches the listener's handlers, in the order of its process."""
    context: Any = multiprocessing.get_context(method)
    queue: Queue[Any] = Queue()
    kept = Kept()
    listener = logging.handlers.QueueListener(queue, kept)
    listener.start()
    children = [context.Process(target=queue_workers.log, args=(queue, number)) for number in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    listener.stop()
    queue.close()
    assert not [r.getMessage() for r in kept.records if r.name.startswith("shmbus")]  # no word of the queue itself
    for number in range(3):
        mine = [r.getMessage() for r in kept.records if r.name == f"worker.{number}"]
        assert mine[:50] == [f"record {count}" for count in range(50)]
        assert "LookupError: not there" in mine[50]
