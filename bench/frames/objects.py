"""The codec ceiling of rows: the sender only encodes each row with msgpack, the receiver only decodes one."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ..rows import batches, row, row_type

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager

    from ..contract import Frames, Plan, Shape

DISTRIBUTION: Final = "msgspec"
SHAPES: Final[frozenset[Shape]] = frozenset({"rows"})
CONNECTED: Final = False


def wire(plan: Plan) -> AbstractContextManager[None]:
    """Nothing: the two ends never meet."""
    return nullcontext()


class _Sender:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def rows(self, arrays: Frames) -> None:
        encode = msgspec.msgpack.Encoder().encode
        events = [row(self._plan.size, seq) for seq in range(self._plan.batch)]
        for _ in range(self._plan.events // self._plan.batch):
            for event in events:
                encode(event)


class _Receiver:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def rows(self) -> Iterator[Any]:
        plan = self._plan
        decode = msgspec.msgpack.Decoder(row_type(plan.size)).decode
        payloads: Iterable[bytes] = [msgspec.msgpack.encode(row(plan.size, seq)) for seq in range(plan.batch)]
        for rows in batches(plan.events, plan.batch, plan.size):
            for payload in payloads:
                decode(payload)
            yield rows


@contextmanager
def sender(plan: Plan, wiring: None, index: int) -> Iterator[_Sender]:
    """One that only encodes."""
    yield _Sender(plan)


@contextmanager
def receiver(plan: Plan, wiring: None, index: int) -> Iterator[_Receiver]:
    """One that only decodes."""
    yield _Receiver(plan)
