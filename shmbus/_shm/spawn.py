"""Starts an automatic supervisor: a detached process of the same interpreter, as the standard library's resource
tracker is one.

May touch: processes. Must stay true: the child shares no descriptor, session or working directory with its parent,
and no zombie of it stays with the parent, however long that lives.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

START_NS: Final = 5_000_000_000
"""How long a supervisor that was started may take to enter itself before another one is started."""

_CODE: Final = (
    "import os, sys\n"
    "if os.fork(): os._exit(0)\n"
    "sys.path.extend(p for p in os.environ.pop('SHMBUS_PATH').split(os.pathsep) if p not in sys.path)\n"
    "from shmbus.supervisor import run\n"
    "sys.exit(run(sys.argv[1], foreground=False))"
)


def spawn_supervisor(bus: str) -> None:
    """Start one for the bus. Its first process exits at once and is waited for; the second one belongs to init."""
    path = os.pathsep.join(entry for entry in sys.path if os.path.isabs(entry))
    subprocess.run(
        [sys.executable, "-I", "-c", _CODE, bus],
        env={**os.environ, "SHMBUS_PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        close_fds=True,
        start_new_session=True,
        cwd="/",
        check=False,
    )
