"""Entries of a journal in order, and as the messages that they were.

Pure.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any, Final, TypeVar

from shmbus.errors import DecodeError
from shmbus.message import Message
from shmbus.topic import Topic, codec_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from shmbus.journal.store import Batch, Entry, Store

T = TypeVar("T")

FIRST_NS: Final = -(1 << 63)
LAST_NS: Final = (1 << 63) - 1


def group_of(store: Store) -> str:
    """The group that collects for a store: by the id in the file, so that two files of one name are two."""
    return f"journal:{store.id}"


def message_of(topic: Topic[T], bus: str, entry: Entry) -> Message[T]:
    """A message as its subscribers got it, but for the sequence, which is that of the ring that the journal read."""
    decode = codec_of(topic).decode
    try:
        event: Any = entry.payload if decode is None else decode(entry.payload)
    except Exception as error:  # of the codec, or of a hook
        raise DecodeError(topic.name, entry.publisher, entry.sequence, str(error)) from error
    return Message(event, entry.sequence, entry.publisher, entry.time_ns, entry.headers, entry.origin)


def merged(batches: Iterable[Batch]) -> Iterator[tuple[str, Entry]]:
    """Entries of all batches by time; batches come by their first entry, and overlap where claims came back late."""
    waiting: list[tuple[int, int, int, Batch]] = []  # time of the next entry, batch, its index
    for batch in batches:
        yield from _until(waiting, batch.first_ns)
        heapq.heappush(waiting, (batch.first_ns, batch.number, 0, batch))
    yield from _until(waiting, LAST_NS)


def _until(waiting: list[tuple[int, int, int, Batch]], end_ns: int) -> Iterator[tuple[str, Entry]]:
    while waiting and waiting[0][0] < end_ns:
        _, number, at, batch = heapq.heappop(waiting)
        limit = min(end_ns, waiting[0][0]) if waiting else end_ns  # until there no other batch has an entry
        entries, count = batch.entries, len(batch.entries)
        while True:
            yield batch.bus, entries[at]
            at += 1
            if at == count:
                break
            if entries[at].time_ns >= limit:
                heapq.heappush(waiting, (entries[at].time_ns, number, at, batch))
                break
