"""Traced publishers: a send span for what is published, whose context goes along, and a note of it for who finds events
gone. See `tracing`.

May touch: the trace file of its own publisher (`_shm/traces.py`), and what every publisher touches.

Must stay true: an event is published exactly as without it; what cannot be noted is published all the same.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from opentelemetry import propagate
from opentelemetry.trace import Status, StatusCode

from shmbus import _core
from shmbus._shm.traces import REFUSED, Sender
from shmbus.errors import Full
from shmbus.observe.telemetry import PREFIX, Telemetry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from opentelemetry.trace import Span

    from shmbus._ledger.document import RingEntry
    from shmbus._shm.traces import TraceFile
    from shmbus.publisher import Publisher


class TracedPublisher:
    """Sends the context of its span along. A mix-in of every kind of publisher."""

    __slots__ = ()

    _telemetry: Telemetry
    _notes: TraceFile | None
    _refusals: dict[int, int]
    """By ring: how many events it has refused, as far as was looked."""
    _inside: int
    """Calls that run: of several nobody can say whose event a ring has refused."""

    def _begin_tracing(self) -> None:
        me = cast("Any", self)
        me._notes = me._session.rings.traces.make(me._id)
        me._inside = 0
        me._refusals = {entry.id: _refused(ring)[0] for entry, ring in _own(me)}

    @contextmanager
    def _sending(self, count: int = 0) -> Iterator[tuple[Span, dict[str, Any]]]:
        me = _as_publisher(self)
        more: dict[str, Any] = {f"{PREFIX}publisher": me.name}
        if count:
            more["messaging.batch.message_count"] = count
        with self._telemetry.client(me.topic.name, "send", "send", [], more) as span:
            carrier: dict[str, Any] = {}
            propagate.inject(carrier)
            self._count(1)
            try:
                yield span, carrier
            finally:
                self._count(-1)

    def _count(self, more: int) -> None:
        self._inside += more  # type: ignore[misc]

    def _note(self, span: Span, sequence: int | None) -> None:
        """One event is out, or was refused somewhere: remember who sent it."""
        context = span.get_span_context()
        if self._notes is None or not context.is_valid:
            return
        sender = Sender(context.trace_id, context.span_id, context.trace_flags.sampled)
        if sequence is None:
            self._note_refusals(sender)
        else:
            self._notes.note(sequence, sender)

    def _note_refusals(self, sender: Sender) -> None:
        assert self._notes is not None
        for entry, ring in _own(_as_publisher(self)):
            count, following = _refused(ring)
            before = self._refusals.get(entry.id, 0)
            if self._inside != 1:
                pass  # whose it was nobody can say
            elif count != before:
                if not before:  # the first, which the log of losses tells of
                    self._notes.keep(entry.id | REFUSED, following, sender)
            elif not entry.group:
                self._notes.note(following - 1, sender)  # it is in there, and is missing elsewhere
            self._refusals[entry.id] = count

    def _sent(self, span: Span, sequence: int | None, count: int = 1) -> None:
        topic = _as_publisher(self).topic.name
        self._telemetry.sent.add(count, self._telemetry.attributes(topic, "send", "send"))
        if sequence is None:
            span.set_attribute(f"{PREFIX}dropped", "refused")
            span.set_status(Status(StatusCode.ERROR, "refused: no room for a consumer"))
        elif count == 1:
            span.set_attribute(f"{PREFIX}sequence", sequence)

    def _let_go(self) -> None:
        super()._let_go()  # type: ignore[misc]
        if self._notes is not None:
            self._notes.close()

    # -- what publishes, around that of the handle

    def publish(self, event: Any, *, headers: dict[str, Any] | None = None) -> int | None:
        """As the handle has it."""
        with self._sending() as (span, carrier):
            sequence = self._publish_one(event, {**(headers or {}), **carrier})
            self._note(span, sequence)
            self._sent(span, sequence)
            return sequence

    def _publish_one(self, event: Any, headers: dict[str, Any]) -> int | None:
        return cast("int | None", super().publish(event, headers=headers))  # type: ignore[misc]

    async def apublish(self, event: Any, *, headers: dict[str, Any] | None = None) -> int | None:
        """As the handle has it."""
        with self._sending() as (span, carrier):
            sequence = await self._apublish_one(event, {**(headers or {}), **carrier})
            self._note(span, sequence)
            self._sent(span, sequence)
            return sequence

    async def _apublish_one(self, event: Any, headers: dict[str, Any]) -> int | None:
        return cast("int | None", await super().apublish(event, headers=headers))  # type: ignore[misc]

    def publish_many(self, events: Iterable[Any], /) -> int:
        """As the handle has it, one by one: each event carries the context; a timeout is that of each."""
        lot = list(events)
        with self._sending_many(len(lot)) as (told, carrier):
            for event in lot:
                told.out(self._publish_one(event, carrier))
        return told.done - told.missed

    async def apublish_many(self, events: Iterable[Any]) -> int:
        """The same in an event loop."""
        lot = list(events)
        with self._sending_many(len(lot)) as (told, carrier):
            for event in lot:
                told.out(await self._apublish_one(event, carrier))
        return told.done - told.missed

    @contextmanager
    def _sending_many(self, count: int) -> Iterator[tuple[_Told, dict[str, Any]]]:
        with self._sending(count) as (span, carrier):
            told = _Told(self, span)
            try:
                yield told, carrier
            except Full as error:
                error.published = told.done
                raise
            finally:
                self._sent(span, None if told.missed else 0, told.done)

    def publish_now(self, event: Any, *, headers: dict[str, Any] | None = None) -> int:
        """As the handle has it."""
        with self._sending() as (span, carrier):
            sequence: int = super().publish_now(event, headers={**(headers or {}), **carrier})  # type: ignore[misc]
            self._note(span, sequence)
            self._sent(span, sequence)
            return sequence


class _Told:
    """What has become of the events of one call."""

    def __init__(self, publisher: TracedPublisher, span: Span) -> None:
        self._publisher = publisher
        self._span = span
        self.done = self.missed = 0

    def out(self, sequence: int | None) -> None:
        """One more is out, or was refused somewhere."""
        self._publisher._note(self._span, sequence)
        self.missed += sequence is None
        self.done += 1


def _as_publisher(traced: TracedPublisher) -> Publisher[Any]:
    return cast("Publisher[Any]", traced)


def _own(publisher: Publisher[Any]) -> Iterator[tuple[RingEntry, _core.BroadcastRing | _core.WorkRing]]:
    """The rings that it writes."""
    for entry in publisher._written(publisher._session.membership(publisher._entry.index)):
        try:
            yield entry, publisher._session.rings.either(entry)
        except FileNotFoundError:
            continue


def _refused(ring: _core.BroadcastRing | _core.WorkRing) -> tuple[int, int]:
    """How many events a ring has refused, and the sequence of what comes next."""
    if isinstance(ring, _core.WorkRing):
        return ring.terms()["refused"], ring.bounds()[1]
    info = ring.info()
    return info["refused"], info["sequence"]
