"""Groups that are removed: by somebody, or because no worker came for too long. Always under the bus lock.

May touch: the registry document, the work rings of the group.

Must stay true:
- What a group was owed is on its books as abandoned, with a loss a ring; each of its events was acked or abandoned.
- active -> leaving -> its totals alone. Workers and publishers notice the first step by the topic's epoch; whoever
  finds a group between two steps does the rest (`finish_all`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmbus import _core
from shmbus._ledger import departures, pools, topics
from shmbus._ledger.retired import unless_unreadable
from shmbus._log import logger
from shmbus._shm.failpoint import reach
from shmbus.errors import ConfigError

if TYPE_CHECKING:
    from shmbus._ledger.document import ConsumerEntry, Document
    from shmbus._ledger.registry import Change
    from shmbus._shm.rings import Rings

_log = logger("shmbus.loss")


def named(document: Document, topic: str, name: str) -> ConsumerEntry:
    """The group of that name. Raises ConfigError, which says what there is."""
    entry = document.topic_named(topic)
    for group in document.consumers:
        if _is_group(group) and entry is not None and group.topic == entry.index and group.name == name:
            return group
    raise ConfigError(f"no group {name!r} of topic {topic!r}; {_known(document)}")


def _is_group(consumer: ConsumerEntry) -> bool:
    return consumer.kind == "group" and consumer.state == "active"


def _known(document: Document) -> str:
    return "the bus has " + (
        ", ".join(sorted(label(document, c) for c in document.consumers if _is_group(c))) or "none"
    )


def labelled(document: Document, text: str) -> ConsumerEntry:
    """The one group that is called TOPIC/NAME; both may have slashes. Raises ConfigError for none, and for two."""
    names = [(text[:at], text[at + 1 :]) for at, character in enumerate(text) if character == "/"]
    there = {(document.topic_at(c.topic).name, c.name) for c in document.consumers if _is_group(c)}
    found = [name for name in names if name in there]
    if len(found) > 1:
        both = ", ".join(f"{name!r} of topic {topic!r}" for topic, name in found)
        raise ConfigError(f"{text!r} is more than one group: {both}")
    if not found:
        raise ConfigError(f"no group {text!r}, as TOPIC/NAME; {_known(document)}")
    return named(document, *found[0])


def label(document: Document, group: ConsumerEntry) -> str:
    """What tools call a group: TOPIC/NAME."""
    return f"{document.topic_at(group.topic).name}/{group.name}"


def remove(change: Change, rings: Rings, group: ConsumerEntry, *, force: bool = False) -> int:
    """Remove a group, and with `force` its workers too; returns how many events it was owed.

    Raises ConfigError, with nothing changed, if it has workers.
    """
    document = change.document
    workers = [w for w in document.workers if w.group == group.id]
    if workers and not force:
        pids = {p.id: p.pid for p in document.participants}
        who = ", ".join(f"{w.name} (process {pids.get(w.participant, 0)})" for w in workers)
        raise ConfigError(f"group {label(document, group)!r} has workers, and is removed by force only: {who}")
    document.workers = [w for w in document.workers if w.group != group.id]
    group.state = "leaving"
    change.commit(group.topic)
    reach("group.leaving")
    return _finish(change, rings, group)


def finish_all(change: Change, rings: Rings) -> None:
    """Do the rest of every removal that was cut short."""
    for group in [c for c in change.document.consumers if c.kind == "group" and c.state == "leaving"]:
        _finish(change, rings, group)


def _finish(change: Change, rings: Rings, group: ConsumerEntry) -> int:
    document = change.document
    before, entries = group.totals.abandoned, document.rings_of(group)
    for entry in entries:
        with unless_unreadable(entry):
            ring = rings.work(entry)
            ring.abandon()
            departures.settle_ring(document, rings, entry)
            ring.release_publisher()  # its sleep is short; whoever holds the lock posts no semaphore
        reach("group.abandoned")
    gone = {entry.id for entry in entries}
    document.rings = [r for r in document.rings if r.id not in gone]
    gone_pools = departures.forget_publishers(document)
    document.workers = [w for w in document.workers if w.group != group.id]  # none, unless it was damaged
    owed = group.totals.abandoned - before
    departures.keep_totals(change, group)
    change.commit(group.topic)
    reach("group.closed")
    for id in gone:
        rings.remove(id)
    if group.key:
        rings.lanes.remove(group.id)
    pools.remove(rings, gone_pools)
    departures.forget_traces(document, rings, entries)
    pools.drop_idle(change, rings)
    topics.forget_unused(change)
    return owed


def expired(document: Document, now_ns: int) -> list[ConsumerEntry]:
    """Groups that had no worker for as long as they may."""
    return [
        c
        for c in document.consumers
        if _is_group(c) and c.expires_ns and c.idle_since_ns and now_ns - c.idle_since_ns >= c.expires_ns
    ]


def expire(change: Change, rings: Rings) -> int:
    """Remove the groups that had no worker for as long as they may; returns how many."""
    document = change.document
    gone = expired(document, _core.host_ns())
    for group in gone:
        what, seconds = label(document, group), group.expires_ns / 1e9
        owed = remove(change, rings, group)
        _log.warning(
            "group %s had no worker for %g s, and is removed: it was owed %d events",
            what,
            seconds,
            owed,
            extra={"bus": change.bus, "group": what, "owed": owed},
        )
    return len(gone)
