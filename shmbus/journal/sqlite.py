"""The default store: one SQLite file in WAL mode, a row a batch.

May touch: the file, its `-wal` and `-shm`, and `<path>-lock`, on which the writer holds an flock.

Must stay true:
- synchronous=FULL: a commit returns when the WAL is on the disk. A kill or a power cut leaves every commit that had
  returned, and no part of another.
- No read is open between two batches: a reader that is stopped holds up no checkpoint.
- A file that is cut short is never written: it is set aside, and what is whole in it goes into a new one.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
import threading
import time
import weakref
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from shmbus._log import logger
from shmbus._shm.failpoint import reach
from shmbus.errors import JournalError
from shmbus.journal.store import Batch, Entry, pack, unpack
from shmbus.raw import Form

APPLICATION: Final = 0x73686D6A  # "shmj", in the file's header
VERSION: Final = 1
_PAGE: Final = 16384  # a batch is a large value: fewer pages in a chain
_CHECKPOINT: Final = 1024  # pages of WAL: 16 MiB, so that a commit seldom pays for a checkpoint
_READ: Final = 16  # batches of one SELECT
_SCHEMA: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE topics (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, codec TEXT NOT NULL, capacity INTEGER NOT NULL,
    fingerprint TEXT NOT NULL, description BLOB NOT NULL);
CREATE TABLE batches (id INTEGER PRIMARY KEY AUTOINCREMENT, topic INTEGER NOT NULL, bus TEXT NOT NULL,
    first_ns INTEGER NOT NULL, last_ns INTEGER NOT NULL, count INTEGER NOT NULL, crc INTEGER NOT NULL,
    events BLOB NOT NULL);
CREATE INDEX batches_first ON batches (topic, first_ns, id, last_ns);
CREATE INDEX batches_last ON batches (topic, last_ns, first_ns);
"""
_COLUMNS: Final = "id, bus, first_ns, last_ns, count, crc, events"
_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_log = logger("shmbus.journal")


class SqliteStore:
    """A journal in an SQLite file. Raises JournalError, and for what may be tried again another OSError."""

    def __init__(self, path: Any, *, write: bool) -> None:
        self.path: Final = Path(path)
        self._mutex = threading.RLock()
        self._lock = _lock(self.path) if write else -1
        self._topics: dict[str, int] = {}
        try:
            if write and not self.path.exists():
                create(self.path)
            self._db = self._opened(write)
            weakref.finalize(self, self._db.close)  # `start=shmbus.Journal(path)` leaves it to the collector
        except BaseException:
            self._unlock()
            raise

    def _opened(self, write: bool) -> sqlite3.Connection:
        if not self.path.exists():
            raise JournalError(f"no journal at {str(self.path)!r}")
        try:
            return _connect(self.path)
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _DAMAGED:
                raise _told(error, self.path) from error
            if not write:
                self._lock = _lock(self.path)  # nobody else mends it meanwhile
            from shmbus.journal import salvage

            salvage.mend(self.path, str(error), create)
            if not write:
                self._unlock()
            return _connect(self.path)

    @property
    def id(self) -> str:
        """What names the group that collects for this file."""
        return str(self._rows("SELECT value FROM meta WHERE key = 'id'")[0][0])

    def forms(self) -> dict[str, Form]:
        """The topics that are in it."""
        rows = self._rows("SELECT id, name, codec, capacity, fingerprint, description FROM topics ORDER BY id")
        self._topics = {name: id for id, name, *_ in rows}
        return {row[1]: Form(row[1], row[2], row[3], int(row[4], 16), row[5]) for row in rows}

    def add(self, form: Form) -> None:
        """Make room for a topic."""
        row = (form.name, form.codec, form.capacity, f"{form.fingerprint:x}", form.description)
        with self._written() as db:
            sql = (
                "INSERT OR IGNORE INTO topics (name, codec, capacity, fingerprint, description) VALUES (?, ?, ?, ?, ?)"
            )
            db.execute(sql, row)

    def append(self, topic: str, bus: str, entries: Sequence[Entry]) -> None:
        """Write events as one batch, and return once the disk has them."""
        data = pack(entries)
        row = (self._topic(topic), bus, entries[0].time_ns, entries[-1].time_ns, len(entries), zlib.crc32(data), data)
        with self._written() as db:
            sql = "INSERT INTO batches (topic, bus, first_ns, last_ns, count, crc, events) VALUES (?, ?, ?, ?, ?, ?, ?)"
            db.execute(sql, row)
            reach("journal.written")

    def by_time(self, topic: str, since_ns: int, until_ns: int, below: int) -> Iterator[Batch]:
        """Batches up to number `below` with events of `[since_ns, until_ns)`, by their first event."""
        at, id = -(2**63), 0
        sql = (
            f"SELECT {_COLUMNS} FROM batches WHERE topic = ? AND (first_ns, id) > (?, ?) AND first_ns < ?"
            f" AND last_ns >= ? AND id <= ? ORDER BY first_ns, id LIMIT {_READ}"
        )
        until_ns, since_ns = min(until_ns, 2**63 - 1), max(since_ns, -(2**63))
        while rows := self._rows(sql, self._topic(topic), at, id, until_ns, since_ns, below):
            at, id = rows[-1][2], rows[-1][0]
            yield from self._batches(rows)

    def around(self, topic: str, since_ns: int, until_ns: int) -> Iterator[Batch]:
        """Batches with events of `[since_ns, until_ns)`, found from the newest end: for spans that are late."""
        at, id = since_ns, 0
        sql = (
            f"SELECT {_COLUMNS} FROM batches INDEXED BY batches_last WHERE topic = ? AND last_ns >= ?"
            f" AND (last_ns > ? OR id > ?) AND first_ns < ? ORDER BY last_ns, id LIMIT {_READ}"
        )
        while rows := self._rows(sql, self._topic(topic), at, at, id, until_ns):
            at, id = rows[-1][3], rows[-1][0]
            yield from self._batches(rows)

    def after(self, topic: str, number: int) -> Iterator[Batch]:
        """Batches above a number, in the order in which they were written."""
        sql = f"SELECT {_COLUMNS} FROM batches WHERE id > ? AND topic = ? ORDER BY id LIMIT {_READ}"
        while rows := self._rows(sql, number, self._topic(topic)):
            number = rows[-1][0]
            yield from self._batches(rows)

    def last(self) -> int:
        """The number of the newest batch."""
        return int(self._rows("SELECT coalesce(max(id), 0) FROM batches")[0][0])

    def count(self, topic: str) -> int:
        """How many events of a topic are in it."""
        rows = self._rows("SELECT coalesce(sum(count), 0) FROM batches WHERE topic = ?", self._topic(topic))
        return int(rows[0][0])

    def prune(self, max_age: float | None, max_bytes: int | None) -> int:
        """Remove the oldest batches that are too old or too much; the file shrinks by what they took."""
        gone = 0
        if max_age is not None:
            old = "SELECT id, count, 0 FROM batches WHERE last_ns < ? LIMIT 256"
            while removed := self._remove(self._rows(old, time.time_ns() - int(max_age * 1e9))):
                gone += removed
        while max_bytes is not None and (excess := self._bytes() - max_bytes) > 0:
            oldest = "SELECT id, count, length(events) FROM batches WHERE id < ? ORDER BY id LIMIT 256"
            rows = self._rows(oldest, self.last())  # the newest stays, however large
            sizes = accumulate((row[2] for row in rows), initial=0)
            removed = self._remove([row for row, before in zip(rows, sizes, strict=False) if before < excess])
            if not removed:
                break
            gone += removed
        if gone:
            with self._mutex, self._telling():
                self._db.executescript("PRAGMA incremental_vacuum")  # a step a page, which `execute` takes one of
        return gone

    def remove(self, number: int) -> None:
        """Remove a batch."""
        self._remove([(number, 0)])

    def close(self) -> None:
        """Close the file, and let go of its lock. Idempotent."""
        with self._mutex:
            self._db.close()
            self._unlock()

    # -- inside

    def _topic(self, name: str) -> int:
        if name not in self._topics:
            self.forms()
        return self._topics.get(name, -1)

    def _bytes(self) -> int:
        pages, free = (self._rows(f"PRAGMA {name}")[0][0] for name in ("page_count", "freelist_count"))
        return int(pages - free) * _PAGE

    def _remove(self, rows: list[tuple[Any, ...]]) -> int:
        if rows:
            with self._written() as db:
                db.executemany("DELETE FROM batches WHERE id = ?", [(row[0],) for row in rows])
        return sum(int(row[1]) for row in rows)

    def _batches(self, rows: list[tuple[Any, ...]]) -> Iterator[Batch]:
        for id, bus, first, last, count, crc, events in rows:
            try:
                yield Batch(id, bus, first, last, unpack(events, crc))
            except JournalError as error:
                _log.error("journal %s has lost %d events of batch %d: %s", self.path, count, id, error)

    def _rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._mutex, self._telling():
            return self._db.execute(sql, values).fetchall()

    @contextmanager
    def _written(self) -> Iterator[sqlite3.Connection]:
        with self._mutex, self._telling():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # a full disk may have rolled it back already
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _told(error, self.path) from error

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _told(error: sqlite3.Error, path: Path) -> OSError:
    return JournalError(f"journal {str(path)!r}: {error} ({getattr(error, 'sqlite_errorname', 'closed')})")


def _lock(path: Path) -> int:
    """The lock of whoever writes; its file stays, for a lock on a file that is removed keeps nobody out."""
    try:
        lock = os.open(f"{path}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise JournalError(f"journal {str(path)!r} cannot be written: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        writer = os.pread(lock, 20, 0).decode(errors="replace").strip()
        os.close(lock)
        raise JournalError(f"journal {str(path)!r} is being written by process {writer or '?'}") from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def create(path: Path) -> None:
    """Make an empty journal under another name, and name it once the disk has it: none is ever seen half-made."""
    made = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    os.close(os.open(made, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))  # before SQLite has it open
    try:
        with closing(sqlite3.connect(made, isolation_level=None)) as db:
            pragmas = (f"page_size = {_PAGE}", "auto_vacuum = INCREMENTAL", "synchronous = FULL")
            for pragma in (*pragmas, f"application_id = {APPLICATION}", f"user_version = {VERSION}"):
                db.execute(f"PRAGMA {pragma}")
            db.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
            stem = "".join(c for c in path.stem if c.isascii() and c.isalnum())[:24]
            values = {"id": f"{stem}-{secrets.token_hex(4)}", "created_ns": str(time.time_ns())}
            db.executemany("INSERT INTO meta VALUES (?, ?)", values.items())
        os.rename(made, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except sqlite3.Error as error:
        made.unlink(missing_ok=True)
        raise _told(error, path) from error


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
    try:
        application, version = (
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
        if application != APPLICATION:
            raise JournalError(f"{str(path)!r} is no journal of shmbus: application_id={application:#x}")
        if version != VERSION:
            raise JournalError(f"journal {str(path)!r} has version {version}; this shmbus reads {VERSION}")
        if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise JournalError(f"journal {str(path)!r} lies where SQLite cannot share memory: use a local file system")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT}")
        db.execute(f"PRAGMA journal_size_limit = {4 * _CHECKPOINT * _PAGE}")  # of a WAL that a burst made larger
        db.execute("SELECT count(*) FROM topics").fetchone()
    except BaseException:
        db.close()
        raise
    return db
