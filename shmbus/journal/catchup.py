"""A subscriber that has a journal behind its ring: catches up from it, and fills in what its ring was overrun by.

May touch: its own ring, as every subscriber; the journal and the books, to read.

Must stay true:
- It joins the rings first, at their oldest event, and reads the journal then: nothing falls between the two.
- While it catches up it takes from the rings what is there, so that nobody waits for it. What is too much to keep is
  dropped again: the journal has it, or is owed it.
- The journal is read until it has what stands first in the rings, publisher by publisher, or is owed nothing older.
- An event is known by origin and stamp: one that came from the journal is not handed out again from a ring.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from shmbus import _core
from shmbus._ledger import books
from shmbus._log import logger
from shmbus.errors import ConfigError
from shmbus.journal.entries import FIRST_NS, group_of, merged, message_of
from shmbus.message import Gap
from shmbus.subscriber import Subscriber
from shmbus.topic import Topic, bound_to

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmbus.journal.journal import Journal, Part
    from shmbus.journal.store import Entry
    from shmbus.stats import ConsumerStats

T = TypeVar("T")

PATIENCE: Final = 10.0
"""Seconds that an overrun waits for the journal to have what is missing; then it is a gap."""
_MOST: Final = 16384  # events that are kept: taken from the rings while the journal is read, or from it for a gap
_OFTEN: Final = 256  # events of the journal between two looks at the rings
_LOOK: Final = 0.02  # seconds between two looks at a journal that is written meanwhile
_MARGIN: Final = (
    10_000_000_000  # ns; no stamp that appears after a join is older than that by more than a stopped publish
)
_LOG_INTERVAL: Final = 10.0

_log = logger("shmbus.journal")

_Found = tuple[Any, ...]
"""(event, sequence, publisher, time_ns, headers, origin), as `_core` makes it."""


class CatchingUp(Subscriber[T]):
    """A Subscriber with a Journal; once it has caught up, and repairs nothing, each call goes straight to `_core`."""

    def __init__(self, *arguments: Any, journal: Journal, catch_up: bool, repair: bool) -> None:
        self._journal = journal
        self._catches_up = catch_up
        self._repairs = repair
        self._joined = time.time_ns() - _MARGIN
        self._live: deque[_Found] = deque()
        """Taken from the rings, not handed out."""
        self._past: Iterator[tuple[str, Entry]] | None = None
        self._number = 0
        """The last batch of the journal that was looked at."""
        self._turn = 0
        self._first: dict[str, int] = {}
        """Stamp of the first event that the rings had of a publisher, by its origin; so are those that follow."""
        self._need: dict[str, int] = {}
        """Stamp up to which the journal must have a publisher's events before the rings may go on."""
        self._mark: dict[str, int] = {}
        """Stamp of the last event that the journal gave of a publisher."""
        self._seen: dict[str, set[int]] = {}
        """What the journal gave that a ring may give once more."""
        self._names: dict[str, set[str]] = {}
        """The origins of the publishers of a name that the rings had events of."""
        self._overrun: set[str] = set()
        self._next_look = self._next_told = 0.0
        self._last: dict[str, int] = {}
        self._gaps: dict[str, Gap] = {}
        self._hole: tuple[Gap, _Found, float] | None = None
        self._filled: Iterator[tuple[str, Entry, int]] | None = None
        """What the journal has of the hole, until that is handed out."""
        self._stale = -1
        self._written: Topic[Any] | None = None
        """The topic as the journal has it."""
        self._plain = False
        session, topic, entry, me, on_gap, *rest = arguments
        super().__init__(session, topic, entry, me, None if repair else on_gap, *rest)
        self._own = me.name

    # -- what is next

    def _pull(self) -> Any:
        """The next message, wherever it comes from; NOTHING for now."""
        if self.closed:
            return _core.Consumer._poll_message(self)  # which says so
        while True:
            if self._filled is not None:
                for bus, entry, sequence in self._filled:
                    return self._as_found(bus, entry, sequence)
                assert self._hole is not None
                found, self._hole, self._filled = self._hole[1], None, None
                return found
            if self._catches_up:
                found = self._from_journal()
                if found is not None:
                    return found
                if self._catches_up:
                    return _core.NOTHING
            if self._hole is not None and not self._mended():
                return _core.NOTHING
            if self._filled is not None:
                continue
            found = self._live.popleft() if self._live else _core.Consumer._poll_message(self)
            if found is _core.NOTHING:
                self._settle_down()
                return found
            if not self._twice(found) and not self._after_gap(found):
                return found

    def _settle_down(self) -> None:
        """The rings are dry: from here on they are enough, unless there is something to repair or to pass over."""
        self._plain = not (self._repairs or self._seen or self._gaps)

    def _twice(self, found: _Found) -> bool:
        stamps = self._seen.get(found[5])
        if stamps is None:
            return False
        if found[3] in stamps:
            stamps.discard(found[3])
            return True
        if not stamps or found[3] > max(stamps):  # the ring is past what the journal gave
            del self._seen[found[5]]
        return False

    # -- catching up

    def _from_journal(self) -> Any:
        """The next message out of the journal; None when it has none: for now, or, once nothing is due, any more."""
        self._turn += 1
        if self._turn % _OFTEN == 1:
            self._drain()
        final = False
        while True:
            if self._past is None:
                self._past = self._began()
            for bus, entry in self._past:
                return self._handed(bus, entry)
            self._past = self._followed()
            for bus, entry in self._past:
                return self._handed(bus, entry)
            if final:
                self._catches_up = False
                self._past = None
                return None
            self._drain()
            final = self._complete()  # and once more: what was written before that look is read now
            if not final:
                return None

    def _began(self) -> Iterator[tuple[str, Entry]]:
        self._number = self._journal.store.last()
        return merged(self._journal.store.by_time(self.topic.name, FIRST_NS, 1 << 62, self._number))

    def _followed(self) -> Iterator[tuple[str, Entry]]:
        for batch in self._journal.store.after(self.topic.name, self._number):
            self._number = batch.number
            for entry in batch.entries:
                yield batch.bus, entry

    def _handed(self, bus: str, entry: Entry) -> _Found:
        origin, stamp = entry.origin, entry.time_ns
        self._mark[origin] = max(stamp, self._mark.get(origin, stamp))
        if stamp >= self._first.get(origin, self._joined):
            self._seen.setdefault(origin, set()).add(stamp)
        return self._as_found(bus, entry, entry.sequence)

    def _as_found(self, bus: str, entry: Entry, sequence: int) -> _Found:
        if self._written is None:
            self._written = bound_to(self.topic, self._journal.form(self.topic.name).description)
        event = message_of(self._written, bus, entry).event
        return event, sequence, entry.publisher, entry.time_ns, entry.headers, entry.origin

    def _drain(self, timeout: float = 0.0) -> None:
        """Take what the rings have, so that nobody waits for us; more than is kept is left to the journal."""
        while (found := _core.Consumer._take_messages(self, _OFTEN, timeout)) is not _core.NOTHING:
            timeout = 0.0
            for item in found:
                publisher, stamp, origin = item[2], item[3], item[5]
                self._names.setdefault(publisher, set()).add(origin)
                self._first.setdefault(origin, stamp)
                self._need.setdefault(origin, stamp)
                if publisher in self._overrun:
                    self._need[origin] = stamp
            self._overrun.difference_update([item[2] for item in found])
            self._live.extend(found)
            if len(self._live) > _MOST:
                self._need.update((item[5], item[3]) for item in self._live)
                self._live.clear()

    def _complete(self) -> bool:
        """The journal has what the rings do not, as far as the books say."""
        if time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + _LOOK
        stats = books.stats(self._session.registry, self._session.rings)
        group = self._consumer(stats.consumers, "group", group_of(self._journal.store))
        if group is None:
            return True  # nobody writes it on this bus: it has what it has
        mine = self._consumer(stats.consumers, "subscriber", self._own)
        there: dict[str, int] = {}
        for source in mine.publishers if mine else ():
            there[source.publisher] = there.get(source.publisher, 0) + source.depth
        for item in self._live:
            there[item[2]] = there.get(item[2], 0) + 1
        late = {
            source.publisher
            for source in group.publishers
            if source.depth and source.depth >= there.get(source.publisher, 0) and not self._passed(source.publisher)
        }
        if late and not group.workers and time.monotonic() >= self._next_told:
            self._next_told = time.monotonic() + _LOG_INTERVAL
            _log.warning(
                "subscriber %s of topic %s waits for what journal %s has yet to write, and nobody writes it",
                *(self.name, self.topic.name, self._journal.path),
            )
        return not late

    def _passed(self, publisher: str) -> bool:
        """The journal is past what the rings begin with, of the publishers of a name."""
        origins = self._names.get(publisher, ())
        return bool(origins) and all(self._mark.get(origin, FIRST_NS) >= self._need[origin] for origin in origins)

    def _consumer(self, consumers: tuple[ConsumerStats, ...], kind: str, name: str) -> ConsumerStats | None:
        topic = self.topic.name
        return next((c for c in consumers if (c.topic, c.kind, c.name) == (topic, kind, name)), None)

    # -- repair

    def _gap(self, publisher: str, first: int, last: int, count: int | None = None) -> None:
        if self._catches_up:
            self._overrun.add(publisher)  # the journal has it, or will
        elif self._repairs and count is None:
            known = self._gaps.get(publisher)
            first = first if known is None else known.first
            self._gaps[publisher] = Gap(publisher, first, last, last - first + 1, "overrun")
        else:
            super()._gap(publisher, first, last, count)

    def _after_gap(self, found: _Found) -> bool:
        """A message before which events are missing waits for them."""
        if not self._repairs:
            return False
        gap = self._gaps.pop(found[2], None) if self._gaps else None
        if gap is None:
            self._last[found[5]] = found[3]
            return False
        self._hole = gap, found, time.monotonic() + PATIENCE
        self._next_look = 0.0
        return True

    def _mended(self) -> bool:
        """Fill in what was overrun, from the journal; False: it does not have all of it yet."""
        assert self._hole is not None
        gap, found, deadline = self._hole
        now = time.monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + _LOOK
        publisher, stamp, origin = found[2], found[3], found[5]
        since = self._last.get(origin, self._joined - 1) + 1
        number = self._journal.store.last()
        parts: list[Part] = []
        total = 0
        for part in self._journal.parts(self.topic.name, origin, since, stamp, _MOST):
            total += len(part.entries)
            parts.append(part)
            if total > _MOST:  # too much to keep: these are read again
                parts = [part._replace(entries=[]) for part in parts]
        missing = gap.count - total
        if missing > 0 and now < deadline and number != self._stale:
            return False
        self._stale = number if missing > 0 else -1  # from a journal that stands still nothing more is awaited
        self._last[origin] = stamp
        self._filled = self._fill(gap, origin, missing, parts, again=total > _MOST)
        if missing > 0:
            super()._gap(publisher, gap.first, gap.first + missing - 1)
        return True

    def _fill(
        self, gap: Gap, origin: str, missing: int, parts: list[Part], *, again: bool
    ) -> Iterator[tuple[str, Entry, int]]:
        """What the journal has of a gap, with its sequences; `missing` is below 0 where it has older events too."""
        sequence = gap.first + missing
        for part in parts:
            if again:
                since, until, _ = part
                part = self._journal.part(self.topic.name, origin, since, until, sys.maxsize)
            for bus, entry in part.entries:
                if sequence >= gap.first:
                    yield bus, entry, sequence
                sequence += 1
        if sequence <= gap.last:  # retention was faster
            super()._gap(gap.publisher, sequence, gap.last)

    # -- every way to ask

    def _awaited(self, timeout: float | None) -> Any:
        """The next message, waiting for it; NOTHING at the deadline and at the handle's end."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (found := self._pull()) is _core.NOTHING:
            left = 3600.0 if deadline is None else deadline - time.monotonic()
            if left <= 0 or self.cancelled or self.closed:
                break
            if self._catches_up:
                self._drain(min(left, _LOOK))
            elif self._hole is not None:
                time.sleep(min(left, _LOOK))  # the disk tells nobody
            else:
                more = _core.Consumer._take_messages(self, 1, min(left, 3600.0))
                if more is not _core.NOTHING:
                    self._live.extend(more)
        return found

    def _poll_message(self, ask: Any = None, /) -> Any:
        return super()._poll_message(ask) if self._plain else self._pull()

    def _poll(self, ask: Any = None, /) -> Any:
        if self._plain:
            return super()._poll(ask)
        found = self._pull()
        return found if found is _core.NOTHING else found[0]

    def _next_message(self) -> Any:
        return super()._next_message() if self._plain else self._awaited(None)

    def _take_messages(self, maximum: int, timeout: float | None, /) -> Any:
        if self._plain:
            return super()._take_messages(maximum, timeout)
        found = self._awaited(timeout)
        if found is _core.NOTHING:
            return found
        lot = [found]
        while len(lot) < maximum and (found := self._pull()) is not _core.NOTHING:
            lot.append(found)
        return lot

    def _take(self, maximum: int, timeout: float | None, /) -> list[T]:
        if self._plain:
            return super()._take(maximum, timeout)
        found = self._take_messages(maximum, timeout)
        return self._nothing(timeout) if found is _core.NOTHING else [item[0] for item in found]

    def receive(self, timeout: float | None = None) -> T:
        """As that of every subscriber."""
        if self._plain:
            return super().receive(timeout)
        found = self._awaited(timeout)
        event: T = self._nothing(timeout) if found is _core.NOTHING else found[0]
        return event

    def try_receive(self) -> T | None:
        """As that of every subscriber."""
        if self._plain:
            return super().try_receive()
        found = self._pull()
        event: T | None = None if found is _core.NOTHING else found[0]
        return event

    def __next__(self) -> T:
        if self._plain:
            return super().__next__()
        found: Any = _core.NOTHING if self.closed else self._awaited(None)
        if found is _core.NOTHING:
            raise StopIteration
        event: T = found[0]
        return event

    def arrays(self, most: int = 65536) -> NoReturn:
        """Refused with ConfigError: arrays are views of a ring, and the journal's events are in none."""
        raise ConfigError(f"a subscriber with a journal hands out events, not arrays: topic={self.topic.name!r}")

    def receive_array(self, most: int, timeout: float | None = None) -> NoReturn:
        """Refused with ConfigError, as `arrays` is."""
        self.arrays(most)

    def _look(self) -> bool:
        return self._filled is not None or super()._look()

    def _due(self) -> float:
        waits = self._catches_up or self._hole is not None
        return min(_LOOK, super()._due()) if waits else super()._due()
