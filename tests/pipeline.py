"""The router that the tests of the runner run: two stages over source files, and files that do it harm.

`shmbus run pipeline:router`. A path says what its handler does: "crash" kills its process, "hang" does not return the
first time, "leak" keeps memory, "until" waits for a file of that name, "drained" for the drain, "slow" is for ever,
"exit" leaves. Anything else is parsed. ACK_WITHIN, in the environment, is how many seconds a file may take.
"""

from __future__ import annotations

import ast
import os
import signal
import sysconfig
import threading
import warnings
from pathlib import Path

import msgspec
from support import eventually

import shmbus

PARSERS, COUNTERS, LEDGER = "parsers", "counters", "ledger"
LIMIT = 3
"""Deliveries of a file."""
LEAK = 24 << 20
"""Bytes that a file named so leaves behind."""
ACK_WITHIN = float(os.environ.get("ACK_WITHIN", "600"))
STDLIB = Path(sysconfig.get_path("stdlib"))


class Source(msgspec.Struct, frozen=True):
    path: str


class Parsed(msgspec.Struct, frozen=True):
    path: str
    functions: int
    pid: int


class Counted(msgspec.Struct, frozen=True):
    path: str
    functions: int
    pids: tuple[int, int]


SOURCES = shmbus.Topic("sources", Source)
PARSED = shmbus.Topic("parsed", Parsed)
COUNTED = shmbus.Topic("counted", Counted)
NOTES = shmbus.Topic("notes", Source)
DEAD = shmbus.dead_letter_topic(SOURCES)

router = shmbus.Router()
kept: list[bytearray] = []


def functions(path: str) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse((STDLIB / path).read_bytes())
    return sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(tree))


@router.worker(SOURCES, group=PARSERS, to=PARSED, max_deliver=LIMIT, ack_within=ACK_WITHIN)
def parse(message: shmbus.ClaimedMessage[Source]) -> Parsed:
    path = message.event.path
    kind = path.partition("-")[0]
    if kind == "crash":
        signal.pthread_kill(threading.get_ident(), signal.SIGSEGV)
    elif kind == "hang" and message.attempt == 1:
        threading.Event().wait()
    elif kind == "until":
        eventually(Path(path).exists, seconds=ACK_WITHIN)
    elif kind == "drained":
        eventually(lambda: all(handle.cancelled for handle in router._runs[0]._handles))
    elif kind == "slow":
        threading.Event().wait()
    elif kind == "exit":
        raise SystemExit(5)
    elif kind == "leak":
        kept.append(bytearray(os.urandom(1)) * LEAK)
    return Parsed(path, functions(path) if path.endswith(".py") else 0, os.getpid())


@router.worker(PARSED, group=COUNTERS, to=COUNTED, concurrency=2)
async def count(parsed: Parsed) -> Counted:
    return Counted(parsed.path, parsed.functions, (parsed.pid, os.getpid()))


@router.subscriber(NOTES, name=LEDGER)
async def note(source: Source) -> None:
    await router.apublish(COUNTED, Counted(f"noted {source.path}", 0, (os.getpid(), os.getpid())))


def sources(most: int) -> list[str]:
    """Paths of the standard library, small ones."""
    files = (path for path in sorted(STDLIB.glob("*.py")) if path.stat().st_size < 40_000)
    return [path.name for path in files][:most]
