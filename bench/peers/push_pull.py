"""pyzmq, PUSH/PULL over ipc; a batch is one message, a msgpack array.

A PUSH socket waits at its high-water mark and drops nothing. Where all see all, there is one for every receiver (PUB
would drop); where receivers compete, one deals to all of them in turn, without a mark, so that the deal is exact and
each gets one of the last events, which tell it to stop.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

import zmq

from ..event import decode, decode_many, encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..contract import Plan, Shape
    from ..event import Tick

DISTRIBUTION: Final = "pyzmq"
SHAPES: Final[frozenset[Shape]] = frozenset({"one", "all", "shared", "merge", "echo"})
CONNECTED: Final = True

_LARGE: Final = 1 << 16  # bytes of an event; the usual mark, 1,000 messages, is too far off for such


@contextmanager
def wire(plan: Plan) -> Iterator[list[str]]:
    """An address for every receiver."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        yield [f"ipc://{folder}/{index}" for index in range(plan.receivers)]


class _Sender:
    def __init__(self, sockets: list[zmq.Socket[bytes]]) -> None:
        self._sockets = sockets

    def send(self, events: Iterable[Tick]) -> None:
        first, *others = [socket.send for socket in self._sockets]
        for event in events:
            payload = encode(event)
            first(payload)
            for send in others:
                send(payload)

    def send_batches(self, batches: Iterable[list[Tick]]) -> None:
        send = self._sockets[0].send
        for batch in batches:
            send(encode(batch))


class _Receiver:
    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket

    def events(self) -> Iterator[Tick]:
        return map(decode, iter(self._socket.recv, None))

    def batches(self, size: int) -> Iterator[list[Tick]]:
        return map(decode_many, iter(self._socket.recv, None))


@contextmanager
def sender(plan: Plan, wiring: list[str], index: int) -> Iterator[_Sender]:
    """Connects to every receiver; at the end it waits until all messages have left."""
    count = 1 if plan.shape == "shared" else plan.receivers
    with zmq.Context() as context, ExitStack() as stack:
        sockets = [stack.enter_context(_socket(context, plan, zmq.PUSH)) for _ in range(count)]
        for number, socket in enumerate(sockets):
            connect(socket, wiring[number::count])
        yield _Sender(sockets)


@contextmanager
def receiver(plan: Plan, wiring: list[str], index: int) -> Iterator[_Receiver]:
    """Bound before it is ready, so that the sender finds it."""
    with zmq.Context() as context, _socket(context, plan, zmq.PULL) as socket:
        socket.bind(wiring[index])
        yield _Receiver(socket)


def connect(socket: zmq.Socket[bytes], addresses: list[str]) -> None:
    """Connect, and wait until that is done: the handshakes would be measured otherwise."""
    with socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED) as monitor:
        for address in addresses:
            socket.connect(address)
        for _ in addresses:
            monitor.recv_multipart()
        socket.disable_monitor()


def _socket(context: zmq.Context[zmq.Socket[bytes]], plan: Plan, kind: int) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    if plan.shape == "shared":
        socket.set_hwm(0)
    elif plan.size > _LARGE:
        socket.set_hwm(plan.capacity // plan.size)
    return socket
