"""Descriptors: everything of shmbus that has a number has one above 2, and is closed by an exec.

A daemon that closed its standard descriptors would print into our segments otherwise. What the limits of a process
refuse is an error of the tree, which says which limit it is, its value, and what to do.

May touch: descriptors that it opens itself, and /proc/sys/fs.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from typing import Final

from shmbus.errors import ResourceLimitError

_FIRST: Final = 3


def open_file(path: str, flags: int, mode: int = 0o600) -> int:
    """`os.open`. Raises ResourceLimitError when there is no descriptor left, and OSError.

    The file never has a low number, not even for a moment: closing that would free the record locks that this process
    holds in it.
    """
    fillers: list[int] = []
    try:
        while any(map(_is_free, range(_FIRST))) and len(fillers) < _FIRST:
            fillers.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        return above(os.open(path, flags | os.O_CLOEXEC, mode))
    except OSError as error:
        raise explained(error) from None
    finally:
        for filler in fillers:
            os.close(filler)


def _is_free(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return True
    return False


def duplicate(fd: int) -> int:
    """`os.dup`; raises as `open_file` does."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST)
    except OSError as error:
        raise explained(error) from None


def pidfd(pid: int) -> int:
    """`os.pidfd_open`; raises as `open_file` does, and AttributeError where Python was built without it."""
    try:
        return above(os.pidfd_open(pid))
    except OSError as error:
        raise explained(error) from None


def above(fd: int) -> int:
    """The same open file under a number above 2; `fd` is given up for it."""
    if fd >= _FIRST:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST)
    finally:
        os.close(fd)


def explained(error: OSError) -> OSError:
    """The error, or in its place the one of our tree that says which limit it is."""
    if error.errno == errno.EMFILE:
        return ResourceLimitError.of_descriptors(errno.EMFILE)
    if error.errno == errno.ENFILE:
        most = -2
        with suppress(OSError, ValueError), open("/proc/sys/fs/file-max", encoding="ascii") as file:
            most = int(file.read())
        return ResourceLimitError(
            errno.ENFILE, "fs.file-max", most, "the system has no descriptor left: sysctl fs.file-max"
        )
    return error
