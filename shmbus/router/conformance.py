"""What every middleware must do, ours or a user's, with sync and with async handlers; `shmbus.testing` has it.

May touch: nothing but the middleware. The chain is the router's own; handlers are scripted, and what a middleware
publishes is kept. Time is real: a middleware under test has delays of milliseconds.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from shmbus.errors import ConfigError
from shmbus.middleware.protocol import Delivery, Kind, Redeliver, Reject
from shmbus.middleware.protocol import check_middleware as check_list
from shmbus.router._chain import achain, chain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shmbus.middleware.protocol import Middleware

TRIES: Final = 200
"""Deliveries after which an event that still comes again never ends."""
THREADS: Final = 8
EACH: Final = 25
"""Events of each of them."""

Script = Literal["ok", "fail", "reject", "again"]
SCRIPTS: Final[tuple[tuple[Script, ...], ...]] = (
    ("ok", "ok", "fail", "ok"),
    ("fail", "fail", "ok"),
    ("reject", "ok"),
    ("again", "ok"),
)
"""What handlers do, event by event."""


class _Failure(Exception):
    """What the scripted handlers raise."""


class Outcome(NamedTuple):
    """How one event ended."""

    what: str
    """done, failed, rejected, or again, where that was the last."""
    called: int
    """How often its handler was."""
    deliveries: int
    raised: frozenset[type[BaseException]] = frozenset()


def check_middleware(make: Callable[[], Middleware], *, event: Any = 1) -> None:
    """Raise AssertionError unless the middleware that `make` makes keeps to its protocol.

    It is called again and again, for a fresh one each time. `event` is what the handlers get. What is checked: sync and
    async handlers fare alike; every event ends; a subscriber's is never asked for again; cancellation, interrupts,
    Redeliver and a closed generator pass; results pass; many threads may use one instance; nothing is kept of an event.
    """
    check_list([make()])
    for kind in ("worker", "subscriber", "service"):
        _check_colours(make, kind, event)
    _check_results(make, event)
    _check_passing(make, event)
    _check_closing(make, event)
    _check_threads(make, event)
    _check_nothing_is_kept(make, event)


# -- the rig


class _Rig:
    """Hands that keep what is published; sleeping takes its time."""

    def __init__(self) -> None:
        self.published: list[tuple[str, Any]] = []

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def within(self, seconds: float, call: Any, delivery: Any) -> Any:
        return call(delivery)

    def publish(self, topic: Any, event: Any, headers: Any) -> int:
        self.published.append((topic.name, event))
        return 1

    def emit(self, delivery: Any, value: Any) -> Any:
        return value


class _AsyncRig:
    def __init__(self) -> None:
        self.published: list[tuple[str, Any]] = []

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def within(self, seconds: float, call: Any, delivery: Any) -> Any:
        async with asyncio.timeout(seconds):
            return await call(delivery)

    async def publish(self, topic: Any, event: Any, headers: Any) -> int:
        self.published.append((topic.name, event))
        return 1

    async def emit(self, delivery: Any, value: Any) -> Any:
        return value


class _Message:
    """What a delivery needs of the message that it came in."""

    headers: Final[dict[str, Any]] = {}


def _delivery(kind: Kind, event: Any, id: str, attempt: int = 1, time_ns: int = 0) -> Delivery[Any]:
    return Delivery(
        event=event,
        message=_Message(),
        kind=kind,
        handler="conformance.handler",
        topic="conformance",
        consumer="suite",
        id=id,
        time_ns=time_ns or time.time_ns(),
        attempt=attempt,
        max_deliver=5 if kind == "worker" else 0,
        type=type(event),
    )


def _act(script: Script) -> str:
    if script == "fail":
        raise _Failure("by order")
    if script == "reject":
        raise Reject("by order")
    if script == "again":
        raise Redeliver(0.0, counts=True)
    return "result"


def _ended(error: BaseException | None, delivery: Delivery[Any]) -> tuple[str, float, bool] | str:
    """How one delivery ended: with a word, or with what Redeliver asks for."""
    if error is None:
        return "done"
    if isinstance(error, ConfigError):
        raise error
    if isinstance(error, Redeliver):
        if delivery.can_come_again and delivery.attempt < delivery.max_deliver:
            return "again", error.delay, error.counts
        return "again"
    if isinstance(error, Reject):
        return "rejected"
    if isinstance(error, Exception):
        if delivery.can_come_again and delivery.attempt < delivery.max_deliver:
            return "again", 0.0, True
        return "failed"
    raise error


def _run(
    one: Middleware, kind: Kind, scripts: Sequence[Script], event: Any, name: str = ""
) -> tuple[list[Outcome], int]:
    """Every event to its end, by a sync handler; and how many events the middleware published."""
    rig, outcomes = _Rig(), []
    for number, script in enumerate(scripts):
        called, ended, attempt, deliveries = 0, _Started, 1, 0
        raised: set[type[BaseException]] = set()
        published_ns = time.time_ns()

        def handler(delivery: Delivery[Any], script: Script = script) -> Any:
            nonlocal called
            called += 1
            return _act(script)

        run = chain([one], handler, rig)
        while not isinstance(ended, str):
            deliveries += 1
            assert deliveries <= TRIES, f"an event comes again and again: script {script}, kind {kind}"
            delivery = _delivery(kind, event, f"event-{name}{number}", attempt, published_ns)
            try:
                run(delivery)
                ended = _ended(None, delivery)
            except BaseException as error:
                raised.add(type(error))
                ended = _ended(error, delivery)
            if not isinstance(ended, str):
                time.sleep(ended[1])
                attempt += ended[2]
        outcomes.append(Outcome(ended, called, deliveries, frozenset(raised)))
    return outcomes, len(rig.published)


async def _arun(one: Middleware, kind: Kind, scripts: Sequence[Script], event: Any) -> tuple[list[Outcome], int]:
    """The same by an async handler."""
    rig, outcomes = _AsyncRig(), []
    for number, script in enumerate(scripts):
        called, ended, attempt, deliveries = 0, _Started, 1, 0
        raised: set[type[BaseException]] = set()
        published_ns = time.time_ns()

        async def handler(delivery: Delivery[Any], script: Script = script) -> Any:
            nonlocal called
            called += 1
            await asyncio.sleep(0)
            return _act(script)

        run = achain([one], handler, rig)
        while not isinstance(ended, str):
            deliveries += 1
            assert deliveries <= TRIES, f"an event comes again and again: script {script}, kind {kind}, async"
            delivery = _delivery(kind, event, f"event-{number}", attempt, published_ns)
            try:
                await run(delivery)
                ended = _ended(None, delivery)
            except BaseException as error:
                raised.add(type(error))
                ended = _ended(error, delivery)
            if not isinstance(ended, str):
                await asyncio.sleep(ended[1])
                attempt += ended[2]
        outcomes.append(Outcome(ended, called, deliveries, frozenset(raised)))
    return outcomes, len(rig.published)


_Started: Any = ("again", 0.0, True)

# -- what must hold


def _check_colours(make: Callable[[], Middleware], kind: Kind, event: Any) -> None:
    """Sync and async handlers fare alike, whatever they do; a good event of a subscriber is not asked for again."""
    for scripts in SCRIPTS:
        sync, published = _run(make(), kind, scripts, event)
        later, published_later = asyncio.run(_arun(make(), kind, scripts, event))
        told = f"kind {kind}, script {scripts}"
        assert [o.what for o in sync] == [o.what for o in later], f"{told}: sync {sync}, async {later}"
        assert [o.called for o in sync] == [o.called for o in later], f"{told}: sync {sync}, async {later}"
        assert published == published_later, (
            f"{told}: publishes {published} events in a thread, {published_later} in a loop"
        )
        for script, outcome in zip(scripts, sync, strict=True):
            if kind != "worker" and script != "again":
                assert outcome.what != "again", f"{told}: Redeliver of what is delivered once, which loses it"


def _check_results(make: Callable[[], Middleware], event: Any) -> None:
    """What a handler returns is what the chain returns, if it was called and all is well."""
    called = 0

    def handler(delivery: Delivery[Any]) -> Any:
        nonlocal called
        called += 1
        return "result"

    try:
        value = chain([make()], handler, _Rig())(_delivery("service", event, "result"))
    except Exception:
        return
    assert not called or value == "result", f"the handler returned 'result', the chain {value!r}"


def _check_passing(make: Callable[[], Middleware], event: Any) -> None:
    """An interrupt, a cancellation and Redeliver pass, as what they are."""
    for error in (KeyboardInterrupt(), Redeliver(0.5)):
        reached: list[bool] = []

        def handler(delivery: Delivery[Any], error: BaseException = error, reached: list[bool] = reached) -> Any:
            reached.append(True)
            raise error

        try:
            chain([make()], handler, _Rig())(_delivery("worker", event, "passing"))
            found: BaseException | None = None
        except BaseException as raised:
            found = raised
        assert not reached or isinstance(found, type(error)), f"{error!r} of a handler becomes {found!r}"
    asyncio.run(_check_cancellation(make, event))


async def _check_cancellation(make: Callable[[], Middleware], event: Any) -> None:
    inside = asyncio.Event()

    async def handler(delivery: Delivery[Any]) -> None:
        inside.set()
        await asyncio.get_running_loop().create_future()

    task = asyncio.ensure_future(
        _whole(achain([make()], handler, _AsyncRig()), _delivery("worker", event, "cancelled"))
    )
    entered = asyncio.ensure_future(inside.wait())
    await asyncio.wait({task, entered}, return_when=asyncio.FIRST_COMPLETED)
    entered.cancel()
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled(), f"the cancellation of a task becomes {task.exception() or task.result()!r}"


async def _whole(run: Any, delivery: Delivery[Any]) -> None:
    with suppress(Exception, Redeliver):  # it has its reasons not to call the handler
        await run(delivery)


def _check_closing(make: Callable[[], Middleware], event: Any) -> None:
    """A generator that is closed while the handler runs ends."""
    steps = make()(_delivery("worker", event, "closed"))
    try:
        next(steps)
    except (Exception, Redeliver):  # StopIteration too
        return
    try:
        steps.close()
    except RuntimeError as error:
        raise AssertionError(f"it goes on although it was closed: {error}") from None


def _check_threads(make: Callable[[], Middleware], event: Any) -> None:
    """Many threads at once use one instance: each of their events ends, and nothing is raised that one does not see."""
    one_thread: list[Script] = ["ok"] * EACH
    alone, _ = _run(make(), "worker", one_thread * THREADS, event)
    known = frozenset({Redeliver}).union(*(o.raised for o in alone))
    one, outcomes, errors = make(), [], []

    def run(thread: int) -> None:
        try:
            outcomes.extend(_run(one, "worker", one_thread, event, f"{thread}-")[0])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    assert len(outcomes) == THREADS * EACH, f"{len(outcomes)} of {THREADS * EACH} events ended"
    new = frozenset().union(*(o.raised for o in outcomes)) - known
    assert not new, f"several threads at once have it raise {', '.join(error.__name__ for error in new)}"


def _check_nothing_is_kept(make: Callable[[], Middleware], event: Any) -> None:
    """Once an event has ended, nothing refers to its delivery."""
    one = make()
    for script in ("ok", "fail"):
        delivery = _delivery("worker", event, f"kept-{script}")
        seen = weakref.ref(delivery)
        with suppress(Exception, Redeliver):
            chain([one], lambda _, script=script: _act(script), _Rig())(delivery)  # type: ignore[misc]
        del delivery
        gc.collect()
        assert seen() is None, f"it keeps the delivery of an event that has ended: script {script}"
