"""What workloads, peers and the harness agree on.

A peer is a module of `peers/`, a workload one of `workloads/`; both are found by name, in every process anew, so that
nothing but plain data is handed to the children.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from .event import Tick

Shape = Literal["one", "all", "shared", "merge", "echo", "frames", "loans", "rows"]
"""Who gets an event: the only receiver, every receiver, one of those that compete, the one receiver of many senders, or
each of two processes what the other one sends. The last three are bytes without a codec, to one receiver: copied in and
seen in place, memory that is handed out and not written to, arrays of rows."""

Frames = Iterable[Any]
"""NumPy arrays that are contiguous; always the same one as a rule."""

Idle = Literal["adaptive", "park", "spin"]
"""How a receiver waits: as the peer thinks best, asleep, or awake."""


class BenchError(Exception):
    """A run that came to no result; the text says why."""


class UnableError(BenchError):
    """A plan that a peer cannot carry out by its nature; the text says why. `Peer.wire` raises it, and the peer is left
    out of the workload.
    """


@dataclass(frozen=True)
class Plan:
    """One run of one workload with one peer."""

    workload: str
    peer: str
    shape: Shape
    events: int
    """Of all senders together."""
    senders: int = 1
    receivers: int = 1
    batch: int = 1
    """Events a call."""
    rate: int = 0
    """Events a second; 0: as fast as it goes."""
    size: int = 256
    """Bytes of an event as msgpack."""
    capacity: int = 1 << 20
    """Bytes that a ring or queue holds, as near as the peer can say."""
    idle: Idle = "adaptive"


@dataclass(frozen=True)
class Setup:
    """What a workload is made of, whoever carries it."""

    shape: Shape
    senders: int = 1
    receivers: int = 1
    batch: int = 1
    size: int = 256
    capacity: int = 1 << 20
    paced: bool = False
    """At a rate that is asked for; otherwise as fast as it goes."""
    trial: int = 10_000
    """Events of the run that measures how many a run takes."""
    variants: bool = False
    """Whether it matters how receivers wait."""
    yardsticks: tuple[str, ...] = ("ceiling",)


@dataclass(frozen=True)
class Latency:
    """One way from the stamp before the send to the decoded event, or round trip, in ns."""

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
    samples: array[int] | None = None
    """Latencies in ns; the harness makes `latency` of them when the clocks have stopped."""
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
        """In the parent: what both ends need to find each other; it goes to the children as a process argument.

        An echo is wired as two plans of shape "one", a way each.
        """
        ...

    def sender(self, plan: Plan, wiring: Any, index: int) -> AbstractContextManager[Sender]:
        """In a sending process, after every receiver is ready."""
        ...

    def receiver(self, plan: Plan, wiring: Any, index: int) -> AbstractContextManager[Receiver]:
        """In a receiving process, ready for events when it is entered."""
        ...


class FrameSender(Protocol):
    """The sending end of blocks of bytes; it has the methods of the shapes that its peer names."""

    def copy(self, frames: Frames) -> None:
        """Send each array, which changes when the next is asked for."""
        ...

    def loan(self, marks: Iterable[bytes]) -> None:
        """Send as many frames whose memory is not written to but for a mark, eight bytes at their beginning."""
        ...

    def rows(self, arrays: Frames) -> None:
        """Send each array of rows."""
        ...


class FrameReceiver(Protocol):
    """The receiving end. What it yields is looked at, and let go of before the next is asked for."""

    def frames(self) -> Iterator[Any]:
        """Buffers of bytes."""
        ...

    def rows(self) -> Iterator[Any]:
        """Structured arrays, of a batch or of parts of batches."""
        ...


class FramePeer(Protocol):
    """A module of `frames/`; as `Peer`."""

    DISTRIBUTION: str | None
    SHAPES: frozenset[Shape]
    CONNECTED: bool

    def wire(self, plan: Plan) -> AbstractContextManager[Any]:
        """As `Peer.wire`."""
        ...

    def sender(self, plan: Plan, wiring: Any, index: int) -> AbstractContextManager[FrameSender]:
        """As `Peer.sender`."""
        ...

    def receiver(self, plan: Plan, wiring: Any, index: int) -> AbstractContextManager[FrameReceiver]:
        """As `Peer.receiver`."""
        ...


class Workload(Protocol):
    """A module of `workloads/`. Its title is its docstring's first line."""

    SETUP: Setup


class OneWay(Workload, Protocol):
    """A workload of any shape but "echo"."""

    def produce(self, plan: Plan, sender: Any, index: int) -> None:
        """In each sending process, between two looks at the clock; with a Sender, or a FrameSender."""
        ...

    def consume(self, plan: Plan, receiver: Any) -> Received:
        """In each receiving process. Raises SequenceError."""
        ...


class Echo(Workload, Protocol):
    """A workload of shape "echo"."""

    def ask(self, plan: Plan, sender: Sender, receiver: Receiver) -> Received:
        """In the process that begins. Raises SequenceError."""
        ...

    def answer(self, plan: Plan, sender: Sender, receiver: Receiver) -> None:
        """In the other one. Raises SequenceError."""
        ...
