"""The command `shmbus`: which commands there are, and what becomes of an error. See docs/cli.md.

One module a family of commands; each has `register(commands)`, which adds its parsers, and functions that
take the parsed arguments and return an exit code. They render and compute nothing: figures come from
`inspect`, `stats` and `diagnostics`.

Exit codes: 0 done; 1 it failed, or `doctor` found something; 2 usage; 3 no such bus or topic; 130
interrupted. An error is one line on stderr that begins with "shmbus: ".
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import shmbus
from shmbus.cli import _streams
from shmbus.cli._exit import FAILED, INTERRUPTED, NOT_FOUND, OK, complain
from shmbus.errors import BusNotFoundError, ShmbusError

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; usage errors, `--help` and `--version` raise SystemExit."""
    _streams.prepare()
    try:
        arguments = parser().parse_args(argv)
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        return OK
    except KeyboardInterrupt:
        return INTERRUPTED
    except BusNotFoundError as error:
        return complain(error, NOT_FOUND)
    except (ShmbusError, OSError) as error:
        return complain(error, FAILED)
    finally:
        _streams.finish()
    return code


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    # Here, so that the processes that other modules of this package start do not load all of it.
    from shmbus.cli import (
        bench,
        bridge,
        demo,
        doctor,
        events,
        journal,
        listing,
        losses,
        policy,
        run,
        serve,
        stat,
        supervise,
    )

    root = argparse.ArgumentParser(
        prog="shmbus", description="Look at and work with shared-memory event buses on this host."
    )
    root.add_argument("--version", action="version", version=f"%(prog)s {shmbus.__version__}")
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    families = (listing, stat, losses, policy, events, run, serve, journal, bridge, supervise, doctor, demo, bench)
    for family in families:
        family.register(commands)
    return root
