"""Messages: what `messages()` of a subscriber or worker returns.

Must stay true: it ends where the iteration over the handle itself would end, in a thread and in an event loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from shmbus import _core
from shmbus.errors import ClosedError
from shmbus.message import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Self

    from shmbus._handles.waiting import Receiver

M = TypeVar("M", bound=Message[Any])


class Messages(Iterator[M], AsyncIterator[M]):
    """Messages as they come: `for message in worker.messages()`, or `async for`, or `next` and `anext`.

    Any number may be open at once, and used by turns. Ends on close() and cancel().
    """

    def __init__(self, receiver: Receiver[Any], make: Callable[[tuple[Any, ...]], M]) -> None:
        self._receiver = receiver
        self._make = make
        self._next = self._run()

    def __iter__(self) -> Iterator[M]:  # noqa: PYI034 -- the generator spares each turn a Python frame
        return self._next

    def __next__(self) -> M:
        return next(self._next)

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[Any, Any, M]:
        core = self._receiver._as_core()
        return self._anext(core._ask())

    async def _anext(self, ask: Any) -> M:
        return self._make(await self._receiver._anext(self._receiver._as_core()._poll_message, ask))

    def _run(self) -> Iterator[M]:
        core, make = self._receiver._as_core(), self._make
        views = core.topic.pool > 0
        while not core.closed:
            try:
                found = core._next_message()
            except ClosedError:
                if core.closed:
                    return  # by another thread, while we looked
                raise
            if found is _core.NOTHING:
                return
            if views:
                yield (make(found), found := None)[0]  # a frame that waits for the next keeps none of the last
            else:
                yield make(found)
