"""Supervisor: finds the dead, reclaims what they held, tells who is stalled, and keeps the log of losses.

May touch: everything of a bus under its lock, through `reclaim`; the consumer lines of the bus segment. The data path
does not need it: without one, events flow, and only what dead processes hold stays held.

Must stay true:
- One is in office at a time: the holder of an flock, which the kernel takes from the dead. Others queue on it.
- It acts on proof of death alone: a byte of the lives file that is free. Slow or stopped processes are reported, never
  touched.
- It may die at any line: its successor finds everything in the document. Nothing but a death and the end of its bus
  ends it: what a look meets is logged, and looked at again.
"""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final

from shmbus import _core
from shmbus._handles.session import Session
from shmbus._ledger import audit, books, departures, overdue, policies, pools, reclaim, retired
from shmbus._ledger.registry import Registry, mark_removed
from shmbus._log import logger
from shmbus._shm import descriptors, hold, place, processes, segment
from shmbus._shm.failpoint import reach
from shmbus._shm.rings import Rings
from shmbus._shm.waker import Sleeper
from shmbus._shm.watch import Watch
from shmbus.errors import BusNotFoundError, ClosedError, LockTimeoutError, ShmbusError
from shmbus.stats import grown_losses

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from shmbus._ledger.books import Progress
    from shmbus._ledger.document import Document
    from shmbus.stats import Loss

LOOK: Final = 1.0
"""Seconds between two readings of all books, which cost milliseconds on a large bus; deaths are noticed at once."""

SWEEP: Final = 0.25
"""Seconds between two looks at retired rings, while there are any."""

_AGAIN: Final = 60.0  # seconds until what every look meets is logged again
_log = logger("shmbus.supervisor")
_loss_log = logger("shmbus.loss")


class _Stop(BaseException):
    """A signal asks the supervisor to go; nothing that it comes in between may take it for an error of its own."""


def run(bus: str, *, foreground: bool) -> int:
    """Serve a bus until it is removed, or SIGTERM or Ctrl-C comes; returns an exit code.

    In the foreground it queues as a standby while another one is in office; otherwise it leaves at once then, and also
    when no participant is left, even if a group is owed events. Raises BusNotFoundError, AccessError,
    LayoutMismatchError and CorruptSegmentError.
    """
    _Supervisor.told_to_go = False
    _raise_descriptor_limit()
    # Ctrl-C too: once a KeyboardInterrupt has passed through an import, Python ends by the signal though it was caught.
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    office = None
    try:
        for number in previous:
            signal.signal(number, _stop)
        office = _take_office(bus, wait=foreground)
        if office is not None:
            reach("office.taken")
            _Supervisor(bus, foreground=foreground).serve()
        return 0
    except (_Stop, ClosedError):
        return 0
    except BusNotFoundError:
        if foreground:
            raise
        return 0
    finally:
        try:
            _restore(previous)
        except _Stop:  # at the last moment
            _restore(previous)
        if office is not None:
            os.close(office)


def _raise_descriptor_limit() -> None:
    """A bus of many processes takes a pidfd each; the soft limit is that of a login shell."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set by Python


def _stop(number: int, frame: FrameType | None) -> None:
    _Supervisor.told_to_go = True  # as well: an exception that meets a destructor is lost
    raise _Stop


def _take_office(bus: str, *, wait: bool) -> int | None:
    """The descriptor that holds the office, None if another supervisor has it and `wait` is false."""
    while True:
        descriptor = _open_office(bus)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.fstat(descriptor).st_nlink:
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # that bus was removed while we queued; there may be a new one


def _open_office(bus: str) -> int:
    """Opens the lock file, and makes it, under the bus lock: so it never outlives the bus."""
    registry = Registry.open(bus, create=False)
    try:
        with registry.locked():
            if registry.removed:
                raise ClosedError(f"bus {bus!r} was removed")
            path = place.path_of(f"{registry.prefix}office")
            return descriptors.open_file(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
    finally:
        registry.close()


class _Supervisor:
    """One term of office."""

    told_to_go: ClassVar = False
    """By a signal."""

    def __init__(self, bus: str, *, foreground: bool) -> None:
        self.foreground = foreground
        self.registry = Registry.open(bus, create=False)
        self.rings = Rings(self.registry.prefix, keep=True)  # all of them are looked at again and again
        self.session = Session(self.registry, 0, supervise=False)  # to wake others; it is no participant
        self.watch = Watch(self.registry.lives)
        self.stalls = policies.Stalls()
        self.reported: list[Loss] = []
        self.audited = audit.Losses()
        self.logged: tuple[int, list[int]] | None = None
        self.seen: overdue.Seen = {}
        self.told: dict[str, float] = {}
        self.next_look = 0.0
        self.next_sweep = 0.0

    def serve(self) -> None:
        memory = self.registry.map
        self.take_life()
        _core.store(memory, _core.BUS_SUPERVISOR_NAMESPACE, processes.pid_namespace())
        _core.store(memory, _core.BUS_SUPERVISOR_PID, os.getpid())
        _core.store(memory, _core.BUS_SUPERVISOR_BEAT, time.time_ns())
        _core.store(memory, _core.BUS_SUPERVISOR_LIFE, self.registry.lives.life)
        reach("office.entered")
        _log.info("supervisor %d in office on bus %s", os.getpid(), self.registry.bus)
        with self.registry.locked():  # so its channel never outlives the bus
            sleeper = Sleeper(f"{self.registry.prefix}supervisor")
            channel = sleeper.fifo()
        try:
            with self.watch:
                while self.step(lambda: self.once(sleeper, channel)):
                    pass
        finally:
            sleeper.close()
            if _core.load(memory, _core.BUS_SUPERVISOR_LIFE) == self.registry.lives.life:
                _core.store(memory, _core.BUS_SUPERVISOR_LIFE, 0)
            self.registry.lives.close()

    def take_life(self) -> None:
        """Lock a byte as every process does that takes part; another office of this process may have one."""
        with self.registry.locked() as change:
            if not self.registry.lives.life:
                while not self.registry.lives.begin(change.document.new_id()):
                    pass
                change.commit()

    def once(self, sleeper: Sleeper, channel: int) -> bool:
        """One look at everything that is due, and the sleep until the next; False if the bus is served no longer."""
        if not self.stays():
            return False
        _, woken = self.watch.poll(self.round(), [channel])
        if woken:
            sleeper.drain_fifo()
        return True

    def step(self, work: Callable[[], bool]) -> bool:
        """Do it, and survive whatever it meets but the end of the bus."""
        try:
            return work()
        except ClosedError:
            raise
        except Exception:
            _log.exception("bus %s: a look went wrong; the next one is in a second", self.registry.bus)
            self.next_look = time.monotonic() + LOOK
            time.sleep(LOOK)
            return True

    def stays(self) -> bool:
        """Look who is there; False once the bus is gone, or nobody is left that an automatic supervisor would serve."""
        if self.told_to_go:
            return False
        if self.registry.removed:  # once its remover has let go of the lock: it may have died on the way
            return self.bury([])
        if not self.registry.linked():
            _log.warning("bus %s: its files in /dev/shm were removed; every handle is told", self.registry.bus)
            mark_removed(self.registry.map)
            self.session.wake_everybody(self.registry.read())
            reclaim.clear_away(self.registry)
            return False
        document = self.registry.read()
        lost = set(self.watch.watch({p.life for p in document.participants}))
        dead = [p.id for p in document.participants if p.state == "reclaiming" or p.life in lost]
        if not dead and document.participants:
            return True
        served = self.bury(dead)
        if dead:
            segment.remove_temporaries(self.registry.prefix)  # what they were just making, outside of the lock
        return served

    def bury(self, dead: list[int]) -> bool:
        """Reclaim the dead; False if the bus is to be served no longer."""
        try:
            with self.registry.locked() as change:
                if self.registry.removed:
                    reclaim.unlink_all(self.registry.bus, self.registry.uid)  # its remover died on the way
                    return False
                if change.died_inside:
                    reclaim.repair(change, self.rings)
                for id in dead:
                    self.announce(change.document, id)
                    one = change.document.participant(id)
                    code = self.watch.codes.get(one.life) if one else None
                    reclaim.reclaim(change, self.rings, id, dead=True, code=code)
                self.watch.codes.clear()
                if pools.forget_dead(change, self.rings) or dead:
                    self.session.wake_everybody(change.document)
                if reclaim.remove_if_unused(change, self.rings):
                    return False
                held = bool(hold.held(self.registry.prefix))  # and may be opened at any time
                stays = self.foreground or held or bool(change.document.participants)
                if not stays:  # said under the lock, so that whoever enters next starts another one
                    _core.store(self.registry.map, _core.BUS_SUPERVISOR_LIFE, 0)
                return stays
        except LockTimeoutError as error:
            _log.warning("%s", error)
            return True

    def announce(self, document: Document, id: int) -> None:
        participant = document.participant(id)
        if participant is not None:
            where = "" if participant.namespace == processes.pid_namespace() else f" of {participant.namespace}"
            _log.warning("process %d%s (%s) is dead", participant.pid, where, participant.command)

    # -- from time to time

    def round(self) -> float:
        """Sweep, note progress and log losses, each when it is due; returns the seconds until the next is."""
        if time.monotonic() >= self.next_look:
            self.next_look = time.monotonic() + LOOK
            _core.store(self.registry.map, _core.BUS_SUPERVISOR_BEAT, time.time_ns())
            self.look()
            self.watch.check()
        due = self.next_look
        if any(r.state == "retired" for r in self.registry.read().rings):
            if time.monotonic() >= self.next_sweep:
                self.next_sweep = time.monotonic() + SWEEP
                self.sweep()
            due = min(due, self.next_sweep)
        return max(0.0, due - time.monotonic())

    def look(self) -> None:
        """Whatever keeps one part from being done, the file of a ring that is no ring say, keeps back no other."""
        for part in (self.look_at_books, self.look_at_claims, self.look_at_pools):
            try:
                part()
            except FileNotFoundError:
                pass  # a ring that was removed meanwhile
            except ShmbusError as error:
                self.tell(error)

    def look_at_books(self) -> None:
        """Who makes no progress, and what was lost since the last time."""
        version = _core.load(self.registry.map, _core.BUS_VERSION)
        consumers = books.progress(self.registry, self.rings)
        self.note_progress(self.registry.read(), consumers)
        on_the_books = (version, [consumer.dropped for consumer in consumers])
        if on_the_books != self.logged:
            losses = books.losses(self.registry, self.rings)
            self.log_losses(losses)
            if audit.heard():
                self.audited.tell(books.stats(self.registry, self.rings), losses)
            self.logged = on_the_books

    def look_at_claims(self) -> None:
        if overdue.look(self.registry.read(), self.rings, self.seen):
            self.take_back()

    def look_at_pools(self) -> None:
        if self.rings.pools.has_dead(pools.ids(self.registry.read()), self.registry.lives):
            self.bury([])

    def tell(self, error: ShmbusError) -> None:
        """Log what a look met; what every look meets, once a minute."""
        text, now = str(error), time.monotonic()
        if now >= self.told.get(text, 0.0):
            self.told = {**(self.told if len(self.told) < 100 else {}), text: now + _AGAIN}
            _log.error("bus %s: %s", self.registry.bus, text)

    def take_back(self) -> None:
        """What takes too long goes to others."""
        with self.registry.locked() as change:
            if self.registry.removed:
                return
            if change.died_inside:
                reclaim.repair(change, self.rings)
            if overdue.act(change, self.rings, self.seen):
                self.session.wake_everybody(change.document)

    def sweep(self) -> None:
        """Remove what is drained; the lock is taken only when there is something."""
        try:
            document = self.registry.read()
            self.rings.keep_only({ring.id for ring in document.rings})
            found = retired.leftovers(document, self.rings)
            if found.gone or found.loose or pools.idle(document, self.rings):
                with self.registry.locked() as change:
                    if not self.registry.removed:
                        if change.died_inside:
                            reclaim.repair(change, self.rings)
                        departures.sweep(change, self.rings, None)
        except FileNotFoundError:
            pass  # somebody else was faster
        except LockTimeoutError as error:
            _log.warning("%s", error)

    def note_progress(self, document: Document, consumers: list[Progress]) -> None:
        """Mark the consumers that had work to do for `stall_timeout` and did none of it; do what the policy says."""
        for idle in self.stalls.note(document, consumers):
            entry, depth, ns = idle
            if policies.due(document, idle):
                wake = self.session.wake_publishers
                for pid in policies.act(self.registry, self.rings, entry, ns, wake=wake):
                    _log.warning("killed process %d: %s %s is stalled", pid, entry.kind, entry.name)
            stalled = ns > document.stall_ns
            at = _core.CONSUMER_LINES + entry.line * _core.LINE + _core.CONSUMER_STALLED
            if stalled != bool(_core.load(self.registry.map, at)):
                _core.store(self.registry.map, at, time.monotonic_ns() - ns if stalled else 0)
                topic = document.topic_at(entry.topic).name
                said = f"bus {self.registry.bus}: {entry.kind} {entry.name} of topic {topic}"
                fields = {"bus": self.registry.bus, "role": entry.kind, "topic": topic, "name": entry.name}
                if not stalled:
                    audit.tell("recovered", f"{said} goes on", **fields)
                    _log.info("%s %s of topic %s goes on", entry.kind, entry.name, topic)
                else:
                    audit.tell("stalled", f"{said} is stalled: {depth} events wait", **fields, depth=depth)
                    _log.warning(
                        "%s %s of topic %s is stalled: %d events wait, none received for %.1f s",
                        entry.kind,
                        entry.name,
                        topic,
                        depth,
                        document.stall_ns / 1e9,
                    )

    def log_losses(self, losses: list[Loss]) -> None:
        """Write which losses are new or have grown, with all that they are by now."""
        for loss in grown_losses(self.reported, losses):
            self.report(loss)
        self.reported = losses

    def report(self, loss: Loss) -> None:
        _loss_log.warning(
            "%s of topic %s lost %d events of %s: %s, sequences %d to %d",
            loss.consumer,
            loss.topic,
            loss.count,
            loss.publisher,
            loss.cause,
            loss.first,
            loss.last,
            extra={"bus": self.registry.bus, "loss": loss},
        )
