"""Runner: worker processes of a router, kept alive. What `shmbus run` is.

    SIGTERM, SIGINT   every worker finishes what it has in hand, then all end; a second one: at once
    SIGHUP            every worker is replaced, one after another: first the new one is ready, then the old one ends
    a crash           the worker is started again, later each time; its runner gives up where that does not help

One loop that sleeps in poll() until a child ends, says something, a signal comes, or a deadline has come.

May touch: its children, and the registry of the bus, to say how they died.

Must stay true:
- A place has one worker at work, but for the moment in which its replacement is ready and the old one finishes.
- The subscribers that have a name are run by one process at a time.
- However this ends, no child is left; should this process be killed, they end by themselves.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import shmbus
from shmbus import deaths
from shmbus.router._files import Files
from shmbus.router._worker import Worker

if TYPE_CHECKING:
    from shmbus.router._child import Options

OK: Final = 0
DID_NOT_START: Final = 3
GIVEN_UP: Final = 4

FIRST_DELAY: Final = 0.1
"""Seconds until a crashed worker is started again, twice as many each time."""
LONGEST_DELAY: Final = 30.0
STEADY: Final = 20.0
"""Seconds after which a worker has proved itself, or with its first event: a crash then is a first one again."""
START_TIMEOUT: Final = 120.0
"""Seconds for a worker to be ready; a machine that is loaded takes some for the imports."""
GRACE: Final = 2.0
"""Seconds beyond the drain until a worker is killed; it gives back what it holds meanwhile."""

_log = logging.getLogger("shmbus.runner")


class Place:
    """One of the N workers, whichever process that is just now."""

    def __init__(self, number: int) -> None:
        self.number: Final = number
        self.worker: Worker | None = None
        self.next: Worker | None = None
        """Its replacement, on its way."""
        self.crashes = 0
        self.start_at: float | None = 0.0
        """When a worker is to be started; None: not now."""
        self.not_before = 0.0
        """When a replacement may be tried again, the last one having failed."""

    @property
    def workers(self) -> list[Worker]:
        """The processes of this place."""
        return [worker for worker in (self.worker, self.next) if worker is not None]


class Runner:
    """Runs until it is told to end; `run` returns the exit code."""

    def __init__(self, options: Options, *, workers: int, restarts: int = 10) -> None:
        self._options = options
        self._restarts = restarts
        self._places = [Place(number) for number in range(1, workers + 1)]
        self._renew: deque[Place] = deque()
        self._renewing: Place | None = None
        self._started = False
        """All workers have been ready once."""
        self._able = False
        """One has been: the router can be started, and what happens to a worker from now on is a crash."""
        self._ending: int | None = None
        """The exit code, once it ends."""
        self._files = Files() if options.reload else None
        self._awake, self._alarm = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> int:
        """Open the bus, start the workers, look after them."""
        before = self._take_signals()
        self._bus = shmbus.Bus(self._options.bus)  # so that it outlives its workers, and how they died can be told
        try:
            while self._ending is None or any(place.workers for place in self._places):
                self._start_due()
                self._renew_next()
                self._sleep()
                self._hear()
                self._bury()
                self._kill_late()
                self._look_at_files()
            return self._ending
        finally:
            self._end_all()
            self._bus.close()
            self._restore(before)

    # -- signals

    def _take_signals(self) -> tuple[dict[signal.Signals, Any], int]:
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {number: signal.signal(number, lambda *_: None) for number in numbers}
        return before, signal.set_wakeup_fd(self._alarm, warn_on_full_buffer=False)

    def _restore(self, before: tuple[dict[signal.Signals, Any], int]) -> None:
        handlers, descriptor = before
        signal.set_wakeup_fd(descriptor)
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        os.close(self._awake)
        os.close(self._alarm)

    def _signalled(self, number: int) -> None:
        if number == signal.SIGHUP:
            _log.info("SIGHUP: the workers are replaced, one at a time")
            self._renew_all()
        elif number not in (signal.SIGTERM, signal.SIGINT):
            return
        elif self._ending is None:
            _log.info("%s: the workers finish what they have in hand", signal.Signals(number).name)
            self._end(OK)
        else:
            _log.warning("%s again: the workers are killed", signal.Signals(number).name)
            self._ending = 128 + number
            for worker in self._workers():
                worker.kill()

    # -- the loop

    def _sleep(self) -> None:
        now = time.monotonic()
        poll = select.poll()
        poll.register(self._awake, select.POLLIN)
        for worker in self._workers():
            poll.register(worker.pidfd, select.POLLIN)
            if not worker.deaf:
                poll.register(worker.link, select.POLLIN)
        deadlines = [place.start_at for place in self._places if place.start_at is not None and self._ending is None]
        deadlines += [worker.kill_at for worker in self._workers() if worker.kill_at is not None]
        deadlines += [w.born + START_TIMEOUT for w in self._workers() if not w.ready and not w.asked]
        deadlines += [p.not_before for p in self._places if p.worker and p.worker.recycle and p.not_before > now]
        if self._files is not None:
            deadlines.append(self._files.due)
        left = max(0.0, min(deadlines) - now) if deadlines else None
        poll.poll(None if left is None else left * 1000 + 1)
        with suppress(BlockingIOError):
            for number in os.read(self._awake, 4096):
                self._signalled(number)

    def _workers(self) -> list[Worker]:
        return [worker for place in self._places for worker in place.workers]

    def _start_due(self) -> None:
        for place in self._places:
            if self._ending is None and place.start_at is not None and time.monotonic() >= place.start_at:
                place.start_at = None
                place.worker = self._start(place)

    def _start(self, place: Place) -> Worker:
        worker = Worker(place.number, self._options)
        _log.info("%s starts", worker)
        return worker

    def _hear(self) -> None:
        for place in self._places:
            for worker in place.workers:
                was_ready = worker.ready
                worker.hear()
                if worker.ready and not was_ready:
                    _log.info("%s is ready", worker)
                    self._able = True
                    if self._files is not None:
                        self._files.watch(worker.files)
                if worker.recycle and worker is place.worker and time.monotonic() >= place.not_before:
                    self._want_renewed(place)
            if place.next is not None and place.next.ready and place.worker is not None:
                place.worker.drain(self._options.drain + GRACE)
        if not self._started and self._ending is None and all(p.worker and p.worker.ready for p in self._places):
            self._started = True
            _log.info("ready: %d workers on bus %s", len(self._places), self._options.bus)
        self._give_names()

    def _give_names(self) -> None:
        """Have one process run the subscribers that have a name: that of the first place, once no other does."""
        first = self._places[0].worker
        if self._ending is not None or first is None or not first.ready or first.asked:
            return
        if not any(worker.named for worker in self._workers()):
            first.named = True
            first.tell("named")

    # -- replacing

    def _renew_all(self) -> None:
        for place in self._places:
            self._want_renewed(place)

    def _want_renewed(self, place: Place) -> None:
        if self._ending is not None or place.worker is None or place.worker.asked:
            return
        if place is not self._renewing and place not in self._renew:
            self._renew.append(place)

    def _renew_next(self) -> None:
        """Start the replacement of the next place that wants one: one at a time."""
        while self._ending is None and self._renewing is None and self._renew:
            place = self._renew.popleft()
            if place.worker is None or place.worker.asked:
                continue  # it is being started anew anyway
            why = f": {place.worker.recycle}" if place.worker.recycle else ""
            _log.info("%s is replaced%s", place.worker, why)
            self._renewing = place
            place.next = self._start(place)

    def _promote(self, place: Place) -> None:
        """The old one is gone: its replacement has the place."""
        place.worker, place.next = place.next, None
        place.start_at = None
        if self._renewing is place:
            self._renewing = None

    # -- deaths

    def _bury(self) -> None:
        for place in self._places:
            for worker in place.workers:
                if worker.ended():
                    self._ended(place, worker)
        self._give_names()

    def _ended(self, place: Place, worker: Worker) -> None:
        code, how = worker.reap()
        self._tell(worker, how)
        self._able = self._able or worker.ready
        orderly = worker.asked or (code == 0 and bool(worker.recycle))
        if worker.killed and worker.asked and worker.ready:
            _log.warning("%s did not end in time: %s", worker, how)
        if orderly and not worker.asked:
            _log.info("%s has ended: %s", worker, worker.recycle)
        if worker is place.next:
            place.next = None
            self._renewing = None
            if self._ending is None and not orderly:
                _log.error("%s, a replacement, did not start: %s; the old one stays", worker, how)
                if place.worker is not None and place.worker.recycle:
                    place.not_before = time.monotonic() + self._count_crash(place, worker)
            return
        place.worker = None
        if place.next is not None:
            self._promote(place)
        elif self._ending is None and orderly:
            place.start_at = time.monotonic()
        elif self._ending is None:
            self._crashed(place, worker, how)

    def _tell(self, worker: Worker, how: str) -> None:
        """Have the dead letters of what it held say how it died."""
        try:
            deaths.tell(self._bus, worker.pid, how)
        except shmbus.ClosedError:  # somebody removed the bus; the workers find one anew
            self._bus.close()
            self._bus = shmbus.Bus(self._options.bus)
        except shmbus.ShmbusError as error:
            _log.warning("how %s died could not be told: %s", worker, error)

    def _crashed(self, place: Place, worker: Worker, how: str) -> None:
        if not self._able and not worker.ready:
            _log.error("%s did not start: %s", worker, how)
            self._end(DID_NOT_START)
            return
        delay = self._count_crash(place, worker)
        if self._ending is None:
            _log.error("%s died: %s; started again in %.1f s", worker, how, delay)
            place.start_at = time.monotonic() + delay

    def _count_crash(self, place: Place, worker: Worker) -> float:
        """Seconds until the next try; past the limit this is the end."""
        if worker.works or (worker.ready_at is not None and time.monotonic() - worker.ready_at >= STEADY):
            place.crashes = 0
        place.crashes += 1
        if place.crashes > self._restarts:
            _log.error("worker %d crashed %d times in a row: given up", place.number, place.crashes)
            self._end(GIVEN_UP)
        return min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** (place.crashes - 1))

    # -- the end

    def _end(self, code: int) -> None:
        self._ending = code
        for place in self._places:
            place.start_at = None
        for worker in self._workers():
            worker.drain(self._options.drain + GRACE)

    def _kill_late(self) -> None:
        now = time.monotonic()
        for worker in self._workers():
            if not worker.ready and not worker.asked and now >= worker.born + START_TIMEOUT:
                _log.error("%s is not ready within %g s", worker, START_TIMEOUT)
                worker.kill()
            if worker.kill_at is not None and now >= worker.kill_at:
                worker.kill()

    def _look_at_files(self) -> None:
        if self._files is not None and self._ending is None:
            for path in self._files.changed():
                _log.info("%s changed: the workers are replaced", path)
                self._renew_all()

    def _end_all(self) -> None:
        for worker in self._workers():
            worker.kill()
            worker.reap()
