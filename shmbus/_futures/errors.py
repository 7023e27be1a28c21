"""WorkerDied. Apart from the errors of the rest, for `concurrent.futures` and `multiprocessing` take 40 ms to load."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool

from shmbus._deaths import cause
from shmbus.errors import ShmbusError


class WorkerDied(ShmbusError, BrokenProcessPool):
    """The worker's process ended while it ran this task; no other task is touched, and the pool has another worker.

    `task` is the function by name, `attempt` the count of processes that had it, this one included, `pid` the process,
    `exitcode` how it ended as `multiprocessing` has it (negative: a signal; None: nobody knows), `cause` that in words.
    """

    def __init__(self, task: str, attempt: int, pid: int, exitcode: int | None) -> None:
        how = "ended, nobody knows how" if exitcode is None else cause(exitcode)
        super().__init__(f"the worker of task {task} (process {pid}, attempt {attempt}) died: {how}")
        self.task = task
        self.attempt = attempt
        self.pid = pid
        self.exitcode = exitcode
        self.cause = how
