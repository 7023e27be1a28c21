"""What listens to the loggers of a bus may block, publish on it, open handles on it, or fail."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from support import Processes, eventually, line

import shmbus

NUMBERS = shmbus.Topic("numbers", int, capacity=4096)
TEXTS = shmbus.Topic("texts", str)


class Calls(logging.Handler):
    """Passes each record on to a function."""

    def __init__(self, call: Callable[[logging.LogRecord], object]) -> None:
        super().__init__()
        self.call = call

    def emit(self, record: logging.LogRecord) -> None:
        self.call(record)


@contextmanager
def listening(call: Callable[[logging.LogRecord], object], name: str = "shmbus") -> Iterator[None]:
    handler, logger = Calls(call), logging.getLogger(name)
    logger.addHandler(handler)
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def fill(publisher: shmbus.Publisher[int]) -> None:
    with suppress(shmbus.Full):
        while True:
            publisher.publish_now(1)


def hold_seven(bus_name: str) -> None:
    import signal

    import shmbus

    bus = shmbus.Bus(bus_name, supervise=False)
    worker = bus.worker(shmbus.Topic("numbers", int, capacity=4096), group="billing", name="one")
    assert worker.receive(timeout=30) == 7
    print("holds", flush=True)
    signal.pause()


def a_death(bus: shmbus.Bus, processes: Processes) -> Callable[[], object]:
    """A worker that is dead, and what reclaims it: under the bus lock, where that is logged."""
    bus.group(NUMBERS, "billing")
    with bus.publisher(NUMBERS, name="web") as publisher:
        publisher.publish(7)
    child = processes.spawn(hold_seven, bus.name)
    assert line(child) == "holds"
    child.kill()
    child.wait()
    return lambda: bus.remove_group(NUMBERS, "billing", force=False)


def test_a_handler_that_publishes_on_the_bus(bus_name: str, processes: Processes) -> None:
    """A death, found under the bus lock, is told when it is free: a handler may open a publisher then, and publish."""
    told: list[str] = []
    with shmbus.Bus(bus_name, supervise=False) as bus, bus.subscriber(TEXTS, name="log") as log:
        reclaim = a_death(bus, processes)

        def publish(record: logging.LogRecord) -> None:
            told.append(record.getMessage())
            with bus.publisher(TEXTS) as publisher:  # takes the lock
                publisher.publish(record.name)

        with listening(publish, "shmbus.reclaim"):
            reclaim()
        assert [said for said in told if "worker one (pid" in said and "1 events given back" in said]
        assert log.receive(timeout=30) == "shmbus.reclaim"


def test_a_handler_that_blocks_holds_up_nobody_else(bus_name: str, processes: Processes) -> None:
    """While a handler blocks on word of a death, others enter the bus, publish and leave."""
    told, goes_on = threading.Event(), threading.Event()

    def block(record: logging.LogRecord) -> None:
        told.set()
        assert goes_on.wait(60)

    with shmbus.Bus(bus_name, supervise=False) as bus, shmbus.Bus(bus_name, supervise=False) as other:
        reclaim = a_death(bus, processes)
        with listening(block, "shmbus.reclaim"):
            blocked = threading.Thread(target=reclaim)
            blocked.start()
            assert told.wait(60)
            with other.subscriber(NUMBERS, name="late") as late, other.publisher(NUMBERS) as publisher:
                publisher.publish(1)
                assert late.receive(timeout=30) == 1
            assert blocked.is_alive()
            goes_on.set()
            blocked.join()


def test_a_handler_of_the_audit_log_that_opens_handles(bus_name: str) -> None:
    """What a handler of the audit log does on the bus itself is told once, and then no more: it ends."""
    told: list[tuple[str, str]] = []
    with shmbus.Bus(bus_name, supervise=False) as bus:

        def publish(record: Any) -> None:
            told.append((record.audit["act"], record.audit["name"]))
            with bus.publisher(TEXTS, name=f"log-{len(told)}") as publisher:
                publisher.publish(record.getMessage())

        with listening(publish, "shmbus.audit"):
            bus.publisher(NUMBERS, name="web").close()
    assert told == [
        ("join", "web"),
        ("join", "log-1"),
        ("leave", "log-1"),
        ("leave", "web"),
        ("join", "log-4"),
        ("leave", "log-4"),
    ]


def test_a_handler_that_waits_itself(bus_name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A handler that publishes where there is no room is no recursion: what it waits for is said on stderr."""
    told: list[str] = []
    with shmbus.Bus(bus_name, supervise=False, stall_timeout=0.1) as bus:
        full = bus.subscriber(NUMBERS, name="full")
        web = bus.publisher(NUMBERS, name="web", timeout=1)
        log = bus.publisher(NUMBERS, name="log", timeout=1.5)
        fill(web)
        fill(log)

        def publish(record: logging.LogRecord) -> None:
            told.append(record.getMessage())
            with pytest.raises(shmbus.Full):
                log.publish(2)

        with listening(publish, "shmbus.bus"):
            while not told:  # where the machine is busy the second may be over before it is looked at
                with pytest.raises(shmbus.Full):
                    web.publish(3)
        full.close()
        web.close()
        log.close()
    assert all(said.startswith("publisher web") for said in told)
    assert "publisher log of topic numbers has waited" in capsys.readouterr().err


def test_one_publisher_for_all(bus_name: str) -> None:
    """A handler may publish by the very publisher that waits; it waits like any caller of it."""
    told: list[str] = []
    with shmbus.Bus(bus_name, supervise=False, stall_timeout=0.1) as bus:
        full = bus.subscriber(NUMBERS, name="full")
        web = bus.publisher(NUMBERS, name="web", timeout=1)
        fill(web)

        def publish(record: logging.LogRecord) -> None:
            told.append(record.getMessage())
            full.receive_many(10, timeout=30)
            web.publish(2)

        with listening(publish, "shmbus.bus"):
            web.publish(3)
        last = [0]
        while last[-1] != 3:
            last = full.receive_many(1000, timeout=30)
        full.close()
        web.close()
    assert len(told) == 1


def test_a_handler_that_fails(
    bus_name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a handler raises is told as unraisable, and keeps nobody from opening or closing what they want."""
    raised: list[BaseException] = []

    def tell(one: Any) -> None:
        raised.append(one.exc_value)
        sys.__unraisablehook__(one)  # as programs have it that have a hook, and all that have none

    monkeypatch.setattr(sys, "unraisablehook", tell)

    def fail(record: logging.LogRecord) -> None:
        raise ValueError("no disk")

    with listening(fail, "shmbus.audit"), shmbus.Bus(bus_name, supervise=False) as bus:
        publisher = bus.publisher(NUMBERS, name="web")
        publisher.publish(1)
        publisher.close()
    assert len(raised) == 4  # join and leave, of the process and of its publisher
    assert {str(one) for one in raised} == {"no disk"}
    assert raised[0].__notes__ == ["what listens to the logger 'shmbus.audit' failed"]
    assert capsys.readouterr().err.count("ValueError: no disk") == 4


def test_the_lock_is_not_held_for_any_record(bus_name: str, processes: Processes) -> None:
    """Whatever is logged while somebody dies, is reclaimed and a bus is removed: no thread holds the lock for it."""
    from shmbus import _log

    held: list[str] = []

    def look(record: logging.LogRecord) -> None:
        if _log._locked():
            held.append(record.getMessage())

    with listening(look), shmbus.Bus(bus_name, supervise=False) as bus:
        eventually(a_death(bus, processes), "it is reclaimed")
    assert not held
