"""Bus: a process's door to one bus. Makes publishers, subscribers, workers and groups; tells the books.

May touch: everything below, through the session. Names, modes and types are checked here, before anything is created.

Must stay true:
- No global bus: two Bus objects of one name in one process are two participants.
- What a Bus made is closed with it; the last participant to leave removes the bus, unless a group is owed events.
"""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar

from shmbus import _core
from shmbus._closing import Closing
from shmbus._handles import naming
from shmbus._handles.exit import leave_at_exit, open_buses
from shmbus._handles.handle import or_undone
from shmbus._handles.session import Session
from shmbus._handles.waiting import IDLE_MODES
from shmbus._ledger import departures, groups, members, policies, topics
from shmbus._ledger.registry import LOCK_TIMEOUT
from shmbus._offers import Offers
from shmbus._options import check_choice, check_path, check_range, check_stall, check_topic, expiry_ns, nanoseconds
from shmbus.errors import ConfigError, CorruptSegmentError
from shmbus.letters import PATIENCE, Letters
from shmbus.pooled import publisher_class
from shmbus.publisher import ON_FULL, Publisher
from shmbus.subscriber import Subscriber, kind_of
from shmbus.topic import DEAD_SUFFIX, Topic, check_dead_name, check_label, check_name, codec_of
from shmbus.worker import MAX_PREFETCH, Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmbus._ledger.registry import Change
    from shmbus._schema.codec import Codec
    from shmbus.policy import Policy
    from shmbus.publisher import OnFull
    from shmbus.stats import BusStats, Loss
    from shmbus.subscriber import History, Mode, OnGap, Start
    from shmbus.topic import DeadLetter

T = TypeVar("T")
H = TypeVar("H", bound=Publisher[Any] | Subscriber[Any] | Worker[Any])
Idle = Literal["adaptive", "park", "spin"]

MAX_DELIVER: Final = 4000
"""The claim word counts to 4,095."""
_DEFAULT_STALL: Final = 10.0


class Bus(Closing, Offers):
    """A named namespace of topics on this host; created by the first process that opens it.

    `idle` says how its subscribers and workers wait for events: "adaptive" spins briefly where that pays, then
    sleeps; "park" sleeps at once; "spin" never sleeps and takes a core. `supervise=False` starts no supervisor; the
    participants then look after the dead themselves, about once a second. `stall_timeout` (seconds) is fixed by the
    creator: who makes no progress for that long with work to do is reported as stalled. `policy`, of whoever gives one
    last, says what more becomes of it: see Policy.

    Raises ConfigError, NoSpaceError, AccessError, LayoutMismatchError, CorruptSegmentError, CapacityError,
    LockTimeoutError.

        with Bus("shop") as bus, bus.publisher(ORDERS) as pub:
            pub.publish(OrderPaid(1, 250))
    """

    def __init__(
        self,
        name: str,
        *,
        idle: Idle = "adaptive",
        supervise: bool = True,
        stall_timeout: float = _DEFAULT_STALL,
        policy: Policy | None = None,
    ) -> None:
        self._open(name, idle, supervise, stall_timeout, create=True)
        if policy is not None:
            with or_undone(self.close):
                policies.change(self._session.registry, policy)

    @classmethod
    def attach(cls, name: str, *, idle: Idle = "adaptive", supervise: bool = True) -> Self:
        """Open a bus that exists. Raises BusNotFoundError instead of creating it."""
        bus = cls.__new__(cls)
        bus._open(name, idle, supervise, _DEFAULT_STALL, create=False)
        return bus

    def _open(self, name: str, idle: Idle, supervise: bool, stall_timeout: float, *, create: bool) -> None:
        check_name("bus", name)
        check_choice("idle", idle, IDLE_MODES)
        stall_ns = check_stall(stall_timeout)
        self._idle: Idle = idle
        self._supervise = supervise
        self._handles: weakref.WeakSet[Publisher[Any] | Subscriber[Any] | Worker[Any]] = weakref.WeakSet()
        self._letters: dict[str, Letters] = {}
        self._lock = threading.RLock()
        self._ending = self._put_off = False  # close() was called; it could not wait for a call that runs
        self._session = Session.open(name, create=create, supervise=supervise, stall_ns=stall_ns)
        open_buses.add(self)
        leave_at_exit(os.getpid())
        try:
            self._session.ensure_supervisor()
            self._session.tell_supervisor()
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        """What it was opened by."""
        return self._session.bus

    # -- handles

    @naming.telling
    def publisher(
        self,
        topic: Topic[T],
        *,
        name: str | None = None,
        on_full: OnFull = "block",
        timeout: float | None = None,
    ) -> Publisher[T]:
        """A publisher of a topic.

        When a reliable consumer is a whole ring behind, `on_full="block"` waits up to `timeout` seconds (None: for
        ever), then raises Full; "raise" raises it at once; "drop" writes the event where there is room, counts it as
        refused elsewhere, and returns None. Raises ConfigError, SchemaMismatchError, NoSpaceError, CapacityError.
        """
        check_topic(topic)
        check_choice("on_full", on_full, ON_FULL)
        if timeout is not None and not (isinstance(timeout, (int, float)) and timeout >= 0):
            raise ConfigError(f"timeout is None or a number of seconds from 0: timeout={timeout!r}")
        if name is not None:
            check_label("publisher", name)
        return self._open_publisher(topic, codec_of(topic), name, on_full, timeout)

    def _open_publisher(
        self,
        topic: Topic[T],
        codec: Codec,
        name: str | None,
        on_full: OnFull,
        timeout: float | None,
        lock_timeout: float = LOCK_TIMEOUT,
        kind: type[Publisher[T]] | None = None,
    ) -> Publisher[T]:
        def enter(change: Change) -> Publisher[T]:
            entry = topics.ensure_topic(change, topic, codec, "writer")
            members.require_free_name(change.document, entry, "publisher", name)
            rings, mine = self._session.rings, self._session.participant
            me = members.open_publisher(change, rings, entry, mine, name, topic.capacity, pool=topic.pool)
            with or_undone(lambda: departures.close_publisher(change, self._session.rings, me.id)):
                how, held = kind or publisher_class(topic), topics.held(change, topic, entry)
                wire = codec if held is topic else codec_of(held)
                return how(self._session, held, wire, entry, me, on_full, timeout, self._forget)

        return self._keep(self._session.enter(enter, topic.name, lock_timeout))

    @naming.telling
    def subscriber(
        self,
        topic: Topic[T],
        *,
        name: str | None = None,
        mode: Mode = "reliable",
        start: Start | History = "latest",
        on_gap: OnGap = None,
        journal: History | None = None,
        idle: Idle | None = None,
    ) -> Subscriber[T]:
        """A subscriber to every event of a topic, from now on, or from the oldest that the rings still hold, or, with a
        Journal as `start`, from the oldest that is in there, and then on: no gap, none twice.

        "reliable" holds back the publishers rather than lose an event. "lossy" holds back nobody: it is overrun,
        counts what it lost, and is told: `on_gap(Gap)` is called, or with "raise" GapError raised, before the next
        event; with "repair" it gets them from `journal`, in their place. "latest" holds back nobody either: it gets the
        newest event of each publisher; what is skipped is `overrun`. One that comes back under its `name` goes on
        with its totals. Raises ConfigError, SchemaMismatchError, CapacityError.
        """
        check_topic(topic)
        made, start = kind_of(topic, mode, start, on_gap, journal)
        if name is not None:
            check_label("subscriber", name)
        waits = self._checked_idle(idle)

        def enter(change: Change) -> Subscriber[T]:
            entry = topics.ensure_topic(change, topic, codec_of(topic), "reader")
            members.require_free_name(change.document, entry, "subscriber", name)
            me = members.open_subscriber(
                change, self._session.rings, entry, self._session.participant, name, mode, start
            )
            with or_undone(lambda: departures.close_subscriber(change, self._session.rings, me.id)):
                held = topics.held(change, topic, entry)
                return made(self._session, held, entry, me, on_gap, waits, self._forget)

        return self._keep(self._session.enter(enter, topic.name))

    def group(self, topic: Topic[Any], name: str, *, key: str | None = None, expires: float | None = None) -> None:
        """Make sure that a group exists: it collects events from now on, also while no worker lives.

        One that has no worker for `expires` seconds is removed, as by `remove_group`, and the log says what it was
        owed; math.inf: never. None leaves a group that exists as it is, and a new one never expires. The last one to
        say something else is right.

        `key` is the path of a field ("account", "customer.id"): events with the same there are handled one at a time
        and in each publisher's order, whatever the number of workers. A group has its key for as long as it exists:
        another one is a ConfigError, None takes it as it is.
        """
        check_topic(topic)
        check_label("group", name)
        expires_ns, path = expiry_ns(expires), check_path(key, topic)

        def enter(change: Change) -> None:
            entry = topics.ensure_topic(change, topic, codec_of(topic), "reader")
            members.open_group(change, self._session.rings, entry, name, expires_ns, path)

        self._session.enter(enter, topic.name)

    def remove_group(self, topic: Topic[Any], name: str, *, force: bool = False) -> int:
        """Remove a group; what it was owed is on its books as abandoned, and is returned as a count of events.

        Publishers that wait for it go on at once. Raises ConfigError if there is no such group, or if it has workers,
        which are named; `force` removes it under them: what they do next raises ReclaimedError.
        """
        check_topic(topic)
        check_label("group", name)
        with self._session.locked() as change:
            group = groups.named(change.document, topic.name, name)
            if not force:
                self._session.reclaim_dead(change)  # which may be its last workers
            owed = groups.remove(change, self._session.rings, group, force=force)
            self._session.wake_workers(group.slot, _core.MAX_WORKERS)
            self._session.wake_everybody(change.document)
        return owed

    def worker(
        self,
        topic: Topic[T],
        *,
        group: str,
        key: str | None = None,
        name: str | None = None,
        max_deliver: int = 5,
        prefetch: int = 1,
        ack_within: float | None = None,
        expires: float | None = None,
        idle: Idle | None = None,
    ) -> Worker[T]:
        """A worker of a group; the first one makes the group.

        An event that was handed out `max_deliver` times without an ack goes to the topic `<topic>.dead` instead of a
        further delivery. `prefetch` events are claimed in one go; those in a dead worker's hands count as handed out,
        those that a living one gives back without having shown them to anybody do not.

        An event that this worker holds for longer than `ack_within` seconds is given to another one, up to two seconds
        later: settling it then raises ReclaimedError, and it costs an attempt. `expires` and `key`: as `group`
        has them. Raises ConfigError, SchemaMismatchError, NoSpaceError, CapacityError.
        """
        check_topic(topic)
        check_label("group", group)
        if name is not None:
            check_label("worker", name)
        if not topic.name.endswith(DEAD_SUFFIX):
            check_dead_name(topic)  # it must be possible before anything is created
        check_range("max_deliver", max_deliver, MAX_DELIVER)
        check_range("prefetch", prefetch, MAX_PREFETCH)
        within, policy = nanoseconds("ack_within", ack_within), (max_deliver, prefetch, self._checked_idle(idle))
        return self._open_worker(topic, group, name, policy, (within, expiry_ns(expires), check_path(key, topic)))

    def _open_worker(
        self,
        topic: Topic[T],
        group: str,
        name: str | None,
        policy: tuple[int, int, str],
        terms: tuple[int, int | None, str | None] = (0, None, None),
        kind: type[Worker[T]] = Worker,
    ) -> Worker[T]:
        ack_within_ns, expires_ns, path = terms

        def enter(change: Change) -> Worker[T]:
            entry = topics.ensure_topic(change, topic, codec_of(topic), "reader")
            known, rings = {c.id for c in change.document.consumers}, self._session.rings
            owner = members.open_group(change, rings, entry, group, expires_ns, path)
            with or_undone(lambda: None if owner.id in known else departures.undo_group(change, rings, owner.id)):
                me = members.open_worker(change, owner, self._session.participant, name, ack_within_ns)
                with or_undone(lambda: departures.close_worker(change, rings, me.id)):
                    ways = self._letters_of(topic), self._forget
                    held = topics.held(change, topic, entry)
                    return kind(self._session, held, entry, owner, me, *policy, *ways)

        return self._keep(self._session.enter(enter, topic.name))

    def _letters_of(self, topic: Topic[Any]) -> Letters | None:
        """The way to a topic's dead letters; None for a dead-letter topic itself."""
        if topic.name.endswith(DEAD_SUFFIX):
            return None

        def opened(letters: Topic[DeadLetter]) -> Publisher[DeadLetter]:
            return self._open_publisher(letters, codec_of(letters), None, "block", PATIENCE, PATIENCE)

        with self._lock:
            return self._letters.setdefault(topic.name, Letters(topic, opened, self._session.document))

    def _keep(self, handle: H) -> H:
        naming.note(handle)
        with self._lock:
            if not self._ending:
                self._handles.add(handle)
        if self._ending:  # by another thread, which did not see this one
            handle.close()
            self._session.raise_closed()
        self._session.tell_supervisor()
        return handle

    def _forget(self, handle: Any) -> None:
        with self._lock:
            self._handles.discard(handle)
        if self._put_off:
            self._leave()

    def _checked_idle(self, idle: Idle | None) -> Idle:
        if idle is not None:
            check_choice("idle", idle, IDLE_MODES)
        return self._idle if idle is None else idle

    # -- books

    def stats(self) -> BusStats:
        """The bus at this moment: every publisher, consumer and participant, and their books."""
        self._session.check()
        from shmbus._ledger import books  # whoever only takes part does without

        return books.stats(self._session.registry, self._session.rings)

    def losses(self) -> list[Loss]:
        """Every loss on the books: consumer, publisher, cause, sequences, count and times, the oldest first."""
        self._session.check()
        from shmbus._ledger import books

        return books.losses(self._session.registry, self._session.rings)

    # -- the end

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._session.closed or self._ending

    def close(self) -> None:
        """Close what this Bus made, and leave. Idempotent; in a forked child it only lets go.

        From any thread: ends the calls that wait, and waits for those that run, as the handles do; from within one it
        leaves when that ends. Waits for the bus lock a second at most: then others reclaim what is left.
        """
        if self._session.closed:
            return
        with ExitStack() as stack:  # all of it, also where a corrupt segment does not let one of them go
            stack.callback(self._leave)
            if not self._session.inherited:
                with self._lock:
                    self._ending = True
                    handles = list(self._handles)
                for handle in handles:
                    stack.callback(handle.end)

    def _leave(self) -> None:
        """Leave the bus, unless a call runs that could not be waited for: then its end leads here again."""
        if not self._session.inherited:
            with self._lock:
                self._put_off = any(handle._put_off for handle in self._handles)
        if not self._put_off:
            self._session.close()
            open_buses.discard(self)

    def __del__(self) -> None:
        session = getattr(self, "_session", None)
        if session is not None and not session.closed and session.pid == os.getpid():
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)
            with suppress(CorruptSegmentError):
                self.close()

    def __reduce__(self) -> tuple[Callable[..., Bus], tuple[str, Idle, bool]]:
        return _reopen, (self.name, self._idle, self._supervise)

    def __repr__(self) -> str:
        return f"<Bus {self.name!r}{' closed' if self._session.closed else ''}>"


def _reopen(name: str, idle: Idle, supervise: bool) -> Bus:
    return Bus(name, idle=idle, supervise=supervise)
