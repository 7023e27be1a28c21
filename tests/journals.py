"""What the tests of journals share: a recorder in a thread or a process, and what a journal has."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from events import ORDERS, Order
from support import Processes, eventually

import shmbus
from shmbus.journal import Recorder


@contextmanager
def recording(bus: shmbus.Bus, path: Path, topic: Any = ORDERS, **options: Any) -> Iterator[Recorder]:
    """A recorder that writes in a thread; it has its group once the block begins, and has ended when it is left."""
    failed: list[BaseException] = []
    with Recorder(bus, topic, path, **options) as recorder:

        def run() -> None:
            try:
                recorder.run()
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            eventually(lambda: failed or groups(bus), "the group of the journal")
            yield recorder
        finally:
            recorder.stop()
            thread.join()
    if failed:
        raise failed[0]


def groups(bus: shmbus.Bus) -> list[shmbus.ConsumerStats]:
    """The groups of journals that have a worker."""
    return [c for c in bus.stats().consumers if c.name.startswith("journal:") and c.workers]


def settled(bus: shmbus.Bus) -> bool:
    """No journal of the bus is owed anything."""
    found = [c for c in bus.stats().consumers if c.name.startswith("journal:")]
    return bool(found) and not any(c.depth for c in found)


def ids(path: Path, **options: Any) -> list[int]:
    """The ids of the orders that a journal has, in the order of the replay."""
    with shmbus.Journal(path) as journal:
        return [message.event.id for message in journal.replay(ORDERS, **options)]


def command(*words: object) -> list[str]:
    """The command line of `shmbus`."""
    return [sys.executable, "-m", "shmbus", *map(str, words)]


def journal_process(processes: Processes, bus: str, path: Path, *options: str, **more: Any) -> subprocess.Popen[str]:
    """`shmbus journal` of the topic "orders"."""
    more.setdefault("stderr", subprocess.DEVNULL)
    return processes.run(command("journal", bus, "--topic", "orders", "--path", path, *options), **more)


def publish(publisher: shmbus.Publisher[Order], orders: Iterable[Order]) -> None:
    """Publish each by itself."""
    for order in orders:
        publisher.publish(order)
