"""Executors for tests, and the care that none leaves anything behind."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from futures_tasks import Make
from support import entries, eventually

if TYPE_CHECKING:  # once it is known to be installed: see conftest.py
    from shmbus.futures import Executor


@pytest.fixture
def no_executor_left() -> Iterator[None]:
    """No executor of this process leaves anything in /dev/shm."""
    yield
    mine = f"futures-{os.getpid()}-"
    eventually(lambda: not entries(mine), lambda: str(entries(mine)))


@pytest.fixture
def executor(no_executor_left: None) -> Iterator[Make]:
    """Executors that are shut down at the end of the test, their workers killed."""
    from shmbus.futures import Executor

    made: list[Executor] = []

    def make(workers: int = 2, method: str = "fork", **options: Any) -> Executor:
        made.append(Executor(workers, multiprocessing.get_context(method), **options))
        return made[-1]

    yield make
    for one in made:
        one.kill_workers()
        one.shutdown()
