"""Files: which of a router's source files have changed, for `--reload`. May touch: their metadata, twice a second."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

INTERVAL: Final = 0.5
"""Seconds between two looks. A stat of each file: no service of the kernel to run out of, and any file system does."""


class Files:
    """What is watched, and what it was like."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, int] | None] = {}
        self.due = time.monotonic()
        """When the next look is, by the monotonic clock."""

    def watch(self, paths: Iterable[str]) -> None:
        """Look at these files too, as they are now."""
        for path in paths:
            self._known.setdefault(path, _look(path))

    def changed(self) -> list[str]:
        """Files that changed since the last look; one change is told once."""
        if time.monotonic() < self.due:
            return []
        self.due = time.monotonic() + INTERVAL
        found = [
            path for path, known in self._known.items() if _look(path) not in (known, None)
        ]  # None: half-way saved
        for path in found:
            self._known[path] = _look(path)
        return found


def _look(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino
