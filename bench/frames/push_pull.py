"""pyzmq, PUSH/PULL over ipc, `copy=False` at both ends: the kernel copies into the socket and out of it.

With `copy=False` a sender must not write into an array before libzmq has let go of it, so every frame is sent from one
of a few arrays in turn, which its tracker is asked about; that is a copy into such an array, as for the others.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import cycle
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import zmq

from ..peers import push_pull
from ..rows import dtype_of
from . import views

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..contract import Frames, Plan, Shape

DISTRIBUTION: Final = push_pull.DISTRIBUTION
SHAPES: Final[frozenset[Shape]] = frozenset({"frames", "rows"})
CONNECTED: Final = True

wire = push_pull.wire


class _Sender:
    def __init__(self, socket: Any, plan: Plan) -> None:
        self._send = socket.send
        self._slots = [np.zeros(views.length(plan), np.uint8) for _ in range(views.slots(plan) + 1)]

    def copy(self, frames: Frames) -> None:
        send = self._send
        trackers: list[Any] = [None] * len(self._slots)
        for number, frame in zip(cycle(range(len(self._slots))), frames, strict=False):
            if trackers[number] is not None:
                trackers[number].wait()
            slot = self._slots[number]
            slot[:] = frame
            trackers[number] = send(slot, copy=False, track=True)

    def rows(self, arrays: Frames) -> None:
        self.copy(rows.view(np.uint8) for rows in arrays)


class _Receiver:
    def __init__(self, socket: Any, dtype: Any) -> None:
        self._recv, self._dtype = socket.recv, dtype

    def frames(self) -> Iterator[Any]:
        return (frame.buffer for frame in iter(lambda: self._recv(copy=False), None))

    def rows(self) -> Iterator[Any]:
        return views.rows(self.frames(), self._dtype)


@contextmanager
def sender(plan: Plan, wiring: list[str], index: int) -> Iterator[_Sender]:
    """Connected."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.set_hwm(views.slots(plan))
        push_pull.connect(socket, wiring)
        yield _Sender(socket, plan)


@contextmanager
def receiver(plan: Plan, wiring: list[str], index: int) -> Iterator[_Receiver]:
    """Bound before it is ready."""
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.set_hwm(views.slots(plan))
        socket.bind(wiring[index])
        yield _Receiver(socket, dtype_of(plan.size))
