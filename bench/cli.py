"""The command: which workloads, which peers, how long; progress on stderr, tables on stdout, results as JSON.

    python -m bench [options]            measure
    python -m bench plot FILE            draw what was recorded
    python -m bench table FILE           the same as a table in Markdown

Exit codes: 0 done; 1 a run failed; 2 usage, a peer that is not installed was asked for, or a file that does not fit;
130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console

from shmbus import ShmbusError

from . import peers, report, results, suite, workloads
from .contract import BenchError
from .suite import Options

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .results import Results

INSTALL: Final = "pip install 'shmbus[bench]'"


def main(argv: Sequence[str] | None = None, prog: str = "python -m bench") -> int:
    """Run the command and return the exit code; `argv` without the program's name."""
    arguments = parser(prog).parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (BenchError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _run(arguments: argparse.Namespace) -> int:
    shapes = [suite.shape_of(workload) for workload in arguments.only if workload in workloads.MODULES]
    names, missing = suite.installed(arguments.peers or list(peers.EVERY), shapes)
    for name, why in missing.items():
        print(f"without {name}: {why}", file=sys.stderr)
    if missing:
        print(f"{INSTALL} brings the peers along", file=sys.stderr)
        if arguments.peers:
            return 2
    options = _options(arguments)
    found = results.empty(names, asdict(options))
    if arguments.json and arguments.json.exists():
        found = results.joined(results.load(arguments.json), found)  # before anything runs, so that no run is in vain
    progress = Console(stderr=True)
    with progress.status("") as status:
        for workload in arguments.only:
            usual = arguments.peers or (suite.usual(workload, names) if workload in workloads.MODULES else [])
            _measure(workload, usual, options, found, status.update)
            if arguments.json:
                results.save(found, arguments.json)
    console = Console() if sys.stdout.isatty() else Console(width=140)
    for part in report.render(found):
        console.print(part)
        console.print()
    return int(_failed(found))


def _measure(
    workload: str, names: Sequence[str], options: Options, found: Results, progress: Callable[[str], None]
) -> None:
    """Put the results of one workload into the others."""
    if workload in workloads.MODULES:
        found.workloads[workload] = suite.measure(workload, names, options, progress)
        return
    found.failures.pop(workload, None)
    try:
        if workload == "idle":
            found.idle[:] = [workloads.alone("idle").measure(options.idlers, options.idle_seconds, progress)]
        else:
            found.growth[:] = results.grown(found.growth, workloads.alone(workload).measure(options.rounds, progress))
    except (BenchError, ImportError, ShmbusError, OSError) as error:
        found.failures[workload] = f"{type(error).__name__}: {error}"


def _failed(found: Results) -> bool:
    runs = (peer.failures for result in found.workloads.values() for peer in result.peers.values())
    return bool(found.failures) or any(runs)


def _plot(arguments: argparse.Namespace) -> int:
    try:
        from . import plot
    except ImportError as error:
        raise BenchError(f"plots need matplotlib: {INSTALL} ({error})") from error
    for path in plot.draw(results.load(arguments.file), arguments.to or arguments.file.with_suffix("")):
        print(path)
    return 0


def _table(arguments: argparse.Namespace) -> int:
    from . import table

    print(table.markdown(results.load(arguments.file)))
    return 0


def parser(prog: str) -> argparse.ArgumentParser:
    """The command line."""
    every = workloads.MODULES | workloads.ALONE
    root = argparse.ArgumentParser(
        prog=prog,
        description="Measure shmbus beside its peers, in one run.",
        epilog="workloads: " + "; ".join(f"{name} = {workloads.title(name)}" for name in every),
    )
    root.set_defaults(run=_run)
    root.add_argument("--quick", action="store_true", help="fewer and shorter runs: enough to see an order of size")
    root.add_argument("--only", type=_some_of(every), default=list(every), metavar="W1,W3", help="these workloads")
    root.add_argument("--peers", type=_some_of(peers.EVERY), metavar="NAME,NAME", help=", ".join(peers.EVERY))
    root.add_argument(
        "--json", type=Path, metavar="FILE", help="keep the results there, beside those of other workloads"
    )
    root.add_argument("--repeats", type=_positive(int), metavar="N", help="runs of each; their median counts (5)")
    root.add_argument("--seconds", type=_positive(float), metavar="S", help="length of a run, about (1)")
    root.add_argument("--rate", type=_positive(int), default=100_000, metavar="N", help="events/s when paced (100000)")
    root.add_argument("--paced-seconds", type=_positive(float), metavar="S", help="length of a paced run (10)")
    root.add_argument("--events", type=_positive(int), metavar="N", help="events of every run, instead of a length")
    commands = root.add_subparsers(title="what to do with results", metavar="plot | table")
    plot = commands.add_parser("plot", help="draw them, as SVG and PNG")
    plot.add_argument("file", type=Path, metavar="FILE", help="what --json has written")
    plot.add_argument("--to", type=Path, metavar="DIR", help="by default named after FILE, beside it")
    plot.set_defaults(run=_plot)
    table = commands.add_parser("table", help="print them as tables in Markdown")
    table.add_argument("file", type=Path, metavar="FILE", help="what --json has written")
    table.set_defaults(run=_table)
    return root


def _options(arguments: argparse.Namespace) -> Options:
    quick = arguments.quick
    repeats = arguments.repeats or (3 if quick else 5)
    return Options(
        repeats=repeats,
        seconds=arguments.seconds or (0.2 if quick else 1.0),
        rate=arguments.rate,
        paced_seconds=arguments.paced_seconds or (1.0 if quick else 10.0),
        rounds=repeats * (1 if quick else 10),
        idlers=10 if quick else 100,
        idle_seconds=1.0 if quick else 5.0,
        events=arguments.events,
    )


def _some_of(known: Mapping[str, object]) -> Callable[[str], list[str]]:
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
