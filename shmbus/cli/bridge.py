"""`bridge`: topics of a bus to a broker, and from it."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING

from shmbus.bus import Bus
from shmbus.cli import _arguments
from shmbus.cli.journal import until_signal

if TYPE_CHECKING:
    from collections.abc import Sequence


def register(commands: _arguments.Commands) -> None:
    """Add `bridge`."""
    bridge = commands.add_parser(
        "bridge",
        help="carry topics to a broker and from it",
        description="At least once, until SIGTERM or Ctrl-C. Credentials come from a file or from SHMBUS_BRIDGE_USER,"
        " _PASSWORD, _TOKEN, _CAFILE, _CERTFILE, _KEYFILE, _CREDS, never from the command line.",
    )
    bridge.add_argument("bus", metavar="BUS", type=_arguments.bus)
    bridge.add_argument("url", metavar="URL", help="nats://, redis://, kafka://, amqp:// or a plugin's")
    _topics(bridge, "--out", "out", "to the broker; again for more of them")
    _topics(bridge, "--in", "in_", "from the broker; again for more of them")
    bridge.add_argument("--name", metavar="NAME", help="what our place is kept under (default: host and bus)")
    bridge.add_argument("--credentials", metavar="FILE", help="TOML that only its owner may read")
    key = "the field whose events stay in order, where the broker has such a thing (default: a publisher's do)"
    bridge.add_argument("--key", metavar="TOPIC=FIELD", action="append", default=[], type=_pair, help=key)
    bridge.add_argument("--spool", metavar="FILE", help="a journal that holds what cannot be sent")
    bridge.set_defaults(run=run)


def _topics(parser: argparse.ArgumentParser, flag: str, dest: str, help: str) -> None:
    parser.add_argument(flag, dest=dest, metavar="TOPIC", type=_arguments.topic, action="append", default=[], help=help)


def run(arguments: argparse.Namespace) -> int:
    """Carry until a signal ends it, or the broker refuses us."""
    from shmbus.bridge import Bridge

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with Bus(arguments.bus) as bus:
        out: Sequence[str] = arguments.out
        bridge = Bridge(
            bus,
            arguments.url,
            out=out,
            in_=arguments.in_,
            name=arguments.name,
            credentials=arguments.credentials,
            key=dict(arguments.key),
            spool=arguments.spool,
        )
        return until_signal([bridge.run], [bridge.stop])


def _pair(text: str) -> tuple[str, str]:
    topic, sign, field = text.partition("=")
    if not (topic and sign and field):
        raise argparse.ArgumentTypeError(f"TOPIC=FIELD, not {text!r}")
    return topic, field
