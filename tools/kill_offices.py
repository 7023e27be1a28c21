"""What becomes of the supervisor in a campaign of kills: it runs, it is stopped as soon as it is in office, or none can
be started.

None can be started where there is no Python to run: in a frozen app, in a program that embeds an interpreter, in a
virtual environment that was deleted under a running service. Each life is one of these, by its number.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path

import shmbus

STATES = ("running", "stopped", "absent")
NO_PYTHON = ("", "/nonexistent/bin/python", "/bin/false", "/")
"""`sys.executable` of an embedded interpreter, a deleted environment, a program that is no Python, and a mistake."""
PACE = 0.01  # seconds between two looks at who is in office
PATIENCE = 2.0  # seconds after which whoever was stopped is taken for the holder of the bus lock


def take_python_away(life: int) -> None:
    """From now on this process cannot start a supervisor."""
    sys.executable = NO_PYTHON[life % len(NO_PYTHON)]
    if life % (len(NO_PYTHON) + 1) == 0:  # PyInstaller, cx_Freeze
        sys.frozen = True  # type: ignore[attr-defined]


class Stopper(threading.Thread):
    """Sends SIGSTOP to every supervisor as soon as it is in office, but not while it holds the bus lock."""

    def __init__(self, bus: shmbus.Bus) -> None:
        super().__init__(daemon=True)
        self.bus = bus
        self.stopped: set[int] = set()
        self.failed: BaseException | None = None
        self._over = threading.Event()

    def run(self) -> None:
        try:
            while not self._over.wait(PACE):
                pid = self.bus.stats().supervisor.pid
                if pid and state(pid) not in "TZX":
                    self.stop(pid)
        except BaseException as error:
            self.failed = error

    def stop(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            self.stopped.add(pid)
            try:
                with self.bus._session.locked(PATIENCE):
                    pass
            except shmbus.LockTimeoutError:
                os.kill(pid, signal.SIGCONT)  # at the next look again

    def close(self) -> None:
        """Let all of them go on. Raises what went wrong."""
        self._over.set()
        self.join()
        for pid in self.stopped:  # also one that is yet to notice that it was stopped
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        if self.failed is not None:
            raise self.failed


def state(pid: int) -> str:
    """Of a process, as /proc has it; X of one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"
