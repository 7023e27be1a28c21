"""`ls` and `rm`: which buses this host has, and the end of one that nobody ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmbus import inspect
from shmbus.cli import _arguments
from shmbus.cli._exit import FAILED, NOT_FOUND, OK, complain
from shmbus.cli._render import Clipped, Column, Rows, console, duration, line, short, size
from shmbus.errors import BusNotFoundError, ShmbusError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from shmbus.stats import BusStats


def register(commands: _arguments.Commands) -> None:
    """Add `ls` and `rm`."""
    ls = commands.add_parser("ls", help="the buses of this host")
    ls.set_defaults(run=run_ls)
    rm = commands.add_parser("rm", help="remove a bus that nobody uses, or a group of it")
    rm.add_argument("buses", metavar="BUS", nargs="+", type=_arguments.bus)
    rm.add_argument(
        "--force", action="store_true", help="even if it is in use or owes events to somebody: they are lost"
    )
    rm.add_argument(
        "--group", metavar="TOPIC/NAME", help="remove this group only, and count what it was owed as abandoned"
    )
    rm.set_defaults(run=run_rm)


_COLUMNS: Sequence[Column[BusStats]] = (
    Column("BUS", lambda s: Clipped(s.bus, "bold", middle=True), gives=True),
    Column("UP", lambda s: duration(max(1, s.time_ns - s.created_ns)), right=True),
    Column("MEMORY", lambda s: size(s.bytes), right=True),
    Column("PROCESSES", lambda s: str(len(s.participants)), right=True),
    Column("TOPICS", lambda s: str(len(s.topics)), right=True),
    Column("CONSUMERS", lambda s: str(sum(c.state not in ("closed", "dead") for c in s.consumers)), right=True),
    Column("DEPTH", lambda s: short(sum(c.depth for c in s.consumers)), right=True),
    Column("SUPERVISOR", lambda s: str(s.supervisor.pid or "none"), right=True),
)


def run_ls(arguments: argparse.Namespace) -> int:
    """A line a bus; a bus that cannot be read is named on stderr, and the exit code is 1."""
    found: list[BusStats] = []
    code = OK
    for name in inspect.buses():
        try:
            found.append(inspect.stats_of(name))
        except BusNotFoundError:
            continue  # removed since it was listed
        except ShmbusError as error:
            code = complain(error)
    console().print(Rows(_COLUMNS, found) if found else line("no bus on this host"))
    return code


def run_rm(arguments: argparse.Namespace) -> int:
    """Remove each bus, or a group of each; one that cannot be removed does not keep the others."""
    codes = {_remove(name, arguments.group, force=arguments.force) for name in arguments.buses}
    return next(code for code in (FAILED, NOT_FOUND, OK) if code in codes)


def _remove(name: str, group: str | None, *, force: bool) -> int:
    owed = 0
    try:
        if group is None:
            inspect.remove(name, force=force)
        else:
            owed = inspect.remove_group(name, group, force=force)
    except BusNotFoundError as error:
        return complain(error, NOT_FOUND)
    except (ShmbusError, OSError) as error:
        return complain(error)
    if group is None:
        print(f"removed {name}")
    else:
        print(f"removed group {group} of {name}; it was owed {owed} events")
    return OK
