"""What a router keeps of an event that it has handled: nothing."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from frames import MIB, Frame, used
from routes import Failure, depth, running
from support import eventually

import shmbus
from shmbus import middleware

FRAMES = shmbus.Topic("frames", np.ndarray, pool=MIB)


@pytest.fixture
def no_collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in which cycles stay: one that waits for an event makes nothing that would start the collector."""
    monkeypatch.setattr(logging.getLogger("shmbus.router"), "disabled", True)  # pytest keeps the tracebacks of a log
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("kind", ["thread", "timed", "poison", "task"])
@pytest.mark.parametrize("fails", [False, True], ids=["handled", "failed"])
def test_views_of_what_was_handled(bus_name: str, no_collector: None, kind: str, fails: bool) -> None:
    """A router that waits for the next event keeps no views of those that it handled, nor of those that failed."""
    around: dict[str, list[Any]] = {
        "timed": [middleware.Timeout(60)],
        "poison": [middleware.Poison(shmbus.Topic("poison", middleware.Poisoned)), middleware.Validate()],
    }
    router = shmbus.Router(middleware=around.get(kind, []))
    seen: list[int] = []

    def handle(frame: Any) -> None:
        seen.append(int(frame[0]))
        if fails:
            raise Failure

    if kind == "task":

        @router.worker(FRAMES, group="viewers", max_deliver=1)
        async def view_soon(frame: np.ndarray[Any, Any]) -> None:
            handle(frame)

    else:

        @router.worker(FRAMES, group="viewers", max_deliver=1)
        def view(frame: np.ndarray[Any, Any]) -> None:
            handle(frame)

    with shmbus.Bus(bus_name) as bus, bus.publisher(FRAMES, timeout=30) as pub, running(router, bus):
        eventually(lambda: bus.stats().consumers, "the router has opened its worker")
        for number in range(5):  # of which the pool has room for two
            pub.publish(np.full(400_000, number, np.uint8))
        eventually(lambda: used(bus) == 0, lambda: f"nobody looks at any of them: {bus.stats().publishers}")
        assert seen == list(range(5))


def test_validate_knows_arrays(bus_name: str) -> None:
    """`Validate` looks at an event around its arrays, and at these by their class."""
    topic = shmbus.Topic("any", Any, codec="pickle", pool=MIB)
    handled: list[int] = []
    router = shmbus.Router()

    @router.worker(topic, group="viewers", max_deliver=1, middleware=[middleware.Validate(Frame)])
    def view(event: Any) -> None:
        handled.append(event.number)

    images: list[Any] = [np.zeros(5000, np.uint8), np.zeros(5, np.uint8), "no array", 0, None]
    with shmbus.Bus(bus_name) as bus, bus.publisher(topic) as pub, running(router, bus):
        eventually(lambda: bus.stats().consumers, "the router has opened its worker")
        for number, image in enumerate(images):
            pub.publish(Frame(number, image))
        pub.publish(Frame("no number", images[0]))  # type: ignore[arg-type]
        eventually(lambda: depth(bus, "viewers") == 0, "all are settled")
        assert handled == [0, 1]
        rejected = next(c.rejected for c in bus.stats().consumers if c.name == "viewers")
        assert rejected == 4
