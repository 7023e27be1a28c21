"""mmbus: a slot is written by `publish` and read by `recv`; both copy. Wired as in `peers.map_bus`."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from ..peers import loops, map_bus
from ..rows import dtype_of
from . import views

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..contract import Frames, Plan, Shape

DISTRIBUTION: Final = map_bus.DISTRIBUTION
SHAPES: Final[frozenset[Shape]] = frozenset({"frames", "rows"})
CONNECTED: Final = True

wire = map_bus.wire


class _Sender:
    def __init__(self, attempt: Any) -> None:
        self._attempt = attempt

    def copy(self, frames: Frames) -> None:
        attempt = self._attempt
        for frame in frames:
            payload = frame.tobytes()  # it takes bytes alone
            if not attempt(payload):
                loops.insist(attempt, payload)

    rows = copy


class _Receiver:
    def __init__(self, connecting: Any, dtype: Any) -> None:
        self._connecting, self._dtype = connecting, dtype

    def frames(self) -> Iterator[Any]:
        end = self._connecting.result()
        return loops.parked(end.try_recv, end.recv)

    def rows(self) -> Iterator[Any]:
        return views.rows(self.frames(), self._dtype)


@contextmanager
def sender(plan: Plan, wiring: str, index: int) -> Iterator[_Sender]:
    """The publisher, once every receiver is connected."""
    with map_bus.attempts(plan, wiring, index) as attempt:
        yield _Sender(attempt)


@contextmanager
def receiver(plan: Plan, wiring: str, index: int) -> Iterator[_Receiver]:
    """A subscriber."""
    with map_bus.connecting(plan, wiring) as (found,):
        yield _Receiver(found, dtype_of(plan.size))
