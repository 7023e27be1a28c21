"""`doctor`: what `diagnostics` finds of this host, each finding with what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.table import Table
from rich.text import Text

from shmbus import diagnostics
from shmbus.cli import _arguments
from shmbus.cli._exit import FAILED, OK
from shmbus.cli._render import console, plural, printable
from shmbus.cli._streams import ascii_json

if TYPE_CHECKING:
    import argparse

_STYLES: Final = {"ok": "green", "warn": "bold yellow", "fail": "bold red"}


def register(commands: _arguments.Commands) -> None:
    """Add `doctor`."""
    doctor = commands.add_parser("doctor", help="what this host offers, what it lacks, what was left behind")
    doctor.add_argument("--json", action="store_true", help="print a JSON list of the findings")
    doctor.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print every finding; the exit code is 1 when one of them is a failure."""
    findings = diagnostics.examine()
    if arguments.json:
        print(ascii_json(findings))
    else:
        show(findings)
    return FAILED if any(finding.status == "fail" for finding in findings) else OK


def show(findings: list[diagnostics.Finding]) -> None:
    """A line a finding, its advice below it, a sum at the end."""
    out = console()
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for finding in findings:
        status = Text(finding.status, style=_STYLES[finding.status])
        table.add_row(status, printable(finding.check), printable(finding.value))
        if finding.advice:
            table.add_row("", "", Text(printable(finding.advice), style="italic"))
    out.print(table)
    failed = sum(finding.status == "fail" for finding in findings)
    warned = sum(finding.status == "warn" for finding in findings)
    if failed or warned:
        out.print(f"\n{plural(failed, 'failure')}, {plural(warned, 'warning')}")
    else:
        out.print("\nnothing to complain about")
