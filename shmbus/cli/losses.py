"""`losses`: what was lost on a bus, of whom, by whom and why; once, or as it happens."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from shmbus import inspect
from shmbus.cli import _arguments
from shmbus.cli._exit import OK
from shmbus.cli._render import plural, printable, whole
from shmbus.cli._streams import abandoned, ascii_json
from shmbus.cli._terminate import ending_in_order
from shmbus.errors import BusNotFoundError
from shmbus.stats import new_losses

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from shmbus.stats import Loss

_INTERVAL: Final = 0.5  # seconds between two looks of --follow


def register(commands: _arguments.Commands) -> None:
    """Add `losses`."""
    losses = commands.add_parser(
        "losses",
        help="what was lost: whose, of which publisher, and why",
        description="Print the log of losses, the oldest first. With --follow also what is lost from now on, until the"
        " bus is removed or Ctrl-C: then a count is what has come since the line before.",
    )
    losses.add_argument("bus", metavar="BUS", type=_arguments.bus)
    losses.add_argument("--json", action="store_true", help="one JSON document, with --follow one object a line")
    losses.add_argument("--follow", "-f", action="store_true", help="go on")
    losses.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the losses that there are, and with --follow those that come."""
    found = inspect.losses_of(arguments.bus)
    if arguments.follow:
        _follow(arguments.bus, found, ascii_json if arguments.json else as_text)
    elif arguments.json:
        print(ascii_json(found))
    else:
        _print(found, as_text)
    return OK


def _follow(bus: str, found: Sequence[Loss], show: Callable[[Loss], str]) -> None:
    with ending_in_order(), suppress(BusNotFoundError, KeyboardInterrupt):
        _print(found, show)
        while not abandoned():
            time.sleep(_INTERVAL)
            before, found = found, inspect.losses_of(bus)
            _print(new_losses(before, found), show)


def as_text(loss: Loss) -> str:
    """`13:25:54 orders/audit lost 3 events of web: abandoned, #97 to #99, trace 4bf92f...`: of the first of them."""
    when = time.strftime("%H:%M:%S", time.localtime(loss.last_ns / 1e9))
    where = f"#{loss.first}" if loss.first == loss.last else f"#{loss.first} to #{loss.last}"
    count = plural(loss.count, "event") if loss.count < 10**10 else f"{whole(loss.count)} events"
    said = f"{when} {loss.topic}/{loss.consumer} lost {count} of {loss.publisher}: {loss.cause}, {where}"
    trace = f", trace {loss.trace.split('-')[1]}" if loss.trace.count("-") == 3 else ""
    return printable(said + trace)


def _print(losses: Sequence[Loss], show: Callable[[Loss], str]) -> None:
    for loss in losses:
        print(show(loss), flush=True)
