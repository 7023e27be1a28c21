"""Home: a queue as all processes know it: its name, its words, and the hold that keeps it. One a process and queue.

May touch: the files of the queue's bus, through what is below; the after-fork hook of this process.

Must stay true:
- A process has one Home of a queue, however many Queue objects: closing a second descriptor of the words would free the
  locks of the first.
- A fork takes Home along and leaves the link behind: the child makes its own when it first needs one.
- No join or leave of this process is logged: `logging.handlers.QueueHandler` would put it into the queue that is
  being opened for it. What its supervisor sees, the deaths, is told as of any bus.
- The hold is let go of before the bus is left, so that whoever leaves last sees that nobody holds it.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final

from shmbus._ledger import audit
from shmbus._shm import hold
from shmbus._shm.names import object_prefix
from shmbus.bus import Bus
from shmbus.errors import BusNotFoundError, ConfigError, QueueClosedError
from shmbus.queues._link import Link
from shmbus.queues._words import Words

if TYPE_CHECKING:
    from shmbus.queues._ground import Kind

_STALLED: Final = 1e8  # seconds; a queue may rest for as long as its users like
_WORDS: Final = "queue"

_homes: weakref.WeakValueDictionary[str, Home] = weakref.WeakValueDictionary()


class _Lock:
    """What guards them: another lock in each process, for a fork may come while a thread has it."""

    now = threading.RLock()  # finalisers come in wherever they like


class Home:
    """One queue in one process, and what of it a fork inherits."""

    def __init__(self, name: str, kind: Kind, *, named: bool) -> None:
        self.name: Final = name
        self.kind: Final = kind
        self.named: Final = named
        self.prefix: Final = object_prefix(name)
        self.words: Words
        self._held = -1
        self._link: Link | None = None
        self._linking = threading.RLock()
        self._users = 0
        self._over = False

    @classmethod
    def make(cls, name: str | None, kind: Kind) -> Home:
        """Make a queue, or attach to the one of that name. Raises ConfigError if that is of another kind."""
        with _Lock.now:
            known = _homes.get(name) if name else None
            if known is not None and not known._over:
                _require_same(known.kind, kind)
                known._users += 1
                return known
            home = cls(name or f"queue-{os.urandom(8).hex()}", kind, named=name is not None)
            audit.silent.add(home.name)
            bus = None
            try:
                bus = Bus(home.name, stall_timeout=_STALLED)
                home._held = hold.take(home.prefix, hold.KEEP if home.named else hold.HOLD, create=True)
                home._open_words(create=True)
                home._link = Link(bus, kind, home.words, home.prefix, make=True)
            except BaseException:
                home._let_go()
                if bus is not None:
                    bus.close()
                audit.silent.discard(home.name)
                raise
            home._users = 1
            _homes[home.name] = home
            return home

    @classmethod
    def attach(cls, name: str, kind: Kind, *, named: bool, held: int = -1) -> Home:
        """The home of a queue that came in a pickle; `held` is a descriptor that came with it.

        Raises QueueClosedError if it is gone.
        """
        with _Lock.now:
            known = _homes.get(name)
            if known is not None and not known._over:
                if held >= 0:
                    os.close(held)
                known._users += 1
                return known
            home = cls(name, kind, named=named)
            audit.silent.add(name)
            try:
                home._held = held
                if held < 0:
                    home._held = hold.take(home.prefix, hold.KEEP if named else hold.HOLD, create=False)
                home._open_words(create=False)
            except FileNotFoundError:
                home._let_go()
                audit.silent.discard(name)
                raise QueueClosedError(f"queue {name!r} is gone: nobody has it any more") from None
            except BaseException:
                home._let_go()
                audit.silent.discard(name)
                raise
            home._users = 1
            _homes[name] = home
            return home

    def _open_words(self, *, create: bool) -> None:
        self.words = Words.open(self.prefix + _WORDS, self.kind.maxsize, self.kind.tasks, create=create)

    @property
    def held(self) -> int:
        """The descriptor that holds it."""
        return self._held

    def link(self) -> Link:
        """What this process has of it; made at the first call, and after a fork."""
        link = self._link
        if link is not None:
            return link
        with self._linking:
            if self._over:
                raise QueueClosedError(f"queue {self.name!r} is closed")
            if self._link is None:
                try:
                    bus = Bus.attach(self.name)
                except BusNotFoundError:
                    raise QueueClosedError(f"queue {self.name!r} is gone") from None
                self._link = Link(bus, self.kind, self.words, self.prefix, make=False)
            return self._link

    def release(self) -> None:
        """One Queue object less; the last one leaves."""
        with _Lock.now:
            self._users -= 1
            if self._users or self._over:
                return
            self._over = True
            if _homes.get(self.name) is self:
                del _homes[self.name]
        link, self._link = self._link, None
        if link is not None:
            link.interrupt()
        self._let_go()
        if link is not None:
            link.close()
        with _Lock.now:
            if self.name not in _homes:
                audit.silent.discard(self.name)

    def _let_go(self) -> None:
        if self._held >= 0:
            os.close(self._held)
            self._held = -1
        words = getattr(self, "words", None)
        if words is not None:
            words.close()

    def forked(self) -> None:
        """In a child: the link is the parent's."""
        self._link = None
        self._linking = threading.RLock()
        self.words.forked()


def _require_same(has: Kind, asked: Kind) -> None:
    for option in ("maxsize", "tasks", "type", "codec"):
        if getattr(has, option) != getattr(asked, option):
            message = f"this process has the queue with another {option}"
            raise ConfigError(f"{message}: {getattr(has, option)!r}, not {getattr(asked, option)!r}")


def _after_fork() -> None:
    _Lock.now = threading.RLock()
    for home in list(_homes.values()):
        home.forked()


os.register_at_fork(after_in_child=_after_fork)

__all__: list[Any] = ["Home"]
