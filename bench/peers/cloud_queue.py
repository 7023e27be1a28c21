"""cloudtoid-interprocess: takes what is there without waiting, then waits in `receive`; a batch is one msgpack array.

That array is quicker than try_send_batch, to which there is no receiving counterpart. No call waits for room. To every
receiver its own queue where all see all; one for everybody elsewhere.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloudtoid_interprocess import Publisher, Subscriber

from . import loops

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..contract import Plan, Shape

DISTRIBUTION: Final = "cloudtoid-interprocess"
SHAPES: Final[frozenset[Shape]] = frozenset({"one", "all", "shared", "merge", "echo"})
CONNECTED: Final = True


@dataclass(frozen=True)
class Wiring:
    """Where the queues are."""

    path: str
    names: list[str]


@contextmanager
def wire(plan: Plan) -> Iterator[Wiring]:
    """A folder in memory, and names for the queues."""
    with loops.folder() as folder:
        names = [f"{folder.name}-{index}" for index in range(plan.receivers if plan.shape == "all" else 1)]
        try:
            yield Wiring(str(folder), names)
        finally:
            for name in names:  # where an end was killed
                Path(f"/dev/shm/sem.ct3ip.{name}").unlink(missing_ok=True)


@contextmanager
def sender(plan: Plan, wiring: Wiring, index: int) -> Iterator[loops.Trier]:
    """Sends to every queue."""
    with ExitStack() as stack:
        ends = [Publisher(name, plan.capacity, wiring.path) for name in wiring.names]
        yield loops.Trier([stack.enter_context(end).try_send for end in ends])


@contextmanager
def receiver(plan: Plan, wiring: Wiring, index: int) -> Iterator[loops.Receiver]:
    """Receives from its own queue, or from the one that all share."""
    with Subscriber(wiring.names[index % len(wiring.names)], plan.capacity, wiring.path) as end:
        yield loops.Receiver(loops.parked(end.try_receive, end.receive))
