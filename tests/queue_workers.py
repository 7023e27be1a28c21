"""What the children of these tests run: functions that a spawned process can import."""

from __future__ import annotations

import logging
import logging.handlers
import os
import signal
from contextlib import suppress
from typing import Any

from support import entries, eventually

from shmbus._shm import failpoint
from shmbus.queues import Full, JoinableQueue, Queue, ShutDown


def echo(source: Queue[Any], sink: Queue[Any]) -> None:
    for item in iter(source.get, None):
        sink.put(item)


def put_all(queue: Queue[Any], items: list[Any]) -> None:
    for item in items:
        queue.put(item)


def put_forever(queue: Queue[Any], name: int) -> None:
    count = 0
    while True:
        queue.put((name, count))
        count += 1


def get_forever(queue: Queue[Any]) -> None:
    while True:
        queue.get()


def get_and_stay(queue: Queue[Any], told: Queue[Any], count: int) -> None:
    told.put([queue.get() for _ in range(count)])
    signal.pause()


def dies_at(queue: Queue[Any], point: str) -> None:
    """Puts or gets a large object, and dies at a failpoint."""
    failpoint.arm(point)
    if point in ("queue.counted", "queue.acked"):
        queue.get()
    else:
        queue.put(b"x" * 200_000)
    os._exit(0)


def returns(queue: Queue[Any], size: int, count: int) -> None:
    """Puts its results, and ends."""
    for _ in range(count):
        queue.put(b"x" * size)


def put_large_forever(queue: Queue[Any], name: int) -> None:
    count = 0
    while True:
        queue.put((name, count, b"x" * 150_000))
        count += 1


def wait_for_put(queue: Queue[Any], told: Queue[Any]) -> None:
    told.put("ready")
    queue.put("late")


def wait_for_get(queue: Queue[Any], told: Queue[Any]) -> None:
    told.put("ready")
    try:
        told.put(queue.get())
    except ShutDown:
        told.put("shut down")


def join(queue: JoinableQueue[Any], told: Queue[Any]) -> None:
    told.put("ready")
    queue.join()
    told.put("joined")


def race_for_room(queue: Queue[Any], barrier: Any, rounds: int) -> None:
    """Puts twice if there is room, at the same moment as others, and rests while the parent looks."""
    for number in range(rounds):
        barrier.wait()
        for _ in range(2):
            with suppress(Full):
                queue.put(number, False)
        barrier.wait()
        barrier.wait()


def own_queue(names: Queue[Any]) -> None:
    """Makes a queue, fills it, says its name, and stays."""
    queue: Queue[Any] = Queue()
    queue.put(b"x" * 200_000)
    names.put((queue.name, os.getpid()))
    signal.pause()


def leaves(queue: Queue[Any], after: Any) -> None:
    """Uses what it inherited once its parent is gone."""
    after.wait()
    queue.put("from the orphan")


def log(queue: Queue[Any], number: int) -> None:
    """A process that logs to the queue and nowhere else."""
    root = logging.getLogger()
    root.handlers = [logging.handlers.QueueHandler(queue)]
    root.setLevel(logging.INFO)
    for count in range(50):
        logging.getLogger(f"worker.{number}").info("record %d", count)
    try:
        raise LookupError("not there")
    except LookupError:
        logging.getLogger(f"worker.{number}").exception("failed")


def nothing_left(name: str) -> None:
    """Wait until nothing of a queue is left."""
    eventually(lambda: not entries(name), lambda: f"left: {entries(name)}")


def twice(tasks: Any, results: Any) -> None:
    """Doubles arrays in place, as code does that knows nothing of shared memory."""
    while (array := tasks.get()) is not None:
        array *= 2
        results.put(array)


def spoil_and_die(name: str) -> None:
    """Writes into an array that it got, and dies with its task."""
    queue: Queue[Any] = Queue(name=name, redeliver=True)
    array = queue.get(timeout=30)
    array += 7
    os._exit(1)
