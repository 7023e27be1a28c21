"""The Executor: a task a worker, a death a task, and large arguments beside the ring."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import futures_tasks as tasks
import psutil
import pytest
from support import Processes, child_environment, entries, eventually, line

import shmbus
from shmbus._futures import parcels, process, wire
from shmbus.futures import Executor, WorkerDied

METHODS = ("fork", "spawn", "forkserver")
PATIENT = 60.0

Make = Callable[..., Executor]


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


def test_fails_to_begin(executor: Make, caplog: pytest.LogCaptureFixture) -> None:
    """An initializer that raises breaks the pool, and so do workers that die before they are ready, again and again."""
    for initializer, message in ((tasks.fail_to_begin, "no licence"), (tasks.die_at_start, "killed by SIGKILL")):
        pool = executor(2, initializer=initializer)
        future = pool.submit(tasks.square, 2)
        with pytest.raises(BrokenProcessPool, match=message):
            future.result(PATIENT)
        with pytest.raises(BrokenProcessPool, match=message):
            pool.submit(tasks.square, 2)
        pool.shutdown()


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


@pytest.mark.parametrize("size", [1 << 10, 1 << 15, 1 << 20, 40 << 20])
def test_sizes(executor: Make, size: int) -> None:
    """Arguments and results of any size arrive as they were: objects, bytes, buffers."""
    pool = executor(2)
    data = os.urandom(size)
    assert pool.submit(tasks.echo, data).result(PATIENT) == data
    assert pool.submit(tasks.echo, {"a": [bytearray(data), size]}).result(PATIENT) == {"a": [bytearray(data), size]}


def test_arrays(executor: Make) -> None:
    """Arrays are writable there and here, and each is its own, whatever is kept of one."""
    np = pytest.importorskip("numpy")
    pool = executor(1)
    array = np.arange(200_000)
    found = [pool.submit(tasks.ones_of, array).result(PATIENT) for _ in range(5)]
    assert all((one == array + 1).all() for one in found)
    found[0][:] = 0
    assert (found[1] == array + 1).all()
    assert pool.submit(tasks.keep, np.ones(100_000)).result(PATIENT) == 100_000
    for _ in range(5):
        assert pool.submit(tasks.ones_of, np.zeros(100_000)).result(PATIENT).sum() == 100_000
        assert pool.submit(tasks.kept).result(PATIENT) == 100_000
    strided = np.arange(400_000)[::2]
    assert (pool.submit(tasks.echo, strided).result(PATIENT) == strided).all()


def test_no_room_in_shared_memory(executor: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where /dev/shm has no room for large arguments and results, they go by the folder for temporary files."""
    real = parcels._create

    def create(path: str, size: int) -> tuple[str, int]:
        if path.startswith("/dev/shm"):
            raise shmbus.NoSpaceError(28, path, size, 0)
        return real(path, size)

    monkeypatch.setattr(parcels, "_create", create)
    pool = executor(1)
    data = os.urandom(1 << 20)
    assert pool.submit(tasks.echo, data).result(PATIENT) == data


def test_max_tasks(executor: Make) -> None:
    """No worker runs more tasks than it may; none is lost."""
    pool = executor(2, "forkserver", max_tasks_per_child=5)
    found = Counter(pool.map(tasks.pid, range(60)))
    assert sum(found.values()) == 60
    assert max(found.values()) <= 5


def test_max_rss(executor: Make) -> None:
    """A worker that holds too much memory is replaced when it is done with a task; none is lost."""
    pool = executor(1, "forkserver", max_rss=200 << 20)
    first = pool.submit(tasks.grow, 1).result(PATIENT)
    pool.submit(tasks.grow, 200 << 20).result(PATIENT)
    eventually(lambda: pool.submit(tasks.pid).result(PATIENT) != first)
    eventually(lambda: not psutil.pid_exists(first))
    assert len(pool._processes) == 1


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


def parent_of_workers() -> None:
    """In a child: an executor with idle workers, whose process is to be killed."""
    import sys

    import futures_tasks

    from shmbus.futures import Executor

    pool = Executor(2)
    pool.submit(futures_tasks.square, 2).result()
    print(pool._foreman._bus.name, *pool._processes, flush=True)
    sys.stdin.readline()


def test_death_of_the_executor(processes: Processes) -> None:
    """Where the process of the executor is killed its workers end, and nothing is left of its bus."""
    parent = processes.spawn(parent_of_workers)
    name, *pids = line(parent).split()
    parent.kill()
    parent.wait()
    eventually(lambda: not any(map(_runs, map(int, pids))))
    eventually(lambda: not entries(name), lambda: str(entries(name)))


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
