"""What an event leaves behind when it is refused, and what is remembered of arrays that change."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
import pytest
from frames import MIB

import shmbus


class View(msgspec.Struct):
    data: memoryview


def test_fields_that_are_renamed(bus_name: str) -> None:
    """Fields that are renamed in place travel by their new names, and rename those of no other loan."""
    topic = shmbus.Topic("any", np.ndarray, pool=MIB)
    with shmbus.Bus(bus_name) as bus, bus.subscriber(topic) as sub, bus.publisher(topic) as pub:
        array: Any = np.zeros(5, [("a", "i4"), ("b", "i4")])
        for names in (("a", "b"), ("a", "b"), ("x", "y"), ("a", "b")):
            array.dtype.names = names
            pub.publish(array)
            assert sub.receive(timeout=5).dtype.names == names
        pub.empty(5, "i4,f8").dtype.names = ("x", "y")
        assert pub.empty(5, "i4,f8").dtype.names == ("f0", "f1")


def test_a_refused_event_exports_nothing(bus_name: str) -> None:
    """Full leaves a memoryview free to be released, while it is on its way."""
    topic = shmbus.Topic("views", View, pool=64 * 1024)
    data = bytearray(40000)
    with shmbus.Bus(bus_name) as bus, bus.subscriber(topic), bus.publisher(topic, on_full="raise") as pub:
        with memoryview(data) as first:
            pub.publish(View(first))
        with pytest.raises(shmbus.Full) as full, memoryview(data) as view:
            pub.publish(View(view))
        data.append(1)
        assert full.value is not None


def test_empty_of_more_than_there_is(bus_name: str) -> None:
    """What no pool could hold is refused each time, however large it is."""
    topic = shmbus.Topic("any", np.ndarray, pool=MIB)
    with shmbus.Bus(bus_name) as bus, bus.publisher(topic) as pub:
        for _ in range(2):
            with pytest.raises(shmbus.EventTooLargeError):
                pub.empty((2**40, 2**40))


def test_views_of_one_memoryview(bus_name: str) -> None:
    """Arrays that share a memoryview are all writable again when their event was not published."""
    topic = shmbus.Topic("list", list[np.ndarray], pool=8 * MIB, capacity=4096)
    with shmbus.Bus(bus_name) as bus, bus.subscriber(topic), bus.publisher(topic, on_full="raise") as pub:
        whole: Any = np.frombuffer(pub.buffer(20000), np.uint8)
        views = [whole[:8000], whole[8000:16000]]
        with suppress(shmbus.Full):
            while True:
                pub.publish_now([np.zeros(0, np.uint8), np.zeros(0, np.uint8)])
        with pytest.raises(shmbus.Full):
            pub.publish_now(views)
        assert all(view.flags.writeable for view in (whole, *views))
