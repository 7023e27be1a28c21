"""shmbus: a multiprocess shared-memory event fabric for Python on Linux.

General layout, each layer using those below it only:

    cli, __main__         renders what stats, inspect and diagnostics return
    inspect, diagnostics  what tools ask from outside; read-only but for what says otherwise
    bus                   the door: names, modes and types are checked here
    publisher             policy of the three handles: blocking, dropping, waiting, settling
    subscriber, worker
    supervisor            who is dead, what is reclaimed, what is lost
    _handles/             what the handles of a process share: session, waiting, how a handle ends
    _ledger/              who takes part, and what each is owed: the registry, its changes, the books
    topic, message, stats values: what a topic is, what an event comes with, what the books look like
    _shm/                 OS objects: segments, rings, locks, processes, semaphores
    _schema/              types on the wire
    _core (C)             memory: layout, rings, claims
    errors                one tree
"""

from shmbus.errors import (
    AccessError,
    BusNotFoundError,
    CapacityError,
    ClosedError,
    ConfigError,
    CorruptSegmentError,
    DecodeError,
    Empty,
    EventTooLargeError,
    EventTypeError,
    ForkedError,
    Full,
    GapError,
    LayoutMismatchError,
    LockTimeoutError,
    NameTakenError,
    NoSpaceError,
    ReclaimedError,
    SchemaMismatchError,
    ShmbusError,
)

# isort: split
from shmbus.bus import Bus
from shmbus.message import ClaimedMessage, Gap, Message
from shmbus.publisher import Publisher
from shmbus.stats import BusStats, ConsumerStats, Loss, PublisherStats
from shmbus.subscriber import Subscriber
from shmbus.topic import DeadLetter, Topic, dead_letter_topic
from shmbus.worker import Worker

__version__ = "0.1.0"

__all__ = [
    "AccessError",
    "Bus",
    "BusNotFoundError",
    "BusStats",
    "CapacityError",
    "ClaimedMessage",
    "ClosedError",
    "ConfigError",
    "ConsumerStats",
    "CorruptSegmentError",
    "DeadLetter",
    "DecodeError",
    "Empty",
    "EventTooLargeError",
    "EventTypeError",
    "ForkedError",
    "Full",
    "Gap",
    "GapError",
    "LayoutMismatchError",
    "LockTimeoutError",
    "Loss",
    "Message",
    "NameTakenError",
    "NoSpaceError",
    "Publisher",
    "PublisherStats",
    "ReclaimedError",
    "SchemaMismatchError",
    "ShmbusError",
    "Subscriber",
    "Topic",
    "Worker",
    "__version__",
    "dead_letter_topic",
]
