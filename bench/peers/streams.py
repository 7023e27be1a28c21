"""Redis streams over a Unix socket, without persistence: XADD, XREAD, and XREADGROUP with NOACK for workers.

A batch is one entry with one msgpack array, quicker than a pipeline. A stream grows without bound, so a sender never
waits; where entries are large the receiver trims what it has read. There must be a redis-server on PATH.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import redis

from ..contract import BenchError
from . import loops

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ..contract import Plan, Shape

DISTRIBUTION: Final = "redis"
SHAPES: Final[frozenset[Shape]] = frozenset({"one", "all", "shared", "merge", "echo"})
CONNECTED: Final = True

_SERVER: Final = shutil.which("redis-server")
if _SERVER is None:
    raise ImportError("no redis-server on PATH")

_STREAM: Final = "ticks"
_GROUP: Final = "workers"
_FIELD: Final = b"p"
_LARGE: Final = 1 << 16  # bytes of an entry
_START_SECONDS: Final = 10.0


@contextmanager
def wire(plan: Plan) -> Iterator[str]:
    """The socket of a server of its own."""
    with loops.folder() as folder, _server(folder) as address:
        if plan.shape == "shared":
            with _client(address) as client:
                client.xgroup_create(_STREAM, _GROUP, id="0", mkstream=True)
        yield address


@contextmanager
def sender(plan: Plan, wiring: str, index: int) -> Iterator[loops.Sender]:
    """Adds to the stream."""
    with _client(wiring) as client:
        add = client.xadd

        def send(payload: bytes) -> None:
            add(_STREAM, {_FIELD: payload})

        yield loops.Sender([send])


@contextmanager
def receiver(plan: Plan, wiring: str, index: int) -> Iterator[loops.Receiver]:
    """Reads the stream from its beginning, or as a consumer of the group."""
    with _client(wiring) as client:
        if plan.shape == "shared":
            yield loops.Receiver(_claimed(client, f"worker{index}"))
        else:
            yield loops.Receiver(_read(client, trim=loops.length(plan) > _LARGE))


def _read(client: redis.Redis, trim: bool) -> Iterator[bytes]:
    last = b"0"
    while True:
        reply: Any = client.xread({_STREAM: last}, count=1, block=0)
        ((_, ((last, fields),)),) = reply
        yield fields[_FIELD]
        if trim:
            client.xdel(_STREAM, last)


def _claimed(client: redis.Redis, worker: str) -> Iterator[bytes]:
    while True:
        reply: Any = client.xreadgroup(_GROUP, worker, {_STREAM: ">"}, count=1, block=0, noack=True)
        ((_, ((_, fields),)),) = reply
        yield fields[_FIELD]


@contextmanager
def _server(folder: Path) -> Iterator[str]:
    address = str(folder / "socket")
    options = {"--port": "0", "--unixsocket": address, "--save": "", "--appendonly": "no", "--dir": str(folder)}
    command = [str(_SERVER), *(part for option in options.items() for part in option)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            _await(process, address)
            yield address
        finally:
            process.kill()


def _await(process: subprocess.Popen[bytes], address: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    with _client(address) as client:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                client.ping()
                return
            except redis.ConnectionError:
                time.sleep(0.01)
    raise BenchError(f"redis-server did not start: exit code {process.poll()}, {_START_SECONDS:g} s")


def _client(address: str) -> redis.Redis:
    return redis.Redis(unix_socket_path=address, protocol=2)
