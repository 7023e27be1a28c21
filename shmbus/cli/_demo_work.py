"""The work of the demo: what an event carries, how a file is examined, the program of a worker process.

`python -m shmbus.cli._demo_work BUS` is one worker of the group "parsers". It works until its standard input
ends, so it cannot outlive the process that holds the other end, however that dies.
"""

from __future__ import annotations

import ast
import os
import signal
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Final

import msgspec

import shmbus

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUP: Final = "parsers"
STDIN: Final = 0
_AGAIN: Final = 0.05  # seconds until a router that has not ended is told once more


class Source(msgspec.Struct, frozen=True):
    """A file to be examined."""

    path: str
    text: bytes


class Function(msgspec.Struct, frozen=True, array_like=True):
    """A function or method, and how long it is."""

    name: str
    """With the classes and functions around it: "Popen._execute_child"."""
    line: int
    lines: int


class Found(msgspec.Struct, frozen=True):
    """What is in a file."""

    path: str
    lines: int
    classes: int
    functions: tuple[Function, ...]
    error: str
    """Why it does not parse, '' if it does."""


class Report(msgspec.Struct, frozen=True):
    """What a worker publishes: what it found, and how often the file had been handed out by then."""

    found: Found
    attempt: int


SOURCES: Final = shmbus.Topic("sources", Source, capacity=8 << 20)  # an event may take a quarter: 2 MiB
FOUND: Final = shmbus.Topic("found", Report, capacity=1 << 20)


def examine(source: Source) -> Found:
    """Parse one file and count what is in it."""
    lines = source.text.count(b"\n") + (not source.text.endswith(b"\n") and source.text != b"")
    try:
        tree = ast.parse(source.text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # what a parser says of bad input
        return Found(source.path, lines, 0, (), type(error).__name__)
    functions: list[Function] = []
    classes = 0
    for node, name in _definitions(tree):
        if isinstance(node, ast.ClassDef):
            classes += 1
        else:
            last = node.end_lineno or node.lineno
            functions.append(Function(name, node.lineno, last - node.lineno + 1))
    return Found(source.path, lines, classes, tuple(functions), "")


def _definitions(
    tree: ast.Module,
) -> Iterator[tuple[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    """Every class and function with its qualified name, in no particular order but always the same."""
    nodes: list[tuple[ast.AST, str]] = [(tree, "")]
    while nodes:
        node, prefix = nodes.pop()
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = prefix + node.name
            yield node, name
            prefix = f"{name}."
        nodes.extend((child, prefix) for child in ast.iter_child_nodes(node))


router: Final = shmbus.Router()


@router.worker(SOURCES, group=GROUP, to=FOUND)
def parse(message: shmbus.ClaimedMessage[Source]) -> Report:
    """A file's report is out before the file is acked: a kill in between yields it twice, never not at all."""
    return Report(examine(message.event), message.attempt)


def main(bus_name: str) -> None:
    """Examine files until standard input ends."""
    warnings.simplefilter("ignore")  # the parser's, about code that is not ours
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all of the terminal; who started us decides
    ended = threading.Event()

    def cancel_at_end_of_input() -> None:
        while os.read(STDIN, 1):
            pass
        router.cancel()
        while not ended.wait(_AGAIN):  # it was only about to begin
            router.cancel()

    with shmbus.Bus.attach(bus_name) as bus:
        threading.Thread(target=cancel_at_end_of_input, daemon=True).start()
        try:
            router.run(bus)
        finally:
            ended.set()


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except (shmbus.ClosedError, shmbus.BusNotFoundError):
        sys.exit(0)  # the demo was ended and its bus removed under us
