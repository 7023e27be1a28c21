"""Deaths: for whoever starts worker processes, and so is told by the system how they end.

    process = subprocess.Popen(...)  # where it opens the bus it calls deaths.promise(bus)
    deaths.tell(bus, process.pid, deaths.cause(process.wait()))

A dead letter then says not only that its workers died but how: "delivered 3 times without an ack (process 4711: killed
by SIGSEGV; ...)". The runner does this; so can anybody who has a process manager of their own.

May touch: the registry document, under the bus lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmbus._deaths import cause
from shmbus._ledger import deaths
from shmbus._shm import processes

if TYPE_CHECKING:
    from shmbus.bus import Bus

__all__ = ["cause", "promise", "tell"]


def promise(bus: Bus) -> None:
    """Say that somebody will tell how this process dies: dead letters wait for that, two seconds at most."""
    with bus._session.locked() as change:
        me = change.document.participant(bus._session.participant)
        if me is not None:
            me.promised = True
            change.commit()


def tell(bus: Bus, pid: int, how: str) -> int:
    """Say how a process died that took part in the bus, in up to 100 characters of ASCII; best before it is reaped.

    Gives back what it held if nobody has yet. Returns how many events it held, 0 for a process that held none. It is
    one of this process's PID namespace. Raises ClosedError, LockTimeoutError.
    """
    with bus._session.locked() as change:
        bus._session.reclaim_dead(change)
        return deaths.tell(change, pid, processes.pid_namespace(), how)
