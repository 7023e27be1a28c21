"""Journal: the file as a reader has it. Replays events, and hands subscribers what their ring does not have any more.

May touch: the store, to read.

Must stay true: per publisher the order of its stamps; across publishers by time; none twice, none left out between the
first event and the moment when the replay began.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from shmbus import raw
from shmbus._closing import Closing
from shmbus._schema import compare
from shmbus.errors import ConfigError, SchemaMismatchError
from shmbus.journal.entries import FIRST_NS, LAST_NS, merged, message_of
from shmbus.journal.store import Entry, Store, open_store
from shmbus.message import Message
from shmbus.topic import Topic, bound_to

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shmbus.raw import Form
    from shmbus.subscriber import Subscriber

T = TypeVar("T")


class Recorded(NamedTuple):
    """An event of a journal whose Python type is not at hand."""

    bus: str
    entry: Entry
    event: Any
    """Builtins; bytes for a raw or pickled topic, and for what does not decode."""


class Part(NamedTuple):
    """What a journal has of one publisher in a span of time."""

    since_ns: int
    until_ns: int
    entries: list[tuple[str, Entry]]
    """With the bus of each, by time."""


class Journal(Closing):
    """A journal on disk, to read: while it is written too, by any number of readers.

    `path` is what `shmbus journal BUS --path` writes. One that was cut short is opened at its last whole batch, and the
    log says what is lost. Raises JournalError for a file that is missing, of another version, or no journal.

        with shmbus.Journal("orders.journal") as journal:
            for message in journal.replay(ORDERS):
                print(message.time_ns, message.event)
    """

    def __init__(self, path: Any, *, store: str = "sqlite") -> None:
        self.path: Final = path
        self.store: Final[Store] = open_store(store, path, write=False)

    @property
    def topics(self) -> tuple[str, ...]:
        """The names of the topics that it has."""
        return tuple(self.store.forms())

    def replay(
        self,
        topic: Topic[T],
        *,
        since: float | datetime | None = None,
        until: float | datetime | None = None,
        publisher: str | None = None,
        speed: float | None = None,
    ) -> Iterator[Message[T]]:
        """The events of a topic, by time: what was written before the call, each once.

        `since` is the first moment, `until` the first that is left out: a datetime, seconds since the epoch as a float,
        or ns as an int, as `Message.time_ns` is. `speed=1.0` keeps the pauses between events, 2.0 halves them, None
        makes none. Raises SchemaMismatchError for another type than was written, DecodeError for a payload not of it.
        """
        form = self._admitted(topic)
        if speed is not None and not (isinstance(speed, (int, float)) and speed > 0):
            raise ConfigError(f"speed is None or a positive number: {speed=!r}")
        span = _ns("since", since, FIRST_NS), _ns("until", until, LAST_NS)
        found = self._entries(form.name, *span, publisher)
        topic = bound_to(topic, form.description)
        return paced((message_of(topic, bus, entry) for bus, entry in found), attrgetter("time_ns"), speed)

    def recorded(
        self,
        name: str,
        *,
        since: float | datetime | None = None,
        until: float | datetime | None = None,
        publisher: str | None = None,
    ) -> Iterator[Recorded]:
        """The same by the name of the topic alone, for tools. Raises ConfigError for a topic that it does not have."""
        form = self.form(name)
        span = _ns("since", since, FIRST_NS), _ns("until", until, LAST_NS)
        return (Recorded(bus, entry, _builtins(form, entry)) for bus, entry in self._entries(name, *span, publisher))

    def form(self, name: str) -> Form:
        """The form of a topic that it has, or ConfigError."""
        forms = self.store.forms()
        if name not in forms:
            known = ", ".join(forms) or "none"
            raise ConfigError(f"journal {str(self.path)!r} has no topic {name!r}; it has {known}")
        return forms[name]

    def subscriber_type(self, topic: Topic[Any], *, catch_up: bool, repair: bool) -> Callable[..., Subscriber[Any]]:
        """What `Bus.subscriber` makes of `start=journal` and of `on_gap="repair", journal=journal`."""
        from shmbus.journal.catchup import CatchingUp

        if topic.name in self.store.forms():
            self._admitted(topic)
        return partial(CatchingUp, journal=self, catch_up=catch_up, repair=repair)

    def parts(self, name: str, origin: str, since_ns: int, until_ns: int, most: int) -> Iterator[Part]:
        """The events of a publisher with stamps of `[since_ns, until_ns)`, in its order, `most` at a time."""
        width = until_ns - since_ns
        while since_ns < until_ns:
            end = min(until_ns, since_ns + width)
            part = self.part(name, origin, since_ns, end, most)
            count = len(part.entries)
            if count > most:  # and more, that were not read: up to the middle of these there are few others
                width = max(1, part.entries[count // 2][1].time_ns - since_ns)
                continue
            yield part
            width = min(4 * width, width * 3 * most // (4 * count + 1) + 1)
            since_ns = end

    def part(self, name: str, origin: str, since_ns: int, until_ns: int, most: int) -> Part:
        """The events of a publisher with stamps of a span, in its order; some of them where there are more."""
        found: list[tuple[str, Entry]] = []
        for batch in self.store.around(name, since_ns, until_ns):
            bus = batch.bus
            found += [
                (bus, entry)
                for entry in batch.entries
                if entry.origin == origin and since_ns <= entry.time_ns < until_ns
            ]
            if len(found) > most:
                break
        found.sort(key=lambda pair: pair[1].time_ns)
        return Part(since_ns, until_ns, found)

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        self.store.close()

    # -- inside

    def _entries(self, name: str, since: int, until: int, publisher: str | None) -> Iterator[tuple[str, Entry]]:
        batches = self.store.by_time(name, since, until, self.store.last())
        for bus, entry in merged(batches):
            if since <= entry.time_ns < until and (publisher is None or entry.publisher == publisher):
                yield bus, entry

    def _admitted(self, topic: Topic[Any]) -> Form:
        """The form under which a topic was written, if this definition reads it."""
        form, ours = self.form(topic.name), raw.form_of(topic)
        if form.codec != ours.codec:
            raise ConfigError(f"topic {topic.name!r} was written with codec {form.codec!r}, not {ours.codec!r}")
        if topic.schema == "strict":
            ours.require(form, f"journal {str(self.path)!r}")
        elif reasons := compare.admits(ours.description, form.description):
            raise SchemaMismatchError(topic.name, [f"in journal {str(self.path)!r}", *reasons])
        return form

    def __repr__(self) -> str:
        return f"<Journal {str(self.path)!r}>"


def paced(items: Iterable[Any], time_of: Callable[[Any], int], speed: float | None) -> Iterator[Any]:
    """Items with the pauses that were between them, divided by `speed`; None: without."""
    began = first = None
    for item in items:
        if speed is not None:
            if began is None or first is None:
                began, first = time.monotonic(), time_of(item)
            pause = began + (time_of(item) - first) / 1e9 / speed - time.monotonic()
            if pause > 0:
                time.sleep(pause)
        yield item


def _builtins(form: Form, entry: Entry) -> Any:
    import msgspec

    try:
        return raw.decode(form, entry.payload)
    except msgspec.DecodeError:
        return entry.payload


def _ns(option: str, moment: float | datetime | None, missing: int) -> int:
    if moment is None:
        return missing
    if isinstance(moment, datetime):
        return int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1000
    if isinstance(moment, int) and not isinstance(moment, bool):
        return max(FIRST_NS, min(moment, LAST_NS))
    if isinstance(moment, float) and abs(moment) < 9e9:
        return int(moment * 1e9)
    raise ConfigError(f"{option} is a datetime, seconds as a float, or ns as an int: {option}={moment!r}")
