"""What workloads, peers and the harness agree on.

A peer is a module of `peers/`, a workload one of `workloads/`; both are found by name, in every process anew, so that
nothing but plain data is handed to the children.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from bench.event import Tick

Shape = Literal["one", "all", "shared"]
"""Who gets an event: the only receiver, every receiver, or one of those that compete."""


class BenchError(Exception):
    """A run that came to no result; the text says why."""


@dataclass(frozen=True)
class Plan:
    """One run of one workload with one peer."""

    workload: str
    peer: str
    shape: Shape
    events: int
    receivers: int = 1
    batch: int = 1
    """Events a call."""
    rate: int = 0
    """Events a second; 0: as fast as it goes."""


@dataclass(frozen=True)
class Latency:
    """One way, from the stamp before the send to the decoded event, in ns."""

    p50: int
    p99: int
    p999: int
    max: int


@dataclass(frozen=True)
class Sent:
    """What the sending process measured."""

    first_ns: int
    """CLOCK_MONOTONIC before the first event."""
    last_ns: int
    """The same once everything is handed over."""
    cpu: float
    """CPU seconds of the process, all threads, in between."""


@dataclass(frozen=True)
class Received:
    """What one receiving process measured."""

    events: int
    last_ns: int
    """CLOCK_MONOTONIC after the last event."""
    first_ns: int = 0
    """The same before it began to wait for the first one; filled in by the harness, as is `cpu`."""
    cpu: float = 0.0
    checksum: int = 0
    """Sum of the sequences, where events are shared."""
    lost: int = 0
    latency: Latency | None = None


class Sender(Protocol):
    """The sending end. One of the two methods is called, once a run; it returns when this process has no more to do."""

    def send(self, events: Iterable[Tick]) -> None:
        """Encode and send each event by a call of its own."""
        ...

    def send_batches(self, batches: Iterable[list[Tick]]) -> None:
        """Encode and send each list at once, the cheapest way that the peer has."""
        ...


class Receiver(Protocol):
    """One receiving end; what it yields is decoded. The iterators need not end."""

    def events(self) -> Iterator[Tick]:
        """Receive each event by a call of its own."""
        ...

    def batches(self, size: int) -> Iterator[Sequence[Tick]]:
        """Receive up to `size` events, or what was sent at once, by a call."""
        ...


class Peer(Protocol):
    """A module of `peers/`. Importing it raises ImportError where the peer is not installed."""

    DISTRIBUTION: str | None
    """What to ask the version of; None for what comes with Python."""
    SHAPES: frozenset[Shape]
    CONNECTED: bool
    """Whether what is sent is what is received: not so at the codec ceiling."""

    def wire(self, plan: Plan) -> AbstractContextManager[Any]:
        """In the parent: what both ends need to find each other; it goes to the children as a process argument."""
        ...

    def sender(self, plan: Plan, wiring: Any) -> AbstractContextManager[Sender]:
        """In the sending process."""
        ...

    def receiver(self, plan: Plan, wiring: Any, index: int) -> AbstractContextManager[Receiver]:
        """In a receiving process, ready for events when it is entered."""
        ...


class Workload(Protocol):
    """A module of `workloads/`. Its title is its docstring's first line."""

    SHAPE: Shape
    RECEIVERS: int
    BATCH: int
    PACED: bool
    CEILING: bool
    """Whether the codec ceiling says anything about it."""

    def produce(self, plan: Plan, sender: Sender) -> None:
        """In the sending process, between two looks at the clock."""
        ...

    def consume(self, plan: Plan, receiver: Receiver) -> Received:
        """In each receiving process. Raises SequenceError."""
        ...
