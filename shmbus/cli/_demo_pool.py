"""The worker processes of the demo: started, killed while at work, replaced, ended.

May touch: child processes. What must stay true: no worker outlives this process (each ends with its standard
input), and none is left when the pool was ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from shmbus.errors import ShmbusError

if TYPE_CHECKING:
    from collections.abc import Callable

_PATIENCE: Final = 10.0  # seconds for a worker to finish what it holds; it takes one the time of one file

Worker = subprocess.Popen[bytes]


class Pool:
    """`size` workers of the demo on one bus."""

    def __init__(self, bus: str, size: int) -> None:
        self._bus: Final = bus
        self._workers: list[Worker] = []
        for _ in range(size):
            self._start()

    @property
    def pids(self) -> list[int]:
        """The workers that were not found dead."""
        return [worker.pid for worker in self._workers]

    def kill_one_at_work(self, holders: Callable[[], set[int]]) -> int | None:
        """SIGKILL a worker that holds an event at this moment; its pid, or None when no worker holds one.

        `holders` says whose hands are full. The worker is stopped first, so that the answer stays true.
        """
        for worker in self._workers:
            if worker.pid in holders() and worker.poll() is None:
                _stop(worker.pid)
                if worker.pid in holders():
                    worker.kill()
                    worker.wait()
                    return worker.pid
                worker.send_signal(signal.SIGCONT)
        return None

    def replace_dead(self) -> list[tuple[int, int]]:
        """Start a worker for each that a signal killed: (pid of the dead, pid of the new).

        Raises ShmbusError when one ended by itself: the next would do the same.
        """
        replaced = []
        for worker in [worker for worker in self._workers if worker.poll() is not None]:
            self._forget(worker)
            if worker.returncode >= 0:
                raise ShmbusError(f"worker {worker.pid} ended by itself: exit code {worker.returncode}")
            replaced.append((worker.pid, self._start()))
        return replaced

    def end(self) -> None:
        """Let every worker finish what it holds, then go; who does not within ten seconds is killed."""
        for worker in self._workers:
            _close_input(worker)
        try:
            for worker in self._workers:
                worker.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL whoever still runs. Idempotent."""
        for worker in list(self._workers):
            worker.kill()
            worker.wait()
            self._forget(worker)

    def _start(self) -> int:
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "shmbus.cli._demo_work", self._bus],
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},  # it finds what this process finds
        )
        self._workers.append(worker)
        return worker.pid

    def _forget(self, worker: Worker) -> None:
        _close_input(worker)
        self._workers.remove(worker)


def _stop(pid: int) -> None:
    """SIGSTOP and wait until it has come into effect, or the process has ended."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


def _close_input(worker: Worker) -> None:
    if worker.stdin is not None:
        worker.stdin.close()
