"""Hold: keeps a bus for processes that do not take part in it yet, and makes nothing else keep it.

A file of the bus that is kept under a shared `flock`. A fork shares the lock with its parent, an exec gives it up, a
death too. So a child that was forked with one finds the bus there whenever it opens it, whatever became of its parent.

May touch: the files `shmbus-<bus>:<uid>:hold` and `...:keep`.

Must stay true:
- A bus with a hold goes with its last participant and its last holder, and not before, whatever its groups are owed.
- One that is kept stays as long as somebody has the lock, and then as long as any bus.
- Whoever got the lock looks whether the file still has its name: the bus may have gone while it came.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Final

from shmbus._shm import descriptors, place, segment

HOLD: Final = "hold"
KEEP: Final = "keep"


def take(prefix: str, how: str, *, create: bool) -> int:
    """A descriptor that holds or keeps a bus. Raises FileNotFoundError where it is gone, or not so and not `create`."""
    name = prefix + how
    try:
        fd = segment.open_file(name, os.O_RDONLY, create=create)
        fcntl.flock(fd, fcntl.LOCK_SH)
    except OSError as error:
        raise descriptors.explained(error) from None
    if os.fstat(fd).st_nlink:
        return fd
    os.close(fd)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place.path_of(name))


def held(prefix: str) -> bool | None:
    """Whether somebody holds or keeps the bus; None where nobody does who would have it go."""
    if _locked(prefix + KEEP):
        return True
    return _locked(prefix + HOLD)


def _locked(name: str) -> bool | None:
    try:
        fd = segment.open_file(name, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
