"""`bench`: the benchmarks, which lie in `shmbus.bench` once shmbus is installed; without them, how to get them."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from typing import TYPE_CHECKING, Final

from shmbus.cli._exit import FAILED, complain

if TYPE_CHECKING:
    from shmbus.cli import _arguments

_PACKAGE: Final = "shmbus.bench"


def register(commands: _arguments.Commands) -> None:
    """Add `bench`. Its options are its own: they are all handed on."""
    bench = commands.add_parser(
        "bench", help="measure shmbus beside its peers (needs shmbus[bench])", add_help=False, prefix_chars="\0"
    )
    bench.add_argument("arguments", nargs="*")
    bench.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the benchmarks."""
    if importlib.util.find_spec(_PACKAGE) is None:
        return complain("the benchmarks are not installed: pip install 'shmbus[bench]'", FAILED)
    code: int = importlib.import_module(f"{_PACKAGE}.cli").main(arguments.arguments, prog="shmbus bench")
    return code
