"""Drop spans: events that a traced subscriber will not get, linked to the spans that sent them. See `tracing`.

    overrun      a lossy subscriber finds out, or is closed before it has
    abandoned    the subscriber is closed with events unread

Their headers are overwritten, or were never read; who sent them stands in the publisher's trace file.

May touch: trace files, to read, and to keep what the first of a loss was; the books of its own subscriber, to read.

Must stay true: the counts of the spans of a subscriber add up to what its books have as overrun and abandoned; a link
is right or is not there.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.trace import Link, SpanContext, TraceFlags

from shmbus._ledger.past import DEPARTED
from shmbus._shm.traces import BROADCAST, WINDOW
from shmbus.errors import ShmbusError
from shmbus.observe.telemetry import MAX_LINKS, PREFIX, link_to
from shmbus.subscriber import Subscriber

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmbus._ledger.document import LossEntry
    from shmbus._shm.traces import Sender, TraceFile
    from shmbus.observe.telemetry import Seen, Telemetry


class Sources:
    """Whose events a subscriber gets: publishers by the very strings that the hooks name them by."""

    def __init__(self, subscriber: Subscriber[Any]) -> None:
        self._subscriber: Final = subscriber
        self._known: dict[int, tuple[str, set[int]]] = {}
        """By the id of the string, which is kept."""
        self._files: dict[int, TraceFile] = {}
        self.joined_ns: Final = time.time_ns()
        self.told: dict[str, int] = {}
        """By publisher: overruns that spans have told of."""
        self.pulled: Seen | None = None
        """What a handle that pulls events itself is about to decode."""

    def add(self, name: str, publisher: int) -> str:
        """A source of the C type; returns the string to name it by."""
        name = name.encode().decode()  # an object of its own, but for those of one character
        self._known.setdefault(id(name), (name, set()))[1].add(publisher)
        return name

    def named(self, name: str) -> list[int]:
        """The publishers that may be meant, in the order of their rings."""
        known = self._known.get(id(name))
        if known is not None:
            return sorted(known[1])
        with suppress(ShmbusError):
            members = self._subscriber._session.membership(self._subscriber._entry.index)
            return sorted(p.id for p in members.publishers if p.name == name)
        return []

    def file(self, publisher: int) -> TraceFile | None:
        """The trace file of a publisher, if there is one."""
        if publisher not in self._files:
            found = self._subscriber._session.rings.traces.open(publisher, writable=True)
            if found is None:
                return None
            self._files[publisher] = found
        return self._files[publisher]

    def hold_all(self) -> None:
        """Open what there is, before the subscriber leaves: with it rings may go, and the files of their publishers."""
        with suppress(ShmbusError):
            members = self._subscriber._session.membership(self._subscriber._entry.index)
            for publisher in {ring.publisher for ring in members.rings if not ring.group}:
                self.file(publisher)

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()


class Dropping(Subscriber[Any]):
    """What of a subscriber tells of drops; beneath kinds of subscribers that know better what is lost."""

    __slots__ = ()

    _telemetry: Telemetry
    _dropped_from: Sources

    if TYPE_CHECKING:
        _traced_seen: list[Seen]

        def _traced_about(self) -> dict[str, Any]: ...

    def _add_source(self, ring: Any, slot: int, publisher: str, retired: bool = False, origin: str = "", /) -> bool:
        own = self._dropped_from.add(publisher, int(origin.rpartition("-")[2], 16))
        return super()._add_source(ring, slot, own, retired, origin)

    def _gap(self, publisher: str, first: int, last: int, count: int | None = None) -> None:
        if self.mode != "latest":  # to skip is what it asked for
            found = self._dropped_from.named(publisher)
            self._tell_drop(publisher, found[0] if len(found) == 1 else 0, first, last, "overrun", count)
        super()._gap(publisher, first, last, count)

    def _undecodable(self, publisher: str, sequence: int, error: Exception) -> Any:
        pulled = [self._dropped_from.pulled] if self._dropped_from.pulled is not None else []
        mine = [one for one in (*self._traced_seen, *pulled) if (one.sequence, one.publisher) == (sequence, publisher)]
        self._traced_seen[:] = [one for one in self._traced_seen if one not in mine]
        links = [link for one in mine[:1] for link in link_to(one.headers)]
        self._drop_span(publisher, sequence, sequence, "undecodable", 1, links)
        return super()._undecodable(publisher, sequence, error)

    def _tell_drop(
        self, name: str, publisher: int, first: int, last: int, cause: str, count: int | None = None
    ) -> None:
        """Spans of events that are gone, each of as many as it has room for links."""
        told = self._dropped_from.told.get(name, 0)
        if cause == "overrun":
            self._dropped_from.told[name] = told + (count or last - first + 1)
        file = self._dropped_from.file(publisher) if publisher else None
        if file is None or count is not None:
            self._drop_span(name, first, last, cause, last - first + 1 if count is None else count, [])
            return
        sender = None if told else file.find(BROADCAST, first)
        if sender is not None:  # the first, which the log of losses tells of as long as the ring is there
            file.keep(BROADCAST, first, sender)
        if last - first >= WINDOW:  # nobody knows any more
            self._drop_span(name, first, last - WINDOW, cause, last - WINDOW - first + 1, [])
            first = last - WINDOW + 1
        for begin in range(first, last + 1, MAX_LINKS):
            end = min(begin + MAX_LINKS - 1, last)
            links = [_link(name, sequence, sender) for sequence, sender in file.senders(begin, end)]
            self._drop_span(name, begin, end, cause, end - begin + 1, links)

    def _drop_span(self, name: str, first: int, last: int, cause: str, count: int, links: list[Link]) -> None:
        more = {
            **self._traced_about(),
            f"{PREFIX}publisher": name,
            f"{PREFIX}dropped": cause,
            f"{PREFIX}first": first,
            f"{PREFIX}last": last,
            "messaging.batch.message_count": count,
        }
        with self._telemetry.client(self.topic.name, "drop", "receive", links, more):
            pass

    # -- at the end

    def _tell_what_was_left(self) -> None:
        """After the departure: what it had not received, and what it had not yet found overrun, by the books."""
        if DEPARTED in self._dropped_from.told:  # of whom, nobody said
            return
        with suppress(ShmbusError):
            for loss in self._own_losses():
                ids = self._dropped_from.named(loss.publisher)
                publisher = ids[0] if len(ids) == 1 else self._with_file(ids, loss)
                if loss.cause == "abandoned":
                    self._tell_drop(loss.publisher, publisher, loss.first, loss.last, "abandoned")
                    continue
                untold = loss.count - self._dropped_from.told.get(loss.publisher, 0)
                self._dropped_from.told[loss.publisher] = max(0, -untold)
                if untold > 0:
                    self._tell_drop(loss.publisher, publisher, loss.last - untold + 1, loss.last, "overrun")

    def _own_losses(self) -> Iterator[LossEntry]:
        for loss in self._session.document().losses:
            mine = (loss.consumer, loss.topic) == (self.name, self.topic.name)
            overrun = loss.cause == "overrun" and self.mode != "latest"
            if mine and loss.first_ns >= self._dropped_from.joined_ns and (overrun or loss.cause == "abandoned"):
                yield loss

    def _with_file(self, publishers: list[int], loss: LossEntry) -> int:
        """Which of several publishers of one name it was, if the trace of the first tells."""
        for publisher in publishers:
            file = self._dropped_from.file(publisher)
            if loss.trace and file is not None and str(file.find(BROADCAST, loss.first)) == loss.trace:
                return publisher
        return 0


def _link(publisher: str, sequence: int, sender: Sender) -> Link:
    flags = TraceFlags(TraceFlags.SAMPLED if sender.sampled else TraceFlags.DEFAULT)
    context = SpanContext(sender.trace_id, sender.span_id, is_remote=True, trace_flags=flags)
    return Link(context, {f"{PREFIX}publisher": publisher, f"{PREFIX}sequence": sequence})
