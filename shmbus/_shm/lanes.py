"""Lane segments: which keys of a group are in somebody's hands (`lane.h`).

May touch: segments named `shmbus-<bus>:<uid>:lanes-<group id>`; `prefix` is what comes before `lanes-`.

Must stay true:
- An id is never used twice. A segment is made before the document names its group, and unlinked after the document has
  forgotten it; what a death in between leaves belongs to nobody, and whoever holds the bus lock may unlink it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmbus import _core
from shmbus._shm import segment
from shmbus._shm.failpoint import reach
from shmbus._shm.segment import Segment
from shmbus.errors import CorruptSegmentError

if TYPE_CHECKING:
    from collections.abc import Container


class Lanes:
    """Those of one bus."""

    def __init__(self, prefix: str, owner: int | None = None) -> None:
        self._prefix = prefix + "lanes-"
        self._owner = owner

    def create(self, group: int) -> None:
        """Make those of a group that the document does not have yet. Raises NoSpaceError."""
        name = f"{self._prefix}{group}"
        while True:
            try:
                Segment.create(name, _core.lanes_size(), lambda memory: _core.lanes_format(memory, group)).close()
                reach("lanes.created")
                return
            except FileExistsError:  # of a creator that died before its commit
                segment.unlink(name)

    def map(self, group: int) -> _core.Mapping:
        """Those of a group, for as long as the caller has them. Raises CorruptSegmentError where they are not there."""
        try:
            return Segment.attach(f"{self._prefix}{group}", owner=self._owner).map
        except FileNotFoundError:
            raise CorruptSegmentError(f"the lanes of group {group} are not there: {self._prefix}{group}") from None

    def remove(self, group: int) -> None:
        """Unlink those of a group that the document does not have, or no longer."""
        segment.unlink(f"{self._prefix}{group}")

    def remove_orphans(self, groups: Container[int]) -> list[str]:
        """Under the lock: unlink those of groups that are not among `groups`, which a dead process left behind."""
        orphans = [name for name in segment.names(self._prefix) if _id_of(name, self._prefix) not in groups]
        for name in orphans:
            segment.unlink(name)
        return orphans


def _id_of(name: str, prefix: str) -> int:
    rest = name.removeprefix(prefix)
    return int(rest) if rest.isdecimal() else -1
