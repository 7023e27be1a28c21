"""The past: what stays on the books of who is gone, so that no total of a bus ever falls. Under the bus lock.

May touch: the registry document; reads latency lines.

Must stay true:
- The sum over the publishers of a topic, with `departed` and the topic's `past`, never falls, whoever comes and goes;
  neither does that over its consumers, with `closed`. A number moves in the commit that takes its source away.
- A name that comes back goes on with its own; only names of the gone are merged, the oldest first. So a series that
  somebody alive has never falls either.
- It is bounded: `MAX_DEPARTED` names a topic, `MAX_FORGOTTEN` topics a bus, and one more of each for all others.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from shmbus import _core
from shmbus._ledger.document import SAMPLED, Departed, Past, Totals
from shmbus.stats import DepartedStats

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmbus._ledger.document import ConsumerEntry, Document, PublisherEntry, RingEntry, Sampled, TopicEntry

DEPARTED: Final = "(departed)"
"""The name of all those whose names are forgotten; who calls itself so is one of them."""
FORGOTTEN: Final = "(forgotten)"
"""The same of topics."""
MAX_DEPARTED: Final = 32
MAX_FORGOTTEN: Final = 64

_WEIGHTS: Final = struct.Struct(f"<{_core.LATENCY_BUCKETS}Q")
_OCTAVE: Final = 4  # buckets
_FIRST: Final = 1 + 3 * _OCTAVE  # buckets up to 1,024 ns: the first ends at 128
_LIMIT: Final = 1 << 48  # of a bucket, as in latency.c: beyond nobody has counted


def settle_publisher(document: Document, entry: RingEntry, info: _core.RingInfo) -> None:
    """Keep what a publisher that is gone had published, before its broadcast ring goes."""
    publisher = document.publisher(entry.publisher)
    if publisher is None or publisher.state != "retired":
        return
    published, unrouted = publisher.before
    unrouted += publisher.unrouted + info["unrouted"]
    last = max(publisher.settled, info["sequence"] - 1)
    published += last - publisher.settled
    publisher.before, publisher.unrouted, publisher.settled = (0, 0), 0, last
    if not published + unrouted:
        return
    heir = next((p for p in document.publishers if p.state == "active" and _same_name(p, publisher)), None)
    if heir is not None:
        heir.before = heir.before[0] + published, heir.before[1] + unrouted
    else:
        _keep(document.departed.setdefault(publisher.topic, []), publisher.name, published, unrouted)


def _same_name(one: PublisherEntry, other: PublisherEntry) -> bool:
    return (one.topic, one.name) == (other.topic, other.name)


def _keep(departed: list[Departed], name: str, published: int, unrouted: int) -> None:
    entry = _take(departed, name) or Departed(name, 0, 0)
    entry.published += published
    entry.unrouted += unrouted
    departed.append(entry)  # at the end: it is the youngest
    named = [d for d in departed if d.name != DEPARTED]
    if len(named) > MAX_DEPARTED:
        departed.remove(named[0])
        _keep(departed, DEPARTED, named[0].published, named[0].unrouted)


def _take(departed: list[Departed], name: str) -> Departed | None:
    found = next((d for d in departed if d.name == name), None)
    if found is not None:
        departed.remove(found)
    return found


def take_publisher(document: Document, publisher: PublisherEntry) -> None:
    """One that comes under a name that was there before goes on with its totals."""
    found = _take(document.departed.get(publisher.topic, []), publisher.name)
    if found is not None:
        publisher.before = found.published, found.unrouted


# -- topics that are forgotten


def remember(document: Document, topic: TopicEntry) -> None:
    """Keep the totals of a topic that is forgotten, under its name."""
    past = topic.past or Past()
    for departed in document.departed.pop(topic.index, ()):
        past.published += departed.published
        past.unrouted += departed.unrouted
    for closed in document.closed:
        if closed.topic == topic.index:
            _add(past, closed.totals, closed.sampled)
    if past != Past():
        document.forgotten[topic.name] = past
    named = [name for name in document.forgotten if name != FORGOTTEN]
    if len(named) > MAX_FORGOTTEN:
        rest, oldest = document.forgotten.setdefault(FORGOTTEN, Past()), document.forgotten.pop(named[0])
        rest.published += oldest.published
        rest.unrouted += oldest.unrouted
        _add(rest, oldest.totals, oldest.sampled)


def recall(document: Document, topic: TopicEntry) -> None:
    """A topic that comes back goes on with the totals of its name."""
    topic.past = document.forgotten.pop(topic.name, None)


def _add(past: Past, totals: Totals, sampled: Sampled) -> None:
    add_totals(past.totals, totals)
    past.sampled = added(past.sampled, sampled)


def add_totals(into: Totals, more: Totals) -> None:
    """Term by term."""
    for field in Totals.__struct_fields__:
        setattr(into, field, getattr(into, field) + getattr(more, field))


def told(document: Document) -> Iterator[DepartedStats]:
    """What is on nobody's books any more who is told of otherwise: publishers by name, and all else as one a topic."""
    for topic in document.topics:
        for departed in document.departed.get(topic.index, ()):
            published, unrouted = departed.published, departed.unrouted
            yield DepartedStats(topic=topic.name, name=departed.name, published=published, unrouted=unrouted)
    pasts = [(t.name, t.past) for t in document.topics if t.past is not None] + list(document.forgotten.items())
    for name, past in pasts:
        totals = {field: getattr(past.totals, field) for field in Totals.__struct_fields__}
        yield DepartedStats(
            topic=name,
            name=DEPARTED,
            published=past.published,
            unrouted=past.unrouted,
            latencies=dense(past.sampled),
            **totals,
        )


# -- latencies


def dense(sampled: Sampled) -> tuple[int, ...]:
    """Every octave, () when nothing was sampled."""
    return tuple(sampled.get(octave, 0) for octave in range(SAMPLED)) if sampled else ()


def sampled(memory: _core.Mapping, consumer: ConsumerEntry) -> Sampled:
    """All latencies that were sampled under a consumer's name, by octave."""
    at = _core.LATENCY_LINES + consumer.line * _core.LATENCY_BYTES + _core.LATENCY_WEIGHTS
    weights = _WEIGHTS.unpack(memory[at : at + _WEIGHTS.size])
    found: Sampled = {}
    for bucket, weight in enumerate(weights):
        if 0 < weight <= _LIMIT:
            octave = min(max(0, bucket - _FIRST + _OCTAVE) // _OCTAVE, SAMPLED - 1)
            found[octave] = found.get(octave, 0) + weight
    return added(consumer.sampled, found)


def added(one: Sampled, other: Sampled) -> Sampled:
    """The sum of two; neither is changed."""
    return {octave: one.get(octave, 0) + other.get(octave, 0) for octave in sorted({*one, *other})}
