"""Client: calls a service, and gets the replies. A publisher of its requests, and the one subscriber of its replies.

May touch: what a publisher and a subscriber may.

Must stay true:
- Every call that is open ends: by its reply, at its timeout, or with the client.
- One thread at a time receives, for all that wait: whoever waits and finds nobody there does it, and hands it on when
  it has its own. A thread of the client's own does from the first `submit` or `acall` on.
"""

from __future__ import annotations

import heapq
import itertools
import os
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, TypeVar, cast

from shmbus import _core
from shmbus._closing import Closing
from shmbus._ledger import topics
from shmbus._log import logger
from shmbus.errors import CallFailed, CallTimeout, ClosedError, ConfigError, DecodeError, Empty, ForkedError, Full
from shmbus.publisher import Publisher
from shmbus.service import HEADER, SERVERS, TOKEN, Answer, Failure, check_service
from shmbus.topic import codec_of

if TYPE_CHECKING:
    from shmbus.bus import Bus
    from shmbus.service import Service

Req = TypeVar("Req")
Rep = TypeVar("Rep")

_log = logger("shmbus.service")


class _Requests(Publisher[Any]):
    """A publisher of which each call says how long it may wait for room."""

    waits: threading.local

    def _patience(self) -> float | None:
        seconds: float | None = self.waits.__dict__.get("seconds")
        return seconds


class _Wait:
    """A thread that waits for a reply."""

    __slots__ = ("bell", "outcome")

    def __init__(self) -> None:
        self.outcome: Answer[Any] | Failure | BaseException | None = None
        self.bell: threading.Semaphore | None = None
        """Rung for the outcome, and when nobody receives any more."""


class _Open(Future[Rep]):
    """A call that was submitted."""

    _calls: dict[int, Any]
    _number: int

    def cancel(self) -> bool:
        """Have no interest in the reply. The request stays where it is; a server may carry it out."""
        cancelled = super().cancel()
        if cancelled:
            self._calls.pop(self._number, None)
        return cancelled


class Client(Closing, Generic[Req, Rep]):
    """Calls a service. Made by `Bus.client`.

    Any number of threads and tasks may share one, and thousands of calls may be open. A timeout is of the whole call:
    room for the request, the server's work, the reply. Past it the request is not handed out any more; a server that
    has it carries it out, and its reply is thrown away. None waits for ever.

    Raises CallTimeout; CallFailed when the server said so, or when the call was handed out `max_deliver` times in vain;
    EventTypeError and EventTooLargeError for a request that cannot be sent; ClosedError, ForkedError.
    """

    def __init__(self, bus: Bus, service: Service[Req, Rep], idle: Any | None) -> None:
        check_service(service)
        self.service: Final = service
        self._token: Final = os.urandom(TOKEN // 2).hex()
        self._pid: Final = os.getpid()
        self._numbers: Final = itertools.count(1)
        self._calls: dict[int, _Wait | _Open[Rep]] = {}
        self._receiving: Final = threading.Lock()
        self._starting: Final = threading.Lock()
        self._thread: threading.Thread | None = None
        self._due: list[tuple[float, int]] = []  # a heap of deadlines, and the calls that they are of
        self._wakes_at = 0.0
        """When the thread looks for overdue calls next; 0: it is about to."""
        self._nudges: Publisher[Answer[Rep] | Failure] | None = None
        self._bus = bus
        self._replies = bus.subscriber(service.replies(self._token), name=f"caller-{self._pid}", idle=idle)
        try:
            bus.group(service.requests, SERVERS)  # what is asked before any server is there waits for one
            codec = codec_of(service.requests)
            line = bus._open_publisher(service.requests, codec, None, "block", None, kind=_Requests)
            self._requests = cast("_Requests", line)
            self._requests.waits = threading.local()
            with bus._session.locked() as change:
                for topic in (service.requests, self._replies.topic):
                    topics.end_history(change, topic.name)
        except BaseException:
            self._replies.close()
            raise

    @property
    def closed(self) -> bool:
        """True after close(), of the client or its bus."""
        return self._replies.closed

    @property
    def open(self) -> int:
        """Calls that wait for a reply."""
        return len(self._calls)

    # -- in a thread

    def call(self, event: Req, *, timeout: float | None = None, headers: dict[str, Any] | None = None) -> Rep:
        """Ask, and wait for the reply."""
        _check(timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        number, wait = next(self._numbers), _Wait()
        self._calls[number] = wait
        try:
            self._ask(number, event, timeout, headers)
            while wait.outcome is None:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise CallTimeout(self.service.name, timeout)
                self._await(wait, left)
        finally:
            self._calls.pop(number, None)
            if wait.bell is not None and not self._receiving.locked():
                self._pass_on()  # it may have been rung to receive, and gives up
        return self._result(wait.outcome)

    def _ask(self, number: int, event: Req, timeout: float | None, headers: dict[str, Any] | None) -> None:
        self._requests.waits.seconds = timeout
        try:
            self._requests.publish(event, headers=self._headers(number, timeout, headers))
        except Full:
            raise CallTimeout(self.service.name, timeout) from None

    def _headers(self, number: int, timeout: float | None, headers: dict[str, Any] | None) -> dict[str, Any]:
        until = 0 if timeout is None else _core.host_ns() + int(timeout * 1e9)
        mine = {HEADER: (self._token, number, until)}
        if headers is None:
            return mine
        if not isinstance(headers, dict):
            raise ConfigError(f"headers are a dict with str keys: headers={headers!r}")
        return {**headers, **mine}

    def _await(self, wait: _Wait, left: float | None) -> None:
        """Sleep until the outcome is there, at the longest for `left` seconds, or until nobody receives any more."""
        if wait.bell is None and not self._receiving.acquire(blocking=False):
            wait.bell = threading.Semaphore(0)
        elif wait.bell is None:
            return self._receive(wait, left)
        if self._receiving.acquire(blocking=False):  # after the bell is there: who receives rings it after letting go
            return self._receive(wait, left)
        wait.bell.acquire(timeout=left)
        return None

    def _receive(self, wait: _Wait, left: float | None) -> None:
        """Receive for all, holding `_receiving`, until the outcome of this one is there."""
        deadline = None if left is None else time.monotonic() + left
        try:
            while wait.outcome is None:
                seconds = None if deadline is None else max(0.0, deadline - time.monotonic())
                with suppress(DecodeError):  # which the subscriber counted; whose reply it was nobody knows
                    self._deliver(self._replies.receive(seconds))
        except Empty:
            pass
        except ClosedError as error:
            wait.outcome = error
        finally:
            self._receiving.release()
            self._pass_on()

    def _pass_on(self) -> None:
        """Nobody receives: whoever waits shall."""
        for other in list(self._calls.values()):
            if isinstance(other, _Wait) and other.bell is not None and other.outcome is None:
                other.bell.release()
                return

    def _deliver(self, answer: Answer[Rep] | Failure) -> None:
        waiting = self._calls.pop(answer.call, None)
        if isinstance(waiting, _Wait):
            waiting.outcome = answer
            if waiting.bell is not None:
                waiting.bell.release()
        elif waiting is not None and waiting.set_running_or_notify_cancel():
            if isinstance(answer, Answer):
                waiting.set_result(answer.reply)
            else:
                waiting.set_exception(CallFailed(self.service.name, answer.reason, answer.deaths))

    def _result(self, outcome: Answer[Rep] | Failure | BaseException) -> Rep:
        if isinstance(outcome, Answer):
            return outcome.reply
        if isinstance(outcome, Failure):
            raise CallFailed(self.service.name, outcome.reason, outcome.deaths)
        raise outcome

    # -- a Future

    def submit(self, event: Req, *, timeout: float | None = None, headers: dict[str, Any] | None = None) -> Future[Rep]:
        """Ask, and have a Future of the reply. Waits for room for the request, at most `timeout` seconds.

        `cancel()` gives up the reply, and takes nothing back.
        """
        _check(timeout)
        future = self._opened()
        try:
            self._ask(future._number, event, timeout, headers)
        except BaseException:
            self._calls.pop(future._number, None)
            raise
        if timeout is not None:
            self._watch(time.monotonic() + timeout, future._number)
        if self._replies.closed:  # by another thread, which may not have seen this one
            self._fail_all(ClosedError(f"{self!r} is closed"))
        return future

    async def acall(self, event: Req, *, timeout: float | None = None, headers: dict[str, Any] | None = None) -> Rep:
        """Ask, and wait for the reply in an event loop, which goes on meanwhile."""
        import asyncio

        _check(timeout)
        future = self._opened()
        self._requests.waits.seconds = None
        try:
            async with asyncio.timeout(timeout):
                await self._requests.apublish(event, headers=self._headers(future._number, timeout, headers))
                return await asyncio.wrap_future(future)
        except TimeoutError as error:
            if isinstance(error, CallTimeout) or timeout is None:
                raise
            raise CallTimeout(self.service.name, timeout) from None
        finally:
            self._calls.pop(future._number, None)

    def _opened(self) -> _Open[Rep]:
        self._start()
        future: _Open[Rep] = _Open()
        future._calls = self._calls
        future._number = next(self._numbers)
        self._calls[future._number] = future
        return future

    def _start(self) -> None:
        if self._thread is not None:
            return
        if os.getpid() != self._pid:
            raise ForkedError(f"{self!r} was opened by process {self._pid} before fork(): open one here")
        with self._starting:
            if self._replies.closed:
                self._bus._session.raise_closed()
            if self._thread is None:
                name = f"shmbus-client-{self.service.name}"
                thread = threading.Thread(target=self._run, name=name, daemon=True)
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        """Receive for all that wait, until the client is closed."""
        self._receiving.acquire()
        try:
            while True:
                self._wakes_at = 0.0
                left = self._overdue()
                with suppress(DecodeError, Empty):
                    self._deliver(self._replies.receive(left))
        except BaseException as error:  # closed, reclaimed, or the end of the process
            self._fail_all(error if isinstance(error, Exception) else ClosedError(f"{self!r} is closed"))
            if not isinstance(error, (ClosedError, SystemExit)):
                _log.error("client of service %s: %s", self.service.name, error)
        finally:
            self._receiving.release()
            self._pass_on()

    # -- deadlines of submitted calls

    def _watch(self, deadline: float, number: int) -> None:
        heapq.heappush(self._due, (deadline, number))
        if deadline < self._wakes_at:  # the thread sleeps for longer: an answer to nobody wakes it
            with self._starting:
                if self._nudges is None:
                    self._nudges = self._bus.publisher(self.service.replies(self._token), on_full="drop")
            self._nudges.publish(Failure(0, ""))

    def _overdue(self) -> float | None:
        """Seconds until the next deadline; what has passed is over."""
        while self._due:
            deadline, number = self._due[0]
            left = deadline - time.monotonic()
            if left > 0 and number in self._calls:
                self._wakes_at = deadline
                return left
            heapq.heappop(self._due)
            future = self._calls.pop(number, None)
            if isinstance(future, _Open) and future.set_running_or_notify_cancel():
                future.set_exception(CallTimeout(self.service.name, None))
        self._wakes_at = float("inf")
        return None

    # -- the end

    def _fail_all(self, error: Exception) -> None:
        while self._calls:
            with suppress(KeyError):
                _, waiting = self._calls.popitem()
                if isinstance(waiting, _Wait):
                    waiting.outcome = error
                    if waiting.bell is not None:
                        waiting.bell.release()
                elif waiting.set_running_or_notify_cancel():
                    waiting.set_exception(error)

    def close(self) -> None:
        """Leave; open calls end with ClosedError. Idempotent, from any thread; in a forked child it only lets go."""
        forked = os.getpid() != self._pid
        if not forked:
            self._replies.cancel()
            thread = self._thread
            if thread is not None and thread is not threading.current_thread():
                thread.join()
        for handle in (self._nudges, self._requests, self._replies):
            if handle is not None:
                handle.close()
        if not forked:
            self._fail_all(ClosedError(f"{self!r} is closed"))

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} belongs to its process: pickle the Bus instead")

    def __repr__(self) -> str:
        return f"<Client of service {self.service.name!r}>"


def _check(timeout: object) -> None:
    if timeout is not None and not (isinstance(timeout, (int, float)) and timeout >= 0):
        raise ConfigError(f"timeout is None or a number of seconds from 0: timeout={timeout!r}")
