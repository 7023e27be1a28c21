"""pyzmq, PUB/SUB over ipc without drops: XPUB with XPUB_NODROP waits at its high-water mark. A batch is one message.

Subscribers connect before there is a publisher: only so is their subscription sent while they do not receive. A
publisher waits for those of all receivers.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import zmq

from . import loops

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..contract import Plan, Shape

DISTRIBUTION: Final = "pyzmq"
SHAPES: Final[frozenset[Shape]] = frozenset({"one", "all", "merge", "echo"})
CONNECTED: Final = True

_LARGE: Final = 1 << 16  # bytes of a message; the usual mark, 1,000 messages, is too far off for such
_RECONNECT: Final = 10  # ms


@contextmanager
def wire(plan: Plan) -> Iterator[list[str]]:
    """An address for every sender."""
    with loops.folder() as folder:
        yield [f"ipc://{folder}/{index}" for index in range(plan.senders)]


@contextmanager
def sender(plan: Plan, wiring: list[str], index: int) -> Iterator[loops.Sender]:
    """Bound, and subscribed to by every receiver; at the end it waits until all messages have left."""
    with zmq.Context() as context, _socket(context, plan, zmq.XPUB) as socket:
        socket.setsockopt(zmq.XPUB_NODROP, 1)
        socket.setsockopt(zmq.XPUB_VERBOSE, 1)  # each subscription is told, not only the first
        socket.bind(wiring[index])
        for _ in range(plan.receivers):
            socket.recv()
        yield loops.Sender([socket.send])


@contextmanager
def receiver(plan: Plan, wiring: list[str], index: int) -> Iterator[loops.Receiver]:
    """Subscribed to everything of every sender."""
    with zmq.Context() as context, _socket(context, plan, zmq.SUB) as socket:
        socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT)
        socket.subscribe(b"")
        for address in wiring:
            socket.connect(address)
        yield loops.Receiver(iter(socket.recv, None))


def _socket(context: zmq.Context[zmq.Socket[bytes]], plan: Plan, kind: int) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    if loops.length(plan) > _LARGE:
        socket.set_hwm(plan.capacity // loops.length(plan))
    return socket
