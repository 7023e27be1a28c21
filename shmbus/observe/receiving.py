"""Traced subscribers and workers: receive, process, settle and drop spans. See `tracing`.

May touch: nothing of its own; it overrides methods and hooks of the handles, and has `_core` tell of the headers of
each event before it is decoded.

Must stay true: an event is delivered exactly as without it, whatever tracing meets; a context that is attached is
detached by the thread or task that it was attached in, or by nobody.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from opentelemetry import context, trace
from opentelemetry.trace import SpanKind

from shmbus._core import NOTHING
from shmbus._shm.traces import Sender
from shmbus.errors import ShmbusError
from shmbus.message import ACK, NACK, REJECT, UNDECODABLE, ClaimedMessage, Message
from shmbus.observe.drops import Sources
from shmbus.observe.telemetry import MAX_LINKS, PREFIX, Seen, Telemetry, link_to

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from opentelemetry.trace import Link, Span

M = TypeVar("M", bound=Message[Any])

_SETTLES: Final = {ACK: "ack", NACK: "nack", REJECT: "reject", UNDECODABLE: "reject"}


def _link(seen: Seen) -> list[Link]:
    return link_to(seen.headers, **{f"{PREFIX}publisher": seen.publisher, f"{PREFIX}sequence": seen.sequence})


class TracedReceiver:
    """What traced subscribers and workers have in common."""

    __slots__ = ()

    _telemetry: Telemetry
    _traced_seen: list[Seen]
    _traced_turns: dict[object, tuple[Span, object, float]]
    """By thread or task: the span of the event that it works on, its token, and when it began."""

    if TYPE_CHECKING:

        def _tell_headers(self, seen: Callable[[bytes, int, str | None, int], object] | None, /) -> None: ...

    def _begin_tracing(self) -> None:
        self._traced_seen, self._traced_turns = [], {}  # type: ignore[misc]
        seen = self._traced_seen
        self._tell_headers(lambda *told: seen.append(Seen(*told)))

    @property
    def _traced_topic(self) -> str:
        return str(cast("Any", self).topic.name)

    def _traced_about(self) -> dict[str, Any]:
        """What spans say of the consumer."""
        return {"messaging.consumer.group.name": self._traced_name(), f"{PREFIX}consumer": self._traced_name()}

    def _traced_name(self) -> str:
        return str(cast("Any", self).name)

    def _take_traced(self) -> list[Seen]:
        found = list(self._traced_seen)
        self._traced_seen.clear()
        return found

    # -- received by a call

    def _traced_received(self, begun: int, count: int) -> None:
        """A receive span of what a call has returned, from its beginning to now; more where one has no room for all."""
        seen = self._take_traced()
        telemetry = self._telemetry
        attributes = telemetry.attributes(self._traced_topic, "receive", "receive")
        more = {**attributes, **self._traced_about()}
        if count != 1:
            more["messaging.batch.message_count"] = count
        links = [link for one in seen for link in _link(one)]
        for at in range(0, max(1, len(links)), MAX_LINKS):
            telemetry.tracer.start_span(
                f"receive {self._traced_topic}",
                kind=SpanKind.CLIENT,
                attributes=more,
                links=links[at : at + MAX_LINKS],
                start_time=begun,
            ).end()
        telemetry.operation.record((time.time_ns() - begun) / 1e9, attributes)
        telemetry.consumed.add(count, attributes)

    # -- a turn of a loop

    def _begin_turn(self) -> None:
        """A loop has been handed an event: it is processed until the next one is asked for."""
        telemetry = self._telemetry
        attributes = telemetry.attributes(self._traced_topic, "process", "process")
        seen = self._take_traced()
        last = seen[-1:]
        more = {**attributes, **self._traced_about()}
        for one in last:
            more |= {f"{PREFIX}publisher": one.publisher, f"{PREFIX}sequence": one.sequence}
        span = telemetry.tracer.start_span(
            f"process {self._traced_topic}",
            kind=SpanKind.CONSUMER,
            attributes=more,
            links=[link for one in last for link in _link(one)],
        )
        telemetry.consumed.add(1, attributes)
        token = context.attach(trace.set_span_in_context(span))
        self._traced_turns[_who()] = span, token, time.perf_counter()

    def _end_turn(self) -> None:
        """This thread or task asks for the next event, or for no more."""
        found = self._traced_turns.pop(_who(), None)
        if found is not None:
            span, token, begun = found
            context.detach(token)  # type: ignore[arg-type]
            self._end_span(span, begun)

    def _end_span(self, span: Span, begun: float) -> None:
        span.end()
        attributes = self._telemetry.attributes(self._traced_topic, "process", "process")
        self._telemetry.processing.record(time.perf_counter() - begun, attributes)

    def _end_all(self) -> None:
        """The handle closes: what others work on ends here, and stays attached where it is."""
        self._end_turn()
        while self._traced_turns:
            with suppress(KeyError):  # another thread has just ended its own
                _, (span, _, begun) = self._traced_turns.popitem()
                self._end_span(span, begun)

    # -- what hands out events, around that of the handle

    def receive(self, timeout: float | None = None) -> Any:
        """As the handle has it: a receive span."""
        return self._traced_call(super().receive, timeout)  # type: ignore[misc]

    def try_receive(self) -> Any:
        """The same."""
        return self._traced_call(super().try_receive)  # type: ignore[misc]

    def receive_many(self, maximum: int, timeout: float | None = None) -> Any:
        """The same, of all that is returned."""
        return self._traced_call(super().receive_many, maximum, timeout)  # type: ignore[misc]

    def _traced_call(self, receive: Callable[..., Any], *arguments: Any) -> Any:
        self._end_turn()
        begun = time.time_ns()
        found = receive(*arguments)
        count = (
            len(found) if isinstance(found, list) and self._traced_seen and len(found) == len(self._traced_seen) else 1
        )
        if self._traced_seen:
            self._traced_received(begun, count)
        return found

    def areceive(self, timeout: float | None = None) -> Coroutine[Any, Any, Any]:
        """The same, in an event loop."""
        self._end_turn()
        return self._areceive(super().areceive(timeout), time.time_ns())  # type: ignore[misc]

    async def _areceive(self, receiving: Coroutine[Any, Any, Any], begun: int) -> Any:
        found = await receiving
        self._traced_received(begun, 1)
        return found

    def __next__(self) -> Any:
        self._end_turn()
        event = super().__next__()  # type: ignore[misc]
        self._begin_turn()
        return event

    def __anext__(self) -> Coroutine[Any, Any, Any]:
        self._end_turn()
        return self._begin_turn_later(super().__anext__())  # type: ignore[misc]

    async def _begin_turn_later(self, asking: Coroutine[Any, Any, Any]) -> Any:
        event = await asking
        self._begin_turn()
        return event

    def messages(self) -> Any:
        """As the handle has it: each turn of a loop is a process span."""
        return TracedMessages(self, super().messages())  # type: ignore[misc]

    def close(self) -> None:
        """As the handle has it: what is worked on is over."""
        self._end_all()
        super().close()  # type: ignore[misc]


def _who() -> object:
    """The task that runs, or else the thread."""
    try:
        return asyncio.current_task() or threading.get_ident()
    except RuntimeError:
        return threading.get_ident()


class TracedMessages(Iterator[M], AsyncIterator[M]):
    """`messages()` of a traced handle: each turn of the loop is a process span."""

    def __init__(self, receiver: TracedReceiver, messages: Any) -> None:
        self._receiver = receiver
        self._messages = messages

    def __next__(self) -> M:
        self._receiver._end_turn()
        message: M = next(self._messages)
        self._receiver._begin_turn()
        return message

    def __anext__(self) -> Coroutine[Any, Any, M]:
        self._receiver._end_turn()
        return self._begin_turn_later(self._messages.__anext__())

    async def _begin_turn_later(self, asking: Coroutine[Any, Any, M]) -> M:
        message = await asking
        self._receiver._begin_turn()
        return message


class TracedSubscriber(TracedReceiver):
    """A subscriber that is traced; what it loses, `drops.Dropping` tells of."""

    __slots__ = ()

    _dropped_from: Sources

    def _begin_tracing(self) -> None:
        self._dropped_from = Sources(cast("Any", self))  # type: ignore[misc]
        TracedReceiver._begin_tracing(self)  # it is none yet

    def close(self) -> None:
        """As the handle has it: what it leaves behind is told of."""
        self._close_traced(super().close)

    def end(self) -> None:
        """The same, one by one, before the bus leaves."""
        self.close()

    def _close_traced(self, close: Callable[[], None]) -> None:
        handle = cast("Any", self)
        if handle._left:
            close()
            return
        self._dropped_from.hold_all()
        close()
        if handle._left:  # else it is closed once a call that runs has ended
            if handle._session.usable:
                handle._tell_what_was_left()
            self._dropped_from.close()


class TracedPuller(TracedReceiver):
    """What goes before that where the handle pulls events itself, from a journal too, and hands them out later."""

    __slots__ = ()

    def _begin_tracing(self) -> None:
        TracedSubscriber._begin_tracing(cast("TracedSubscriber", self))
        seen, handle = self._traced_seen, cast("Any", self)

        def hear(*told: Any) -> None:
            if handle._plain:
                seen.append(Seen(*told))
            else:
                handle._dropped_from.pulled = Seen(*told)

        self._tell_headers(hear)

    def _pull(self) -> Any:
        found = super()._pull()  # type: ignore[misc]
        if found is not NOTHING:
            _, sequence, publisher, time_ns, headers, _ = found
            self._traced_seen.append(Seen(headers, sequence, publisher, time_ns))
        return found


class TracedWorker(TracedReceiver):
    """A worker that is traced; what it settles, and what is dead-lettered under it, is linked to who sent it."""

    __slots__ = ()

    if TYPE_CHECKING:
        group: str

        def _headers(self, ring_id: int, sequence: int, word: int, /) -> bytes | None: ...

    def _traced_name(self) -> str:
        return str(self.group)

    @contextmanager
    def _settling_span(self, how: int, headers: bytes | None, sequence: int, publisher: str) -> Iterator[Span]:
        link = link_to(headers, **{f"{PREFIX}publisher": publisher, f"{PREFIX}sequence": sequence})
        more = {**self._traced_about(), f"{PREFIX}publisher": publisher, f"{PREFIX}sequence": sequence}
        with self._telemetry.client(self._traced_topic, _SETTLES[how], "settle", link, more) as span:
            yield span

    def receive_message(self, timeout: float | None = None) -> Any:
        """As the handle has it: a receive span."""
        return self._traced_call(super().receive_message, timeout)  # type: ignore[misc]

    def _take_messages(self, maximum: int, timeout: float | None, /) -> Any:
        """How journals and bridges take them."""
        return self._traced_call(super()._take_messages, maximum, timeout)  # type: ignore[misc]

    def settle(self, message: ClaimedMessage[Any], how: int, reason: str = "", delay_ns: int = 0) -> bool:
        """As `Worker.settle`; a rejection is told of where the letter is written."""
        if how == REJECT or message.settled:
            return bool(super().settle(message, how, reason, delay_ns))  # type: ignore[misc]
        with self._settling_span(how, message._headers, message.sequence, message.publisher):
            return bool(super().settle(message, how, reason, delay_ns))  # type: ignore[misc]

    def _bury(self, event: Any, reason: str, how: int, *, unseen: bool = False) -> bool:
        with self._settling_span(how, self._headers(*event.claim), event.sequence, event.publisher) as span:
            span.set_attributes({f"{PREFIX}dropped": _cause(how), f"{PREFIX}reason": reason})
            self._keep_first(event, _cause(how))
            return bool(super()._bury(event, reason, how, unseen=unseen))  # type: ignore[misc]

    async def _abury(self, event: Any, reason: str) -> bool:
        with self._settling_span(REJECT, self._headers(*event.claim), event.sequence, event.publisher) as span:
            span.set_attributes({f"{PREFIX}dropped": "rejected", f"{PREFIX}reason": reason})
            self._keep_first(event, "rejected")
            return bool(await super()._abury(event, reason))  # type: ignore[misc]

    def _spoilt(self, event: Any, error: Exception) -> None:
        which = event.sequence, event.publisher
        self._traced_seen[:] = [
            one for one in self._traced_seen if (one.sequence, one.publisher) != which
        ]  # it is handed to nobody
        super()._spoilt(event, error)  # type: ignore[misc]

    def _keep_first(self, event: Any, cause: str) -> None:
        """For the log of losses: who sent the first event that is lost for this cause out of this ring.

        Before it is counted, so that whoever sees the loss finds it, wherever this process dies. Of several workers
        each keeps its own, and the ring says which of them was first.
        """
        sender = _sender(self._headers(*event.claim))
        if sender is None:
            return
        worker = cast("Any", self)
        with suppress(ShmbusError, FileNotFoundError):
            entry = worker._session.membership(worker._entry.index).ring(event.ring_id)
            if entry is None or worker._session.rings.work(entry).losses()[cause][0]:
                return
            file = worker._session.rings.traces.open(entry.publisher, writable=True)
            if file is not None:
                with file:
                    file.keep(event.ring_id, event.sequence, sender)


def _sender(headers: bytes | None) -> Sender | None:
    for link in link_to(headers):
        return Sender(link.context.trace_id, link.context.span_id, link.context.trace_flags.sampled)
    return None


def _cause(how: int) -> str:
    return "undecodable" if how == UNDECODABLE else "rejected"
