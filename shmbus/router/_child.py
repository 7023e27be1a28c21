"""A worker process of the runner: `python -m shmbus.router._child FD OPTIONS`. Loads a router, runs it, says how it is.

    from the runner   named      run the subscribers that have a name: no other process does
                      drain      take no more, finish what is in hand, end
                      (its end)  the same: there is no runner any more
    to the runner     ready      the handlers of workers and unnamed subscribers run
                      works      the first event was handled
                      files ...  what the router was made of, for --reload
                      recycle ...  replace me, and why

May touch: the bus, its end of the socket. Must stay true: it never outlives its runner by more than the drain; whatever
it still has in hand then goes back to its group.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec

import shmbus
from shmbus import deaths
from shmbus.router._limits import Limits
from shmbus.router._loading import load, own_files
from shmbus.router.running import Running

if TYPE_CHECKING:
    from shmbus.router.router import Router

DID_NOT_START: Final = 3
_LATE: Final = 3.0
"""Seconds past ack_within at which the supervisor has taken an event back for sure: its handler hangs."""
_CLOSING: Final = 1.0
"""Seconds that closing may take once the drain is over."""
_CHUNK: Final = 32768
FORMAT: Final = "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"


_log = logging.getLogger("shmbus.router")


class Options(msgspec.Struct):
    """What the runner tells a worker process."""

    target: str
    bus: str
    drain: float
    max_tasks: int | None = None
    max_rss: int | None = None
    reload: bool = False


class Child:
    """This process."""

    def __init__(self, link: socket.socket, options: Options) -> None:
        self._link = link
        self._options = options
        self._awake, self._alarm = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._why = ""
        self._told = False
        self._works = self._told_works = False
        self._deadline: float | None = None
        self._failure: BaseException | None = None
        self._over = False
        self._waiting = False

    def run(self) -> int:
        """Until it is told to end, or fails; returns the exit code."""
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # they are the runner's
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(self._alarm, warn_on_full_buffer=False)
        try:
            router = load(self._options.target)
            logging.basicConfig(
                level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"
            )
            with shmbus.Bus(self._options.bus) as bus:
                deaths.promise(bus)
                return self._serve(bus, router)
        except Exception as error:
            self._complain(error)
            return DID_NOT_START

    def _serve(self, bus: shmbus.Bus, router: Router) -> int:
        limits = Limits(self._options.max_tasks, self._options.max_rss, self._recycle, self._enough)
        self._running = Running(bus, router.middleware, self._handled)
        self._limits = limits
        router._runs.append(self._running)  # for its `publish`, and `cancel`
        self._router = router
        slowest = [r.ack_within for r in router.routes if r.ack_within is not None and not r.handler.asynchronous]
        self._hung_after = min(slowest) + _LATE if slowest else None
        self._begin(shared=True)
        while not self._over:
            self._turn()
        self._tell_why()
        if self._failure is None:
            self._running.close()
            return 0
        if isinstance(self._failure, SystemExit):
            code = self._failure.code
            return code if isinstance(code, int) else int(code is not None)
        self._complain(self._failure)
        return 1

    def _handled(self) -> None:
        """From any thread: an event was handled."""
        self._limits.handled()
        if not self._works:
            self._works = True
            self._poke()

    def _begin(self, *, shared: bool) -> None:
        routes = [route for route in self._router.routes if route.shared == shared]
        self._running.begin(routes, self._opened if shared else bool)
        if routes and not self._waiting:
            self._waiting = True
            threading.Thread(target=self._wait, name="shmbus router", daemon=True).start()

    def _opened(self) -> None:
        """Before the first event, which may end this process."""
        if self._options.reload:
            self._tell_files()
        self._send(b"ready")

    def _wait(self) -> None:
        try:
            self._running.wait()
        except BaseException as error:
            self._failure = error
        self._over = True
        self._poke()

    def _turn(self) -> None:
        """Sleep until something is to be done, and do it."""
        if self._running.stuck:
            self._recycle(f"{self._running.stuck[0].handler} does not return")
        self._tell_why()
        if self._works and not self._told_works:
            self._told_works = True
            self._send(b"works")
        poll = select.poll()
        poll.register(self._awake, select.POLLIN)
        if self._link.fileno() >= 0:
            poll.register(self._link, select.POLLIN)
        waits = [w for w in (self._until_deadline(), self._until_hung()) if w is not None]
        ready = poll.poll(max(0.0, min(waits)) * 1000 if waits else None)
        for descriptor, _ in ready:
            if descriptor == self._awake:
                with suppress(BlockingIOError):
                    if signal.SIGTERM in os.read(self._awake, 4096):
                        self._drain()
            else:
                self._hear()
        if self._deadline is not None and time.monotonic() >= self._deadline and not self._over:
            self._give_up()

    def _hear(self) -> None:
        try:
            told = self._link.recv(4096)
        except OSError:
            told = b""
        if told == b"named":
            self._begin(shared=False)
        elif told in (b"drain", b""):
            if not told:
                self._link.close()
            self._drain()

    def _until_deadline(self) -> float | None:
        return None if self._deadline is None else self._deadline - time.monotonic()

    def _until_hung(self) -> float | None:
        """Seconds until the next look for handlers that hang; None where none is looked for."""
        if self._hung_after is None or self._why:
            return None
        now = time.monotonic()
        for delivery, (route, since) in list(self._running.in_hand.items()):
            if (
                route.ack_within is not None
                and not route.handler.asynchronous
                and now - since > route.ack_within + _LATE
            ):
                self._recycle(f"{delivery.handler} hangs")
                return 0.0
        return self._hung_after

    def _drain(self) -> None:
        if self._deadline is None:
            self._deadline = time.monotonic() + self._options.drain
            self._running.cancel()
            if not self._waiting:
                self._over = True

    def _recycle(self, why: str) -> None:
        """From any thread: ask for a replacement, once."""
        if not self._why:
            self._why = why
            self._poke()

    def _enough(self) -> None:
        """From any thread: take no more."""
        self._running.cancel()

    def _give_up(self) -> None:
        """The drain is over: what is in hand goes back."""
        for delivery in list(self._running.in_hand):
            logging.getLogger("shmbus.router").warning(
                "%s has not finished event %s within %g s: it goes back",
                delivery.handler,
                delivery.id,
                self._options.drain,
            )
        closing = threading.Thread(target=self._running.close, daemon=True)
        closing.start()
        closing.join(_CLOSING)
        logging.shutdown()
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(0)

    def _tell_why(self) -> None:
        if self._why and not self._told:
            self._told = True
            self._send(f"recycle {self._why}".encode())

    def _poke(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._alarm, b"\0")

    def _tell_files(self) -> None:
        files = "\n".join(own_files()).encode()
        for at in range(0, len(files), _CHUNK):
            self._send(b"files " + files[at : at + _CHUNK])

    def _send(self, text: bytes) -> None:
        with suppress(OSError):  # the runner is gone, and its end comes to us as well
            self._link.send(text)

    def _complain(self, error: BaseException) -> None:
        if isinstance(error, shmbus.ShmbusError):
            print(f"shmbus: {error}", file=sys.stderr, flush=True)
        else:
            traceback.print_exception(error)


def main(arguments: list[str]) -> int:
    """The process."""
    descriptor, options = arguments
    os.set_inheritable(int(descriptor), False)
    link = socket.socket(fileno=int(descriptor))
    return Child(link, msgspec.json.decode(options, type=Options)).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
