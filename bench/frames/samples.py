"""iceoryx2: samples that are loaned, and seen in place; wired and waited for as in `peers.samples`."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from ..contract import BenchError
from ..peers import samples
from ..rows import dtype_of
from . import views

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ..contract import Frames, Plan, Shape

DISTRIBUTION: Final = samples.DISTRIBUTION
SHAPES: Final[frozenset[Shape]] = frozenset({"frames", "loans", "rows"})
CONNECTED: Final = True

wire = samples.wire


class _Sender(samples.Sender):
    def copy(self, frames: Frames) -> None:
        move = ctypes.memmove
        self._each(frames, lambda to, frame: move(to, frame.ctypes.data, frame.nbytes))

    rows = copy

    def loan(self, marks: Iterable[bytes]) -> None:
        move = ctypes.memmove
        self._each(marks, lambda to, mark: move(to, mark, 8))

    def _each(self, things: Iterable[Any], put: Callable[[int, Any], object]) -> None:
        things = iter(things)
        self._all(islice(things, 1), put)
        self.await_receivers()
        self._all(things, put)

    def _all(self, things: Iterable[Any], put: Callable[[int, Any], object]) -> None:
        loan, notify, receivers = self.publisher.loan_uninit, self.notify, self.receivers
        for thing in things:
            sample = loan()
            put(sample.payload_ptr, thing)
            if (reached := sample.assume_init().send()) != receivers:
                raise BenchError(f"a sample was dropped: reached={reached}, receivers={receivers}")
            if notify:
                notify()


class _Receiver(samples.Receiver):
    def __init__(self, samples: Iterator[Any], kind: Any, plan: Plan) -> None:
        super().__init__(samples, kind)
        self._dtype = dtype_of(plan.size)

    def frames(self) -> Iterator[Any]:
        at = self.at
        return (at(sample.payload_ptr) for sample in self.samples)

    def rows(self) -> Iterator[Any]:
        return views.rows(self.frames(), self._dtype)


@contextmanager
def sender(plan: Plan, wiring: str, index: int) -> Iterator[_Sender]:
    """A publisher, connected to every subscriber."""
    yield _Sender(plan, *samples.publisher(plan, wiring))


@contextmanager
def receiver(plan: Plan, wiring: str, index: int) -> Iterator[_Receiver]:
    """A subscriber."""
    yield _Receiver(*samples.subscription(plan, wiring, index), plan)
