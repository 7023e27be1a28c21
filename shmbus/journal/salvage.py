"""A journal that was cut short: what is whole in it goes into a new file, and what is lost is said.

May touch: the damaged file, which is set aside as `<path>.damaged-<time>` and kept; the new one. Under the writer's
lock.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from shmbus._log import logger
from shmbus._shm.failpoint import reach
from shmbus.errors import JournalError

_log = logger("shmbus.journal")


def mend(path: Path, reason: str, create: Callable[[Path], None]) -> None:
    """Set a damaged journal aside, and put what is whole of it in its place. Raises JournalError if nothing is.

    `create` makes an empty journal.

    Crash order: a whole new file, its name `<path>.mended`, links to the old ones, the WAL gone, the name. Until the
    last the damaged file is in place, and whoever opens it goes on from there: without its WAL it would be worth less.
    """
    mended = path.with_name(f"{path.name}.mended")
    told = "what was whole had been taken off it before" if mended.exists() else _rescue(path, mended, reason, create)
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    for suffix in ("", "-wal"):
        with suppress(FileNotFoundError, FileExistsError):
            os.link(f"{path}{suffix}", f"{aside}{suffix}")
    reach("journal.mending")
    for suffix in ("-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.unlink(f"{path}{suffix}")
    os.rename(mended, path)
    _log.error("journal %s was damaged (%s): %s; the old file is %s", path, reason, told, aside)


def _rescue(path: Path, mended: Path, reason: str, create: Callable[[Path], None]) -> str:
    made = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    create(made)
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as old, closing(sqlite3.connect(made)) as new:
            old.execute("PRAGMA writable_schema = ON")  # or SQLite does not open a file that is shorter than it says
            told = _copy(old, new)
        os.rename(made, mended)
    except sqlite3.Error as error:
        made.unlink(missing_ok=True)
        raise JournalError(f"journal {str(path)!r} is damaged ({reason}), and nothing of it can be read") from error
    return told


def _copy(old: sqlite3.Connection, new: sqlite3.Connection) -> str:
    with new:
        for table in ("meta", "topics"):
            for row in old.execute(f"SELECT * FROM {table}"):
                new.execute(f"INSERT OR REPLACE INTO {table} VALUES ({', '.join('?' * len(row))})", row)
        batches = events = last_ns = last_id = 0
        for row in _whole(old):
            new.execute(f"INSERT INTO batches VALUES ({', '.join('?' * len(row))})", row)
            batches, events, last_id, last_ns = batches + 1, events + row[5], row[0], row[4]
        most = last_id
        with suppress(sqlite3.Error):
            most = old.execute("SELECT seq FROM sqlite_sequence WHERE name = 'batches'").fetchone()[0]
        new.execute("DELETE FROM sqlite_sequence")
        new.execute("INSERT INTO sqlite_sequence VALUES ('batches', ?)", (most,))  # no number is used twice
    until = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(last_ns / 1e9)) if last_ns else "nothing"
    lost = max(0, most - last_id)
    return f"{events} events in {batches} batches are whole, up to {until}; {lost} later batches are lost"


def _whole(old: sqlite3.Connection) -> Iterator[tuple[Any, ...]]:
    """Every batch that can be read; past one that cannot, it looks further on, in growing steps."""
    at, step = 0, 1
    while step < 1 << 40:
        try:
            for row in old.execute("SELECT * FROM batches WHERE id > ? ORDER BY id", (at,)):
                at, step = row[0], 1
                yield row
            return
        except sqlite3.DatabaseError:
            at, step = at + step, 2 * step
