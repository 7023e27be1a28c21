"""`shmbus.futures.Executor`: a pool of processes as `concurrent.futures.ProcessPoolExecutor` is, which a killed worker
does not break.

    with Executor() as pool:
        for result in pool.map(work, items): ...

Tasks are work of a group on a bus of the executor's own (`shmbus stat` shows it), results its events; large arrays lie
in shared memory beside them. docs/futures.md says what differs from the original.

Must stay true: what is here is the original's to the letter, but for the errors that are better (docs/futures.md).
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
import time
import weakref
from collections import deque
from concurrent.futures import Executor as _Executor
from concurrent.futures import Future
from concurrent.futures.process import _process_chunk
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

from shmbus._futures.backlog import Item
from shmbus._futures.errors import WorkerDied
from shmbus._futures.foreman import Foreman
from shmbus._shm import cores
from shmbus.errors import ConfigError, ForkedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from multiprocessing.context import BaseContext
    from multiprocessing.process import BaseProcess

__all__ = ["Executor", "WorkerDied"]

P = ParamSpec("P")
T = TypeVar("T")

_MAX_WORKERS = 255  # of a group, less one that takes another's place

_foremen: weakref.WeakSet[Foreman] = weakref.WeakSet()
_exiting = threading.Event()


def _at_exit() -> None:
    """Before the interpreter joins its threads: what was submitted is carried out, and nothing more is taken."""
    _exiting.set()
    mine = [foreman for foreman in list(_foremen) if foreman.pid == os.getpid()]  # a fork has inherited this call
    for foreman in mine:
        foreman.shut(cancel=False)
    for foreman in mine:
        for thread in foreman.threads:
            thread.join()


threading._register_atexit(_at_exit)  # type: ignore[attr-defined]


class Executor(_Executor):
    """Runs calls in other processes. The constructor is that of `ProcessPoolExecutor`, with two options more.

    `retries` is how often a task whose worker died is run again, elsewhere; 0, the default: its future raises
    WorkerDied. `max_rss` is how many bytes of memory a worker may hold when it is done with a task: past it another
    takes its place, one at a time. `max_tasks_per_child` is strict.

    Raises ValueError and TypeError as the original does, ConfigError for what it does not know.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        max_rss: int | None = None,
        retries: int = 0,
    ) -> None:
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if max_workers is not None and max_workers > _MAX_WORKERS:
            raise ValueError(f"max_workers must be <= {_MAX_WORKERS}")
        recycles = max_tasks_per_child is not None or max_rss is not None
        if mp_context is None:
            mp_context = multiprocessing.get_context("spawn" if recycles else None)
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
        if recycles and mp_context.get_start_method(allow_none=False) == "fork":
            raise ValueError(
                "max_tasks_per_child and max_rss are incompatible with the 'fork' multiprocessing start method; "
                "supply a different mp_context."
            )
        if max_rss is not None and (not isinstance(max_rss, int) or max_rss <= 0):
            raise ConfigError(f"max_rss is None or a positive number of bytes: max_rss={max_rss!r}")
        if not isinstance(retries, int) or isinstance(retries, bool) or retries < 0:
            raise ConfigError(f"retries is a whole number from 0: retries={retries!r}")
        self._max_workers = max_workers if max_workers is not None else min(cores.usable(), _MAX_WORKERS)
        self._mp_context = mp_context
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._foreman = Foreman(
            self._max_workers, mp_context, initializer, initargs, max_tasks_per_child, max_rss, retries
        )
        weakref.finalize(self, self._foreman.shut, cancel=False).atexit = False

    @property
    def _processes(self) -> dict[int, BaseProcess]:
        return self._foreman.crew.by_pid() if self._foreman.crew is not None else {}

    @property
    def _broken(self) -> str | bool:
        return self._foreman.broken or False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have `fn(*args, **kwargs)` run by a worker; a Future of what it returns.

        What does not pickle is raised by the Future. Raises BrokenProcessPool where no worker can be had, RuntimeError
        after `shutdown`, ForkedError in a forked child.
        """
        item = Item(fn, args, kwargs, _named(fn))
        foreman = self._foreman
        with self._lock:
            self._check()
            if foreman.crew is None and not foreman.over and not foreman.broken:
                self._start()
        foreman.submit(item)
        return item.future

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedError(f"this Executor was made by process {self._pid} before fork(): make one here")
        if _exiting.is_set():
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    def _start(self) -> None:
        _foremen.add(self._foreman)
        self._foreman.start()

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Like `map(fn, *iterables)`, in order. `chunksize` calls make one task. `buffersize` bounds the tasks whose
        results were not taken yet: the iterables are read no further until one is; None reads them at once.

        Raises TimeoutError from the iterator past `timeout` seconds, and what a call raised.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        end = None if timeout is None else time.monotonic() + timeout
        calls = _chunks(zip(*iterables, strict=False), chunksize)
        run = partial(_process_chunk, fn)
        futures = deque(self.submit(run, chunk) for chunk in itertools.islice(calls, buffersize))
        return _results(weakref.ref(self), run, calls if buffersize is not None else iter(()), futures, end)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks. `wait` until all are done and the workers have ended; `cancel_futures`: those that are
        with no worker yet are cancelled.
        """
        if os.getpid() != self._pid:
            return
        self._foreman.shut(cancel=cancel_futures)
        if wait:
            for thread in self._foreman.threads:
                thread.join()

    def terminate_workers(self) -> None:
        """End the workers by SIGTERM, and shut down: tasks in hand raise WorkerDied, those that wait are cancelled."""
        self._force("terminate")

    def kill_workers(self) -> None:
        """The same by SIGKILL."""
        self._force("kill")

    def _force(self, how: Literal["terminate", "kill"]) -> None:
        self._foreman.shut(cancel=True, kill=True)
        self._foreman.signal(how)


def _named(function: Any) -> str:
    if isinstance(function, partial):
        function = function.args[0] if function.func is _process_chunk else function.func
    name = getattr(function, "__qualname__", None)
    return f"{getattr(function, '__module__', None)}.{name}" if name else repr(function)


def _chunks(calls: Iterator[tuple[Any, ...]], size: int) -> Iterator[tuple[tuple[Any, ...], ...]]:
    while chunk := tuple(itertools.islice(calls, size)):
        yield chunk


def _results(
    executor: weakref.ref[Executor],
    run: Callable[..., list[T]],
    calls: Iterator[Any],
    futures: deque[Future[list[T]]],
    end: float | None,
) -> Iterator[T]:
    """What the futures return, in order; for each that is taken the next call is submitted."""
    try:
        while futures:
            future = futures.popleft()
            try:
                found = future.result(None if end is None else end - time.monotonic())
            finally:
                future.cancel()
            del future
            owner = executor()
            if owner is not None:
                futures.extend(owner.submit(run, chunk) for chunk in itertools.islice(calls, 1))
            del owner
            found.reverse()
            while found:
                yield found.pop()
    finally:
        for future in futures:
            future.cancel()
