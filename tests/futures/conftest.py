"""Executors for tests, and the care that none leaves anything behind."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from typing import Any

import pytest
from futures_tasks import Make
from support import entries, eventually

from shmbus.futures import Executor


@pytest.fixture(autouse=True)
def no_executor_left() -> Iterator[None]:
    """No executor of this process leaves anything in /dev/shm."""
    yield
    mine = f"futures-{os.getpid()}-"
    eventually(lambda: not entries(mine), lambda: str(entries(mine)))


@pytest.fixture
def executor() -> Iterator[Make]:
    """Executors that are shut down at the end of the test, their workers killed."""
    made: list[Executor] = []

    def make(workers: int = 2, method: str = "fork", **options: Any) -> Executor:
        made.append(Executor(workers, multiprocessing.get_context(method), **options))
        return made[-1]

    yield make
    for one in made:
        one.kill_workers()
        one.shutdown()
