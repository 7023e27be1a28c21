"""`journal`, `replay`, `export`: events of a topic onto the disk, back into a bus, and into files for others."""

from __future__ import annotations

import argparse
import logging
import math
import signal
import sys
import threading
from datetime import datetime
from typing import TYPE_CHECKING, Any

from shmbus.bus import Bus
from shmbus.cli import _arguments
from shmbus.cli._exit import FAILED, OK, complain
from shmbus.cli._render import plural
from shmbus.errors import ConfigError, ShmbusError

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmbus.journal import Journal


def register(commands: _arguments.Commands) -> None:
    """Add `journal`, `replay` and `export`."""
    journal = commands.add_parser(
        "journal",
        help="write the events of a topic to disk",
        description="Take part in a bus as a group of one, and ack each event once the disk has it. Ends at SIGTERM or"
        " Ctrl-C, when what is in hand is written; started again, it goes on where it was.",
    )
    journal.add_argument("bus", metavar="BUS", type=_arguments.bus)
    journal.add_argument(
        "--topic", dest="topics", metavar="TOPIC", type=_arguments.topic, action="append", required=True
    )
    journal.add_argument("--path", metavar="FILE", required=True, help="made if it is not there; one process writes it")
    sync = "an event may wait that long for others to be written with it (default: 0)"
    journal.add_argument("--sync", metavar="SECONDS", type=_from_zero, default=0.0, help=sync)
    journal.add_argument("--max-age", metavar="SECONDS", type=_arguments.seconds, help="let go of what is older")
    journal.add_argument(
        "--max-bytes", metavar="BYTES", type=_arguments.positive, help="let go of the oldest past that"
    )
    journal.add_argument("--store", metavar="PLUGIN", default="sqlite", help="what holds the events (default: sqlite)")
    journal.set_defaults(run=run_journal)
    replay = commands.add_parser("replay", help="publish what a journal has")
    replay.add_argument("journal", metavar="JOURNAL")
    replay.add_argument("bus", metavar="BUS", type=_arguments.bus)
    _selecting(replay)
    speed = "1 keeps the pauses that were between events, 2 halves them (default: no pauses)"
    replay.add_argument("--speed", metavar="FACTOR", type=_arguments.seconds, help=speed)
    replay.set_defaults(run=run_replay)
    export = commands.add_parser("export", help="write what a journal has as JSON lines or Parquet")
    export.add_argument("journal", metavar="JOURNAL")
    _selecting(export)
    export.add_argument("--format", choices=("jsonl", "parquet"), default="jsonl")
    export.add_argument("--output", "-o", metavar="FILE", help="default: stdout, which Parquet does not go to")
    export.set_defaults(run=run_export)


def _selecting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--topic", dest="topics", metavar="TOPIC", type=_arguments.topic, action="append", default=[])
    moment = "a date and time (2026-11-24T12:00), or ns since the epoch"
    parser.add_argument("--since", metavar="TIME", type=_moment, help=f"from there on; {moment}")
    parser.add_argument("--until", metavar="TIME", type=_moment, help="before that")
    parser.add_argument("--publisher", metavar="NAME")
    parser.add_argument("--store", metavar="PLUGIN", default="sqlite")


def run_journal(arguments: argparse.Namespace) -> int:
    """Write until a signal ends it."""
    from shmbus.journal import Recorder
    from shmbus.journal.store import open_store

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    options = {"sync": arguments.sync, "max_age": arguments.max_age, "max_bytes": arguments.max_bytes}
    store = open_store(arguments.store, arguments.path, write=True)
    try:
        with Bus(arguments.bus) as bus:
            recorders = [
                Recorder(bus, topic, arguments.path, store=store, **options)
                for topic in dict.fromkeys(arguments.topics)
            ]
            return until_signal([recorder.run for recorder in recorders], [recorder.stop for recorder in recorders])
    finally:
        store.close()


def until_signal(runs: list[Callable[[], Any]], stops: list[Callable[[], Any]]) -> int:
    """Run each in a thread; at SIGTERM, SIGINT or the first error stop all. Returns the exit code."""
    failed: list[BaseException] = []

    def stop(*_: object) -> None:
        for one in stops:
            one()

    def run(one: Callable[[], Any]) -> None:
        try:
            one()
        except BaseException as error:  # told below, whatever it is
            failed.append(error)
        stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    threads = [threading.Thread(target=run, args=(one,)) for one in runs]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for error in failed:
        if not isinstance(error, (ShmbusError, OSError)):
            raise error
        return complain(error, FAILED)
    return OK


def run_replay(arguments: argparse.Namespace) -> int:
    """Publish, and say how many."""
    from shmbus.journal.export import feed

    with _opened(arguments) as journal, Bus(arguments.bus) as bus:
        topics = arguments.topics or journal.topics
        count = feed(journal, bus, topics, speed=arguments.speed, **_selected(arguments))
    print(f"{plural(count, 'event')} published on {arguments.bus}")
    return OK


def run_export(arguments: argparse.Namespace) -> int:
    """Write the events of each topic, one topic after the other."""
    from shmbus.journal import export

    with _opened(arguments) as journal:
        topics = arguments.topics or list(journal.topics)
        if arguments.format == "parquet":
            if not arguments.output or len(topics) != 1:
                raise ConfigError(f"Parquet is one topic in one file: say --topic and --output: topics={topics}")
            export.to_parquet(
                journal.form(topics[0]), journal.recorded(topics[0], **_selected(arguments)), arguments.output
            )
            return OK
        out = open(arguments.output, "wb") if arguments.output else sys.stdout.buffer  # noqa: SIM115 -- or stdout
        try:
            for topic in topics:
                export.to_json_lines(topic, journal.recorded(topic, **_selected(arguments)), out)
        finally:
            out.close() if arguments.output else out.flush()
    return OK


def _opened(arguments: argparse.Namespace) -> Journal:
    from shmbus.journal import Journal

    return Journal(arguments.journal, store=arguments.store)


def _selected(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"since": arguments.since, "until": arguments.until, "publisher": arguments.publisher}


def _moment(text: str) -> int | datetime:
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a date and time, or ns since the epoch, not {text!r}") from None


def _from_zero(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not (number >= 0 and math.isfinite(number)):
        raise argparse.ArgumentTypeError(f"a number of seconds from 0, not {text!r}")
    return number
