"""An exhaustive checker of small C11 programs: every execution that RC11 allows, and what each ends with.

A thread is a generator function. It yields `Load`, `Store` and `Rmw`, is sent the value read, and returns what it saw.
The memory model is RC11 (Lahav, Vafeiadis, Kang, Hur, Dreyer, "Repairing sequential consistency in C/C++11", PLDI 2017)
without fences, with the release sequences of C++20 (a store of the same thread does not continue one):

    coherence     hb;eco? is irreflexive            atomicity   nothing comes between the halves of an RMW in mo
    sc            psc is acyclic                    thin air    sb ∪ rf is acyclic

Since sb ∪ rf is acyclic, every execution can be built event by event, each read from a write that is there already.
That is what `executions` does, in every order, each graph visited once; coherence and atomicity only admit what they
allow while building, psc is checked on the whole graph. Conflicting accesses that hb leaves unordered, one of them
plain, are a data race.

May touch: nothing. Must stay true: no execution that RC11 allows is left out; tests/test_litmus.py holds the checker
against the verdicts of the literature.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntFlag
from typing import TypeAlias


class Order(IntFlag):
    """Memory orders as sets of what they guarantee."""

    PLAIN = 0
    RELAXED = 1
    ACQUIRE = 3
    RELEASE = 5
    ACQ_REL = 7
    SEQ = 15


_ACQUIRES, _RELEASES, _SEQ = 2, 4, 8


@dataclass(frozen=True)
class Load:
    """Reads a location; the value is sent back."""

    at: str
    order: Order


@dataclass(frozen=True)
class Store:
    """Writes a location; None is sent back."""

    at: str
    value: int
    order: Order


@dataclass(frozen=True)
class Rmw:
    """Reads and writes at once; the value read is sent back. Where `change` gives None (a compare that fails) it is
    a load with `failing`.
    """

    at: str
    change: Callable[[int], int | None]
    order: Order
    failing: Order = Order.SEQ


Access: TypeAlias = Load | Store | Rmw
Result: TypeAlias = Mapping[str, int]
Thread: TypeAlias = Callable[[], Generator[Access, int, Result]]


@dataclass(frozen=True)
class Event:
    """One access of an execution; `source` is the write that a read reads from, -1 for a store."""

    id: int
    thread: int
    at: str
    order: Order
    value: int
    reads: bool
    writes: bool
    source: int
    before: int  # bit mask of the events that happen before it
    released: int  # writes: what a read with acquire that reads from it is ordered after


@dataclass(frozen=True)
class Graph:
    """An execution so far: events by id, those of each thread in order, and the writes of each location in mo."""

    events: Mapping[int, Event]
    threads: tuple[tuple[int, ...], ...]
    mo: Mapping[str, tuple[int, ...]]

    def key(self) -> tuple[object, ...]:
        """What tells two graphs apart: ids are (thread, index), so neither depends on the order of building."""
        sources = tuple(tuple(self.events[e].source for e in thread) for thread in self.threads)
        return sources, tuple(self.mo.values())


@dataclass
class Outcome:
    """What one whole execution ended with: what the threads returned, and the last write of each location."""

    seen: dict[str, int]
    memory: dict[str, int]
    race: str = ""


@dataclass
class Program:
    """Threads over locations with initial values."""

    initial: Mapping[str, int]
    threads: list[Thread]
    _next: dict[tuple[int, tuple[int, ...]], Access | Result] = field(default_factory=dict)

    def step(self, thread: int, values: tuple[int, ...]) -> Access | Result:
        """What a thread does next after it was sent `values`: an access, or what it returns."""
        key = thread, values
        if key not in self._next:
            self._next[key] = _replay(self.threads[thread], values)
        return self._next[key]


_STRIDE = 32  # events of one thread, at most; the initial writes are thread 0


def _replay(thread: Thread, values: tuple[int, ...]) -> Access | Result:
    running = thread()
    try:
        step = next(running)
        for value in values:
            step = running.send(value)
    except StopIteration as stop:
        result: Result = stop.value or {}
        return result
    return step


def _beginning(program: Program) -> Graph:
    events = {
        i: Event(i, 0, at, Order.RELAXED, value, reads=False, writes=True, source=-1, before=0, released=0)
        for i, (at, value) in enumerate(program.initial.items())
    }
    return Graph(events, ((),) * len(program.threads), {event.at: (i,) for i, event in events.items()})


def _floor(graph: Graph, at: str, before: int) -> int:
    """Index in mo of the newest write that an event after `before` must know: written or read there (coherence)."""
    order = graph.mo[at]
    floor = 0
    for event in graph.events.values():
        if event.at == at and before >> event.id & 1:
            known = event.id if event.writes else event.source
            floor = max(floor, order.index(known))
    return floor


def _taken(graph: Graph, write: int) -> bool:
    """Whether an RMW reads from `write`: nothing may come between the two."""
    return any(e.reads and e.writes and e.source == write for e in graph.events.values())


def _grow(graph: Graph, thread: int, access: Access, initials: int) -> Iterator[Graph]:
    """The graph with one more access of `thread`, in every way that coherence and atomicity allow."""
    own = graph.threads[thread]
    id = (thread + 1) * _STRIDE + len(own)
    before = initials
    if own:
        before |= graph.events[own[-1]].before | 1 << own[-1]
    order = graph.mo[access.at]
    floor = _floor(graph, access.at, before)
    if isinstance(access, Store):
        released = before | 1 << id if access.order & _RELEASES else 0
        event = Event(id, thread + 1, access.at, access.order, access.value, False, True, -1, before, released)
        for place in range(floor + 1, len(order) + 1):
            if not _taken(graph, order[place - 1]):
                yield _with(graph, thread, event, (*order[:place], id, *order[place:]))
        return
    for place in range(floor, len(order)):
        source = graph.events[order[place]]
        changed = access.change(source.value) if isinstance(access, Rmw) else None
        how = access.failing if isinstance(access, Rmw) and changed is None else access.order
        known = before | (source.released if how & _ACQUIRES else 0)
        if known != before and _floor(graph, access.at, known) > place:
            continue
        if changed is None:
            yield _with(
                graph,
                thread,
                Event(id, thread + 1, access.at, how, source.value, True, False, source.id, known, 0),
                order,
            )
        elif not _taken(graph, source.id):
            released = source.released | (known | 1 << id if how & _RELEASES else 0)
            event = Event(id, thread + 1, access.at, how, changed, True, True, source.id, known, released)
            yield _with(graph, thread, event, (*order[: place + 1], id, *order[place + 1 :]))


def _with(graph: Graph, thread: int, event: Event, order: tuple[int, ...]) -> Graph:
    threads = list(graph.threads)
    threads[thread] = (*threads[thread], event.id)
    return Graph({**graph.events, event.id: event}, tuple(threads), {**graph.mo, event.at: order})


def _sent(graph: Graph, thread: int) -> tuple[int, ...]:
    """What a thread was sent so far: the value read, 0 after a store."""
    events = (graph.events[e] for e in graph.threads[thread])
    return tuple(graph.events[e.source].value if e.reads else 0 for e in events)


def _psc_acyclic(graph: Graph) -> bool:
    """No cycle of sb, sb;hb;sb between other locations, hb at one location, mo and rb among SC events."""
    strong = [e for e in graph.events.values() if e.order & _SEQ]
    place = {w: i for order in graph.mo.values() for i, w in enumerate(order)}
    after = {e.id: {f.id for f in strong if f is not e and _psc_edge(graph, place, e, f)} for e in strong}
    while after:
        last = [e for e, successors in after.items() if not successors & after.keys()]
        if not last:
            return False
        for e in last:
            del after[e]
    return True


def _psc_edge(graph: Graph, place: Mapping[int, int], a: Event, b: Event) -> bool:
    ordered = b.before >> a.id & 1  # hb; an edge at one location, in one thread, or by way of other locations
    if ordered and (a.at == b.at or a.thread == b.thread or _by_other_locations(graph, a, b)):
        return True
    if a.at != b.at or not b.writes:
        return False
    if a.writes and place[a.id] < place[b.id]:
        return True
    return a.reads and place[a.source] < place[b.id]


def _by_other_locations(graph: Graph, a: Event, b: Event) -> bool:
    """Whether sb to another location, then hb, then sb from another location leads from a to b."""
    firsts = [e for e in graph.threads[a.thread - 1] if e > a.id and graph.events[e].at != a.at]
    lasts = [graph.events[e] for e in graph.threads[b.thread - 1] if e < b.id and graph.events[e].at != b.at]
    return any(last.before >> first & 1 for last in lasts for first in firsts)


def _race(graph: Graph) -> str:
    """The location of a data race, or nothing."""
    events = [e for e in graph.events.values() if e.thread]
    for a in events:
        for b in events:
            conflict = a.id < b.id and a.at == b.at and a.thread != b.thread and (a.writes or b.writes)
            if conflict and not (a.order and b.order) and not (a.before >> b.id | b.before >> a.id) & 1:
                return a.at
    return ""


def executions(program: Program) -> Iterator[Outcome]:
    """Every consistent execution of a program, once."""
    start = _beginning(program)
    initials = (1 << len(start.events)) - 1
    seen = {start.key()}
    pending = [start]
    while pending:
        graph = pending.pop()
        results: dict[str, int] = {}
        busy = False
        for thread in range(len(program.threads)):
            step = program.step(thread, _sent(graph, thread))
            if not isinstance(step, Load | Store | Rmw):
                results.update(step)
                continue
            busy = True
            for grown in _grow(graph, thread, step, initials):
                key = grown.key()
                if key not in seen:
                    seen.add(key)
                    pending.append(grown)
        if not busy and _psc_acyclic(graph):
            memory = {at: graph.events[order[-1]].value for at, order in graph.mo.items()}
            yield Outcome(results, memory, _race(graph))
