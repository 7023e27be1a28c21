"""`supervise`: a supervisor in the foreground, with its log on stderr."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from shmbus import supervisor
from shmbus._ledger.audit import NAME as AUDIT
from shmbus.cli import _arguments

if TYPE_CHECKING:
    import argparse


def register(commands: _arguments.Commands) -> None:
    """Add `supervise`."""
    supervise = commands.add_parser(
        "supervise",
        help="run a supervisor of a bus in the foreground",
        description="Find the dead of a bus, reclaim what they held, log every loss. While another supervisor"
        " runs, this one stands by. It ends when the bus is removed, at SIGTERM or at Ctrl-C.",
    )
    supervise.add_argument("bus", metavar="BUS", type=_arguments.bus)
    supervise.add_argument("--audit", metavar="FILE", type=Path, help="append its audit log, a line of JSON a record")
    supervise.add_argument(
        "--syslog",
        metavar="ADDRESS",
        nargs="?",
        const=True,
        default=False,
        help="and send it to the system log: a socket's path or HOST:PORT, by default /dev/log",
    )
    supervise.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Supervise until the bus is removed or somebody ends it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger(AUDIT).propagate = False  # what it has is told here by the other loggers: once, not twice
    if arguments.audit is not None or arguments.syslog:
        from shmbus.observe import audit_to

        audit_to(file=arguments.audit, syslog=arguments.syslog)
    return supervisor.run(arguments.bus, foreground=True)
