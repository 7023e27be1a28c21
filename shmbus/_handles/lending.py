"""Lending: memory of a publisher's pool to write into.

Pure: here is what publishers without a pool say; those that have one are in `shmbus.pooled`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shmbus.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from numpy.typing import DTypeLike

    from shmbus.topic import Topic


class Lending:
    """What every publisher has, with a pool or without."""

    if TYPE_CHECKING:
        topic: Topic[Any]
        """What is published."""

    def empty(self, shape: int | Sequence[int], dtype: DTypeLike = "u1") -> npt.NDArray[Any]:
        """A writable array in the publisher's pool, whose publication costs no copy; its values are not set.

        Published, it is the event's and read-only here. One that never is goes back to the pool when it is collected.
        Waits for room as `publish` does, whatever `on_full` is but "raise". Raises ConfigError if the topic has no
        pool, EventTooLargeError, Full, MissingPackageError without NumPy.
        """
        raise ConfigError(f"topic {self.topic.name!r} has no pool to take memory from: pool=0")

    def buffer(self, size: int) -> memoryview:
        """`size` writable bytes in the publisher's pool, as a memoryview; the same as `empty` otherwise."""
        raise ConfigError(f"topic {self.topic.name!r} has no pool to take memory from: pool=0")
