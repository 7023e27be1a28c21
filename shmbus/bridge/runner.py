"""The runner: carries topics between a bus and a broker, one lane a topic and direction.

May touch: a group of its own on each topic that goes out; a publisher of each that comes in.

Must stay true:
- Out: a group's ack follows the broker's confirmation. In: the broker's ack follows the publish. So each event arrives
  at least once, whoever is killed; the id tells the second one.
- In: an event whose id came lately is not published again. A broker hands out again what is acked too late for it.
- A lane is alone with its group, so it sends the events of each publisher in order, and sends again in order.
- A broker that is away is awaited; one that refuses us ends the bridge. What is owed stays on the bus, or in the spool.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from shmbus import _plugins, inspect, raw
from shmbus._log import logger
from shmbus.bridge import wire
from shmbus.bridge.driver import Away, Outgoing, Setup
from shmbus.bridge.spool import Spool
from shmbus.errors import BridgeError, ConfigError
from shmbus.topic import Topic, check_label

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from types import TracebackType
    from typing import Self

    from shmbus.bridge.driver import Driver
    from shmbus.bus import Bus
    from shmbus.journal import Entry
    from shmbus.publisher import Publisher
    from shmbus.worker import Worker

_MOST: Final = 512  # events of one batch
_TICK: Final = 0.5  # seconds that a lane waits at most before it looks whether it is to end
_BACKOFF: Final = (0.1, 10.0)  # seconds: the first pause of a lane whose broker is away, and the longest
_LOG_INTERVAL: Final = 10.0
_NOTE_INTERVAL: Final = 2.0  # seconds after which how much waits is told again
_GRACE: Final = 5.0  # seconds that a lane has to finish what is in its hands
_SCAN: Final = 1 << 26  # bytes of a ring that is not worth looking through for what was published before
_LATELY: Final = 8192  # ids of a topic: more than any broker lets us have in hand
_MAX_DELIVER: Final = 4000  # a death of the bridge is no fault of the event

_log = logger("shmbus.bridge")


class Bridge:
    """Carries topics to a broker and from it, at least once; `run` does it, in the thread that calls.

    `out` and `in_` are topics, or names of some that the bus has, now or later. `url` says which broker:
    nats://, redis://, kafka://, amqp://, or the scheme of a plugin. `credentials` is a TOML file that only its owner
    reads (user, password, token, cafile, certfile, keyfile, creds); the environment has them as SHMBUS_BRIDGE_USER and
    so on. `name` names the bridge's group on the bus and its place at the broker: by default host and bus. `key` maps a
    topic's name to the field whose events stay in order at the broker; by default those of a publisher do. `spool` is
    the path of a journal that holds what cannot be sent; without it the rings hold it, and then their publishers wait.

    Raises ConfigError, and from `run` BridgeError, SchemaMismatchError.

        shmbus.bridge.Bridge(bus, "nats://127.0.0.1:4222", out=[ORDERS], in_=[PAYMENTS]).run()
    """

    def __init__(
        self,
        bus: Bus,
        url: str,
        *,
        out: Iterable[Topic[Any] | str] = (),
        in_: Iterable[Topic[Any] | str] = (),
        name: str | None = None,
        credentials: Any = None,
        key: dict[str, str] | None = None,
        spool: Any = None,
    ) -> None:
        self._bus = bus
        self.name: Final = name or f"{socket.gethostname()}-{bus.name}"[:40].replace(".", "-")
        check_label("bridge", self.name)
        if set(self.name) & set(" .*>/\\"):
            raise ConfigError(f"a bridge's name is a word, for brokers take it as one: name={self.name!r}")
        self._out, self._in, self._key = list(out), list(in_), dict(key or {})
        comes_in = [topic.name if isinstance(topic, Topic) else topic for topic in self._in]
        self._setup = Setup(url, self.name, credentials, comes_in)
        self._driver: Callable[[Setup], Driver] = _plugins.load("shmbus.bridges", self._setup.url.scheme)
        if not (self._out or self._in):
            raise ConfigError("a bridge carries at least one topic: out=[], in_=[]")
        self._spool = None if spool is None else Spool(bus, spool)
        self._stopped = threading.Event()
        self._outward: dict[str, wire.Outward] = {}
        self._workers: list[Worker[bytes]] = []
        self._publishers: list[Publisher[bytes]] = []
        self._came: dict[str, dict[str, None]] = {}
        """By topic, the ids of what came in last, oldest first."""
        self._lost: dict[object, str] = {}
        """Lanes without a broker, and why."""
        self._next_note = 0.0
        self.sent = self.received = 0
        """Events that the broker has confirmed, and that were published here, by this object."""

    @property
    def _who(self) -> str:
        return f"bridge {self.name}"

    @property
    def group(self) -> str:
        """The group on the bus that is owed what has not been sent."""
        return f"bridge:{self.name}"

    def run(self) -> None:
        """Carry until `stop()`, or until the broker refuses us."""
        asyncio.run(self.arun())

    async def arun(self) -> None:
        """`run` in an event loop."""
        await self._say()
        lanes = [self._lane(topic, self._send_all, self._collect) for topic in self._out]
        lanes += [self._lane(topic, self._receive_all, learns=True) for topic in self._in]
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._ended([group.create_task(lane) for lane in lanes]))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self.stop()
            for handle in (*self._workers, *self._publishers):
                handle.close()
            raw.unsay(self._bus, self._who)
            if self._spool is not None:
                await asyncio.to_thread(self._spool.close)

    def stop(self) -> None:
        """End `run` once what is in hand is done with; from any thread or signal handler."""
        self._stopped.set()
        for worker in self._workers:
            worker.cancel()

    async def _ended(self, lanes: list[asyncio.Task[None]]) -> None:
        """Once stopped, end what does not end by itself: a publish without room, a broker that does not answer."""
        await asyncio.to_thread(self._stopped.wait)
        _, late = await asyncio.wait(lanes, timeout=_GRACE)
        for lane in late:
            lane.cancel()

    # -- one lane

    async def _lane(
        self,
        topic: Topic[Any] | str,
        carry: Callable[[raw.Form, Driver], Awaitable[None]],
        prepare: Callable[[raw.Form], None] | None = None,
        learns: bool = False,
    ) -> None:
        form = await (self._learnt(topic) if learns else self._form(topic))
        if form is None:
            return
        if prepare is not None:
            await asyncio.to_thread(prepare, form)
        pause, longest = _BACKOFF
        next_log = 0.0
        lane = object()
        while not self._stopped.is_set():
            driver = self._driver(self._setup)
            began = time.monotonic()
            try:
                await driver.connect()
                await self._found(lane)
                await carry(form, driver)
                return
            except Away as error:
                await self._missing(lane, str(error))
                if time.monotonic() - began > longest:
                    pause = _BACKOFF[0]
                if time.monotonic() >= next_log:
                    next_log = time.monotonic() + _LOG_INTERVAL
                    _log.warning("bridge %s: %s is away: %s", self.name, self._setup.address, error)
            finally:
                await driver.close()
            await self._pause(pause * (0.5 + random.random() / 2))
            pause = min(2 * pause, longest)

    async def _found(self, lane: object) -> None:
        if self._lost.pop(lane, None) is not None and not self._lost:
            await self._say()

    async def _missing(self, lane: object, why: str) -> None:
        new = not self._lost
        self._lost[lane] = why
        if new or time.monotonic() >= self._next_note:
            await self._say()

    async def _say(self) -> None:
        """Tell who looks at the bus how we are."""
        self._next_note = time.monotonic() + _NOTE_INTERVAL
        why = next(iter(self._lost.values()), "")
        text = f"{self._setup.address} is away: {why}" if why else f"carries to and from {self._setup.address}"
        state: raw.State = "away" if self._lost else "ok"
        await asyncio.to_thread(self._noted, state, text)

    def _noted(self, state: raw.State, text: str) -> None:
        held = self._spool.waiting() if self._spool is not None and state != "ok" else 0
        raw.note(self._bus, self._who, state, text, group=self.group, held=held)

    async def _pause(self, seconds: float) -> None:
        await asyncio.to_thread(self._stopped.wait, seconds)

    async def _form(self, topic: Topic[Any] | str) -> raw.Form | None:
        if isinstance(topic, Topic):
            return raw.form_of(topic)
        told = False
        while (form := raw.find(self._bus, topic)) is None:
            if not told:
                _log.info("bridge %s waits for topic %s of bus %s", self.name, topic, self._bus.name)
            told = True
            await self._pause(0.1)
            if self._stopped.is_set():
                return None
        return form

    async def _learnt(self, topic: Topic[Any] | str) -> raw.Form | None:
        """The form of a topic that comes in: what events bring along, where the bus does not know it."""
        while isinstance(topic, str) and raw.find(self._bus, topic) is None and not self._stopped.is_set():
            driver = self._driver(self._setup)
            try:
                await driver.connect()
                await driver.open_in(topic)
                events = await driver.fetch(_MOST, _TICK)  # not acked: they come again
            except Away as error:
                await self._missing(self, str(error))
                events = []
            else:
                await self._found(self)
            finally:
                await driver.close()
            found = (wire.form_in(topic, event.headers) for event in events)
            form = next((form for form in found if form is not None), None)
            if form is not None:
                _log.info("bridge %s has learnt what topic %s is from %s", self.name, topic, self._setup.address)
                return form
            await self._pause(_TICK)
        return await self._form(topic)

    # -- out

    def _collect(self, form: raw.Form) -> None:
        """From here on what is published is owed to us, whether the broker is there or not."""
        if self._spool is not None:
            self._spool.record(form)
        else:
            raw.require_alone(self._bus, form.name, self.group, f"bridge {self.name!r}")
            self._bus.group(raw.topic_of(form), self.group)

    async def _send_all(self, form: raw.Form, driver: Driver) -> None:
        await driver.open_out(form.name)
        if self._spool is not None:
            await self._send_spooled(form, driver, self._spool)
            return
        worker = await self._worker(form)
        while not self._stopped.is_set():
            lot = await asyncio.to_thread(raw.claim, worker, _MOST, _TICK)
            if lot is None:
                return
            try:
                await self._send(form, driver, lot)
            except BaseException:
                self._workers.remove(worker)  # what it holds goes back, and is claimed again in order
                worker.close()
                raise
            raw.ack(worker, lot)

    async def _send_spooled(self, form: raw.Form, driver: Driver, spool: Spool) -> None:
        while not self._stopped.is_set():
            batch = await asyncio.to_thread(spool.oldest, form.name)
            if batch is None:
                await asyncio.sleep(0.01)  # the disk tells nobody
                continue
            await self._send(form, driver, batch.entries)
            await asyncio.to_thread(spool.sent, batch.number)

    async def _worker(self, form: raw.Form) -> Worker[bytes]:
        topic = raw.topic_of(form)
        await asyncio.to_thread(raw.require_alone, self._bus, form.name, self.group, f"bridge {self.name!r}")
        worker = self._bus.worker(topic, group=self.group, max_deliver=_MAX_DELIVER, prefetch=_MOST)
        self._workers.append(worker)
        if self._stopped.is_set():
            worker.cancel()
        return worker

    async def _send(self, form: raw.Form, driver: Driver, events: Sequence[raw.Claimed | Entry]) -> None:
        outward = self._outward.get(form.name)
        if outward is None:
            outward = self._outward[form.name] = wire.Outward(form, self.name, self._setup.address)
        keyed = form.name in self._key
        leaving = []
        for event in events:
            wired = outward.event(event.headers, event.origin, event.time_ns, event.publisher)
            if wired is not None:  # else it came from there
                key = self._key_of(form, event.payload) if keyed else event.origin
                leaving.append(Outgoing(wired[0], key, wired[1], event.payload))
        if leaving:
            leaving[0].headers.update(outward.form)
            await driver.send(leaving)
            self.sent += len(leaving)

    def _key_of(self, form: raw.Form, payload: bytes) -> str:
        value = raw.decode(form, payload)
        for part in self._key[form.name].split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return str(value)

    # -- in

    async def _receive_all(self, form: raw.Form, driver: Driver) -> None:
        await driver.open_in(form.name)
        publisher = self._publisher(form)
        came = self._came.setdefault(form.name, {})
        before = await asyncio.to_thread(self._lately, form)
        while not self._stopped.is_set():
            events = await driver.fetch(_MOST, _TICK)
            for event in events:
                headers = wire.incoming(form, self.name, self._setup.address, event.headers)
                if headers is None:  # it has been here
                    continue
                id = headers.get(wire.ID)
                if id in came or id in before:
                    continue
                await publisher.apublish(event.payload, headers=headers)
                self.received += 1
                if id is not None:
                    came[id] = None
                    if len(came) > _LATELY:
                        del came[next(iter(came))]
            if events:
                await driver.acked(events)

    def _lately(self, form: raw.Form) -> set[str]:
        """The ids that the rings still have: what an earlier connection, or life, published and could not ack."""
        found: set[str] = set()
        if form.capacity > _SCAN:
            return found
        with inspect.Tail(self._bus.name, form.name, oldest=True) as tail:
            while items := tail.read():
                found.update(str(item.headers[wire.ID]) for item in items if item.headers and wire.ID in item.headers)
        return found

    def _publisher(self, form: raw.Form) -> Publisher[bytes]:
        found = next((p for p in self._publishers if p.topic.name == form.name), None)
        if found is None:
            found = self._bus.publisher(raw.topic_of(form), name=self.group[:63])
            self._publishers.append(found)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def refused(address: str, error: object) -> BridgeError:
    """The error of a broker that does not want us."""
    return BridgeError(f"{address} refuses us: {error} (process {os.getpid()})")
