"""Server: takes the calls of a service, and replies. A worker of the service's group, and a publisher for each caller.

May touch: what a worker may; the reply topics of callers that are there.

Must stay true:
- A reply is out before its request is acked: a death in between makes two replies of it, never none. The caller takes
  the first.
- No server waits for a caller for longer than `PATIENCE`, and for one that stands still not at all: its reply is
  dropped, and the log says so.
- Nothing of a caller that left or died is kept for longer than about a second.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, TypeVar, cast

import msgspec

from shmbus import _core
from shmbus._closing import Closing
from shmbus._handles.awaiting import interpreter_ends
from shmbus._log import logger
from shmbus._options import check_range
from shmbus._shm.failpoint import reach
from shmbus.errors import ClosedError, DecodeError, Full, ReclaimedError, ShmbusError
from shmbus.message import decode_headers
from shmbus.publisher import Publisher
from shmbus.service import HEADER, SERVERS, Answer, Failure, check_service
from shmbus.topic import check_label, codec_of
from shmbus.worker import ClaimedEvent, Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from shmbus.bus import Bus
    from shmbus.message import ClaimedMessage
    from shmbus.service import Service

Req = TypeVar("Req")
Rep = TypeVar("Rep")

PATIENCE: Final = 1.0
"""Seconds that a reply waits for room in a caller's ring."""
RESPITE: Final = 10.0
"""Seconds after such a wait in vain in which the next replies to that caller do not wait."""
LINES: Final = 256
"""Callers that a server keeps a publisher for; the one it has not replied to for longest gives way."""
_MAX_DELIVER: Final = 4000  # as for workers
_LOOK: Final = 1.0  # seconds between two looks for callers that are gone

_log = logger("shmbus.service")


class Origin(msgspec.Struct, array_like=True, frozen=True):
    """Whose call it is; what `HEADER` holds."""

    token: str
    call: int
    until_ns: int = 0


class Line(Publisher[Any]):
    """The way to one caller."""

    hasty_until = 0.0

    def _patience(self) -> float | None:
        return 0.0 if time.monotonic() < self.hasty_until else PATIENCE

    async def asend(self, answer: Answer[Any] | Failure, attempt: Callable[..., object]) -> None:
        """`apublish`, whose every look for room is a call of `attempt`."""
        if self.closed and _core.exiting():
            await interpreter_ends()
        record = payload, _ = self._encode(answer, None)
        await self._in_room(lambda drop: attempt(self._put, record, drop, answer), lambda: len(payload))

    def heard(self) -> bool:
        """Whether the caller is there."""
        try:
            members = self._session.membership(self._entry.index)
        except ReclaimedError:
            return False
        return any(c.state == "active" and c.kind == "subscriber" for c in members.consumers)


class Replies:
    """The ways to the callers of one server. Any number of threads."""

    def __init__(self, bus: Bus, service: Service[Any, Any]) -> None:
        self._bus = bus
        self._service = service
        self._lines: OrderedDict[str, Line] = OrderedDict()
        self._lock = threading.RLock()
        self._next_look = time.monotonic() + _LOOK

    def send(self, token: str, answer: Answer[Any] | Failure) -> bool:
        """Send a reply: False if its caller is not there any more, or has no room for it."""
        if (line := self._line(token)) is None:
            return False
        try:
            if _in_event_loop():
                line.publish_now(answer)
            else:
                line.publish(answer)
        except Full as full:
            return self._dropped(line, full)
        except (ClosedError, ReclaimedError):  # another thread closed the line, for its caller left
            self._bus._session.check()
            return False
        return True

    async def asend(self, token: str, answer: Answer[Any] | Failure, attempt: Callable[..., object]) -> bool:
        """The same in an event loop, which goes on while a reply waits for room; `attempt` calls what looks for it."""
        if (line := self._line(token)) is None:
            return False
        try:
            await line.asend(answer, attempt)
        except Full as full:
            return self._dropped(line, full)
        except (ClosedError, ReclaimedError):
            self._bus._session.check()
            return False
        return True

    def _dropped(self, line: Line, full: Full) -> bool:
        if time.monotonic() >= line.hasty_until:
            _log.warning(
                "service %s: caller %s takes no replies; those that its ring cannot hold are dropped",
                self._service.name,
                ", ".join(full.blocked_by) or line.topic.name,
            )
        line.hasty_until = time.monotonic() + RESPITE
        return False

    def _line(self, token: str) -> Line | None:
        """The way to a caller, opened if need be; None if it is gone."""
        with self._lock:
            found = self._lines.get(token)
            if found is not None and not found.closed:
                self._lines.move_to_end(token)
                return found
            topic = self._service.replies(token)
            document = self._bus._session.document()
            entry = document.topic_named(topic.name)
            if entry is None or all(c.topic != entry.index for c in document.consumers):
                return None
            reach("server.line")
            line = cast("Line", self._bus._open_publisher(topic, codec_of(topic), None, "block", PATIENCE, kind=Line))
            self._lines[token] = line
            if len(self._lines) > LINES:
                self._lines.popitem(last=False)[1].close()
            return line

    def look(self) -> None:
        """About once a second, close the ways to callers that are gone."""
        now = time.monotonic()
        if now < self._next_look or not self._lock.acquire(blocking=False):
            return
        try:
            self._next_look = now + _LOOK
            for token, line in list(self._lines.items()):
                if line.closed or not line.heard():
                    del self._lines[token]
                    line.close()
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close all ways. What was sent stays for its callers."""
        with self._lock:
            while self._lines:
                self._lines.popitem()[1].close()


class Desk(Worker[Req]):
    """The worker of a server: tells callers of what it gives up on."""

    replies: Replies

    def _care(self) -> bool:
        crowded = super()._care()
        self.replies.look()
        return crowded

    def _give_up(self, event: ClaimedEvent) -> None:
        reason = f"handed out {event.attempt} times without a reply"
        self._tell(event.claim, reason, self.deaths(event.ring_id, event.sequence))
        super()._give_up(event)

    def _spoilt(self, event: ClaimedEvent, error: Exception) -> None:
        self._tell(event.claim, f"the request does not decode: {error}")
        super()._spoilt(event, error)

    def _tell(self, claim: tuple[int, int, int], reason: str, deaths: tuple[str, ...] = ()) -> None:
        origin = origin_of(self._headers(*claim) or b"")[0]
        if origin is None:
            return
        try:
            self.replies.send(origin.token, Failure(origin.call, reason, deaths))
        except ShmbusError as error:  # the request is to be dead-lettered all the same
            _log.warning("service %s cannot tell caller %s: %s", self.topic.name, origin.token, error)


class Call(Generic[Req, Rep]):
    """A call that a server has in hand, until `reply` or `fail`: once, from any thread.

    Raises ReclaimedError where another server has it by now; its caller may get both replies, and takes the first.
    """

    __slots__ = ("_message", "_origin", "_replies", "deadline", "headers")

    def __init__(
        self,
        replies: Replies,
        message: ClaimedMessage[Req],
        origin: Origin | None,
        headers: dict[str, Any],
        deadline: float | None,
    ) -> None:
        self._replies = replies
        self._message = message
        self._origin = origin
        self.headers = headers
        """What the caller passed as `headers`, {} for none."""
        self.deadline = deadline
        """When the caller gives up, by time.monotonic() of this process; None: never."""

    @property
    def event(self) -> Req:
        """The request."""
        return self._message.event

    @property
    def attempt(self) -> int:
        """1 at the first server; one more after every death of one, and every close."""
        return self._message.attempt

    @property
    def message(self) -> ClaimedMessage[Req]:
        """The request as the work that it is: sequence, publisher, time_ns, and `nack` to give it back."""
        return self._message

    def reply(self, event: Rep) -> bool:
        """Send the reply, and be done with the call: False if the caller is not there, or takes no more replies.

        Waits a second at most for room in the caller's ring, in an event loop not at all. Raises EventTypeError and
        EventTooLargeError, and the call is open as before.
        """
        return self._settle(lambda origin: Answer(origin.call, event))

    def fail(self, reason: str) -> bool:
        """Have the caller get CallFailed with this reason, and be done with the call."""
        return self._settle(lambda origin: Failure(origin.call, str(reason)))

    async def areply(self, event: Rep) -> bool:
        """`reply` in an event loop, which goes on while it waits for room."""
        return await self._asettle(lambda origin: Answer(origin.call, event))

    async def afail(self, reason: str) -> bool:
        """`fail` in an event loop."""
        return await self._asettle(lambda origin: Failure(origin.call, str(reason)))

    def _settle(self, answer: Callable[[Origin], Answer[Rep] | Failure]) -> bool:
        """One call of the worker, which close() waits for: who closes once the reply is there keeps no ack from it."""
        return bool(cast("Any", self._message._worker)._within(self._answer, answer))

    def _answer(self, answer: Callable[[Origin], Answer[Rep] | Failure]) -> bool:
        if self._message.settled:
            return False
        sent = self._origin is not None and self._replies.send(self._origin.token, answer(self._origin))
        reach("server.replied")
        self._message.ack()
        return sent

    async def _asettle(self, answer: Callable[[Origin], Answer[Rep] | Failure]) -> bool:
        if self._message.settled:
            return False
        attempt = partial(cast("Any", self._message._worker)._within, self._attempt)
        attempt.func(bool)  # raises where the server was closed, before a way to the caller is opened
        sent = self._origin is not None and await self._replies.asend(self._origin.token, answer(self._origin), attempt)
        self._message.ack()  # where that has not been done: nobody hears of it, or another server has the call
        return sent

    def _attempt(self, put: Callable[..., object], *arguments: object) -> object:
        """Look for room once: as `_answer`, reply and ack in one call of the worker."""
        found = put(*arguments)
        if found is not _core.NOTHING:
            reach("server.replied")
            self._message.ack()
        return found

    def __repr__(self) -> str:
        return f"Call({self.event!r}, attempt={self.attempt})"


class Server(Closing, Generic[Req, Rep]):
    """Iterate over it for calls. Made by `Bus.server`.

    Any number of calls may be open at once, to be answered in any order, by any thread; what is open when the server
    closes goes to another one. One thread at a time iterates, or any number of tasks; ends on close() and cancel().
    """

    def __init__(
        self, bus: Bus, service: Service[Req, Rep], name: str | None, max_deliver: int, idle: Any | None
    ) -> None:
        check_service(service)
        if name is not None:
            check_label("server", name)
        check_range("max_deliver", max_deliver, _MAX_DELIVER)
        self.service: Final = service
        self._replies = Replies(bus, service)
        policy = (max_deliver, 1, bus._checked_idle(idle))
        self._desk: Desk[Req] = cast("Desk[Req]", bus._open_worker(service.requests, SERVERS, name, policy, kind=Desk))
        self._desk.replies = self._replies

    @property
    def name(self) -> str:
        """What `stat` calls it."""
        return self._desk.name

    @property
    def closed(self) -> bool:
        """True after close(), of the server or its bus."""
        return self._desk.closed

    def __iter__(self) -> Iterator[Call[Req, Rep]]:
        while not self._desk.closed:
            try:
                for message in self._desk.messages():
                    call = self._call(message)
                    if call is not None:
                        yield call
                return
            except DecodeError as error:
                self._told_of(error)

    def __aiter__(self) -> AsyncIterator[Call[Req, Rep]]:
        return self._run()

    async def _run(self) -> AsyncIterator[Call[Req, Rep]]:
        while not self._desk.closed:
            try:
                async for message in self._desk.messages():
                    call = self._call(message)
                    if call is not None:
                        yield call
                return
            except DecodeError as error:
                self._told_of(error)

    def _told_of(self, error: DecodeError) -> None:
        """Its caller has been told, and it is among the dead letters: no reason for a server to end."""
        _log.warning("service %s: %s", self.service.name, error)

    def _call(self, message: ClaimedMessage[Req]) -> Call[Req, Rep] | None:
        """The call of a message; None for one that nobody waits for any more, which is acked."""
        self._replies.look()
        origin, headers = origin_of(message._headers)
        deadline = None
        if origin is not None and origin.until_ns:
            left = origin.until_ns - _core.host_ns()
            if left <= 0:
                message.ack()
                return None
            deadline = time.monotonic() + left / 1e9
        return Call(self._replies, message, origin, headers, deadline)

    def cancel(self) -> None:
        """End the iteration, for good; callable from signal handlers and other threads. Open calls can be answered."""
        self._desk.cancel()

    def close(self) -> None:
        """Leave. Open calls go to other servers. Idempotent, from any thread."""
        self._desk.close()
        self._replies.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} belongs to its process: pickle the Bus instead")

    def __repr__(self) -> str:
        return f"<Server {self.name!r} of service {self.service.name!r}>"


def origin_of(headers: bytes) -> tuple[Origin | None, dict[str, Any]]:
    """Whose call it is, None for an event that is no call, and the caller's own headers."""
    try:
        found = decode_headers(headers)
        return msgspec.convert(found.pop(HEADER, None), Origin | None), found
    except msgspec.DecodeError:  # an event that somebody published by hand
        return None, {}


def _in_event_loop() -> bool:
    asyncio = sys.modules.get("asyncio")  # no loop runs where it was never loaded, and that takes 30 ms
    return asyncio is not None and asyncio._get_running_loop() is not None
