"""A bus on the screen: what `stat`, `top` and `demo` show of a `BusStats`.

Pure: it renders what it is given and looks at no bus. Two tables, publishers and consumers, and below each a
line for whatever needs a sentence: who waits for whom, what was lost for which cause, who is not well. A third one
has the latencies of the consumers that have any.
Readable from 80 columns on; there is more to see from 100 and from 150.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from rich.text import Text

from shmbus.cli._render import (
    SEPARATOR,
    Clipped,
    Column,
    Rows,
    duration,
    line,
    plural,
    printable,
    short,
    shorten,
    size,
    whole,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console, ConsoleOptions, RenderResult

    from shmbus.stats import BusStats, ConsumerStats, Health, Latency, PublisherStats

_MEDIUM: Final = 100
_WIDE: Final = 150
_NAME: Final = 20  # cells of a name in a sentence

_STYLES: Final[dict[Health, str]] = {
    "ok": "green",
    "slow": "yellow",
    "stalled": "bold red",
    "stopped": "bold red",
    "dead": "bold red",
    "closed": "dim",
    "idle": "dim",
}
_BLOCKED: Final = "bold yellow"
_CAUSES: Final = ("overrun", "refused", "abandoned", "undecodable", "rejected")
_ILL: Final[dict[Health, str]] = {
    "stalled": "is stalled: alive, but without progress",
    "stopped": "is stopped by a signal",
    "dead": "is dead",
}


class BusView:
    """One bus, as rich renders it."""

    def __init__(self, stats: BusStats) -> None:
        self.stats: Final = stats

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render into the width at hand."""
        stats = self.stats
        yield headline(stats)
        if stats.publishers:
            yield ""
            yield Rows(_PUBLISHER_COLUMNS, sorted(stats.publishers, key=lambda p: (p.topic, p.name)))
            yield from _publisher_notes(stats.publishers)
            yield from _pool_notes(stats)
        if stats.consumers:
            yield ""
            yield Rows(_CONSUMER_COLUMNS, sorted(stats.consumers, key=_consumer_order))
            yield from _consumer_notes(stats.consumers)
        yield from _participant_notes(stats)
        yield from _part_notes(stats)
        if stats.lost_rings:
            lost = plural(stats.lost_rings, "ring")
            yield _note(f"{lost} removed by hand: what was in them is on nobody's books", "red")
        latencies = [(c, c.latency) for c in sorted(stats.consumers, key=_consumer_order) if c.latency is not None]
        if latencies:
            yield ""
            yield Rows(_LATENCY_COLUMNS, latencies)


def headline(stats: BusStats) -> Text:
    """A bus in one line."""
    found = line("")
    found.append(printable(stats.bus), style="bold")
    found.append(f"{SEPARATOR}{plural(len(stats.participants), 'process')}{SEPARATOR}")
    supervisor = stats.supervisor
    if supervisor.state == "none":
        found.append("no supervisor", style="bold red")
    elif supervisor.state == "stalled":
        found.append(f"supervisor {supervisor.pid}{_where(supervisor.namespace)} stalled", style="bold red")
    else:
        found.append(f"supervisor {supervisor.pid}{_where(supervisor.namespace)}")
    age = duration(max(1, stats.time_ns - stats.created_ns))
    found.append(SEPARATOR.join(["", plural(len(stats.topics), "topic"), size(stats.bytes), f"up {age}"]))
    return found


def _name(text: str) -> Clipped:
    return Clipped(text, middle=True)


def _pid(pid: int) -> str:
    return str(pid) if pid else "-"


def _state(state: Health, doing: str, names: Sequence[str]) -> Clipped:
    """Who blocks comes first, for the end of the cell is what a narrow screen cuts."""
    if not names:
        return Clipped(state, _STYLES[state])
    words = f"{doing} {', '.join(names)}"
    if state in _ILL:
        return Clipped(f"{words} ({state})", _STYLES[state])
    return Clipped(words, _BLOCKED)


def _consumer_state(consumer: ConsumerStats) -> Clipped:
    if consumer.quarantined_ns and not consumer.blocks:
        return Clipped(f"quarantined ({consumer.state})", _STYLES["stalled"])
    return _state(consumer.state, "blocks", consumer.blocks)


def _publisher_state(publisher: PublisherStats) -> Clipped:
    if publisher.waiting and not publisher.blocked_by and publisher.state == "ok":
        return Clipped("waits for room", _BLOCKED)  # it was just made, and nobody is in its way any more
    return _state(publisher.state, "blocked by", publisher.blocked_by)


def _used(publisher: PublisherStats) -> str:
    return f"{publisher.used / publisher.capacity:.0%}" if publisher.capacity else "-"


def _ring(publisher: PublisherStats) -> str:
    changed = f" +{publisher.grown}-{publisher.shrunk}" if publisher.grown else ""
    return size(publisher.capacity) + changed


def _kind(consumer: ConsumerStats) -> str:
    if consumer.kind != "group":
        return consumer.mode
    return f"group of {len(consumer.workers)}{f' by {consumer.key}' if consumer.key else ''}"


def _consumer_order(consumer: ConsumerStats) -> tuple[bool, str, str]:
    return consumer.state in ("closed", "dead"), consumer.topic, consumer.name


_PUBLISHER_COLUMNS: Final[Sequence[Column[PublisherStats]]] = (
    Column("PUBLISHER", lambda p: _name(f"{p.topic}/{p.name}"), gives=True, high=_MEDIUM),
    Column("TOPIC", lambda p: _name(p.topic), gives=True, low=_MEDIUM),
    Column("PUBLISHER", lambda p: _name(p.name), gives=True, low=_MEDIUM),
    Column("PID", lambda p: _pid(p.pid), right=True),
    Column("PUBLISHED", lambda p: short(p.published), right=True, high=_MEDIUM),
    Column("PUBLISHED", lambda p: whole(p.published), right=True, low=_MEDIUM),
    Column("RATE/S", lambda p: short(p.rate), right=True),
    Column("USED", _used, right=True),
    Column("RING", _ring, right=True, low=_MEDIUM),
    Column("UNROUTED", lambda p: whole(p.unrouted), right=True, low=_WIDE),
    Column("REFUSED", lambda p: whole(p.refused), right=True, low=_MEDIUM),
    Column("STATE", _publisher_state, gives=True),
)

_CONSUMER_COLUMNS: Final[Sequence[Column[ConsumerStats]]] = (
    Column("CONSUMER", lambda c: _name(f"{c.topic}/{c.name}"), gives=True, high=_MEDIUM),
    Column("TOPIC", lambda c: _name(c.topic), gives=True, low=_MEDIUM),
    Column("CONSUMER", lambda c: _name(c.name), gives=True, low=_MEDIUM),
    Column("KIND", _kind),
    Column("PID", lambda c: _pid(c.pid), right=True, low=_MEDIUM),
    Column("OFFERED", lambda c: whole(c.offered), right=True, low=_WIDE),
    Column("DELIVERED", lambda c: short(c.delivered), right=True, high=_MEDIUM),
    Column("DELIVERED", lambda c: whole(c.delivered), right=True, low=_MEDIUM),
    Column("RATE/S", lambda c: short(c.rate), right=True),
    Column("DEPTH", lambda c: short(c.depth), right=True, high=_MEDIUM),
    Column("DEPTH", lambda c: whole(c.depth), right=True, low=_MEDIUM),
    Column("LAG", lambda c: duration(c.lag_ns), right=True),
    Column("DROPPED", lambda c: short(c.dropped), right=True, high=_WIDE),
    Column("OVERRUN", lambda c: whole(c.overrun), right=True, low=_WIDE),
    Column("REFUSED", lambda c: whole(c.refused), right=True, low=_WIDE),
    Column("ABANDONED", lambda c: whole(c.abandoned), right=True, low=_WIDE),
    Column("UNDECODABLE", lambda c: whole(c.undecodable), right=True, low=_WIDE),
    Column("REJECTED", lambda c: whole(c.rejected), right=True, low=_WIDE),
    Column("STATE", _consumer_state, gives=True),
)

_LATENCY_COLUMNS: Final[Sequence[Column[tuple[ConsumerStats, Latency]]]] = (
    Column("LATENCY", lambda row: _name(f"{row[0].topic}/{row[0].name}"), gives=True),
    Column("P50", lambda row: duration(row[1].p50_ns), right=True),
    Column("P99", lambda row: duration(row[1].p99_ns), right=True),
    Column("MAX", lambda row: duration(row[1].max_ns), right=True),
)


def _publisher_notes(publishers: Sequence[PublisherStats]) -> Iterator[Text]:
    for publisher in publishers:
        name = shorten(publisher.name, _NAME)
        if publisher.blocked_by:
            waits = "waits for" if publisher.waiting else "has no room because of"
            who = ", ".join(shorten(consumer, _NAME) for consumer in publisher.blocked_by)
            yield _note(f"{name} {waits} {who}: {whole(publisher.used)} bytes unread", _BLOCKED)
        if publisher.state in _ILL:
            yield _note(f"{name}{_of(publisher.pid)} {_ILL[publisher.state]}", "red")
        if publisher.refused:
            yield _note(f"{name} refused {plural(publisher.refused, 'event')}: no room in a ring", "yellow")


def _pool_notes(stats: BusStats) -> Iterator[Text]:
    """How full a pool is, and who looks at what since when, the oldest first."""
    for publisher in stats.publishers:
        if publisher.pool:
            used = f"{size(publisher.pool_used)} of {size(publisher.pool)}"
            yield _note(f"{shorten(publisher.name, _NAME)}: {used} of its pool used")
        for viewer in sorted(publisher.viewers, key=lambda viewer: viewer.since_ns):
            who = shorten(viewer.name, _NAME) if viewer.name else "one that is gone"
            held = f"{plural(viewer.views, 'extent')} of it, {size(viewer.bytes)}"
            since = duration(max(0, stats.time_ns - viewer.since_ns))
            yield _note(f"{who}{_of(viewer.pid)} looks at {held}, the oldest for {since}")


def _consumer_notes(consumers: Sequence[ConsumerStats]) -> Iterator[Text]:
    for consumer in consumers:
        name = shorten(consumer.name, _NAME)
        if consumer.dropped:
            lost = [f"{whole(getattr(consumer, cause))} {cause}" for cause in _CAUSES if getattr(consumer, cause)]
            yield _note(f"{name} lost {plural(consumer.dropped, 'event')}: {', '.join(lost)}", "yellow")
        if consumer.quarantined_ns:
            yield _note(
                f"{name} is in quarantine: it holds up nobody, and is reliable again once it receives", "yellow"
            )
        if consumer.state in _ILL:
            waits = f", {plural(consumer.depth, 'event')} waiting" if consumer.depth else ""
            yield _note(f"{name}{_of(consumer.pid)} {_ILL[consumer.state]}{waits}", "red")
        yield from _worker_notes(name, consumer)


def _worker_notes(name: str, consumer: ConsumerStats) -> Iterator[Text]:
    if consumer.kind == "group" and not consumer.workers and consumer.depth:
        yield _note(f"{name} has no worker: {plural(consumer.depth, 'event')} waiting", "yellow")
    busy = [f"{worker.pid} holds {worker.held}" for worker in consumer.workers if worker.held]
    if busy:
        yield _note(f"{name}: worker {', '.join(busy)}")
    for worker in consumer.workers:
        if worker.state in _ILL:
            held = f", holds {plural(worker.held, 'event')}" if worker.held else ""
            yield _note(f"{name}: worker {worker.pid} {_ILL[worker.state]}{held}", "red")


def _participant_notes(stats: BusStats) -> Iterator[Text]:
    """The ill who own no publisher, subscriber or worker; those were named with what they own."""
    named = {publisher.pid for publisher in stats.publishers} | {consumer.pid for consumer in stats.consumers}
    named |= {worker.pid for consumer in stats.consumers for worker in consumer.workers}
    for participant in stats.participants:
        if participant.state in _ILL and participant.pid not in named:
            ill = _ILL[participant.state]
            yield _note(f"process {participant.pid}{_where(participant.namespace)} {ill}, {participant.command}", "red")


def _part_notes(stats: BusStats) -> Iterator[Text]:
    """What bridges and journals say of themselves."""
    for participant in stats.participants:
        for note in participant.notes:
            who = f"{note.who} (pid {participant.pid})"
            if note.state == "ok":
                yield _note(f"{who} {note.text}")
                continue
            waiting = f"{plural(note.waiting, 'event')} waiting"
            since = time.strftime("%H:%M:%S", time.localtime(note.since_ns / 1e9))
            yield _note(f"{who}: {note.text}, since {since}, {waiting}", "red")


def _where(namespace: int) -> str:
    """Which PID namespace a pid is one of, where it is not ours."""
    return f" of pid:[{namespace}]" if namespace else ""


def _of(pid: int) -> str:
    return f" (pid {pid})" if pid else ""


def _note(text: str, style: str = "") -> Text:
    return line(f"  {text}", style)
