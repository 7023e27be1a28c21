"""Whether a store of journals keeps what `shmbus.journal.store` says; AssertionError says what it does not."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shmbus
from shmbus import raw
from shmbus.errors import JournalError
from shmbus.journal.entries import FIRST_NS, LAST_NS, merged
from shmbus.journal.store import Entry, Store

if TYPE_CHECKING:
    from collections.abc import Callable

    Opens = Callable[..., Store]

FORM = raw.form_of(shmbus.Topic("conformance", bytes))
OTHER = raw.form_of(shmbus.Topic("other", int))


def entries(*stamps: int, origin: str = "a-1") -> list[Entry]:
    """Events of one publisher with these stamps."""
    return [Entry("web", origin, stamp, stamp, b"", b"payload %d" % stamp) for stamp in stamps]


def stamps(batches: Any) -> list[int]:
    """The stamps of all entries of batches."""
    return [entry.time_ns for batch in batches for entry in batch.entries]


def journal_conformance(opens: Opens, folder: Path) -> None:
    """Put a store through what every journal relies on; `opens(path, write=...)` is the plugin, `folder` is empty."""
    _keeps(opens, folder / "keeps")
    _is_read_while_written(opens, folder / "shared")
    _survives_a_kill(opens, folder / "killed")
    _lets_go(opens, folder / "pruned")
    _has_one_writer(opens, folder / "one")


def _keeps(opens: Opens, path: Path) -> None:
    with closing(opens(path, write=True)) as store:
        name = store.id
        assert 0 < len(name) <= 48, f"id is part of a group's name: {name!r}"
        assert name.isprintable(), f"id is part of a group's name: {name!r}"
        assert store.last() == 0, "a new store has no batch"
        store.add(FORM)
        store.add(FORM)
        store.add(OTHER)
        assert store.forms() == {"conformance": FORM, "other": OTHER}, "forms come back as they were"
        store.append("conformance", "bus", entries(10, 20, 30))
        store.append("conformance", "bus", entries(25, 35, origin="b-2"))
        store.append("other", "bus", entries(5))
        store.append("conformance", "bus", entries(40))
    with closing(opens(path, write=True)) as store:
        assert store.id == name, "the id stays"
        batches = list(store.after("conformance", 0))
        assert [batch.entries for batch in batches] == [entries(10, 20, 30), entries(25, 35, origin="b-2"), entries(40)]
        numbers = [batch.number for batch in batches]
        assert numbers == sorted(set(numbers)), f"numbers grow: {numbers}"
        assert stamps(store.after("conformance", numbers[0])) == [25, 35, 40], "after a number"
        assert store.last() == numbers[-1], "last is the newest"
        assert (store.count("conformance"), store.count("nothing")) == (6, 0), "count"
        everything = store.by_time("conformance", FIRST_NS, LAST_NS, store.last())
        assert [entry.time_ns for _, entry in merged(everything)] == [10, 20, 25, 30, 35, 40], "by time"
        assert stamps(store.by_time("conformance", FIRST_NS, LAST_NS, numbers[0])) == [10, 20, 30], "up to a number"
        assert 30 in stamps(store.by_time("conformance", 30, 31, store.last())), "a span has what overlaps it"
        assert 35 in stamps(store.around("conformance", 35, 36)), "around has what overlaps it"
        assert stamps(store.after("nothing", 0)) == [], "a topic that is not there has nothing"


def _is_read_while_written(opens: Opens, path: Path) -> None:
    with closing(opens(path, write=True)) as writer:
        writer.add(FORM)
        with closing(opens(path, write=False)) as reader:
            for stamp in range(1, 50):
                writer.append("conformance", "bus", entries(stamp))
                assert stamps(reader.after("conformance", 0))[-1] == stamp, "a reader sees what was written"


def _survives_a_kill(opens: Opens, path: Path) -> None:
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        store = opens(path, write=True)
        store.add(FORM)
        for stamp in range(1, 1_000_000):
            store.append("conformance", "bus", entries(stamp))
            os.write(told, b".")
        os._exit(0)
    os.close(told)
    count = sum(len(os.read(ready, 1)) for _ in range(20))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(ready, 4096):
        count += len(more)
    os.close(ready)
    with closing(opens(path, write=True)) as store:
        found = stamps(store.after("conformance", 0))
        assert found == list(range(1, len(found) + 1)), "no hole"
        assert len(found) in (count, count + 1), f"{count} appends had returned, {len(found)} are there"
        store.append("conformance", "bus", entries(len(found) + 1))


def _lets_go(opens: Opens, path: Path) -> None:
    with closing(opens(path, write=True)) as store:
        store.add(FORM)
        for stamp in range(1, 101):
            store.append("conformance", "bus", [entries(stamp)[0]._replace(payload=bytes(20_000))])
        last = store.last()
        assert store.prune(None, 1 << 20) > 0, "more than max_bytes goes"
        kept = stamps(store.after("conformance", 0))
        assert kept, "the newest stays"
        assert kept == list(range(kept[0], 101)), f"the oldest go first: {kept}"
        store.remove(next(store.after("conformance", 0)).number)
        assert stamps(store.after("conformance", 0)) == kept[1:], "remove takes one"
        assert store.prune(1.0, None) == len(kept) - 1, "what is older than max_age goes"
        store.append("conformance", "bus", entries(1))
        assert store.last() > last, "no number is used twice"


def _has_one_writer(opens: Opens, path: Path) -> None:
    with closing(opens(path, write=True)):
        try:
            opens(path, write=True).close()
        except JournalError:
            return
        raise AssertionError("two writers at once")
