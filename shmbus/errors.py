"""Every error that shmbus raises, in one tree. Imports nothing of the project.

    ShmbusError
    ├── ConfigError (ValueError)          a name, capacity, mode or option that cannot be; nothing was created
    │   └── NameTakenError                a live publisher or subscriber of the topic has the name
    ├── MissingPackageError (ImportError) what an event has needs a package that is not installed; .extra brings it
    ├── BusNotFoundError (LookupError)    no such bus, and the caller asked not to create it
    ├── SchemaMismatchError (TypeError)   the topic exists with another event type; .difference says where
    ├── LayoutMismatchError               a segment of another layout version, or not of shmbus at all
    ├── CorruptSegmentError               a segment holds a number that cannot be; nothing was read past it
    ├── EventTypeError (TypeError)        an event of another type, or one that cannot be encoded; nothing was written
    ├── EventTooLargeError (ValueError)   an event that the ring can never hold; nothing was written
    ├── NoSpaceError (OSError)            /dev/shm cannot hold the segment; nothing was created
    ├── NoSharedMemoryError (OSError)     /dev/shm is missing, read-only, or no directory
    ├── AccessError (PermissionError)     another user's bus, a symlink, a file system without locks
    ├── CapacityError                     a table of the bus is full (consumers, workers, publishers, ...)
    │   └── ResourceLimitError (OSError)  the process or the system has no descriptor, process or memory left; .limit
    ├── LockTimeoutError (TimeoutError)   the bus lock is held by a live process that does not let go
    ├── FlushTimeoutError (TimeoutError)  not all is received within the timeout; .blocked_by names who is missing
    ├── ClosedError                       the handle or its bus is closed
    │   └── QueueClosedError (ValueError, OSError)  this process has closed the queue, or it is gone
    ├── ForkedError                       the handle was inherited through fork(); open the bus again here
    ├── ReclaimedError                    this participant was taken for dead and what it held given to others
    ├── GapError                          events were lost to this subscriber; .gap says which
    ├── DecodeError (ValueError)          a payload that is not of the topic's type; it was counted
    ├── CircuitOpenError                  a circuit breaker has its handler rest; nothing was tried
    ├── RecoveredError                    a handler raised what is no Exception, SystemExit say; the cause is that
    ├── InjectedError                     a fault that a test asked for
    ├── CallTimeout (TimeoutError)        no reply within the timeout; the call may have been carried out
    ├── CallFailed                        a call that no server answered; .reason says why, .deaths how servers died
    ├── BridgeError                       a broker that refuses us, or that carries another schema
    ├── JournalError (OSError)            a file that is no journal of this version, or that another process writes
    ├── Full (queue.Full)                 no room within the timeout; .blocked_by names who holds it
    │   └── QueueFull                     a queue has as many as it may, or /dev/shm no room for more
    ├── Empty (queue.Empty)               nothing to receive within the timeout
    └── ShutDown (queue.ShutDown)         the queue was shut down: nothing can be put, or is left to be got

Messages carry the values; the values are attributes too.
"""

from __future__ import annotations

import queue
import sys
from errno import EFBIG
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_RECORD_LIMIT = 0xFFFFFFF8  # bytes; as layout.h says, which this module cannot ask


class ShmbusError(Exception):
    """The root: everything that shmbus raises on purpose. Pickles with its attributes, so it crosses a process pool."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(cls: type[ShmbusError], args: tuple[Any, ...], attributes: dict[str, Any]) -> ShmbusError:
    error = cls.__new__(cls)
    root: Any = OSError if isinstance(error, OSError) else Exception
    root.__init__(error, *args)
    error.__dict__.update(attributes)
    return error


class ConfigError(ShmbusError, ValueError):
    """An option that cannot be honoured; raised before anything is created."""


class NameTakenError(ConfigError):
    """A live publisher or subscriber of the topic has the name; `pid` is that of its process, which may be this one."""

    def __init__(self, kind: str, name: str, topic: str, pid: int, command: str) -> None:
        super().__init__(f"{kind} {name!r} of topic {topic!r} exists in process {pid} ({command})")
        self.kind = kind
        self.name = name
        self.topic = topic
        self.pid = pid


class MissingPackageError(ShmbusError, ImportError):
    """Arrays of a kind whose package this process lacks; `extra` is the extra of shmbus that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"this needs {package}: pip install 'shmbus[{extra}]'")
        self.package = package
        self.extra = extra


class BusNotFoundError(ShmbusError, LookupError):
    """The bus does not exist and the caller asked not to create it."""

    def __init__(self, bus: str) -> None:
        super().__init__(f"no bus named {bus!r} on this host")
        self.bus = bus


class SchemaMismatchError(ShmbusError, TypeError):
    """The topic exists with another event type; `difference` lists where the two part, a line each."""

    def __init__(self, topic: str, difference: Sequence[str]) -> None:
        lines = "".join(f"\n  {line}" for line in difference)
        super().__init__(f"topic {topic!r} exists with another schema:{lines}")
        self.topic = topic
        self.difference = tuple(difference)


class LayoutMismatchError(ShmbusError):
    """A segment that another version of shmbus, or another program, laid out."""


class CorruptSegmentError(ShmbusError):
    """A segment holds a number that cannot be; it was not followed."""


class EventTypeError(ShmbusError, TypeError):
    """The event is not of the topic's type, or holds what its codec cannot write; nothing was written.

    `path` is where in the event, `difference` where its class parts from the topic's, a line each.
    """

    def __init__(self, message: str, topic: str = "", path: str = "$", difference: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.topic = topic
        self.path = path
        self.difference = tuple(difference)


class EventTooLargeError(ShmbusError, ValueError):
    """The encoded event exceeds what its ring, or the publisher's pool, can ever hold; nothing was written."""

    def __init__(self, topic: str, size: int, maximum: int, why: str = "") -> None:
        why = why or ("what a record can hold" if maximum >= _RECORD_LIMIT else "a quarter of the ring's capacity")
        super().__init__(f"event too large for topic {topic!r}: {size} bytes, at most {maximum} ({why})")
        self.topic = topic
        self.size = size
        self.maximum = maximum


class NoSpaceError(ShmbusError, OSError):
    """/dev/shm cannot hold the segment; nothing was created."""

    def __init__(self, errno: int, name: str, size: int, free: int, held: str = "") -> None:
        advice = "in a container, raise --shm-size; `shmbus doctor` lists leftovers"
        if errno == EFBIG:
            advice = "more than a file of this process may hold: ulimit -f"
        held_by = f"; rings of this bus: {held}" if held else ""
        super().__init__(errno, f"no room in /dev/shm for {name}: {size} bytes asked, {free} free{held_by} ({advice})")
        self.name = name
        self.size = size
        self.free = free
        self.held = held


class NoSharedMemoryError(ShmbusError, OSError):
    """/dev/shm is not there, or cannot be written to; the message says what to do."""


class AccessError(ShmbusError, PermissionError):
    """Not ours to open: another user's segment, a symlink, or a file system that refuses record locks."""


class CapacityError(ShmbusError):
    """A table of the bus is full; the message names the table, its size, and who holds most of it."""

    def __init__(self, message: str, *, table: str = "", held: str = "") -> None:
        super().__init__(f"{message}; held by {held}" if held else message)
        self.table = table
        self.held = held


class ResourceLimitError(CapacityError, OSError):
    """A limit of the process, or of the system, is reached.

    `limit` names it, `value` is where it stands (-1: unlimited, -2: unknown).

    The operating system's own error of that number, so that `except OSError` has it too.
    """

    def __init__(self, errno: int, limit: str, value: int, advice: str) -> None:
        OSError.__init__(
            self, errno, f"{limit} reached: { {-1: 'unlimited', -2: 'unknown'}.get(value, value) } ({advice})"
        )
        self.table = self.limit = limit
        self.held = ""
        self.value = value

    @classmethod
    def of_descriptors(cls, errno: int) -> ResourceLimitError:
        """No descriptor left to this process."""
        return cls(errno, "RLIMIT_NOFILE", _soft("NOFILE"), "this process has no descriptor left: ulimit -n")

    @classmethod
    def of_processes(cls, errno: int) -> ResourceLimitError:
        """No process left to this user, or to the cgroup."""
        advice = "no process can be started: ulimit -u, or pids.max of the cgroup (docker run --pids-limit)"
        return cls(errno, "RLIMIT_NPROC", _soft("NPROC"), advice)


def _soft(name: str) -> int:
    import resource  # here, for only an error needs it

    return resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0]


class LockTimeoutError(ShmbusError, TimeoutError):
    """The bus lock is held by a live process that does not let go; the message names it."""


class FlushTimeoutError(ShmbusError, TimeoutError):
    """What was published is not received by all within the timeout; `blocked_by` names the consumers that lack some."""

    def __init__(self, topic: str, blocked_by: Sequence[str]) -> None:
        super().__init__(f"topic {topic!r} is not flushed within the timeout, missing {', '.join(blocked_by)}")
        self.topic = topic
        self.blocked_by = tuple(blocked_by)


class ClosedError(ShmbusError):
    """The handle or its bus is closed."""


class QueueClosedError(ClosedError, ValueError, OSError):
    """This process has closed the queue, or the queue is gone; as `multiprocessing` says it, in one word for both."""


class ForkedError(ShmbusError):
    """The handle was inherited through fork(); `Bus(name)` in the child opens the bus anew."""


class ReclaimedError(ShmbusError):
    """This participant was taken for dead; what it held belongs to others now."""


class GapError(ShmbusError):
    """Events were lost to this subscriber; `gap` is the `shmbus.Gap` that says which."""

    def __init__(self, gap: object) -> None:
        super().__init__(f"events lost: {gap}")
        self.gap = gap


class DecodeError(ShmbusError, ValueError):
    """A payload that is not of the topic's type; it was counted `undecodable` and the stream goes on."""

    def __init__(self, topic: str, publisher: str, sequence: int, reason: str) -> None:
        super().__init__(f"topic {topic!r}: event {sequence} of publisher {publisher!r} does not decode: {reason}")
        self.topic = topic
        self.publisher = publisher
        self.sequence = sequence
        self.reason = reason


class CircuitOpenError(ShmbusError):
    """A circuit breaker has its handler rest: nothing was tried."""


class RecoveredError(ShmbusError):
    """A handler raised what is no Exception, SystemExit say, which is the cause of this error."""


class InjectedError(ShmbusError):
    """A fault that a test asked for, by `middleware.Fail`."""


class CallTimeout(ShmbusError, TimeoutError):
    """No reply within the timeout. Whether the call was carried out, or still is, nobody knows."""

    def __init__(self, service: str, timeout: float | None) -> None:
        super().__init__(f"service {service!r} did not reply within the timeout: timeout={timeout}")
        self.service = service
        self.timeout = timeout


class CallFailed(ShmbusError):
    """A call without a reply: the server said so, by `Call.fail`, or it was handed out `max_deliver` times in vain.

    `reason` is what the server said, `deaths` how the servers died that had it, one each, in their order.
    """

    def __init__(self, service: str, reason: str, deaths: Sequence[str] = ()) -> None:
        died = f": {'; '.join(deaths)}" if deaths else ""
        super().__init__(f"call of service {service!r} failed: {reason}{died}")
        self.service = service
        self.reason = reason
        self.deaths = tuple(deaths)


class BridgeError(ShmbusError):
    """A broker that refuses us: credentials, rights, or a stream of another schema; trying again would not help."""


class JournalError(ShmbusError, OSError):
    """A journal that cannot be used: missing, of another version, being written by another process, or out of room."""


class Full(ShmbusError, queue.Full):
    """No room within the timeout; `blocked_by` names the consumers that hold it, `published` counts what got in."""

    def __init__(self, topic: str, blocked_by: Sequence[str], published: int = 0) -> None:
        names = ", ".join(blocked_by) or "nobody: the event exceeds what is free"
        super().__init__(f"topic {topic!r} is full, blocked by {names}")
        self.topic = topic
        self.blocked_by = tuple(blocked_by)
        self.published = published


class Empty(ShmbusError, queue.Empty):
    """Nothing to receive within the timeout."""


class QueueFull(Full):
    """A queue took no more within the timeout."""

    def __init__(self, message: str) -> None:
        ShmbusError.__init__(self, message)
        self.topic = ""
        self.blocked_by = ()
        self.published = 0


if sys.version_info >= (3, 13):

    class ShutDown(ShmbusError, queue.ShutDown):
        """The queue was shut down."""

else:

    class ShutDown(ShmbusError):
        """The queue was shut down. From 3.13 on it is a `queue.ShutDown` too."""
