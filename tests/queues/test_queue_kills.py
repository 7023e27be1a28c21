"""Processes that are killed while they put, get, join or hold: the others go on, and nothing is left behind."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from typing import Any

import psutil
import pytest
import queue_workers as workers
from support import child_environment, entries, eventually, line

from shmbus._shm import failpoint
from shmbus.queues import Full, JoinableQueue, Queue

fork = multiprocessing.get_context("fork")


def gone(queue: Queue[Any]) -> None:
    name = queue.name
    queue.close()
    workers.nothing_left(name)


def started(target: Any, *arguments: Any) -> Any:
    process = fork.Process(target=target, args=arguments)
    process.start()
    return process


def asleep(process: Any) -> None:
    eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_SLEEPING)


def stopped(process: Any) -> None:
    """Stop it: it may run on for a moment after the signal."""
    os.kill(process.pid, signal.SIGSTOP)
    eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)


def killed(process: Any) -> None:
    process.kill()
    process.join()


@pytest.mark.parametrize("maxsize", [0, 3])
def test_killed_putters(maxsize: int) -> None:
    """Whenever putters are killed, each one's objects come in order and once, and others put and get on."""
    queue: Queue[Any] = Queue(maxsize)
    last: dict[Any, int] = {}
    for round in range(5):
        putters = [started(workers.put_forever, queue, 10 * round + n) for n in range(2)]
        for _ in range(100 + 37 * round):
            name, number = queue.get(timeout=30)
            assert number == last.get(name, -1) + 1
            last[name] = number
        for putter in putters:
            killed(putter)
    while not queue.empty():
        name, number = queue.get(timeout=30)
        assert number == last.get(name, -1) + 1
        last[name] = number
    queue.put("after")
    assert queue.get(timeout=30) == "after"
    gone(queue)


def test_killed_getters() -> None:
    """Whenever getters are killed, the others get what is left, and the bound holds as many as before."""
    queue: Queue[Any] = Queue(4)
    for _ in range(5):
        getters = [started(workers.get_forever, queue) for _ in range(2)]
        for number in range(200):
            queue.put(number, timeout=30)
        for getter in getters:
            killed(getter)
    while not queue.empty():
        queue.get(timeout=30)
    for number in range(4):
        queue.put(number, timeout=30)
    assert queue.full()
    assert [queue.get(timeout=30) for _ in range(4)] == [0, 1, 2, 3]
    gone(queue)


def test_a_killed_waiter_wedges_nobody() -> None:
    """Who is killed while it waits, to get or to put, leaves no trace: the next one is served."""
    queue: Queue[Any] = Queue(1)
    told: Queue[Any] = Queue()
    for target, before in ((workers.wait_for_get, None), (workers.wait_for_put, "full")):
        if before:
            queue.put(before)
        process = started(target, queue, told)
        assert told.get(timeout=30) == "ready"
        asleep(process)
        killed(process)
    assert queue.get(timeout=30) == "full"
    queue.put("next", timeout=30)
    assert queue.get(timeout=30) == "next"
    assert queue.empty()
    gone(queue)
    gone(told)


def test_join_does_not_wait_for_the_dead() -> None:
    """A task that died with its getter is not waited for, and a killed joiner holds up no other."""
    queue: JoinableQueue[Any] = JoinableQueue()
    told: Queue[Any] = Queue()
    joined: Queue[Any] = Queue()
    for number in range(3):
        queue.put(number)
    getter = started(workers.get_and_stay, queue, told, 3)
    assert told.get(timeout=30) == [0, 1, 2]
    joiners = [started(workers.join, queue, joined) for _ in range(2)]
    assert [joined.get(timeout=30) for _ in joiners] == ["ready", "ready"]
    assert queue.unfinished_tasks == 3
    killed(joiners[0])
    assert joined.empty()
    killed(getter)
    assert joined.get(timeout=30) == "joined"
    joiners[1].join()
    for each in (queue, told, joined):
        gone(each)


def test_redeliver() -> None:
    """With `redeliver` what a killed getter had not said to be done comes again, in its old place."""
    queue: JoinableQueue[Any] = JoinableQueue(redeliver=True)
    told: Queue[Any] = Queue()
    for number in range(4):
        queue.put(number if number else b"x" * 200_000)
    getter = started(workers.get_and_stay, queue, told, 2)
    assert told.get(timeout=30)[1] == 1
    assert (queue.qsize(), queue.unfinished_tasks) == (2, 4)
    killed(getter)
    eventually(lambda: queue.qsize() == 4)
    found = [queue.get(timeout=30) for _ in range(4)]
    assert [len(found[0]), *found[1:]] == [200_000, 1, 2, 3]
    for _ in found:
        queue.task_done()
    queue.join()
    with pytest.raises(ValueError, match="too many"):
        queue.task_done()
    gone(queue)
    gone(told)


def test_a_stopped_putter_holds_up_nobody() -> None:
    """Who is stopped, wherever it is, keeps its place at most; others put and get."""
    queue: Queue[Any] = Queue(50)
    putter = started(workers.put_forever, queue, 1)
    for _ in range(20):
        queue.get(timeout=30)
        stopped(putter)
        while not queue.empty():
            queue.get(timeout=30)
        for number in range(40):
            queue.put(number, timeout=30)
        assert sum(type(queue.get(timeout=30)) is int for _ in range(40)) >= 39
        os.kill(putter.pid, signal.SIGCONT)
    killed(putter)
    gone(queue)


def test_forgotten_queues_are_removed() -> None:
    """A queue that nobody refers to any more is gone, with what was in it."""
    queue: Queue[Any] = Queue()
    queue.put("unread")
    name = queue.name
    del queue
    gc.collect()
    workers.nothing_left(name)


def test_an_heir_finds_it_there() -> None:
    """A child that was forked with a queue can use it though its parent, who made it, is gone."""
    code = """
        import os, sys
        from shmbus.queues import Queue
        queue = Queue()
        queue.put("left")
        reader, writer = os.pipe()
        if os.fork():
            print(queue.name, flush=True)
            os._exit(0)
        os.close(writer)
        sys.stdin.read()
        print(queue.get(timeout=30), flush=True)
        queue.put("x")
        print(queue.get(timeout=30), flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    name = line(process).strip()
    process.wait(30)
    assert entries(name)
    process.stdin.close()
    assert process.stdout.readline().strip() == "left"
    assert process.stdout.readline().strip() == "x"
    process.stdout.close()
    workers.nothing_left(name)


def test_all_are_killed() -> None:
    """When all that had an anonymous queue are killed at once, nothing of it is left."""
    names: Queue[Any] = Queue()
    owners = [started(workers.own_queue, names) for _ in range(2)]
    made = [names.get(timeout=30) for _ in owners]
    assert all(entries(name) for name, _ in made)
    for _, pid in made:
        os.kill(pid, signal.SIGKILL)
    for owner in owners:
        owner.join()
    for name, _ in made:
        workers.nothing_left(name)
    gone(names)


@pytest.mark.parametrize("point", failpoint.QUEUE_POINTS)
def test_a_death_at_each_point(point: str) -> None:
    """Wherever somebody dies, a queue holds as many as before or one more, keeps its bound, and is joined."""
    queue: JoinableQueue[Any] = JoinableQueue(2)
    gets = point in ("queue.counted", "queue.acked")
    if gets:
        queue.put(b"x" * 200_000)
    process = started(workers.dies_at, queue, point)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    there = {"queue.counted": 1, "large.put": 1}.get(point, 0)
    eventually(lambda: queue.qsize() == there)
    for number in range(2 - there):
        queue.put(number, timeout=30)
    with pytest.raises(Full):
        queue.put_nowait("one too many")
    for _ in range(2):
        queue.get(timeout=30)
        queue.task_done()
    queue.join()
    gone(queue)


def test_killed_putters_of_large_objects() -> None:
    """Whoever is killed while it puts an object of many pages leaves no part of one, and nobody waits for the rest."""
    queue: Queue[Any] = Queue(4)
    last: dict[int, int] = {}
    for name in range(6):
        putter = started(workers.put_large_forever, queue, name)
        for _ in range(5 + name):
            owner, number, data = queue.get(timeout=30)
            assert number == last.get(owner, -1) + 1
            assert len(data) == 150_000
            last[owner] = number
        killed(putter)
    gone(queue)


@pytest.mark.parametrize(("size", "count"), [(8_000, 300), (262_000, 3)])
def test_join_before_get(size: int, count: int) -> None:
    """A child ends though nobody has got what it put, however much that is."""
    queue: Queue[Any] = Queue()
    child = started(workers.returns, queue, size, count)
    child.join(60)
    assert child.exitcode == 0
    assert queue.qsize() == count
    assert {len(queue.get_nowait()) for _ in range(count)} == {size}
    gone(queue)
