"""A pool in executable Python, and a subscriber of the mode "latest": the specification that both are tested against.
Imports nothing of the project.

No memory, no clock, no words: an extent is a number of blocks, and those that it is owed to or that look at it.

    P1  an extent is not free while anybody is owed it or looks at it
    P2  what nobody is owed or looks at is free
    P5  a loan that was never published is its own holder, until it is given up
    F   an allocation fails if and only if fewer blocks are free than it needs
"""

from __future__ import annotations

from dataclasses import dataclass, field

BLOCK = 4096


def blocks(size: int) -> int:
    return max(1, -(-size // BLOCK))


@dataclass
class ModelPool:
    """One publisher's pool, the reliable subscribers and the one group that its events are owed to."""

    total: int
    """Blocks."""
    extents: dict[int, int] = field(default_factory=dict)
    """Blocks of each, by number; those that are free are not there."""
    queues: dict[str, list[int]] = field(default_factory=dict)
    """Numbers of the events that each consumer has yet to receive."""
    views: dict[int, int] = field(default_factory=dict)
    """How many views there are of each extent, loans among them."""
    claimed: int | None = None
    """What the group's worker has, and has not acked."""

    @property
    def used(self) -> int:
        return sum(self.extents.values())

    def fits(self, size: int) -> bool:
        return blocks(size) <= self.total - self.used

    def lend(self, number: int, size: int) -> None:
        assert self.fits(size)
        self.extents[number] = blocks(size)
        self.views[number] = 1

    def publish(self, number: int, size: int) -> None:
        """An event of one array, lent before or copied now."""
        self.extents.setdefault(number, blocks(size))
        for queue in self.queues.values():
            queue.append(number)
        self.settle(number)

    def receive(self, name: str) -> int | None:
        """The next event of a consumer, which looks at it from now on."""
        if name == "group":
            self.ack()
        if not self.queues[name]:
            return None
        number = self.queues[name].pop(0)
        self.views[number] = self.views.get(number, 0) + 1
        if name == "group":
            self.claimed = number
        return number

    def ack(self) -> None:
        number, self.claimed = self.claimed, None
        if number is not None:
            self.settle(number)

    def let_go(self, number: int) -> None:
        """One view, or a loan, is gone."""
        self.views[number] -= 1
        self.settle(number)

    def leave(self, name: str) -> None:
        for number in self.queues.pop(name):
            self.settle(number)

    def settle(self, number: int) -> None:
        owed = number == self.claimed or any(number in queue for queue in self.queues.values())
        if not owed and not self.views.get(number):
            self.extents.pop(number, None)
            self.views.pop(number, None)


@dataclass
class ModelLatest:
    """A subscriber that is handed the newest event of each publisher."""

    pending: dict[str, list[int]] = field(default_factory=dict)
    """What each publisher has published since the subscriber last looked at it."""
    offered: int = 0
    delivered: int = 0
    overrun: int = 0

    def publish(self, name: str, number: int) -> None:
        self.pending.setdefault(name, []).append(number)
        self.offered += 1

    def candidates(self) -> dict[int, str]:
        """The events that may come now, and whose they are: the newest of each."""
        return {numbers[-1]: name for name, numbers in self.pending.items() if numbers}

    def receive(self, number: int) -> None:
        numbers = self.pending[self.candidates()[number]]
        self.delivered += 1
        self.overrun += len(numbers) - 1
        numbers.clear()

    @property
    def depth(self) -> int:
        return sum(map(len, self.pending.values()))
