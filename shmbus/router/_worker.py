"""A worker process as the runner sees it: started, spoken to, reaped.

May touch: one child process, the socket to it, its pidfd. Must stay true: a process is told apart from others by its
pidfd until it is reaped; none is left behind.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec

from shmbus._deaths import cause
from shmbus._shm import descriptors

if TYPE_CHECKING:
    from shmbus.router._child import Options

_MESSAGE: Final = 65536


class Worker:
    """One of them, from its start to its end."""

    def __init__(self, number: int, options: Options) -> None:
        """Start it. A process group of its own: Ctrl-C is for the runner, which passes it on."""
        self.number: Final = number
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.link.setblocking(False)
        command = [sys.executable, "-P", "-m", "shmbus.router._child", str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                [*command, msgspec.json.encode(options).decode()],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
        self.pid: Final = self._process.pid
        self.pidfd: Final = descriptors.pidfd(self.pid)
        self.born: Final = time.monotonic()
        self.ready_at: float | None = None
        self.named = False
        """It runs the subscribers that have a name."""
        self.asked = False
        """It was told to end."""
        self.killed = False
        """It did not in time, and was killed by us."""
        self.recycle = ""
        """Why it wants to be replaced."""
        self.works = False
        """It has handled an event."""
        self.deaf = False
        """It has closed its end of the socket."""
        self.files: set[str] = set()
        self.kill_at: float | None = None

    @property
    def ready(self) -> bool:
        """Its handlers run."""
        return self.ready_at is not None

    def hear(self) -> None:
        """Take what it says."""
        while True:
            try:
                told = self.link.recv(_MESSAGE).decode()
            except BlockingIOError:
                return
            except OSError:
                told = ""
            if not told:
                self.deaf = True
                return
            word, _, rest = told.partition(" ")
            if word == "ready":
                self.ready_at = time.monotonic()
            elif word == "works":
                self.works = True
            elif word == "recycle":
                self.recycle = rest
            elif word == "files":
                self.files.update(rest.split("\n"))

    def tell(self, word: str) -> None:
        """Say something to it, if it still listens."""
        with suppress(OSError):
            self.link.send(word.encode())

    def drain(self, seconds: float) -> None:
        """Have it end; one that is not ready has nothing in hand, and goes at once."""
        if self.asked:
            return
        self.asked = True
        if not self.ready:
            self.kill()
            return
        self.tell("drain")
        self.kill_at = time.monotonic() + seconds

    def kill(self) -> None:
        """SIGKILL."""
        self.killed = True
        self.kill_at = None
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def ended(self) -> bool:
        """Whether it has ended, and is to be reaped."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def reap(self) -> tuple[int, str]:
        """Its exit code, negative for a signal, and how it ended in words, once it has; or waits for that."""
        _, status, used = os.wait4(self.pid, 0)
        code = self._process.returncode = os.waitstatus_to_exitcode(status)
        self.hear()
        os.close(self.pidfd)
        self.link.close()
        return code, f"{cause(code)}, peak RSS {used.ru_maxrss >> 10} MiB"

    def __str__(self) -> str:
        return f"worker {self.number} (process {self.pid})"
