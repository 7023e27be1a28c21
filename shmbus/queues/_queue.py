"""The three queues of multiprocessing, on a bus.

May touch: its Home.

Must stay true: a method does and raises what multiprocessing's does, but where docs/queues.md says otherwise.
"""

from __future__ import annotations

import sys
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar

from shmbus._options import check_range
from shmbus.bus import MAX_DELIVER
from shmbus.errors import ClosedError, ConfigError, QueueClosedError
from shmbus.queues import _words
from shmbus.queues._ground import Kind
from shmbus.queues._home import Home
from shmbus.topic import check_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import TypeForm

    from shmbus.queues._link import Link

T = TypeVar("T")

_IN_MULTIPROCESSING: Final = "multiprocessing.context"


class Queue(Generic[T]):
    """A queue of processes, first in, first out, as `multiprocessing.Queue`; a killed process hurts nobody who uses it.

    `maxsize` is the most that it holds, 0 or less: as much as there is memory. It takes any object that can be pickled,
    or, with `type` and `codec` ("msgpack", "json"), what msgspec makes of that type. Without `name` it is handed to
    other processes as arguments or in a fork, and goes with the last that has it. With one, any process of this user
    has it by that name, and what is in it outlives those that put it.

    What a process was about to get when it was killed is got by another one; what it had got is gone with it. With
    `redeliver` that comes again too, until `task_done` says that it need not: but `max_deliver` times at most, if
    that is given, and then to the dead letters of its bus.

    `ctx` is taken for compatibility. Raises ConfigError, NoSpaceError, AccessError, CapacityError.

        queue = shmbus.queues.Queue(100)
        Process(target=work, args=(queue,)).start()
        queue.put(task)
    """

    _counts = False

    def __init__(
        self,
        maxsize: int = 0,
        *,
        ctx: object = None,
        name: str | None = None,
        type: TypeForm[T] | None = None,
        codec: Literal["msgpack", "json"] | None = None,
        redeliver: bool = False,
        max_deliver: int | None = None,
    ) -> None:
        if not isinstance(maxsize, int):
            raise ConfigError(f"maxsize is an int: maxsize={maxsize!r}")
        if name is not None:
            check_name("bus", name)
        if codec is not None and (type is None or codec not in ("msgpack", "json")):
            raise ConfigError(f"codec is 'msgpack' or 'json', and goes with a type: codec={codec!r}, type={type!r}")
        if max_deliver is not None:
            check_range("max_deliver", max_deliver, MAX_DELIVER)
            if not redeliver:
                raise ConfigError(f"max_deliver goes with redeliver=True: max_deliver={max_deliver!r}")
        tasks = _words.CLAIMED if redeliver else _words.COUNTED if self._counts else _words.NONE
        self._begin(Home.make(name, Kind(max(0, maxsize), tasks, type, codec, max_deliver or 0)))

    def _begin(self, home: Home) -> None:
        self._home = home
        self._closed = self._used = False
        self._finalize = weakref.finalize(self, home.release)
        self._finalize.atexit = False  # its bus is left by then

    # -- what multiprocessing has

    def put(self, obj: T, block: bool = True, timeout: float | None = None) -> None:
        """Put an object: it is in, for whoever gets, when this returns, and outlives this process.

        Raises queue.Full when there is no room (`block`: within `timeout` seconds), ShutDown, ValueError once closed,
        and what the object raises when it is pickled.
        """
        if self._closed:
            raise self._is_closed()
        self._used = True
        try:
            put = (self._home._link or self._home.link()).put  # no method: called as one it is looked up each time
            put(obj, block, timeout)
        except ClosedError as error:
            raise self._told(error) from None

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Get the object that was put first. Raises queue.Empty when there is none (`block`: within `timeout` seconds).

        Raises ShutDown, ValueError once closed, and what the object raises when it is unpickled, which loses it.
        """
        if self._closed:
            raise self._is_closed()
        self._used = True
        try:
            get = (self._home._link or self._home.link()).get
            return get(block, timeout)  # type: ignore[no-any-return]
        except ClosedError as error:
            raise self._told(error) from None

    def put_nowait(self, obj: T) -> None:
        """`put(obj, False)`."""
        self.put(obj, False)

    def get_nowait(self) -> T:
        """`get(False)`."""
        return self.get(False)

    def qsize(self) -> int:
        """How many are in it: exact where nobody puts or gets meanwhile, whoever was killed."""
        with self._open() as link:
            return link.qsize()

    def empty(self) -> bool:
        """Whether nothing is in it."""
        if self._closed and not self._used:  # as multiprocessing has it
            return True
        return self.qsize() == 0

    def full(self) -> bool:
        """Whether as many are in it as it may hold; never for one without a bound."""
        return 0 < self._home.kind.maxsize <= self.qsize()

    def close(self) -> None:
        """This process neither puts nor gets any more; waits of its threads end. Idempotent."""
        self._closed = True
        self._finalize()

    def join_thread(self) -> None:
        """Nothing: there is no thread, and what was put is in. Raises AssertionError before close()."""
        assert self._closed, f"Queue {self!r} not closed"

    def cancel_join_thread(self) -> None:
        """Nothing: no exit waits for this queue."""

    # -- what queue.Queue has

    def shutdown(self, immediate: bool = False) -> None:
        """End it for all processes: `put` raises ShutDown now, and `get` once it is empty, or, with `immediate`, now.

        What is in it then is dropped, and `join` does not wait for it.
        """
        with self._open() as link:
            link.shutdown(immediate)

    @property
    def is_shutdown(self) -> bool:
        """Whether some process has shut it down."""
        with self._open():
            return bool(self._home.words.quick[_words.SHUT // 8])

    @property
    def maxsize(self) -> int:
        """The most that it holds; 0: no bound."""
        return self._home.kind.maxsize

    @property
    def name(self) -> str:
        """That of its bus: `shmbus stat NAME` shows it."""
        return self._home.name

    def task_done(self) -> None:
        """With `redeliver`: what this thread got first, or else this process, need not come again.

        Raises ValueError where nothing is open. Without, what was got is done, and this does nothing.
        """
        if self._home.kind.tasks == _words.NONE:
            return
        with self._open() as link:
            link.task_done()

    # --

    @contextmanager
    def _open(self) -> Iterator[Link]:
        if self._closed:
            raise self._is_closed()
        self._used = True
        try:
            yield self._home.link()
        except ClosedError as error:
            raise self._told(error) from None

    def _is_closed(self) -> QueueClosedError:
        return QueueClosedError(f"Queue {self!r} is closed")

    def _told(self, error: ClosedError) -> ClosedError:
        if isinstance(error, QueueClosedError):
            return error
        return self._is_closed() if self._closed else QueueClosedError(f"queue {self.name!r} is gone: {error}")

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        home, kind, held = self._home, self._home.kind, None
        context = sys.modules.get(_IN_MULTIPROCESSING)
        popen = context.get_spawning_popen() if context is not None else None
        if popen is not None and home.held >= 0 and not self._closed:
            from multiprocessing.reduction import DupFd

            held = DupFd(home.held)  # so that it is there when the child comes, whatever became of us
        options = (kind.maxsize, kind.tasks, kind.type, kind.codec, kind.max_deliver)
        return _attach, (type(self), home.name, home.named, options, held)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}{' closed' if self._closed else ''}>"


class JoinableQueue(Queue[T]):
    """A queue that counts what was put and is not done: as `multiprocessing.JoinableQueue`.

    What a process had got when it ended is not waited for: it will not be done, unless with `redeliver` by another one.
    """

    _counts = True

    def task_done(self) -> None:
        """What this thread got first, or else this process, is done. Raises ValueError where nothing is open."""
        super().task_done()

    def join(self) -> None:
        """Wait until all that was put is done."""
        with self._open() as link:
            link.join()

    @property
    def unfinished_tasks(self) -> int:
        """How many were put and are not done."""
        with self._open() as link:
            return link.unfinished()


class SimpleQueue(Queue[T]):
    """A queue without a bound, as `multiprocessing.SimpleQueue`; it has the methods of the others too."""

    def __init__(
        self,
        *,
        ctx: object = None,
        name: str | None = None,
        type: TypeForm[T] | None = None,
        codec: Literal["msgpack", "json"] | None = None,
    ) -> None:
        super().__init__(ctx=ctx, name=name, type=type, codec=codec)

    def empty(self) -> bool:
        """Whether nothing is in it. Raises OSError once closed."""
        return self.qsize() == 0


def _attach(cls: type[Queue[Any]], name: str, named: bool, options: tuple[Any, ...], held: Any) -> Queue[Any]:
    queue = cls.__new__(cls)
    descriptor = -1 if held is None else held.detach()
    queue._begin(Home.attach(name, Kind(*options), named=named, held=descriptor))
    return queue
