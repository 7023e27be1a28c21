"""The Executor: a task a worker, and a death a task."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import futures_tasks as tasks
import psutil
import pytest
from futures_tasks import PATIENT, Make
from support import eventually

import shmbus
from shmbus._futures import crew, process, wire
from shmbus.futures import Executor, WorkerDied

METHODS = ("fork", "spawn", "forkserver")

pytestmark = pytest.mark.usefixtures("no_executor_left")


def outcome(future: Future[Any]) -> Any:
    """What a future returns or raises."""
    return future.exception(PATIENT) or future.result()


@pytest.mark.parametrize("method", METHODS)
def test_run(executor: Make, method: str) -> None:
    """Calls run in other processes, under every start method; `map` keeps the order."""
    pool = executor(2, method, initializer=tasks.set_state, initargs=("begun",))
    assert list(pool.map(tasks.square, range(100), chunksize=7)) == [n * n for n in range(100)]
    assert pool.submit(tasks.state).result(PATIENT) == "begun"
    assert pool.submit(tasks.pid).result(PATIENT) in pool._processes
    assert os.getpid() not in pool._processes


@pytest.mark.parametrize("method", METHODS)
def test_death(executor: Make, method: str, tmp_path: Path) -> None:
    """A worker that is killed fails its own task alone, which says how; the others are done, and the pool heals."""
    pool = executor(2, method)
    gate = tmp_path / "gate"
    other = pool.submit(tasks.touch_and_wait, str(tmp_path / "begun"), str(gate))
    for how, code, cause in (
        ("SIGKILL", -signal.SIGKILL, "killed by SIGKILL"),
        ("SIGSEGV", -signal.SIGSEGV, "killed by SIGSEGV"),
        ("exit", 7, "exit code 7"),
    ):
        error = pool.submit(tasks.die, how).exception(PATIENT)
        assert isinstance(error, WorkerDied)
        assert isinstance(error, BrokenProcessPool)
        assert isinstance(error, BrokenExecutor)
        assert isinstance(error, shmbus.ShmbusError)
        assert (error.task, error.attempt, error.exitcode, error.cause) == ("futures_tasks.die", 1, code, cause)
        assert cause in str(error)
        assert str(error.pid) in str(error)
    assert not other.done()
    gate.touch()
    assert other.result(PATIENT)
    assert pool.submit(tasks.square, 3).result(PATIENT) == 9


def test_exactly_those_fail(executor: Make) -> None:
    """Of 300 tasks of which one in ten kills its worker, exactly those fail, each with its cause."""
    pool = executor(3)
    futures = [pool.submit(tasks.some_die, number) for number in range(300)]
    causes: Counter[str] = Counter()
    for number, future in enumerate(futures):
        found = outcome(future)
        if number % 10 == 3:
            assert isinstance(found, WorkerDied), (number, found)
            causes[found.cause] += 1
        else:
            assert found == number
    assert causes == {"killed by SIGKILL": 10, "killed by SIGSEGV": 10, "exit code 7": 10}


def test_retries(executor: Make, tmp_path: Path) -> None:
    """With `retries` a task whose worker died runs again elsewhere; what dies more often says how often."""
    pool = executor(2, retries=3)
    futures = [pool.submit(tasks.dies_at_first, str(tmp_path / f"{n}"), 2) for n in range(5)]
    assert [future.result(PATIENT) for future in futures] == [3] * 5
    error = pool.submit(tasks.dies_at_first, str(tmp_path / "more"), 9).exception(PATIENT)
    assert isinstance(error, WorkerDied)
    assert error.attempt == 4
    assert (tmp_path / "more").stat().st_size == 4


def test_killed_from_outside(executor: Make, tmp_path: Path) -> None:
    """A worker that somebody kills while it is idle costs no task; one that is busy, its own."""
    pool = executor(2)
    assert pool.submit(tasks.square, 2).result(PATIENT) == 4
    for worker in pool._processes.values():
        worker.kill()
        worker.join()
    assert pool.submit(tasks.square, 3).result(PATIENT) == 9
    begun = tmp_path / "begun"
    busy = pool.submit(tasks.touch_and_wait, str(begun), str(tmp_path / "never"))
    eventually(begun.exists)
    for worker in pool._processes.values():
        worker.kill()
    assert isinstance(busy.exception(PATIENT), WorkerDied)


def test_the_code_of_who_was_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a start of ours has waited for a dead worker, its code is known, however late that is written down."""

    class Dead:
        exitcode: int | None = None

    dead, hiring, found = Dead(), threading.Lock(), list[int | None]()
    monkeypatch.setattr(crew, "_NOTED", 0.0)
    ours = crew.Crew(multiprocessing.get_context("fork"), lambda number, code: None, hiring)
    watcher = threading.Thread(target=lambda: found.append(ours._code_of(dead)))  # type: ignore[arg-type]
    with hiring:
        watcher.start()
        eventually(lambda: found or _is_in(watcher, "_code_of"))
        dead.exitcode = -signal.SIGKILL
    watcher.join()
    assert found == [-signal.SIGKILL]


def _is_in(thread: threading.Thread, function: str) -> bool:
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and frame.f_code.co_name == function


def test_death_between_claim_and_begin(executor: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A worker that dies with a task claimed and not begun loses nothing, and costs no attempt."""
    pool = executor(1)
    original = wire.word
    mark = tmp_path / "died"

    def dying(id: int, worker: int) -> int:
        if worker == 0 and id == 2 and os.getpid() != parent and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)  # it looks who began the task: claimed, and no more
        return original(id, worker)

    parent = os.getpid()
    monkeypatch.setattr(process, "word", dying)
    assert [pool.submit(tasks.square, n).result(PATIENT) for n in range(4)] == [0, 1, 4, 9]
    assert mark.exists()


def test_death_before_the_ack(executor: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A worker that dies with a task begun and not acked fails it, and nobody begins it a second time."""
    parent, original, count = os.getpid(), wire.word, tmp_path / "count"

    def dying(id: int, worker: int) -> int:
        found = original(id, worker)
        if worker and id == 2 and os.getpid() != parent:
            pool_words()[1] = found  # the slot of the second task
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    pool = executor(1)
    words: list[Any] = []

    def pool_words() -> Any:
        return words[0]

    real = process.Running.__init__

    def remember(self: Any, bus: str, number: int, table: Any, *rest: Any) -> None:
        words[:] = [table]
        real(self, bus, number, table, *rest)

    monkeypatch.setattr(process.Running, "__init__", remember)
    monkeypatch.setattr(process, "word", dying)
    first = pool.submit(tasks.dies_at_first, str(tmp_path / "first"), 0)
    second = pool.submit(tasks.dies_at_first, str(count), 0)
    third = pool.submit(tasks.square, 3)
    assert first.result(PATIENT) == 1
    assert isinstance(second.exception(PATIENT), WorkerDied)
    assert third.result(PATIENT) == 9
    assert not count.exists()


def test_errors(executor: Make) -> None:
    """What a task raises its future raises, with the traceback from there as its cause."""
    pool = executor(2)
    error = pool.submit(tasks.raise_it, KeyError("x")).exception(PATIENT)
    assert isinstance(error, KeyError)
    assert "in raise_it" in str(error.__cause__)
    odd = pool.submit(tasks.raise_it, SystemExit(4)).exception(PATIENT)
    assert isinstance(odd, SystemExit)
    assert pool.submit(tasks.square, 3).result(PATIENT) == 9


def raise_stubborn() -> None:
    raise tasks.Stubborn("odd")


def test_error_that_does_not_pickle(executor: Make) -> None:
    """An exception that does not pickle is a RuntimeError that says which one it was, and the worker lives."""
    pool = executor(1)
    error = pool.submit(raise_stubborn).exception(PATIENT)
    assert isinstance(error, RuntimeError)
    assert "Stubborn, which does not pickle (not me): odd" in str(error)
    assert len({pool.submit(tasks.pid).result(PATIENT) for _ in range(3)}) == 1


def test_does_not_load(executor: Make) -> None:
    """What does not unpickle, there or here, is raised by its future alone, be it SystemExit."""
    pool = executor(1)
    for function, argument, kind in (
        (tasks.echo, tasks.FailsToLoad(), ValueError),
        (tasks.echo, tasks.ExitsAtLoad(), SystemExit),
        (tasks.make_failing, None, ValueError),
        (tasks.make_exit, None, SystemExit),
    ):
        assert type(pool.submit(function, argument).exception(PATIENT)) is kind
    assert pool.submit(tasks.square, 3).result(PATIENT) == 9


def test_does_not_pickle(executor: Make) -> None:
    """What does not pickle is raised by the future, not by submit, and the executor ends as ever."""
    pool = executor(2)
    futures = [pool.submit(tasks.echo, tasks.DoesNotPickle()) for _ in range(3)]
    pool.shutdown(wait=False)
    for future in futures:
        with pytest.raises(TypeError, match="stays here"):
            future.result(PATIENT)


@pytest.mark.parametrize(("workers", "most", "count"), [(1, 2, 10), (2, 5, 30)])
def test_max_tasks(executor: Make, workers: int, most: int, count: int) -> None:
    """No worker runs more tasks than it may; none is lost, however many wait (gh-115634, gh-111498)."""
    pool = executor(workers, "forkserver", max_tasks_per_child=most)
    found = Counter(pool.map(tasks.pid, range(count)))
    assert sum(found.values()) == count
    assert max(found.values()) <= most


def test_max_rss(executor: Make) -> None:
    """A worker that holds too much memory is replaced when it is done with a task; none is lost."""
    pool = executor(1, "forkserver", max_rss=200 << 20)
    first = pool.submit(tasks.grow, 1).result(PATIENT)
    pool.submit(tasks.grow, 200 << 20).result(PATIENT)
    eventually(lambda: pool.submit(tasks.pid).result(PATIENT) != first)
    eventually(lambda: not psutil.pid_exists(first))
    assert len(pool._processes) == 1


def test_map_buffersize(executor: Make) -> None:
    """With `buffersize` the iterables are read no further than that ahead of the results."""
    pool = executor(2)
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(1000):
            read.append(number)
            yield number

    results = pool.map(tasks.square, numbers(), buffersize=4)
    assert len(read) == 4
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert len(read) == 7
    results.close()  # type: ignore[attr-defined]
    assert list(pool.map(tasks.square, range(10), buffersize=2, chunksize=3)) == [n * n for n in range(10)]
    for wrong, kind in ((0, ValueError), ("2", TypeError)):
        with pytest.raises(kind):
            pool.map(tasks.square, [1], buffersize=wrong)  # type: ignore[arg-type]


def test_threads(executor: Make) -> None:
    """Many threads may submit at once; a task's callback may too."""
    pool = executor(2)
    found: list[int] = []
    chained: list[Future[int]] = []

    def submits(base: int) -> None:
        for number in range(50):
            found.append(pool.submit(tasks.square, base + number).result(PATIENT))

    threads = [threading.Thread(target=submits, args=(100 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    first = pool.submit(tasks.square, 2)
    first.add_done_callback(lambda future: chained.append(pool.submit(tasks.square, future.result())))
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted((100 * n + k) ** 2 for n in range(4) for k in range(50))
    eventually(lambda: bool(chained))
    assert chained[0].result(PATIENT) == 16


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"max_workers": 0}, ValueError),
        ({"max_workers": 1000}, ValueError),
        ({"initializer": 5}, TypeError),
        ({"max_tasks_per_child": 0}, ValueError),
        ({"max_tasks_per_child": "1"}, TypeError),
        ({"max_tasks_per_child": 1, "mp_context": multiprocessing.get_context("fork")}, ValueError),
        ({"max_rss": 0}, shmbus.ConfigError),
        ({"retries": -1}, shmbus.ConfigError),
    ],
)
def test_bad_options(options: dict[str, Any], kind: type[Exception]) -> None:
    """An option that cannot be raises what the original raises, or ConfigError."""
    with pytest.raises(kind):
        Executor(**options)


def test_worker_died_pickles() -> None:
    """A WorkerDied crosses a process pool with all that it says."""
    error = WorkerDied("m.f", 2, 17, -11)
    found = pickle.loads(pickle.dumps(error))
    assert (str(found), found.task, found.attempt, found.pid, found.exitcode) == (str(error), "m.f", 2, 17, -11)
    assert WorkerDied is shmbus.WorkerDied
