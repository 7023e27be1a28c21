"""shmbus: a multiprocess shared-memory event fabric for Python on Linux.

General layout, each layer using those below it only:

    cli, __main__         renders what stats, inspect and diagnostics return
    inspect, diagnostics  what tools ask from outside; read-only but for what says otherwise
    journal/              events on disk: written, replayed, caught up from
    bridge/               topics past one host, over a broker that exists
    raw                   events as they are on the wire, for those two
    router/, middleware/  handlers by decorator, in this process or by `shmbus run`
    bus                   the door: names, modes and types are checked here
    publisher             policy of the three handles: blocking, dropping, waiting, settling
    subscriber, worker
    service               request and reply, on these: server, client
    supervisor            who is dead, what is reclaimed, what is lost
    _handles/             what the handles of a process share: session, waiting, how a handle ends
    _ledger/              who takes part, and what each is owed: the registry, its changes, the books
    topic, message, stats values: what a topic is, what an event comes with, what the books look like
    _shm/                 OS objects: segments, rings, locks, processes, semaphores
    _schema/              types on the wire
    _core (C)             memory: layout, rings, claims
    errors                one tree

Names are fetched at first use (PEP 562): a process that only names a topic loads no more than that.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shmbus import deaths as deaths
    from shmbus import middleware as middleware
    from shmbus import testing as testing
    from shmbus._futures.errors import WorkerDied
    from shmbus._handles.messages import Messages
    from shmbus.bus import Bus
    from shmbus.client import Client
    from shmbus.errors import (
        AccessError,
        BridgeError,
        BusNotFoundError,
        CallFailed,
        CallTimeout,
        CapacityError,
        ClosedError,
        ConfigError,
        CorruptSegmentError,
        DecodeError,
        Empty,
        EventTooLargeError,
        EventTypeError,
        FlushTimeoutError,
        ForkedError,
        Full,
        GapError,
        JournalError,
        LayoutMismatchError,
        LockTimeoutError,
        MissingPackageError,
        NameTakenError,
        NoSpaceError,
        ReclaimedError,
        SchemaMismatchError,
        ShmbusError,
    )
    from shmbus.gauge import Gauge
    from shmbus.journal import Journal
    from shmbus.message import ClaimedMessage, Gap, Message
    from shmbus.policy import Policy
    from shmbus.publisher import Publisher
    from shmbus.router import Router
    from shmbus.server import Call, Server
    from shmbus.service import Service
    from shmbus.stats import BusStats, ConsumerStats, Loss, PublisherStats
    from shmbus.subscriber import Subscriber
    from shmbus.topic import DeadLetter, Topic, dead_letter_topic
    from shmbus.worker import Worker

__version__ = "0.1.0"

__all__ = [
    "AccessError",
    "BridgeError",
    "Bus",
    "BusNotFoundError",
    "BusStats",
    "Call",
    "CallFailed",
    "CallTimeout",
    "CapacityError",
    "ClaimedMessage",
    "Client",
    "ClosedError",
    "ConfigError",
    "ConsumerStats",
    "CorruptSegmentError",
    "DeadLetter",
    "DecodeError",
    "Empty",
    "EventTooLargeError",
    "EventTypeError",
    "FlushTimeoutError",
    "ForkedError",
    "Full",
    "Gap",
    "GapError",
    "Gauge",
    "Journal",
    "JournalError",
    "LayoutMismatchError",
    "LockTimeoutError",
    "Loss",
    "Message",
    "Messages",
    "MissingPackageError",
    "NameTakenError",
    "NoSpaceError",
    "Policy",
    "Publisher",
    "PublisherStats",
    "ReclaimedError",
    "Router",
    "SchemaMismatchError",
    "Server",
    "Service",
    "ShmbusError",
    "Subscriber",
    "Topic",
    "Worker",
    "WorkerDied",
    "__version__",
    "dead_letter_topic",
]


_HOMES = {
    "_futures.errors": ("WorkerDied",),
    "_handles.messages": ("Messages",),
    "bridge": (),
    "bus": ("Bus",),
    "deaths": (),
    "client": ("Client",),
    "journal": ("Journal",),
    "errors": (
        "AccessError",
        "BridgeError",
        "BusNotFoundError",
        "CallFailed",
        "CallTimeout",
        "CapacityError",
        "ClosedError",
        "ConfigError",
        "CorruptSegmentError",
        "DecodeError",
        "Empty",
        "EventTooLargeError",
        "EventTypeError",
        "FlushTimeoutError",
        "ForkedError",
        "Full",
        "GapError",
        "JournalError",
        "LayoutMismatchError",
        "LockTimeoutError",
        "MissingPackageError",
        "NameTakenError",
        "NoSpaceError",
        "ReclaimedError",
        "SchemaMismatchError",
        "ShmbusError",
    ),
    "gauge": ("Gauge",),
    "message": ("ClaimedMessage", "Gap", "Message"),
    "middleware": (),
    "policy": ("Policy",),
    "publisher": ("Publisher",),
    "queues": (),
    "router": ("Router",),
    "server": ("Call", "Server"),
    "service": ("Service",),
    "stats": ("BusStats", "ConsumerStats", "Loss", "PublisherStats"),
    "subscriber": ("Subscriber",),
    "topic": ("DeadLetter", "Topic", "dead_letter_topic"),
    "worker": ("Worker",),
}
"""Where each name lives; the modules too are fetched as attributes of the package."""
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


if not TYPE_CHECKING:  # or every misspelt name would pass the checkers

    def __getattr__(name: str) -> object:
        """Fetch a name of the package, once: from then on it is an attribute like any other."""
        if name in _HOMES:
            return importlib.import_module(f"{__name__}.{name}")  # which sets the attribute
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """All names, fetched or not."""
    return sorted({*globals(), *_HOME_OF, *_HOMES})
