"""Idle: 100 processes that wait for events, 50 on each of two topics: CPU and memory.

They are forked from one server that has imported shmbus, as pools with a fork server are: PSS divides what they share.
CPU is read from outside, by each process's own clock, so that nobody is woken to be asked.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from contextlib import ExitStack, suppress
from threading import BrokenBarrierError
from typing import TYPE_CHECKING, Final

import psutil

import shmbus
import shmbus.inspect

from ..contract import BenchError
from ..event import STOP, Tick, tick
from ..results import Idle

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.synchronize import Barrier

_TOPICS: Final = tuple(shmbus.Topic(f"idle-{number}", Tick) for number in range(2))
_SETTLE: Final = 1.5  # seconds until the last of them sleeps, and has been woken by nobody's arrival
_PATIENCE: Final = 120.0
_PRELOAD: Final = ["psutil", "shmbus", "shmbus.inspect"]  # this module is not found there if it lies in a clone


def measure(processes: int, seconds: float, progress: Callable[[str], None]) -> Idle:
    """Wait beside them for a while. Raises BenchError."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    os.environ["PYTHONSAFEPATH"] = "1"  # the server is to find the installed shmbus too, wherever it is started
    barrier = context.Barrier(processes + 1)
    name = f"bench-{os.getpid()}-idle"
    with ExitStack() as stack:
        stack.callback(_remove, name)
        children = [
            context.Process(target=_wait, args=(name, number, barrier), daemon=True) for number in range(processes)
        ]
        bus = stack.enter_context(shmbus.Bus(name))
        publishers = [stack.enter_context(bus.publisher(topic)) for topic in _TOPICS]
        progress(f"idle: starting {processes} processes")
        for child in children:
            child.start()
            stack.callback(_end, child)
        _all_there(barrier)
        progress(f"idle: {seconds:g} s beside {processes} processes")
        time.sleep(_SETTLE)
        pids, supervisor = [child.pid or 0 for child in children], bus.stats().supervisor.pid
        before, start = _cpu(pids), time.monotonic()
        supervisor_before = _cpu([supervisor])
        time.sleep(seconds)
        passed = time.monotonic() - start
        cpu, supervisor_cpu = _cpu(pids) - before, _cpu([supervisor]) - supervisor_before
        pss = sum(psutil.Process(pid).memory_full_info().pss for pid in pids) / processes
        for publisher in publishers:
            publisher.publish(tick(STOP))
        for child in children:
            child.join(_PATIENCE)
            if child.exitcode != 0:
                raise BenchError(f"a process that waited ended badly: exit code {child.exitcode}")
    return Idle(processes=processes, seconds=passed, cpu=cpu / passed, supervisor_cpu=supervisor_cpu / passed, pss=pss)


def _all_there(barrier: Barrier) -> None:
    try:
        barrier.wait(_PATIENCE)
    except BrokenBarrierError:
        raise BenchError("not all processes came to wait") from None


def _wait(name: str, number: int, barrier: Barrier) -> None:
    """One of the processes."""
    with shmbus.Bus(name) as bus, bus.subscriber(_TOPICS[number % len(_TOPICS)]) as subscriber:
        barrier.wait(_PATIENCE)
        subscriber.receive()


def _cpu(pids: list[int]) -> float:
    """CPU seconds of some processes; Linux makes the id of a clock of a pid."""
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)


def _end(child: multiprocessing.process.BaseProcess) -> None:
    child.kill()
    child.join()
    child.close()


def _remove(name: str) -> None:
    with suppress(shmbus.BusNotFoundError):
        shmbus.inspect.remove(name, force=True)
