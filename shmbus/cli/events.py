"""`tail` and `pub`: events of a topic onto the screen, and from the command line into a topic.

`tail` takes no slot, delays nobody and stays off the books. `pub` is a publisher like any other, for as long
as it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from shmbus import Bus, inspect
from shmbus.cli import _arguments
from shmbus.cli._exit import OK, complain
from shmbus.cli._render import plural, printable
from shmbus.cli._streams import abandoned, ascii_json

if TYPE_CHECKING:
    from collections.abc import Iterator

_PAUSE: Final = 0.02  # seconds between two looks for news; nobody wakes a reader that takes no slot


def register(commands: _arguments.Commands) -> None:
    """Add `tail` and `pub`."""
    tail = commands.add_parser("tail", help="print the events of a topic as they come")
    tail.add_argument("bus", metavar="BUS", type=_arguments.bus, nargs="?")
    tail.add_argument("topic", metavar="TOPIC", type=_arguments.topic, nargs="?")
    tail.add_argument("--journal", metavar="FILE", help="begin with what a journal has; without BUS, end with it")
    tail.add_argument("--json", action="store_true", help="print one JSON object a line")
    tail.add_argument("--oldest", action="store_true", help="begin with the oldest events still there")
    tail.add_argument("-n", dest="count", metavar="COUNT", type=_arguments.positive, help="end after COUNT events")
    tail.set_defaults(run=run_tail, usage=tail.error)
    pub = commands.add_parser("pub", help="publish a JSON document as an event")
    pub.add_argument("bus", metavar="BUS", type=_arguments.bus)
    pub.add_argument("topic", metavar="TOPIC", type=_arguments.topic)
    pub.add_argument("json", metavar="JSON", help="the event, or - for one a line from stdin")
    pub.add_argument("-H", "--header", dest="headers", metavar="KEY=VALUE", action="append", default=[], type=_header)
    pub.set_defaults(run=run_pub)


def run_tail(arguments: argparse.Namespace) -> int:
    """Print events until COUNT of them were printed, or Ctrl-C, which is how it is meant to end."""
    if arguments.topic is None and (arguments.bus or not arguments.journal):
        arguments.usage("it needs BUS and TOPIC, or --journal FILE")
    show = as_json if arguments.json else as_text
    left = arguments.count
    try:
        for item in _items(arguments):
            print(show(item))
            left = left - 1 if left and not item.gap else left
            if left == 0:
                break
    except KeyboardInterrupt:
        pass
    return OK


def run_pub(arguments: argparse.Namespace) -> int:
    """Publish and print the sequence of each event."""
    headers = dict(arguments.headers) or None
    with Bus.attach(arguments.bus) as bus, inspect.JsonPublisher(bus, arguments.topic) as publisher:
        for text in _documents(arguments.json):
            print(publisher.publish(text, headers=headers))
    return OK


def as_text(item: inspect.Tailed) -> str:
    """`12:00:00.123456 pub-1 #42 {"order_id":1}` and the headers, if any; a gap says how many are missing."""
    publisher = printable(item.publisher)
    if item.gap:
        return f"-- {publisher}: {plural(item.gap, 'event')} missed --"
    seconds, ns = divmod(item.time_ns, 1_000_000_000)
    when = f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{ns // 1000:06d}"
    headers = f"  {_json(item.headers)}" if item.headers else ""
    return f"{when} {publisher} #{item.sequence} {_json(item.event)}{headers}"


def as_json(item: inspect.Tailed) -> str:
    """The fields of the item as one JSON object."""
    fields = ("publisher", "sequence", "time_ns", "id", "headers", "event", "gap")
    return ascii_json({name: getattr(item, name) for name in fields}, enc_hook=repr)


def _json(value: Any) -> str:
    """JSON on one line, with everything that a terminal would act upon escaped."""
    text = msgspec.json.encode(value, enc_hook=repr).decode()
    return text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def _items(arguments: argparse.Namespace) -> Iterator[inspect.Tailed]:
    """What the journal has, if one is named, then what the bus has and gets."""
    told: dict[str, int] = {}
    if arguments.journal:
        for item in _recorded(arguments.journal, arguments.topic):
            told[item.publisher] = item.time_ns
            yield item
        if arguments.bus is None:
            return
    with inspect.Tail(arguments.bus, arguments.topic, oldest=arguments.oldest or bool(told)) as tail:
        for item in _follow(tail):
            if item.gap or item.time_ns > told.get(item.publisher, 0):
                yield item


def _recorded(path: str, topic: str | None) -> Iterator[inspect.Tailed]:
    from shmbus.journal import Journal
    from shmbus.journal.export import headers_of

    with Journal(path) as journal:
        for name in [topic] if topic else journal.topics:
            for _, entry, event in journal.recorded(name):
                yield inspect.Tailed(entry.publisher, entry.sequence, entry.time_ns, headers_of(entry.headers), event)


def _follow(tail: inspect.Tail) -> Iterator[inspect.Tailed]:
    while True:
        items = tail.read()
        yield from items
        if items:
            continue
        if tail.removed:
            complain("the bus was removed")
            return
        sys.stdout.flush()
        if abandoned():
            return
        time.sleep(_PAUSE)


def _documents(text: str) -> Iterator[bytes]:
    """The one document of the command line, or the lines of stdin that are not blank; UTF-8 in every locale."""
    if text != "-":
        yield os.fsencode(text)
        return
    for document in sys.stdin.buffer:
        if document.strip():
            yield document


def _header(text: str) -> tuple[str, str]:
    try:
        text = os.fsencode(text).decode()
    except UnicodeDecodeError:
        raise argparse.ArgumentTypeError(f"not UTF-8: {text!r}") from None
    key, sign, value = text.partition("=")
    if not (key and sign):
        raise argparse.ArgumentTypeError(f"KEY=VALUE, not {text!r}")
    return key, value
