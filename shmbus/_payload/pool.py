"""Pool segments: created, attached and removed by the id that the registry document gives them; and what the dead held.

May touch: segments named `shmbus-<bus>:pool-<id>`; the bits of holders whose life is over, under the bus lock.

Must stay true:
- A pool is one publisher's, and goes when nobody is owed anything of its rings; whoever still has a view keeps the
  memory of that view, and no more.
- Whoever holds anything keeps its life on the bus (`Lives`) until the last view is gone, whatever becomes of its
  handles: so a free life is proof that its views are gone too.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from shmbus import _core
from shmbus._log import logger
from shmbus._shm import segment
from shmbus._shm.failpoint import reach
from shmbus._shm.lives import Lives
from shmbus._shm.segment import Segment
from shmbus.errors import AccessError, CorruptSegmentError, LayoutMismatchError

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator

UNREADABLE: Final = (AccessError, CorruptSegmentError, LayoutMismatchError, FileNotFoundError)
"""What becomes of an attempt to read a pool that is not there, or is not what it should be."""

_log = logger("shmbus.reclaim")


class _Life:
    """Keeps this process's life on a bus, by one more user of its lives file."""

    def __init__(self, name: str) -> None:
        self._lives: Lives | None = None
        self._lives = Lives.open(name)

    @property
    def life(self) -> int:
        return self._lives.life if self._lives else 0

    def __del__(self) -> None:
        lives, self._lives = self._lives, None
        if lives is not None:
            with suppress(Exception):  # at the interpreter's end anything may be gone already
                lives.close()


class Pools:
    """The pools of one bus that this process has mapped."""

    def __init__(self, prefix: str, *, writable: bool = True, owner: int | None = None) -> None:
        self.prefix: Final = prefix + "pool-"
        self._lives: Final = prefix + "lives"
        self._writable = writable
        self._owner = owner

    def create(self, id: int, size: int) -> None:
        """Make the segment of a pool that the document does not have yet. Raises NoSpaceError.

        A segment of that name is what a creator left that died before its commit.
        """
        while True:
            try:
                Segment.create(
                    f"{self.prefix}{id}", _core.Pool.size(size), lambda memory: _core.Pool.format(memory, size, id)
                ).close()
                reach("pool.created")
                return
            except FileExistsError:
                segment.unlink(f"{self.prefix}{id}")

    def enter(self, id: int, consumer: int, wake: Callable[[], object] | None = None) -> _core.Pool:
        """A mapping that holds, for a subscriber or group, what is looked at through it. Raises UNREADABLE."""
        keeper = _Life(self._lives)
        return self._attach(id, keeper.life, consumer, keeper, wake)

    def look(self, id: int) -> _core.Pool:
        """A mapping that holds nothing, for who looks after the bus or tells about it. Raises UNREADABLE."""
        return self._attach(id)

    def remove(self, id: int) -> None:
        """Under the bus lock: nobody is owed anything of a pool. Its name goes, and all memory that nobody looks at."""
        with suppress(*UNREADABLE):
            left = self.look(id).retire()
            reach("pool.retired")
            if left:
                _log.info("pool %d is gone but for %d extents that are still looked at", id, left)
        segment.unlink(f"{self.prefix}{id}")

    def remove_orphans(self, ids: Container[int]) -> list[str]:
        """Under the lock: unlink the segments of pools that are not among `ids`, which a dead process left behind."""
        orphans = [name for name in segment.names(self.prefix) if _id_of(name, self.prefix) not in ids]
        for name in orphans:
            segment.unlink(name)
        return orphans

    def forget_dead(self, ids: Iterable[int], lives: Lives) -> int:
        """Under the lock: free what processes held that are dead; returns how many extents that were."""
        count = 0
        known: dict[int, bool] = {}
        for pool, number, life in self._holders(ids):
            if life not in known:
                known[life] = lives.alive(life)
            if not known[life]:
                reach("pool.forgetting")
                held = pool.forget(number, life)
                reach("pool.forgotten")
                count += held
                if held:
                    _log.warning("pool %d: a process died with %d views; they are free", pool.pool_id, held)
        return count

    def has_dead(self, ids: Iterable[int], lives: Lives) -> bool:
        """Whether `forget_dead` has something to do; without the lock."""
        known: dict[int, bool] = {}
        return any(not known.setdefault(life, lives.alive(life)) for _, _, life in self._holders(ids))

    def _holders(self, ids: Iterable[int]) -> Iterator[tuple[_core.Pool, int, int]]:
        for id in ids:
            with suppress(*UNREADABLE):
                pool = self.look(id)
                for number, life in pool.lives():
                    yield pool, number, life

    def _attach(
        self,
        id: int,
        life: int = 0,
        consumer: int = 0,
        keeper: object = None,
        wake: Callable[[], object] | None = None,
    ) -> _core.Pool:
        memory = Segment.attach(f"{self.prefix}{id}", writable=self._writable, owner=self._owner).map
        pool = _core.Pool(memory, life, consumer, keeper, wake)
        if pool.pool_id != id:
            raise CorruptSegmentError(f"pool {id} says that it is pool {pool.pool_id}")
        return pool


# -- forks

_COPIED: Final = 1.0  # seconds that a parent waits for its child's copies; what it would take for gigabytes
_forks: list[tuple[int, int]] = []
"""A pipe for each fork under way, whose other end a child closes when it has its copies, or dies."""


def _before_fork() -> None:
    if _core.count_views():
        _forks.append(os.pipe2(os.O_CLOEXEC))


def _after_in_parent() -> None:
    """A view that is let go of now may be another event's at once: not before the child has its copy."""
    if _forks:
        reading, writing = _forks.pop()
        os.close(writing)
        select.select([reading], [], [], _COPIED)
        os.close(reading)


def _after_in_child() -> None:
    """Our parent's views are not ours to hold: what refers to them finds copies."""
    if _forks:
        _core.keep_views()
        for pipe in _forks:
            for end in pipe:
                os.close(end)
        _forks.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child)


def _id_of(name: str, prefix: str) -> int:
    rest = name.removeprefix(prefix)
    return int(rest) if rest.isdecimal() else -1
