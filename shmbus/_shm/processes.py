"""What can be told of processes for a person's eyes: command lines, PID namespaces, who is stopped. Nothing here is
proof of anything; who lives is told by `lives.py` alone.

May touch: /proc, which may be missing, hidden or another namespace's: then less is told.
"""

from __future__ import annotations

import fcntl
import functools
import os
import struct
import sys
from typing import Final

_DESCRIPTION: Final = 60  # characters
_EXIT_CODE: Final = 49  # field 52 of /proc/PID/stat, counted from the state, which is the third
_PIDFD_INFO: Final = struct.Struct("<Q52xi")  # struct pidfd_info of 64 bytes: its mask, and the exit code at its end
_PIDFD_INFO_EXIT: Final = 1 << 3
_PIDFD_GET_INFO: Final = 0xC040FF0B  # _IOWR(0xFF, 11, struct pidfd_info)


@functools.cache
def boot_id() -> bytes:
    """16 bytes that are new at every boot of the host; zeros where the kernel does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return bytes.fromhex(file.read().strip().replace("-", ""))
    except (OSError, ValueError):
        return bytes(16)


def pid_namespace() -> int:
    """The inode of this process's PID namespace, 0 where it cannot be told; a number may be given out again."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def own_description() -> str:
    """A short command line of this process for messages, as "python worker.py", at most 60 characters."""
    return _shorten(sys.orig_argv)


def describe(pid: int) -> str:
    """The same of a process of this namespace; '' where there is none to be seen."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb", buffering=0) as file:
            words = file.read(4096).decode(errors="replace").split("\0")
        if not any(words):  # a process can wipe it
            with open(f"/proc/{pid}/comm", "rb", buffering=0) as file:
                words = [file.read().decode(errors="replace").strip()]
    except OSError:
        return ""
    return _shorten(words)


def stopped(pid: int) -> bool:
    """True for a process that SIGSTOP or a debugger is seen to hold."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            # The name is in parentheses and may hold spaces and parentheses itself; the state follows it.
            return file.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except (OSError, IndexError):
        return False


def exit_code(pid: int) -> int | None:
    """How a process of this namespace ended, as `Popen` has it, while it is a zombie; None where nothing is seen."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            fields = file.read().rpartition(b")")[2].split()
        return os.waitstatus_to_exitcode(int(fields[_EXIT_CODE])) if fields[0] in (b"Z", b"X") else None
    except (OSError, IndexError, ValueError):
        return None


def exit_code_of(pidfd: int) -> int | None:
    """The same of a process that has ended, by its pidfd; once it was waited for, where the kernel tells (6.15)."""
    for _ in range(2):  # somebody may be waiting for it right now
        code = _waited_for(pidfd)
        if code is None:
            code = exit_code(_pid_of(pidfd))
        if code is not None:
            return code
    return None


def _pid_of(pidfd: int) -> int:
    try:
        with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
            return int(next(line for line in file if line.startswith("Pid:")).split()[1])
    except (OSError, ValueError, StopIteration):
        return -1


def _waited_for(pidfd: int) -> int | None:
    info = bytearray(_PIDFD_INFO.size)
    _PIDFD_INFO.pack_into(info, 0, _PIDFD_INFO_EXIT, 0)  # what is asked for
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
        mask, status = _PIDFD_INFO.unpack(info)
        return os.waitstatus_to_exitcode(status) if mask & _PIDFD_INFO_EXIT else None
    except (OSError, ValueError):
        return None


def _shorten(words: list[str]) -> str:
    text = " ".join(os.path.basename(word) if word.startswith("/") else word for word in words)
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return text if len(text) <= _DESCRIPTION else text[: _DESCRIPTION - 1] + "…"
