"""Recorder: writes the events of a topic to a journal, as the only worker of a group of its own.

May touch: the store; the claims of its group.

Must stay true:
- An event is acked after the store has returned: until then the bus owes it, whoever is killed.
- An event that comes again is written again only if the first time it did not reach the disk: `attempt` says which may
  have, and the store is asked for those.
- Where the disk takes nothing, nothing more is claimed: the rings hold what is owed, and then their publishers.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from shmbus import raw
from shmbus._closing import Closing
from shmbus._log import logger
from shmbus._shm.failpoint import reach
from shmbus.errors import ConfigError, JournalError
from shmbus.journal.entries import group_of
from shmbus.journal.store import Entry, Store, open_store

if TYPE_CHECKING:
    from shmbus.bus import Bus
    from shmbus.topic import Topic
    from shmbus.worker import Worker

MOST_BYTES: Final = 4 << 20
"""Payload of a batch, past which it is written at once: what a commit costs is spread thin enough by then."""
_CHUNK: Final = 256  # events of one look
_TICK: Final = 1.0  # seconds between two looks at what is too old
_NAP: Final = 0.01  # seconds between two looks for more, while a batch is left open on purpose
_RETRY: Final = (0.1, 5.0)  # seconds: the first pause after the disk refused, and the longest
_LOG_INTERVAL: Final = 10.0
_MAX_DELIVER: Final = 4000  # a death of the recorder is no fault of the event

_log = logger("shmbus.journal")


class Recorder(Closing):
    """Writes one topic of a bus to a journal until it is stopped; `run` does it, in the thread that calls.

    `topic` is a Topic or the name of one: then it is awaited, or known from the journal. `sync` seconds may pass from
    an event's arrival to its commit, to make larger batches of slow streams; 0 commits what is there. `max_age`
    (seconds) and `max_bytes` bound what is kept. `store` is the name of a plugin, or an open store that several
    recorders share. Raises JournalError, SchemaMismatchError, ConfigError.
    """

    def __init__(
        self,
        bus: Bus,
        topic: Topic[Any] | str,
        path: Any,
        *,
        sync: float = 0.0,
        max_age: float | None = None,
        max_bytes: int | None = None,
        store: str | Store = "sqlite",
    ) -> None:
        for option, value in (("sync", sync), ("max_age", max_age), ("max_bytes", max_bytes)):
            if value is not None and not 0 <= value < 1 << 62:
                raise ConfigError(f"{option} is a number from 0: {option}={value!r}")
        self._bus = bus
        self._wanted = topic if isinstance(topic, str) else raw.form_of(topic)
        self._sync, self._max_age, self._max_bytes = sync, max_age, max_bytes
        self._stop = threading.Event()
        self._worker: Worker[bytes] | None = None
        self._due = self._next_log = 0.0
        self._who = self._group = ""
        self._failing = False
        self._opened = isinstance(store, str)
        self._store: Final[Store] = open_store(store, path, write=True) if isinstance(store, str) else store
        self.path: Final = path
        self.written = 0
        """Events written by this recorder."""

    def run(self) -> None:
        """Write until `stop()`, or until the bus is removed, which raises ClosedError."""
        form = self._form()
        if form is None:
            return
        group = group_of(self._store)
        raw.require_alone(self._bus, form.name, group, f"journal {str(self.path)!r}")
        with self._bus.worker(raw.topic_of(form), group=group, max_deliver=_MAX_DELIVER, prefetch=_CHUNK) as worker:
            self._worker = worker
            _log.info("journal %s writes topic %s of bus %s", self.path, form.name, self._bus.name)
            self._group, self._who = group, f"journal {form.name}"
            self._say("ok", f"writes to {self.path}")
            try:
                while not self._stop.is_set() and (lot := self._lot(worker)) is not None:
                    if lot and not self._record(form.name, worker, lot):
                        return
                    self._prune()
            finally:
                raw.unsay(self._bus, self._who)

    def stop(self) -> None:
        """End `run` once what is in hand is written; from any thread or signal handler."""
        self._stop.set()
        worker = self._worker
        if worker is not None:
            worker.cancel()

    def close(self) -> None:
        """Let go of the journal, after `run` has ended, unless it was opened by somebody else. Idempotent."""
        if self._opened:
            self._store.close()

    # -- inside

    def _say(self, state: raw.State, text: str) -> None:
        if self._who:
            raw.note(self._bus, self._who, state, text, group=self._group)

    def _form(self) -> raw.Form | None:
        """The topic's form, once the bus or the journal knows it; the journal has it from now on."""
        known = self._store.forms()
        form = self._wanted
        told = False
        while isinstance(form, str):
            found = raw.find(self._bus, form) or known.get(form)
            if found is None:
                if not told:
                    _log.info("journal %s waits for topic %s of bus %s", self.path, form, self._bus.name)
                told = True
                if self._stop.wait(0.1):
                    return None
            form = found or form
        if form.name in known:
            known[form.name].require(form, f"journal {str(self.path)!r}")
        self._until_written(lambda: self._store.add(form))
        return form

    def _lot(self, worker: Worker[bytes]) -> list[raw.Claimed] | None:
        """What is there, once something is; [] at a tick, None at the end."""
        lot = raw.claim(worker, _CHUNK, _TICK)
        if not lot:
            return lot
        deadline = time.monotonic() + self._sync
        size = sum(len(event.payload) for event in lot)
        while size < min(MOST_BYTES, worker.topic.capacity // 4):  # further on a publisher may have to wait for us
            more = raw.claim(worker, _CHUNK, 0)
            if more:
                size += sum(len(event.payload) for event in more)
                lot += more
            elif time.monotonic() >= deadline or self._stop.wait(_NAP):
                break
        return lot

    def _record(self, topic: str, worker: Worker[bytes], lot: list[raw.Claimed]) -> bool:
        """Write what is not there yet, then ack all; False if it was stopped before the disk took it."""
        entries = [Entry(e.publisher, e.origin, e.time_ns, e.sequence, e.headers, e.payload) for e in lot]
        again = [entry for entry, event in zip(entries, lot, strict=True) if event.attempt > 1]
        if again:
            known = self._known(topic, again)
            entries = [entry for entry in entries if (entry.origin, entry.time_ns) not in known]
        if entries:
            entries.sort(key=lambda entry: entry.time_ns)
            if not self._until_written(lambda: self._store.append(topic, self._bus.name, entries)):
                return False
            self.written += len(entries)
        reach("journal.committed")
        raw.ack(worker, lot)
        return True

    def _known(self, topic: str, again: list[Entry]) -> set[tuple[str, int]]:
        """Which of these events the journal has."""
        ids = {(entry.origin, entry.time_ns) for entry in again}
        times = [entry.time_ns for entry in again]
        batches = self._store.around(topic, min(times), max(times) + 1)
        return ids & {(entry.origin, entry.time_ns) for batch in batches for entry in batch.entries}

    def _until_written(self, write: Any) -> bool:
        """Have the store take something, however often it takes; False once stopped."""
        pause, longest = _RETRY
        while True:
            try:
                write()
                if self._failing:
                    self._failing = False
                    self._say("ok", f"writes to {self.path}")
                return True
            except OSError as error:
                if not self._failing:
                    self._failing = True
                    self._say("failing", f"does not write: {error}")
                if time.monotonic() >= self._next_log:
                    self._next_log = time.monotonic() + _LOG_INTERVAL
                    _log.error("%s; nothing is acked, it is tried again: the rings hold what is owed", error)
                self._make_room()
            if self._stop.wait(pause):
                return False
            pause = min(2 * pause, longest)

    def _make_room(self) -> None:
        with suppress(OSError):  # as full as before
            self._store.prune(self._max_age, self._max_bytes)

    def _prune(self) -> None:
        """Once a tick, let go of what is too old or too much."""
        if (self._max_age is None and self._max_bytes is None) or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _TICK
        try:
            gone = self._store.prune(self._max_age, self._max_bytes)
        except JournalError as error:
            _log.warning("%s; what is too old stays for now", error)
            return
        if gone:
            _log.info("journal %s let go of %d events that were too old or too much", self.path, gone)
