"""`run`: worker processes of a router, started, kept alive, drained."""

from __future__ import annotations

import argparse
import logging
from typing import Final

from shmbus.cli import _arguments
from shmbus.errors import ConfigError

_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def register(commands: _arguments.Commands) -> None:
    """Add `run`."""
    run = commands.add_parser(
        "run",
        help="run the handlers of a router in worker processes",
        description="Start worker processes for a Router, and start them again when they crash. SIGTERM or Ctrl-C: they"
        " finish what they have in hand, and end; a second one: at once. SIGHUP: each is replaced, one after another."
        " Exit codes: 0 ended as asked, 2 usage, 3 the workers did not start, 4 they crashed again and again.",
    )
    run.add_argument("target", metavar="MODULE:ROUTER", type=_target, help="as shop.workers:router")
    run.add_argument("--bus", metavar="NAME", type=_arguments.bus, required=True)
    run.add_argument("--workers", metavar="N", type=_arguments.positive, default=1, help="processes (default: 1)")
    run.add_argument("--reload", action="store_true", help="replace the workers when a source file changes")
    run.add_argument(
        "--max-tasks", metavar="N", type=_arguments.positive, help="replace a worker that has handled N events"
    )
    run.add_argument(
        "--max-rss", metavar="BYTES", type=_size, help="replace a worker that takes so much memory; 512M, 2G"
    )
    run.add_argument(
        "--drain",
        metavar="SECONDS",
        type=_arguments.seconds,
        default=5.0,
        help="time to finish what is in hand when told to end; the rest goes back (default: 5)",
    )
    run.add_argument(
        "--restarts",
        metavar="N",
        type=_arguments.positive,
        default=10,
        help="crashes of a worker in a row after which to give up (default: 10)",
    )
    run.set_defaults(run=start)


def start(arguments: argparse.Namespace) -> int:
    """Run until it is told to end, or gives up."""
    from shmbus.router._child import Options
    from shmbus.router.runner import Runner

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s")
    options = Options(
        target=arguments.target,
        bus=arguments.bus,
        drain=arguments.drain,
        max_tasks=arguments.max_tasks,
        max_rss=arguments.max_rss,
        reload=arguments.reload,
    )
    return Runner(options, workers=arguments.workers, restarts=arguments.restarts).run()


def _target(text: str) -> str:
    from shmbus.router._loading import check_target

    try:
        return check_target(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _size(text: str) -> int:
    """A number of bytes, with K, M or G for powers of 1,024."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if unit not in _UNITS or not (number.isascii() and number.isdigit()) or int(number) < 1:
        raise argparse.ArgumentTypeError(f"a number of bytes, as 268435456, 256M or 2G, not {text!r}")
    return int(number) * _UNITS[unit]
