"""multiprocessing.Pipe, in one direction; a batch is one msgpack array."""

from __future__ import annotations

import multiprocessing
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from . import loops

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from ..contract import Plan, Shape

DISTRIBUTION: Final = None
SHAPES: Final[frozenset[Shape]] = frozenset({"one", "echo"})
CONNECTED: Final = True


@contextmanager
def wire(plan: Plan) -> Iterator[tuple[Connection, Connection]]:
    """The ends: to receive from, and to send to."""
    receive_end, send_end = multiprocessing.get_context("spawn").Pipe(duplex=False)
    with receive_end, send_end:
        yield receive_end, send_end


@contextmanager
def sender(plan: Plan, wiring: tuple[Connection, Connection], index: int) -> Iterator[loops.Sender]:
    """Writes to the pipe."""
    yield loops.Sender([wiring[1].send_bytes])


@contextmanager
def receiver(plan: Plan, wiring: tuple[Connection, Connection], index: int) -> Iterator[loops.Receiver]:
    """Reads from the pipe."""
    yield loops.Receiver(iter(wiring[0].recv_bytes, None))
