"""The command: which workloads, which peers, how long; progress on stderr, tables on stdout, results as JSON.

Exit codes: 0 done; 1 a run failed; 2 usage, or a peer that is not installed was asked for; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from bench import peers, report, results, suite, workloads
from bench.suite import Options

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suite and return the exit code; `argv` without the program's name."""
    root = parser()
    arguments = root.parse_args(argv)
    names, missing = suite.installed(arguments.peers or list(peers.MODULES))
    if arguments.peers and missing:
        root.error("; ".join(f"{name} is not installed: {why}" for name, why in missing.items()))
    for name, why in missing.items():
        print(f"without {name}: {why}", file=sys.stderr)
    try:
        return _run(arguments, names)
    except KeyboardInterrupt:
        return 130


def _run(arguments: argparse.Namespace, names: list[str]) -> int:
    options = _options(arguments)
    found = results.empty(names, asdict(options))
    progress = Console(stderr=True)
    with progress.status("") as status:
        for workload in arguments.only:
            found.workloads[workload] = suite.measure(workload, names, options, status.update)
    console = Console() if sys.stdout.isatty() else Console(width=120)
    for part in report.render(found):
        console.print(part)
        console.print()
    if arguments.json:
        results.save(found, arguments.json)
    return int(any(peer.failures for result in found.workloads.values() for peer in result.peers.values()))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure shmbus beside its peers, in one run.",
        epilog="workloads: " + "; ".join(workloads.title(name) for name in workloads.MODULES),
    )
    root.add_argument("--quick", action="store_true", help="fewer and shorter runs: enough to see an order of size")
    root.add_argument("--only", type=_some_of(workloads.MODULES), default=list(workloads.MODULES), metavar="W1,W3")
    root.add_argument("--peers", type=_some_of(peers.MODULES), metavar="NAME,NAME", help=", ".join(peers.MODULES))
    root.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    root.add_argument("--repeats", type=_positive(int), metavar="N", help="runs of each; their median counts (5)")
    root.add_argument("--seconds", type=_positive(float), metavar="S", help="length of a run, about (1)")
    root.add_argument("--rate", type=_positive(int), default=20_000, metavar="N", help="events/s when paced (20000)")
    root.add_argument("--paced-seconds", type=_positive(float), metavar="S", help="length of a paced run (5)")
    root.add_argument("--events", type=_positive(int), metavar="N", help="events of every run, instead of a length")
    return root


def _options(arguments: argparse.Namespace) -> Options:
    quick = arguments.quick
    return Options(
        repeats=arguments.repeats or (3 if quick else 5),
        seconds=arguments.seconds or (0.2 if quick else 1.0),
        rate=arguments.rate,
        paced_seconds=arguments.paced_seconds or (1.0 if quick else 5.0),
        events=arguments.events,
    )


def _some_of(known: dict[str, str]) -> Callable[[str], list[str]]:
    by_name = {name.lower(): name for name in known}

    def parse(text: str) -> list[str]:
        names = [name.strip().lower() for name in text.split(",")]
        unknown = [name for name in names if name not in by_name]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
        return [by_name[name] for name in dict.fromkeys(names)]

    return parse


def _positive(kind: type[int | float]) -> Callable[[str], int | float]:
    def parse(text: str) -> int | float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"more than 0 is needed: {text}")
        return value

    parse.__name__ = kind.__name__  # what argparse calls a value that is none
    return parse
