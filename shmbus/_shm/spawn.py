"""Starts an automatic supervisor: a detached process of the same interpreter, as the standard library's resource
tracker is one. `_native/starter.c` does it, and says how.

May touch: processes that it starts, and /proc/self/maps.

Must stay true:
- The child shares no descriptor, session, signal mask or working directory with its parent, and no code of Python runs
  between the two.
- No wait() of the parent returns it or waits for it, no SIGCHLD tells of it, and no zombie of it stays: where orphans
  come back to this process, `reap` is called from time to time and at the end of a bus.
"""

from __future__ import annotations

import errno
import os
import re
import select
import sys
from typing import Final

from shmbus import _core
from shmbus._shm import descriptors
from shmbus.errors import ResourceLimitError

START_NS: Final = 5_000_000_000
"""How long a supervisor that was started may take to enter itself before another one is started."""

_CODE: Final = (
    "import os, sys\n"
    "sys.path.extend(p for p in os.environ.pop('SHMBUS_PATH').split(os.pathsep) if p not in sys.path)\n"
    "from shmbus.supervisor import run\n"
    "sys.exit(run(sys.argv[1], foreground=False))"
)
_PATIENCE: Final = 0.5  # seconds for the supervisor of a bus that is gone; it takes milliseconds
_WALL: Final = 0x40000000  # __WALL: children that signal nothing at their end, too
_GAPS: Final = 512  # as starter.c has it
_A_PYTHON: Final = re.compile(r"python|pypy", re.IGNORECASE)

_keepers: Final[dict[int, str]] = {}
"""By pid, the bus that each keeper's supervisor serves. Theirs is the process that started them."""

os.register_at_fork(after_in_child=_keepers.clear)


def can_spawn() -> str | None:
    """Why no supervisor can be started from here, in words for a message; None where one can be."""
    if getattr(sys, "frozen", False) or hasattr(sys.modules.get("__main__"), "__compiled__"):  # the latter is Nuitka's
        return f"a frozen application has no interpreter to start: sys.executable={sys.executable!r}"
    if not sys.executable:
        return "an embedded interpreter does not know its program: sys.executable is empty"
    if not _A_PYTHON.search(os.path.basename(sys.executable)):
        return f"an embedded interpreter, whose program is no Python: sys.executable={sys.executable!r}"
    if not os.access(sys.executable, os.X_OK):
        return f"the interpreter is not there: sys.executable={sys.executable!r}"
    return None


def spawn_supervisor(bus: str) -> None:
    """Start one for the bus, and return when it runs; whether it stays is for the bus segment to say.

    Raises OSError: ResourceLimitError where no more processes or descriptors are to be had.
    """
    reap()
    path = os.pathsep.join(entry for entry in sys.path if os.path.isabs(entry))
    environment = [os.fsencode(f"{key}={value}") for key, value in {**os.environ, "SHMBUS_PATH": path}.items()]
    argv = [os.fsencode(word) for word in (sys.executable, "-I", "-c", _CODE, bus)]
    gaps = _gaps() if _core.adopts_orphans() else None
    try:
        keeper = _core.start_process(argv[0], argv, environment, gaps)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            raise ResourceLimitError.of_processes(errno.EAGAIN) from None
        raise descriptors.explained(error) from None
    if keeper:
        _keepers[keeper] = bus


def reap(gone: str = "") -> None:
    """Let go of the supervisors that have ended; costs nothing where orphans are init's.

    Waits up to half a second for those of the bus `gone`, which the caller knows to be removed.
    """
    for pid, bus in list(_keepers.items()):
        if bus == gone:
            _wait_for_end(pid)
        try:
            ended = os.waitpid(pid, os.WNOHANG | _WALL)[0] == pid
        except ChildProcessError:  # another thread was faster, or the application waits for all, with __WALL
            ended = True
        if ended:
            _keepers.pop(pid, None)


def _wait_for_end(pid: int) -> None:
    try:
        pidfd = descriptors.pidfd(pid)
    except (AttributeError, OSError):
        return  # it is reaped at the next occasion
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(_PATIENCE * 1000)
    finally:
        os.close(pidfd)


def _gaps() -> list[tuple[int, int]]:
    """The addresses that a keeper can do without, as (start, length): all between the libraries and its own stack."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        regions = [_region(line) for line in file if "[vsyscall]" not in line]  # which lies behind all addresses
    own = _core.own_addresses()
    code = {path for _, _, permissions, path in regions if "x" in permissions and path}
    gaps, end = [], 0
    for start, stop, _, path in sorted(regions):
        if path in code or path.startswith(("[v", "[stack")) or any(start <= at < stop for at in own):
            if start > end:
                gaps.append((end, start - end))
            end = stop
    return sorted(gaps, key=lambda gap: -gap[1])[:_GAPS]


def _region(line: str) -> tuple[int, int, str, str]:
    span, permissions, *rest = line.rstrip("\n").split(maxsplit=5)
    start, _, stop = span.partition("-")
    return int(start, 16), int(stop, 16), permissions, rest[3] if len(rest) > 3 else ""
