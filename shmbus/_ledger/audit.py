"""Audit: who joined, left or died, as records of the logger `shmbus.audit`, by whoever changed the document; and what
was lost, by the supervisor.

May touch: nothing; it is given documents. Nothing is kept or told where nobody listens: `logging` is not loaded for it.

Must stay true: told after the bus lock is free; what was committed, and nothing else; each act once. What a handler
that is told of something does itself on a bus is told too, but not what it does about that (`_log`).
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from shmbus import _log
from shmbus._ledger.past import DEPARTED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from logging import Logger

    from shmbus._ledger.document import Document
    from shmbus.stats import BusStats, Loss

NAME: Final = "shmbus.audit"
CAUSES: Final = ("overrun", "refused", "abandoned", "undecodable", "rejected")

silent: Final[set[str]] = set()
"""Buses of which this process tells nothing: what carries a log would put word of itself into it, for ever."""


class _Entry(NamedTuple):
    role: str
    topic: str
    name: str
    pid: int
    dead: bool = False


_Present = dict[tuple[str, int], _Entry]


def heard() -> bool:
    """Whether anybody may hear of it.

    Takes none of logging's locks, for it is asked under the bus lock: an interrupt may have left one locked for good.
    """
    logging = sys.modules.get("logging")
    root = getattr(logging, "root", None)
    if logging is None or root is None:  # not loaded, or being loaded
        return False
    known = [root.manager.loggerDict.get(name) for name in (NAME, NAME.partition(".")[0])]
    nearest: Logger = next((one for one in known if isinstance(one, logging.Logger)), root)
    silenced = nearest.disabled or root.manager.disable >= _log.INFO
    return not silenced and nearest.getEffectiveLevel() <= _log.INFO and nearest.hasHandlers()


def tell(act: str, message: str, **fields: Any) -> None:
    """One record: `act` and the other fields are its attribute `audit`, with the process that acts as `by`."""
    if heard():
        level = _log.INFO if act in ("join", "leave", "policy", "rejoin") else _log.WARNING
        record = {"audit": {"act": act, **fields, "by": os.getpid()}}
        _log.say(NAME, level, "%s", (message,), extra=record, audit=True, depth=2)


class Audit:
    """What one holder of the bus lock has changed; nothing where nobody listens when it begins."""

    def __init__(self, document: Document) -> None:
        self._heard = heard()
        self._before: _Present = dict(_present(document)) if self._heard else {}
        self._after = self._before
        self._deaths = document.died

    def committed(self, document: Document) -> None:
        """The document is valid now."""
        if not self._heard:
            return
        now = dict(_present(document))
        gone = {key: entry for key, entry in self._after.items() if entry.dead}
        if document.died > self._deaths:  # whose process went in this commit
            self._deaths = document.died
            left = {key: entry for key, entry in self._after.items() if key[0] == "process" and key not in now}
            gone |= {key: entry._replace(dead=True) for key, entry in left.items()}
        self._after = gone | now

    def tell(self, bus: str) -> None:
        """Of all that has come and gone, once the lock is free."""
        if bus in silent:
            return
        for key, entry in self._after.items():
            if key not in self._before:
                _tell("join", bus, entry)
        dead = {entry.pid for key, entry in self._after.items() if key[0] == "process" and entry.dead}
        for key, entry in self._before.items():
            now = self._after.get(key)
            if now is None or (now.dead and not entry.dead):
                died = now is not None or entry.pid in dead  # a worker goes before its process
                _tell("death" if died else "leave", bus, entry)


def _tell(act: str, bus: str, entry: _Entry) -> None:
    verb = {"join": "joined", "leave": "left", "death": "died"}[act]
    where = f" of topic {entry.topic}" if entry.topic else ""
    pid = f" (pid {entry.pid})" if entry.pid else ""
    message = f"bus {bus}: {entry.role} {entry.name}{where}{pid} {verb}"
    tell(act, message, bus=bus, role=entry.role, topic=entry.topic, name=entry.name, pid=entry.pid)


def _present(document: Document) -> Iterator[tuple[tuple[str, int], _Entry]]:
    topics = {t.index: t.name for t in document.topics}
    pids = {p.id: p.pid for p in document.participants}
    groups = {c.id: c for c in document.consumers if c.kind == "group"}
    for p in document.participants:
        yield ("process", p.id), _Entry("process", "", p.command, p.pid)
    for publisher in document.publishers:
        if publisher.state == "active" or publisher.dead:
            pid = pids.get(publisher.participant, 0)
            entry = _Entry("publisher", topics[publisher.topic], publisher.name, pid, publisher.dead)
            yield ("publisher", publisher.id), entry
    for consumer in document.consumers:
        if consumer.state != "joining":
            pid = pids.get(consumer.participant, 0)
            dead = consumer.dead and consumer.state == "leaving"
            yield (
                ("consumer", consumer.id),
                _Entry(consumer.kind, topics[consumer.topic], consumer.name, pid, dead),
            )
    for worker in document.workers:
        group = groups.get(worker.group)
        topic = topics[group.topic] if group else ""
        yield ("worker", worker.id), _Entry("worker", topic, worker.name, pids.get(worker.participant, 0))


class Losses:
    """What was lost on a bus, by topic, consumer and cause: told as it grows.

    Each record has the total so far, which is that of the books, and of the last loss of that kind the publisher, its
    sequences and the trace that sent the first. A successor begins with what there is by then: totals are what counts.
    """

    def __init__(self) -> None:
        self._told: dict[tuple[str, str, str], int] = {}

    def tell(self, stats: BusStats, losses: list[Loss]) -> None:
        """Of what has come since the last time."""
        totals: dict[tuple[str, str, str], int] = {}
        for consumer in stats.consumers:
            for cause in CAUSES:
                key = consumer.topic, consumer.name, cause
                totals[key] = totals.get(key, 0) + getattr(consumer, cause)
        last: dict[tuple[str, str, str], Loss] = {}
        last.update(((loss.topic, loss.consumer, loss.cause), loss) for loss in losses)  # the oldest come first
        for key, total in totals.items():
            count = total - self._told.get(key, 0)
            if count > 0 and key[1] != DEPARTED:  # of those who are merged it was told before
                self._tell(stats.bus, key, count, total, last.get(key))
        self._told = totals

    def _tell(self, bus: str, key: tuple[str, str, str], count: int, total: int, loss: Loss | None) -> None:
        topic, name, cause = key
        message = f"bus {bus}: {name} of topic {topic} lost {count} events: {cause}, {total} in all"
        detail: dict[str, Any] = {}
        if loss is not None:
            detail = {"publisher": loss.publisher, "first": loss.first, "last": loss.last, "trace": loss.trace}
        fields = {"bus": bus, "topic": topic, "name": name, "cause": cause, "count": count, "total": total}
        tell("loss", message, **fields, **detail)
