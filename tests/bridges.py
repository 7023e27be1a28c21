"""What the tests of bridges share: a bridge in a thread, topics and brokers of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import support
from brokers import Broker
from events import PATIENT, Order

import shmbus
from shmbus.bridge import Bridge


@contextmanager
def bridging(bus: shmbus.Bus, broker: Broker | str, **options: Any) -> Iterator[Bridge]:
    """A bridge that runs in a thread, and has ended when the block is left."""
    bridge = Bridge(bus, broker if isinstance(broker, str) else broker.url, **options)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            bridge.run()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield bridge
    except Exception:
        if failed:
            raise failed[0] from None  # which is why the test waited in vain
        raise
    finally:
        bridge.stop()
        thread.join()
    if failed:
        raise failed[0]


eventually = partial(support.eventually, seconds=2 * PATIENT)
"""A bridge whose broker was away looks for it every ten seconds; a group of Kafka's may take as many to form."""


def topic_of(bus_name: str) -> shmbus.Topic[Order]:
    """A topic that no other test has, for brokers keep what is in theirs."""
    return shmbus.Topic(f"orders-{bus_name}", Order)


def group_is_there(bus: shmbus.Bus) -> bool:
    """The bridge of the bus sends: what is published from now on is owed to it, and it has been at the broker."""
    return any(c.workers for c in bus.stats().consumers)


def receives(bus: shmbus.Bus) -> bool:
    """The bridge of the bus has its place at the broker: what is sent from now on is kept for it."""
    return any(p.name.startswith("bridge:") for p in bus.stats().publishers)


def arriving(subscriber: shmbus.Subscriber[Order]) -> Iterator[shmbus.Message[Order]]:
    """Messages; fails where the next one does not come."""
    messages = subscriber.messages()
    while True:
        timer = threading.Timer(PATIENT, subscriber.cancel)
        timer.start()
        try:
            message = next(messages, None)
        finally:
            timer.cancel()
        assert message is not None, f"no event within {PATIENT:g} s"
        yield message


def own(kind: type[Broker], folder: Path, **options: Any) -> Broker:
    """A broker for one test, not yet started."""
    if why := kind.unavailable():
        pytest.skip(why)
    return kind(folder, **options)
