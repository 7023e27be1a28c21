"""`policy`: what becomes of the stalled on a bus; shows it, and changes it while the bus runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmbus import inspect
from shmbus.cli import _arguments
from shmbus.cli._exit import OK
from shmbus.policy import STALLED, Policy

if TYPE_CHECKING:
    import argparse


def register(commands: _arguments.Commands) -> None:
    """Add `policy`."""
    policy = commands.add_parser("policy", help="what becomes of consumers that are stalled")
    policy.add_argument("bus", metavar="BUS", type=_arguments.bus)
    policy.add_argument("--stalled", choices=STALLED, help="tell of them, let nobody wait for them, kill them")
    policy.add_argument("--after", metavar="SECONDS", type=_arguments.seconds, help="without progress")
    policy.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Change what is given, and print what holds then."""
    policy = inspect.policy_of(arguments.bus)
    if arguments.stalled is not None or arguments.after is not None:
        after = policy.after if arguments.after is None else arguments.after
        policy = Policy(arguments.stalled or policy.stalled, after)
        inspect.set_policy(arguments.bus, policy)
    print(f"stalled: {policy.stalled} after {policy.after:g} s")
    return OK
