"""What can be told of processes for a person's eyes: command lines, PID namespaces, who is stopped. Nothing here is
proof of anything; who lives is told by `lives.py` alone.

May touch: /proc, which may be missing, hidden or another namespace's: then less is told.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import Final

_DESCRIPTION: Final = 60  # characters


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


def _shorten(words: list[str]) -> str:
    text = " ".join(os.path.basename(word) if word.startswith("/") else word for word in words)
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return text if len(text) <= _DESCRIPTION else text[: _DESCRIPTION - 1] + "…"
