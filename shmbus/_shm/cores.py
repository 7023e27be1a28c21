"""How many cores this process may use: its affinity, and what the CPU quota of its cgroups leaves of that.

In a container with `--cpus=1` the affinity still shows every core of the host; who spins there spends the quota of
those that he waits for.

May touch: /proc/self and the cgroup file systems, to read.
"""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_FRESH: Final = 10.0  # seconds; quotas change while processes run (docker update, systemctl set-property)

_quota = (-math.inf, math.inf)  # when it was read, and cores


def usable() -> int:
    """Whole cores, at least one. Costs a system call; the quota is read again every ten seconds."""
    global _quota  # noqa: PLW0603
    now = time.monotonic()
    if now - _quota[0] > _FRESH:
        _quota = (now, quota())
    return max(1, math.floor(min(len(os.sched_getaffinity(0)), _quota[1])))


def quota(root: str = "") -> float:
    """The tightest quota of this process's cgroups and of those above them, in cores; infinite where there is none.

    `root` stands before every path that is read.
    """
    with suppress(ValueError):  # a /proc that nobody has seen yet
        return min((_limit(folder) for folder in _folders(root)), default=math.inf)
    return math.inf


def _folders(root: str) -> Iterator[str]:
    """Every folder that may hold a quota, of version 2 and 1 alike: that of this process, and upwards to the mount."""
    groups = [line.split(":", 2) for line in _lines(f"{root}/proc/self/cgroup")]
    for line in _lines(f"{root}/proc/self/mountinfo"):
        mount, _, kind = line.partition(" - ")
        _, _, _, base, point, *_ = mount.split(" ")
        kind, _, options = kind.split(" ", 2)
        for _, controllers, path in groups:
            mine = not controllers if kind == "cgroup2" else "cpu" in controllers.split(",")
            if mine and (kind == "cgroup2" or (kind == "cgroup" and "cpu" in options.split(","))):
                yield from _upwards(root + point, _below(path, base))


def _below(path: str, base: str) -> str:
    """What is left of a cgroup's path below the one that is mounted; '' for one that is not below it."""
    inside = path == base or path.startswith(base.rstrip("/") + "/")
    return path.removeprefix(base.rstrip("/")).strip("/") if inside and ".." not in path else ""


def _upwards(point: str, path: str) -> Iterator[str]:
    while path:
        yield f"{point}/{path}"
        path = path.rpartition("/")[0]
    yield point


def _limit(folder: str) -> float:
    """Quota by period, of either version; infinite where none is set or to be read."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        words = " ".join(_lines(f"{folder}/cpu.max")).split()
        if not words:
            words = [*_lines(f"{folder}/cpu.cfs_quota_us"), *_lines(f"{folder}/cpu.cfs_period_us")]
        if len(words) == 2 and words[0] != "max" and int(words[0]) > 0:
            return int(words[0]) / int(words[1])
    return math.inf


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read().splitlines()
    except OSError:
        return []
