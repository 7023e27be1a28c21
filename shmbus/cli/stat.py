"""`stat` and `top`: what every publisher and consumer of a bus does, once or live.

Reads through `inspect` only, which perturbs nothing. Rates come from two looks: half a second apart for one
answer, the last two for a live one.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from rich.console import Group

from shmbus import inspect
from shmbus.cli import _arguments
from shmbus.cli._bus_view import BusView
from shmbus.cli._exit import FAILED, OK, USAGE, complain
from shmbus.cli._render import console, line
from shmbus.cli._streams import ascii_json
from shmbus.cli._terminate import ending_in_order
from shmbus.errors import BusNotFoundError, ShmbusError
from shmbus.stats import BusStats, with_rates

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from rich.console import RenderableType

_PAUSE: Final = 0.5  # seconds between the two looks of a single answer
_INTERVAL: Final = 1.0  # seconds between the looks of a live one


def register(commands: _arguments.Commands) -> None:
    """Add `stat` and `top`."""
    stat = commands.add_parser("stat", help="rates, depths, lags, drops, who blocks whom")
    stat.add_argument("bus", metavar="BUS", nargs="?", type=_arguments.bus, help="default: every bus of this host")
    stat.add_argument("--json", action="store_true", help="print one JSON document")
    stat.add_argument(
        "--watch",
        metavar="SECONDS",
        nargs="?",
        const=_INTERVAL,
        type=_seconds_or_bus,
        help=f"look again and again, every {_INTERVAL:g} s by default",
    )
    stat.set_defaults(run=run)
    top = commands.add_parser("top", help="a bus on the full screen (extra `top`), or stat BUS --watch")
    top.add_argument("bus", metavar="BUS", type=_arguments.bus)
    top.add_argument("-i", "--interval", dest="watch", metavar="SECONDS", default=_INTERVAL, type=_arguments.seconds)
    top.add_argument("--plain", action="store_true", help="the tables of `stat` where the full screen could be")
    top.set_defaults(run=run_top, json=False)


def _seconds_or_bus(text: str) -> float | str:
    """What follows `--watch`: it may be left out, and then a bus is what stands there."""
    try:
        float(text)
    except ValueError:
        return _arguments.bus(text)
    return _arguments.seconds(text)


def run(arguments: argparse.Namespace) -> int:
    """`stat` and `top`."""
    if isinstance(arguments.watch, str):
        if arguments.bus is not None:
            return complain(f"one bus at a time: {arguments.watch}, {arguments.bus}", USAGE)
        arguments.bus, arguments.watch = arguments.watch, _INTERVAL
    looker = Looker(arguments.bus)
    looker.look()
    time.sleep(_PAUSE)
    looker.look()
    if arguments.watch is None:
        print_once(looker, as_json=arguments.json)
        return FAILED if looker.problems else OK
    with ending_in_order():
        if arguments.json or not sys.stdout.isatty() or console().is_dumb_terminal:
            return watch_lines(looker, arguments.watch, as_json=arguments.json)
        return watch_screen(looker, arguments.watch)


def run_top(arguments: argparse.Namespace) -> int:
    """`top`: on the full screen where there is one, and the extra `top`; else as `stat --watch`."""
    if arguments.plain or not sys.stdout.isatty() or not sys.stdin.isatty() or console().is_dumb_terminal:
        return run(arguments)
    try:
        from shmbus.cli._top_app import TopApp
    except ImportError:
        return run(arguments)
    looker = Looker(arguments.bus)
    looker.look()

    def look() -> BusStats:
        looker.look()
        return looker.found[arguments.bus]

    app = TopApp(look, arguments.watch)
    said = app.run()
    if said:
        print(said)
    return app.return_code or OK


class Looker:
    """Looks at one bus, or at all there are, again and again.

    Raises what `inspect.stats_of` raises for the one bus asked for; of all buses, those that cannot be read
    are left out and named in `problems`.
    """

    def __init__(self, bus: str | None) -> None:
        self.bus: Final = bus
        self.found: dict[str, BusStats] = {}
        self.problems: dict[str, str] = {}

    def look(self) -> None:
        """Take a new look; `found` then has rates since the last one."""
        before = self.found
        after = self._all() if self.bus is None else {self.bus: inspect.stats_of(self.bus)}
        self.found = {
            name: with_rates(before[name], stats) if name in before else stats for name, stats in after.items()
        }

    def _all(self) -> dict[str, BusStats]:
        found: dict[str, BusStats] = {}
        self.problems = {}
        for name in inspect.buses():
            try:
                found[name] = inspect.stats_of(name)
            except BusNotFoundError:
                continue  # removed since it was listed
            except ShmbusError as error:
                self.problems[name] = str(error)
        return found

    def document(self) -> str:
        """One object for the bus asked for, a list for all of them, as JSON."""
        found = list(self.found.values())
        return ascii_json(found if self.bus is None else found[0])

    def view(self) -> RenderableType:
        """The same for people."""
        parts: list[RenderableType] = []
        for stats in self.found.values():
            parts += ["", BusView(stats)] if parts else [BusView(stats)]
        return Group(*parts) if parts else line("no bus on this host")


def print_once(looker: Looker, *, as_json: bool) -> None:
    """Print what the last look found, and on stderr what could not be read."""
    if as_json:
        print(looker.document(), flush=True)
    else:
        console().print(looker.view())
    for problem in looker.problems.values():
        complain(problem)


def watch_lines(looker: Looker, interval: float, *, as_json: bool) -> int:
    """One answer after another until the bus is removed or the command interrupted."""

    def show() -> None:
        print_once(looker, as_json=as_json)
        if not as_json:
            print(flush=True)

    return _until_removed(looker, interval, show)


def watch_screen(looker: Looker, interval: float) -> int:
    """The same in place, on the alternate screen of a terminal."""
    from rich.live import Live

    def screen() -> RenderableType:
        problems = [line(problem, "red") for problem in looker.problems.values()]
        clock = line(f"{time.strftime('%H:%M:%S')}, every {interval:g} s, Ctrl-C ends", "dim")
        return Group(looker.view(), *problems, "", clock)

    with Live(console=console(), screen=True, auto_refresh=False) as live:
        code = _until_removed(looker, interval, lambda: live.update(screen(), refresh=True))
    if looker.bus is not None:
        print(f"bus {looker.bus!r} was removed")
    return code


def _until_removed(looker: Looker, interval: float, show: Callable[[], None]) -> int:
    with suppress(BusNotFoundError):
        while True:
            show()
            time.sleep(interval)
            looker.look()
    return OK
