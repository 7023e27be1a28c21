"""How an executor ends, and its workers with it."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import weakref
from concurrent.futures import CancelledError, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import futures_tasks as tasks
import psutil
import pytest
from futures_tasks import PATIENT, Make
from support import Processes, child_environment, entries, eventually, line

import shmbus
from shmbus.futures import Executor, WorkerDied

pytestmark = pytest.mark.usefixtures("no_executor_left")


def test_cancel(executor: Make, tmp_path: Path) -> None:
    """A future that no worker has yet can be cancelled; at shutdown too, and what is in hand is done."""
    pool = executor(1)
    gate = tmp_path / "gate"
    begun = tmp_path / "begun"
    first = pool.submit(tasks.touch_and_wait, str(begun), str(gate))
    eventually(begun.exists)
    others = [pool.submit(tasks.square, n) for n in range(20)]
    assert others[-1].cancel()
    pool.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(tasks.square, 1)
    gate.touch()
    assert first.result(PATIENT)
    wait(others)
    assert sum(future.cancelled() for future in others) >= 17


@pytest.mark.parametrize("how", ["kill_workers", "terminate_workers"])
def test_end_of_all(executor: Make, how: str, tmp_path: Path) -> None:
    """kill_workers and terminate_workers end what is in hand by WorkerDied, cancel what waits, and shut down."""
    pool = executor(2)
    busy = [pool.submit(tasks.touch_and_wait, str(tmp_path / f"{n}"), str(tmp_path / "never")) for n in range(2)]
    eventually(lambda: len(list(tmp_path.iterdir())) == 2)
    waiting = [pool.submit(tasks.square, n) for n in range(40)]
    getattr(pool, how)()
    for future in busy:
        assert isinstance(future.exception(PATIENT), WorkerDied)
    for future in waiting:
        with pytest.raises((CancelledError, BrokenProcessPool)):
            future.result(PATIENT)
    with pytest.raises(RuntimeError):
        pool.submit(tasks.square, 1)
    pool.shutdown()


def test_forgotten() -> None:
    """An executor that is forgotten carries out what it was given, and ends."""
    pool = Executor(2, multiprocessing.get_context("fork"))
    results = pool.map(tasks.square, range(10))
    threads, reference = pool._foreman.threads, weakref.ref(pool)
    del pool
    gc.collect()
    assert reference() is None
    assert list(results) == [n * n for n in range(10)]
    for thread in threads:
        thread.join(PATIENT)
        assert not thread.is_alive()


@pytest.mark.parametrize("how", ["forgotten", "shut down"])
def test_max_tasks_at_the_end(how: str) -> None:
    """Workers that leave are replaced after shutdown(wait=False) too, and when nobody has the executor (gh-152967)."""
    pool = Executor(1, multiprocessing.get_context("forkserver"), max_tasks_per_child=1)
    futures = [pool.submit(tasks.square, n) for n in range(4)]
    pool.shutdown(wait=False) if how == "shut down" else None
    threads = pool._foreman.threads
    del pool
    assert [future.result(PATIENT) for future in futures] == [0, 1, 4, 9]
    for thread in threads:
        thread.join(PATIENT)


def test_shutdown_no_wait() -> None:
    """`shutdown(wait=False)` returns at once; what was submitted is done, and the workers end."""
    pool = Executor(2, multiprocessing.get_context("fork"))
    futures = [pool.submit(tasks.square, n) for n in range(10)]
    processes = list(pool._processes.values())
    pool.shutdown(wait=False)
    assert [future.result(PATIENT) for future in futures] == [n * n for n in range(10)]
    for worker in processes:
        worker.join(PATIENT)
        assert worker.exitcode == 0


@pytest.mark.parametrize("how", ["", "t.shutdown(wait=False)"])
def test_exit_of_the_interpreter(how: str) -> None:
    """An interpreter that ends carries out what was submitted, also after shutdown(wait=False)."""
    code = f"""
    import futures_tasks, time
    from shmbus.futures import Executor
    if __name__ == "__main__":
        t = Executor(3)
        t.submit(time.sleep, 0.2)
        t.submit(print, "apple", flush=True)
        {how}
    """
    script = "\n".join(text[4:] for text in code.splitlines())
    found = subprocess.run(
        [sys.executable, "-c", script], env=child_environment(), capture_output=True, text=True, timeout=60, check=True
    )
    assert (found.stdout, found.stderr) == ("apple\n", "")


def parent_of_workers(begun: str, gate: str) -> None:
    """In a child: an executor with idle or busy workers, whose process is to be killed."""
    import sys

    import futures_tasks

    from shmbus.futures import Executor

    pool = Executor(2)
    pool.submit(futures_tasks.square, 2).result()
    for number in range(10 if begun else 0):
        pool.submit(futures_tasks.touch_and_wait, begun + str(number), gate)
    print(pool._foreman._bus.name, *pool._processes, flush=True)
    sys.stdin.readline()


@pytest.mark.parametrize("busy", [False, True])
def test_death_of_the_executor(processes: Processes, busy: bool, tmp_path: Path) -> None:
    """Where the process of the executor is killed its workers end, those that are busy after their task, and nothing
    is left of its bus; what nobody had begun is not begun (joblib/loky#360).
    """
    begun, gate = tmp_path / "begun", tmp_path / "gate"
    parent = processes.spawn(parent_of_workers, begun if busy else "", gate)
    name, *pids = line(parent).split()
    eventually(lambda: not busy or len(list(tmp_path.iterdir())) == 2)
    parent.kill()
    parent.wait()
    gate.touch()
    eventually(lambda: not any(map(_runs, map(int, pids))))
    eventually(lambda: not entries(name), lambda: str(entries(name)))
    assert len(list(tmp_path.iterdir())) == (3 if busy else 1)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_fork(executor: Make) -> None:
    """In a forked child an inherited executor raises ForkedError, and shutting it down does nothing."""
    pool = executor(1)
    assert pool.submit(tasks.square, 2).result(PATIENT) == 4
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with pytest.raises(shmbus.ForkedError):
                pool.submit(tasks.square, 2)
            pool.shutdown()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert pool.submit(tasks.square, 3).result(PATIENT) == 9


def test_fails_to_begin(executor: Make, caplog: pytest.LogCaptureFixture) -> None:
    """An initializer that raises breaks the pool, and so do workers that die before they are ready, again and again."""
    for initializer, message in ((tasks.fail_to_begin, "no licence"), (tasks.die_at_start, "killed by SIGKILL")):
        pool = executor(2, initializer=initializer)
        with pytest.raises(BrokenProcessPool, match=message):
            pool.submit(tasks.square, 2).result(PATIENT)  # the workers may have failed before there was a task
        with pytest.raises(BrokenProcessPool, match=message):
            pool.submit(tasks.square, 2)
        pool.shutdown()
