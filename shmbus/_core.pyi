"""Memory: layout, rings, claims. The contract of the C core; `tests/model.py` says the same in executable Python.

Never blocks, never creates an OS object, never trusts a number that it reads from a segment: what cannot be raises
CorruptSegmentError, and a segment of another layout LayoutMismatchError. Any object with a writable buffer can be a
segment; read-only ones serve the reading methods.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Generic, TypedDict, TypeVar, overload

T = TypeVar("T")
R = TypeVar("R")
_Bytes = bytes  # a Pool has a property of that name
Key = tuple[tuple[str, ...], Callable[[Any], Any]]
"""The path of a field, and what finds the key of an event where that is not plain: int, str, bytes or None."""

LAYOUT_VERSION: Final[int]
MAX_TOPICS: Final[int]
MAX_GROUPS: Final[int]
MAX_SUBSCRIBERS: Final[int]
MAX_WORKERS: Final[int]
MAX_CONSUMERS: Final[int]
FIRST_CONSUMERS: Final[int]
FIRST_DOCUMENT_BYTES: Final[int]
MAX_ATTEMPT: Final[int]
MAX_DELAY_NS: Final[int]
MAX_HEADERS: Final[int]
RECORD_LIMIT: Final[int]
TRACE_KEPT: Final[int]
TRACE_BUCKET: Final[int]
TRACE_WINDOW: Final[int]
MIN_CAPACITY: Final[int]
MAX_CAPACITY: Final[int]
MAX_POOL: Final[int]
POOL_BLOCK: Final[int]
POOL_HOLDERS: Final[int]
MAX_SLIPS: Final[int]
BUS_BYTES: Final[int]
BUS_MAGIC: Final[int]
BUS_BOOT_ID: Final[int]
BUS_LAYOUT_VERSION: Final[int]
BUS_LIVES_INODE: Final[int]
BUS_CREATED: Final[int]
BUS_IDENTITY: Final[int]
BUS_VERSION: Final[int]
BUS_HOLDER: Final[int]
BUS_SUPERVISOR_PID: Final[int]
BUS_SUPERVISOR_LIFE: Final[int]
BUS_SUPERVISOR_BEAT: Final[int]
BUS_SUPERVISOR_SPAWNED: Final[int]
BUS_SUPERVISOR_NAMESPACE: Final[int]
BUS_REMOVED: Final[int]
BUS_PROCESSES: Final[int]
TOPIC_LINES: Final[int]
TOPIC_EPOCH: Final[int]
TOPIC_PARKED: Final[int]
TOPIC_AWAITING: Final[int]
GROUP_LINES: Final[int]
GROUP_PARKED: Final[int]
GROUP_AWAITING: Final[int]
CONSUMER_LINES: Final[int]
CONSUMER_STALLED: Final[int]
LATENCY_LINES: Final[int]
LATENCY_BYTES: Final[int]
LATENCY_SINCE: Final[int]
LATENCY_WEIGHTS: Final[int]
LATENCY_BUCKETS: Final[int]
LATENCY_WEIGHT: Final[int]
LINE_THREADS: Final[int]
BEAT_FRESH_NS: Final[int]
LIVES_LOCK: Final[int]
LIVES_LIFE: Final[int]
LIVES_LINE: Final[int]
LIVES_BYTES: Final[int]
LIVES_TICKETS: Final[int]
LIVES_RELEASES: Final[int]
LIVES_NEXT: Final[int]
LINE: Final[int]
PAGE: Final[int]
DOCUMENTS: Final[int]
DOCUMENT_BYTES: Final[int]
DOCUMENT_LENGTH: Final[int]
DOCUMENT_CHECKSUM: Final[int]
DOCUMENT_BODY: Final[int]
RING_WAITING: Final[int]
RING_NEED: Final[int]
NOTHING: Final[object]

def load(buffer: Any, offset: int, /) -> int:
    """The 64-bit word at `offset`, sequentially consistent. IndexError when there is none."""

def store(buffer: Any, offset: int, value: int, /) -> None: ...
def fetch_add(buffer: Any, offset: int, value: int, /) -> int: ...
def fetch_or(buffer: Any, offset: int, bits: int, /) -> int: ...
def fetch_and(buffer: Any, offset: int, bits: int, /) -> int: ...
def await_change(buffer: Any, offset: int, seen: int, seconds: float, bits: int, /) -> None:
    """Sleep while the low 32 bits of a word are those of `seen`, until a `wake` with one of `bits`, or a signal."""

def lanes_size() -> int: ...
def lanes_format(segment: Any, group: int, /) -> None: ...
def lanes_free(segment: Any, owner: int, generation: int, /) -> int:
    """Free the lanes that it holds, once its claims are given back; how many."""

def host_ns() -> int:
    """CLOCK_MONOTONIC in ns as the host has it, in whatever time namespace this process is."""

def take_turn(lives: Any, /) -> bool:
    """Acquire `lives._turn` without waiting, and note this thread as its owner, in one step for all Python code."""

def leave_turn(lives: Any, /) -> bool:
    """Free the bus lock, wake who is next and give up the turn, in one step, if this thread has it; False otherwise."""

def wake(buffer: Any, offset: int, bits: int, /) -> int:
    """Wake all who await a change of a word with one of `bits`; returns how many."""

class Mapping:
    """Shared memory of a file, as a buffer. It keeps no descriptor; the memory stays until the last buffer is released.

    Indices give numbers, slices copies as bytes. Raises OSError where it cannot be mapped, and ClosedError for a new
    buffer after `close`, which is idempotent.
    """

    def __new__(cls, descriptor: int, size: int, writable: bool, /) -> Mapping: ...
    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, key: int, /) -> int: ...
    @overload
    def __getitem__(self, key: slice, /) -> bytes: ...
    @overload
    def __setitem__(self, key: int, value: int, /) -> None: ...
    @overload
    def __setitem__(self, key: slice, value: Any, /) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def close(self) -> None: ...

SEMAPHORE_BYTES: Final[int]

def semaphore_init(buffer: Any, /) -> None:
    """A semaphore between processes, at zero."""

def semaphore_post(buffer: Any, /) -> None: ...
def semaphore_drain(buffer: Any, /) -> int:
    """Take every post, and return how many there were."""

def semaphore_wait(buffer: Any, seconds: float, /) -> bool:
    """Wait by the monotonic clock: True when posted, False when over or when a signal came that raised nothing."""

def signal_mask() -> bytes:
    """What signals this thread holds off: for `set_signal_mask`."""

def hold_signals() -> None:
    """Hold off all signals of this thread; handlers of what came before have run, and may raise."""

def set_signal_mask(mask: bytes, /) -> None:
    """Hold off what was held off before; handlers of what is let in have run, and may raise."""

def start_process(
    path: bytes, argv: list[bytes], environment: list[bytes], gaps: list[tuple[int, int]] | None, /
) -> int:
    """Start a detached process: 0, or with `gaps` the pid of the keeper whose child it is. Raises OSError."""

def adopts_orphans() -> bool:
    """Whether orphans become children of this process: it is PID 1, or a subreaper."""

def own_addresses() -> tuple[int, int]:
    """Addresses that a keeper needs: of the stack, and of the thread's own memory."""

def exit_begins(seconds: float, /) -> None:
    """This thread ends the interpreter: what is closed from now on is closed by the exit.

    A call of a closed handle then ends any other thread by SystemExit, and close() waits for the calls that run no
    longer than this, in all.
    """

def exiting() -> bool:
    """True once the interpreter's exit has begun, in every thread but the one that ends it."""

class LatencyTerms(TypedDict):
    """One consumer's latency line: events, estimated, and nanoseconds; a quantile is at most 19% above the sample's."""

    count: int
    p50_ns: int
    p99_ns: int
    max_ns: int

def latency_terms(segment: Any, line: int, /) -> LatencyTerms | None:
    """None while nothing was sampled, and for words that cannot be. IndexError for a line that there is not."""

def latency_record(segment: Any, line: int, ns: int, weight: int, /) -> None: ...
def latency_bucket(ns: int, /) -> int: ...
def latency_bound(bucket: int, /) -> int:
    """The largest latency that falls into a bucket, 2**64 - 1 for the last."""

class RingInfo(TypedDict):
    """The publisher's words: positions, need and room in bytes, `sequence` of the next event, bitmaps of slots."""

    tail: int
    sequence: int
    oldest: int
    intent: int
    members: int
    reliable: int
    need: int
    waiting: int
    refused: int
    unrouted: int
    room: int

class RingTerms(TypedDict):
    """One slot's books, in events; `oldest_ns` is CLOCK_REALTIME of the first event not received, 0 when there is none.

    `pending_first` to `pending_last` is the part of `overrun` that the reader has yet to find out about; 0, 0 for none.
    """

    offered: int
    delivered: int
    depth: int
    overrun: int
    refused: int
    undecodable: int
    oldest_ns: int
    pending_first: int
    pending_last: int
    next: int

class WorkTerms(TypedDict):
    """A group's books on one ring, in events; `claimed` and `delayed` are parts of `depth`.

    `next` is the sequence of the first event that is not done; `need` and `room` are bytes.
    """

    offered: int
    delivered: int
    depth: int
    claimed: int
    delayed: int
    refused: int
    rejected: int
    undecodable: int
    abandoned: int
    oldest_ns: int
    next: int
    need: int
    room: int

LossTuple = tuple[int, int, int, int, int]
"""(count, first sequence, last sequence, first time, last time); times are CLOCK_REALTIME in ns."""

class BroadcastRing:
    """A checked view of one broadcast segment; keeps the mapping alive."""

    def __new__(cls, segment: Any, /) -> BroadcastRing: ...
    ring_id: int
    capacity: int
    @staticmethod
    def format(segment: Any, capacity: int, ring_id: int, sequence: int = 1, position: int = 0) -> None:
        """Lay out an empty ring. Counters may start anywhere. ValueError for a capacity that cannot be."""

    @staticmethod
    def size(capacity: int, /) -> int:
        """Bytes of the segment, 0 if the capacity cannot be."""

    @staticmethod
    def maximum(capacity: int, /) -> int:
        """Largest body of a record in bytes: headers, rounded up to 8, and payload."""

    def join(self, slot: int, lossy: bool = False, oldest: bool = False) -> None: ...
    def leave(self, slot: int, /) -> None: ...
    def ungate(self, slots: int, /) -> None:
        """In a ring that its publisher has left these hold nobody back any more."""

    def info(self) -> RingInfo: ...
    def terms(self, slot: int, /) -> RingTerms: ...
    def losses(self, slot: int, /) -> dict[str, LossTuple]: ...
    def blocking(self, need: int, /) -> int: ...
    def behind(self, position: int, /) -> int:
        """Bitmap of the reliable slots that have not received all below a position."""

    def listen(self, flags: int, /) -> None: ...
    def release_publisher(self) -> bool: ...
    def owed(self, among: int, /) -> tuple[int, int, int]:
        """Bitmaps of those slots of `among` that have events left: reliable; lossy and opened; lossy and not opened."""

    def give_up(self, slot: int, /) -> bool:
        """Take a slot from a reader that has not opened it, and never will from now on; False: it has."""

    def slack(self) -> int:
        """Bytes that `shrink` would free of what it has not freed yet, if the history goes."""

    def shrink(self, descriptor: int, history: bool, /) -> int:
        """Free the memory of a retired ring that nobody will look at, under the bus lock; how many bytes. OSError."""

    def reserve(self, descriptor: int, slot: int, /) -> None:
        """Get back the memory of a slot of a retired ring, before it is joined. OSError."""

class WorkRing:
    """A checked view of one work segment; keeps the mapping alive."""

    def __new__(cls, segment: Any, /) -> WorkRing: ...
    ring_id: int
    capacity: int
    @staticmethod
    def format(segment: Any, capacity: int, ring_id: int, sequence: int = 1, position: int = 0) -> None: ...
    @staticmethod
    def size(capacity: int, /) -> int: ...
    def reclaim(self, owner: int, generation: int, lanes: Any = None, /) -> int:
        """Make READY what a dead worker held; how many records. `lanes` are its group's, for `lanes_free` then."""

    def held(self, owner: int, generation: int, /) -> int: ...
    def claims(self, owner: int, generation: int, /) -> list[tuple[int, int]]:
        """(sequence, claim word) of each record that a worker holds."""

    def take_back(self, sequence: int, word: int, lanes: Any = None, /) -> bool:
        """Make READY a record whose claim word is still this one; the claim counts as an attempt."""

    def abandon(self) -> int:
        """Make DONE whatever is not, and count it as abandoned; how many records."""

    def terms(self) -> WorkTerms: ...
    def depth(self) -> tuple[int, int]:
        """Events that are not done, and how many of them somebody holds."""

    def span(self) -> int:
        """Events from the first that is not done on: at least those of `depth`, by two words."""

    def losses(self) -> dict[str, LossTuple]: ...
    def bounds(self) -> tuple[int, int]:
        """The first sequence that is not done, and the one that comes next."""

    def listen(self, flags: int, /) -> None: ...
    def release_publisher(self) -> bool: ...
    def slack(self) -> int:
        """Bytes that `shrink` would free of what it has not freed yet."""

    def shrink(self, descriptor: int, history: bool, /) -> int:
        """As that of a broadcast ring; a group has no history."""

class Tap:
    """Reads a broadcast ring without a slot, and leaves no trace."""

    def __new__(cls, ring: BroadcastRing, oldest: bool = False, /) -> Tap: ...
    def read(self) -> tuple[int, int, bytes | None, bytes | None] | None:
        """(sequence, time_ns, headers, payload); (first, last, None, None) for a gap; None for nothing."""

class RecordCodec:
    """Encoder and decoder of the rows of one Struct: what it encodes, it decodes to an equal event.

    `columns`: (slot, name, offset, bytes, kind, low, high, multiple, shortest, pattern, choices, class of the choices,
    codec of what is nested) each; `_schema/record.py` makes them.
    """

    size: int
    """Bytes of a row."""
    def __new__(
        cls, type: type, size: int, columns: list[tuple[Any, ...]], post_init: Callable[[Any], None] | None, /
    ) -> RecordCodec: ...
    def encode(self, event: Any, /) -> bytes:
        """Raises ValueError that ends with the path of what does not fit."""
    def decode(self, row: Any, /) -> Any:
        """Raises ValueError for what `encode` would not have written."""

class Rows:
    """Rows in a ring, read-only, or copies of them: a buffer that holds its memory."""

    count: int
    stride: int
    """Bytes from one row to the next."""
    def __buffer__(self, flags: int, /) -> memoryview: ...

class Lease:
    """The bytes of one extent of a pool, as a buffer, for as long as anything refers to them; len() says how many.

    Read-only, but for one that `Pool.lease` returned and that is not sealed.
    """

    @property
    def writable(self) -> bool: ...
    @property
    def address(self) -> int: ...
    @property
    def pool(self) -> Pool | None:
        """None: a copy."""
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class Pool:
    """One mapping of a publisher's pool. With a life it holds what is looked at through it, for a consumer."""

    def __new__(
        cls,
        segment: Any,
        life: int = 0,
        consumer: int = 0,
        keeper: object = None,
        wake: Callable[[], object] | None = None,
    ) -> Pool: ...
    @staticmethod
    def size(bytes: int, /) -> int:
        """Bytes of the segment."""
    @staticmethod
    def format(segment: Any, bytes: int, pool_id: int, /) -> None: ...
    @property
    def pool_id(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def holder(self) -> int:
        """Our number in it; -1: we have none, and copy."""
    def holders(self) -> list[tuple[int, int, int, int, int]]:
        """(life, consumer, views, bytes, CLOCK_REALTIME in ns of the oldest) of each that looks at anything."""
    def lives(self) -> list[tuple[int, int]]:
        """(number, life) of each that has entered."""
    def forget(self, number: int, life: int, /) -> int:
        """Under the bus lock: free what a dead holder held; how many extents that were."""
    def used(self, rings: list[Any], /) -> int:
        """Bytes of the extents that the publisher's rings owe to somebody, or that somebody looks at."""
    def retire(self) -> int:
        """Under the bus lock: give back what nobody looks at; how many extents somebody does."""
    def serve(self, ring: BroadcastRing, /) -> None:
        """This mapping is the publisher's, whose broadcast ring that is."""
    def unserve(self) -> None: ...
    def lease(self, length: int, /) -> Lease | None:
        """A writable extent; None: there is no room."""
    def wanted(self, waits: bool, /) -> bool:
        """Say whether the publisher waits for room; true where something could be freed."""
    def debtors(self) -> tuple[int, set[int]]:
        """Slots of reliable subscribers, and ids of work rings, that what is in the pool is owed to."""

def count_views() -> int:
    """Extents that this process looks at."""

def keep_views() -> int:
    """In a forked child: put copies in the place of the extents that its parent looked at."""

class Parcel:
    """A payload with buffers beside it; they go back to the pool unless it is published. len() is its record's.

    Loans that it was made of are read-only as long as there is it, and for good once it is published.
    """

    def __len__(self) -> int: ...
    def unseal(self) -> None:
        """The event is not published: its loans are writable again, unless another event has them."""

class Packing:
    """An event that is encoded, and whose buffers have yet to find room in the pool."""

    @property
    def event(self) -> Any: ...
    @property
    def wanted(self) -> int:
        """Bytes of the pool, in whole blocks, that they take beside the event's loans."""
    def place(self) -> bytes | Parcel | None:
        """The payload; None: there is no room, and nothing has changed."""

class Packer:
    """What a publisher with a pool encodes events with; a subclass says how, and knows the kinds of arrays."""

    _encode: Callable[[Any], bytes]
    _wait: Callable[[Packing], object]
    _ndarray: type[Any] | None
    _known: dict[tuple[int, Any, tuple[int, ...]], Any]
    _shapes: dict[tuple[Any, Any], tuple[type[Any], tuple[int, ...], Any, int]]

    def __init__(self, pool: Pool, small: int, spill: int, /) -> None:
        """`small` bytes of a buffer go into the record; an event of more than `spill` does not."""
    def pack(self, event: Any, /) -> bytes | Parcel:
        """The payload of an event; NOTHING, or whatever else `_wait` returns, where there is no room."""
    def extend(self, value: Any, /) -> Any:
        """What msgspec is to write for a value that it does not know; within `pack`."""
    def lend(self, shape: Any, dtype: Any, /) -> Any:
        """A new array in the pool, of a kind that `_shapes` has; None: it has not, or there is no room."""
    def _add(self, source: Any, view: Any, length: int, /) -> int:
        """One more buffer of the event: its number. `source` has the bytes; `view` is what may lie in a loan."""

class Reviver:
    """What a decoder of arrays asks for at every event; see `_payload.arrays`."""

    def __new__(
        cls,
        buffers: list[tuple[Any, int, int]],
        code: int,
        alike: dict[bytes, tuple[int, Any, tuple[int, ...], Any, int]],
        revive: Callable[[int, memoryview, list[tuple[Any, int, int]]], Any],
        wants: Callable[[Any, Any], Any],
        /,
    ) -> Reviver: ...
    def revive(self, code: int, data: memoryview, /) -> Any: ...
    def wants(self, expected: Any, value: Any, /) -> Any: ...
    def accept(self, expected: Any, cls: type[Any], dtype: Any, /) -> None:
        """Values of that class and dtype are right for the type, and need no look."""

class Producer(Generic[T]):
    """The path of an event into its rings; Publisher adds the hooks that it calls when it cannot go on alone."""

    def __init__(
        self,
        segment: Any,
        topic: int,
        ring: BroadcastRing,
        encode: Callable[[Any], bytes | Parcel] | None,
        accepts: tuple[type, ...],
        expected: str,
        encode_into: Callable[[Any, bytearray], None] | None = None,
        validate: Callable[[Any], object] | None = None,
        suspects: tuple[bytes, ...] = (),
        finite: Callable[[Any], bool] | None = None,
    ) -> None:
        """`encode` gives the payload of an event; None: it is the event. `encode_into` writes it into a bytearray.

        `validate` is called with every payload, and raises for one that nobody would receive. An event whose payload
        has one of the `suspects` in it and that is not `finite` goes to the hook `_suspect`.
        """
    @property
    def closed(self) -> bool: ...
    def publish(self, event: T, *, headers: dict[str, Any] | None = None) -> int | None: ...
    def publish_many(self, events: Iterable[T], /) -> int: ...
    def _set_groups(
        self,
        routed: bool,
        groups: Sequence[tuple[WorkRing, int] | tuple[WorkRing, int, Key | None]],
        ring: BroadcastRing = ...,
        epoch: int = ...,
        /,
    ) -> None: ...
    def _epoch(self) -> int: ...
    def _freeze(self) -> None: ...
    def _may_shrink(self, floor: int, ns: int, /) -> None: ...
    def _lacking(self, length: int, /) -> tuple[bool, int, list[int]]: ...
    def _seen_epoch(self) -> None: ...
    def _full(self, length: int, /) -> tuple[bool, int, list[int]]: ...
    def _block(self, task: bool, /) -> None: ...
    def _unblock(self, task: bool, /) -> None: ...
    def _rested(self) -> None: ...
    def _flushing(self, more: int, /) -> int: ...
    def _within(self, callable: Callable[..., R], /, *arguments: Any) -> R: ...
    def _refuse(self) -> None: ...
    def _note_in(self, descriptor: int, who: Callable[[], bytes | None], /) -> None: ...
    def _encode(self, event: T, headers: dict[str, Any] | None, /) -> tuple[bytes, bytes | None]:
        """For _put. A publisher with a pool may return NOTHING."""
    def _put(self, record: tuple[bytes, bytes | None], drop: bool, event: Any = None, /) -> Any: ...
    def _encode_many(self, events: Iterable[T], /) -> list[bytes]: ...
    def _put_many(
        self, payloads: list[bytes], first: int, drop: bool, events: list[Any] = ..., /
    ) -> tuple[int, int]: ...
    def _publish_rows(self, rows: Any, /) -> int | None: ...
    def _shut(self) -> None: ...
    def _quiet(self) -> bool: ...
    def _foreign(self, event: object, /) -> object: ...
    def _refused(self, event: object, error: Exception, /) -> None: ...
    def _release(self) -> None: ...

class Consumer(Generic[T]):
    """The path of an event out of the broadcast rings of a topic."""

    def __init__(self, segment: Any, topic: int, decode: Callable[[Any], Any] | None, latest: bool = False) -> None:
        """`latest`: of each ring where it is lossy, the newest event alone; the others are skipped, and overrun."""

    @property
    def closed(self) -> bool: ...
    @property
    def cancelled(self) -> bool: ...
    def __iter__(self) -> Iterator[T]: ...
    def __next__(self) -> T: ...
    def try_receive(self) -> T | None: ...
    def receive(self, timeout: float | None = None) -> T: ...
    def _ask(self) -> Any: ...
    def _finish(self, ask: Any, /) -> Any: ...
    def _poll(self, ask: Any = None, /) -> Any: ...
    def _take(self, maximum: int, timeout: float | None, /) -> list[T]: ...
    def _poll_message(self, ask: Any = None, /) -> Any: ...
    def _next_message(self) -> Any: ...
    def _take_messages(self, maximum: int, timeout: float | None, /) -> Any: ...
    def _next_rows(self, most: int, /) -> Any: ...
    def _poll_rows(self, ask: Any, most: int, /) -> Any: ...
    def _take_rows(self, most: int, timeout: float | None, /) -> Rows: ...
    def _bind(self, semaphore: Any, offset: int, bit: int, idle: str, /) -> None: ...
    def _pass_on(self) -> None: ...
    def _ready(self) -> bool: ...
    def _due(self) -> float: ...
    def _sample_into(self, line: int, /) -> None: ...
    def _buffers_into(self, list: list[Any], /) -> None: ...
    def _tell_headers(self, seen: Callable[[bytes, int, str | None, int], object] | None, /) -> None: ...
    def _add_source(
        self, ring: BroadcastRing, slot: int, publisher: str, retired: bool = False, origin: str = "", /
    ) -> bool:
        """False for a ring that was given up before its reader came."""
    def _regate(self, ring_id: int, /) -> tuple[str, int, int] | None:
        """The ring holds what is not received yet, from now on; publisher, first and last of what it lost before."""
    def _drop_source(self, ring_id: int, /) -> None: ...
    def _retire_source(self, ring_id: int, /) -> None: ...
    def _retired_left(self) -> int: ...
    def _more_retired(self, more: bool, /) -> None: ...
    def _seen_epoch(self) -> None: ...
    def _cancel(self) -> None: ...
    def _within(self, callable: Callable[..., R], /, *arguments: Any) -> R: ...
    def _shut(self) -> None: ...
    def _quiet(self) -> bool: ...
    def _release(self) -> None: ...

class Claimer(Generic[T]):
    """The path of an event to one of a group's workers."""

    def __init__(
        self,
        segment: Any,
        topic: int,
        decode: Callable[[Any], Any] | None,
        group: int,
        owner: int,
        generation: int,
        max_deliver: int,
        prefetch: int,
        expires: bool = False,
    ) -> None: ...
    @property
    def closed(self) -> bool: ...
    @property
    def cancelled(self) -> bool: ...
    def __iter__(self) -> Iterator[T]: ...
    def __next__(self) -> T: ...
    def try_receive(self) -> T | None: ...
    def receive(self, timeout: float | None = None) -> T: ...
    def ack(self) -> None: ...
    def oldest_first(self) -> None: ...
    def _ask(self) -> Any: ...
    def _finish(self, ask: Any, /) -> Any: ...
    def _poll(self, ask: Any = None, /) -> Any: ...
    def _take(self, maximum: int, timeout: float | None, /) -> list[T]: ...
    def _poll_message(self, ask: Any = None, /) -> Any: ...
    def _next_message(self) -> Any: ...
    def _take_messages(self, maximum: int, timeout: float | None, /) -> Any: ...
    def _next_rows(self, most: int, /) -> Any: ...
    def _poll_rows(self, ask: Any, most: int, /) -> Any: ...
    def _take_rows(self, most: int, timeout: float | None, /) -> Rows: ...
    def _take_message(self, timeout: float | None, /) -> Any: ...
    def _bind(self, semaphore: Any, offset: int, bit: int, idle: str, /) -> None: ...
    def _pass_on(self) -> None: ...
    def _key_lanes(self, segment: Any, /) -> None: ...
    def _settle(
        self, ring_id: int, sequence: int, word: int, how: int, delay_ns: int = 0, unseen: bool = False, /
    ) -> bool: ...
    def _give_back(self, ring_id: int, sequence: int, word: int, /) -> None: ...
    def _payload(self, ring_id: int, sequence: int, word: int, /) -> bytes | None: ...
    def _headers(self, ring_id: int, sequence: int, word: int, /) -> bytes | None: ...
    def _ready(self) -> bool: ...
    def _due(self) -> float: ...
    def _sample_into(self, line: int, /) -> None: ...
    def _buffers_into(self, list: list[Any], /) -> None: ...
    def _tell_headers(self, seen: Callable[[bytes, int, str | None, int], object] | None, /) -> None: ...
    def _add_source(self, ring: WorkRing, publisher: str, retired: bool = False, origin: str = "", /) -> None: ...
    def _drop_source(self, ring_id: int, /) -> None: ...
    def _retire_source(self, ring_id: int, /) -> None: ...
    def _retired_left(self) -> int: ...
    def _more_retired(self, more: bool, /) -> None: ...
    def _seen_epoch(self) -> None: ...
    def _cancel(self) -> None: ...
    def _within(self, callable: Callable[..., R], /, *arguments: Any) -> R: ...
    def _shut(self) -> None: ...
    def _quiet(self) -> bool: ...
    def _release(self) -> None: ...

# -- queues

PLAIN: int
"""The first byte of what `plain` makes."""

def plain(value: object, /) -> bytes | None:
    """A small tree of None, bool, int, float, str, bytes, list, tuple, dict as bytes; None where it is for pickle."""

def unplain(data: bytes, /) -> Any:
    """The value of what `plain` has made. Raises CorruptSegmentError, TypeError, UnicodeDecodeError."""

def spans(rings: list[WorkRing], memory: Any, offset: int, epoch: int, /) -> int:
    """The sum of their spans; -1 unless the word of `memory` at `offset` is `epoch`, before and after."""

class Putter:
    """What a put comes to as a rule: the words of the queue, the offset of SHUT, bits of it that make it too late."""

    def __new__(cls, words: Any, shut: int, late: int, /, **needs: Any) -> Putter: ...
    def put(self, value: Any, block: bool, timeout: float | None, /) -> None: ...
    def bound(self, maxsize: int, putting: int, bit: int, used: int, alone: int, /) -> None:
        """Keep the bound from now on, with the bit of this process."""

    def goes_by(self, publish: Callable[[Any], object] | None, /) -> None:
        """Publish by this from now on; None: by `rest`."""

class Getter:
    """What a get comes to as a rule; the words of the queue, the offsets of SHUT and ROOM_AWAITED."""

    def __new__(cls, words: Any, shut: int, awaited: int, /, **needs: Any) -> Getter: ...
    def get(self, block: bool, timeout: float | None, /) -> Any: ...
    def goes_by(self, receive: Callable[[float], Any] | None, ack: Callable[[], None] | None, /) -> None:
        """Receive and ack by these from now on; None: by `claim`."""
