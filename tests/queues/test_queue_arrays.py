"""Large buffers go beside the ring as they are, and what is got of them is the getter's own."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import queue_workers as workers

from shmbus.futures import Executor
from shmbus.queues import JoinableQueue, Queue

np = pytest.importorskip("numpy", reason="NumPy is not installed")


def _files(queue: Any) -> list[str]:
    return [name for name in os.listdir("/dev/shm") if f"{queue.name}:" in name and "large-" in name]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_arrays_are_the_getters_own(method: str) -> None:
    """Another process may write into what it got; nobody else sees that, and no file is left."""
    tasks: Queue[Any] = Queue(4)
    results: Queue[Any] = Queue()
    context: Any = multiprocessing.get_context(method)
    child = context.Process(target=workers.twice, args=(tasks, results))
    child.start()
    array = np.arange(1 << 17)
    for _ in range(3):
        tasks.put(array)
    tasks.put(None)
    found = [results.get(timeout=60) for _ in range(3)]
    child.join()
    assert all((one == 2 * array).all() and one.flags.writeable for one in found)
    assert (array == np.arange(1 << 17)).all()
    assert not _files(tasks)
    assert not _files(results)
    results.close()
    assert (found[0] == 2 * array).all()


@pytest.mark.parametrize(
    "thing",
    [
        [np.ones(1 << 14), {"a": np.zeros((3, 1 << 13), order="F")}, np.arange(10), b"x" * 100_000],
        np.arange(1 << 16)[::2],
        (bytearray(1 << 18), np.array([], dtype="f4")),
        {"same": [np.ones(1 << 13)] * 3},
    ],
    ids=["nested", "strided", "bytearray", "shared"],
)
def test_all_that_is_large(thing: Any) -> None:
    """Buffers within containers, small ones beside large ones, and what cannot go out of band."""
    queue: Queue[Any] = Queue()
    queue.put(thing)
    found = queue.get(timeout=30)
    assert repr(found) == repr(thing)
    if isinstance(thing, dict):
        assert found["same"][0] is found["same"][1]
    assert not _files(queue)


def test_what_comes_again_is_as_it_was(bus_name: str) -> None:
    """With redeliver a change of an array that was got is not in what the next one gets."""
    first: Queue[Any] = Queue(name=bus_name, redeliver=True)
    first.put(np.zeros(1 << 16))
    child = multiprocessing.get_context("spawn").Process(target=workers.spoil_and_die, args=(bus_name,))
    child.start()
    child.join()
    again = first.get(timeout=30)
    assert (again == 0).all()
    again += 1
    first.task_done()
    assert first.qsize() == 0
    assert not _files(first)


def test_joinable() -> None:
    """A task of arrays counts like any other."""
    queue: JoinableQueue[Any] = JoinableQueue()
    queue.put(np.ones(1 << 16))
    assert queue.get(timeout=30).sum() == 1 << 16
    queue.task_done()
    queue.join()


def test_what_has_no_bytes() -> None:
    """Arrays with a dimension of 0 keep their shape, through a queue and as the arguments of a task."""
    queue: Queue[Any] = Queue()
    empty = np.empty((5, 0), dtype="f4")
    queue.put([empty, np.ones(1 << 14)])
    assert queue.get(timeout=30)[0].shape == (5, 0)
    with Executor(1) as pool:
        assert pool.submit(np.transpose, empty).result(60).shape == (0, 5)


def test_a_change_after_put_is_not_got() -> None:
    """What is got is what was put, small or large."""
    queue: Queue[Any] = Queue()
    things: list[Any] = [{"a": [1]}, np.zeros(1 << 15), [np.zeros(10)]]
    for thing in things:
        queue.put(thing)
    things[0]["a"].append(2)
    things[1] += 1
    things[2].append(None)
    assert queue.get(timeout=30) == {"a": [1]}
    assert not queue.get(timeout=30).any()
    assert len(queue.get(timeout=30)) == 1


def test_nothing_grows() -> None:
    """A thousand arrays and dicts leave neither memory, nor mappings, nor descriptors."""
    queue: Queue[Any] = Queue()
    things = [np.zeros(1 << 13), {"key": [1, 2.0, "three", (b"four",)]}, np.array([1])]

    def turn() -> tuple[int, int, int]:
        for _ in range(300):
            for thing in things:
                queue.put(thing)
                queue.get(timeout=30)
        maps = Path("/proc/self/maps").read_text().count("large-")
        return sys.getallocatedblocks(), maps, len(os.listdir("/proc/self/fd"))

    gc.collect()  # what other tests have left goes now, and not between two turns
    turn()
    before, after = turn(), turn()
    assert after[0] - before[0] < 100
    assert after[1:] == before[1:]
