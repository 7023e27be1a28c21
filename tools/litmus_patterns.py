"""What a litmus pattern is; the sites and shapes that several of the litmus_*.py files share.

Each pattern transcribes, for two or three threads and a handful of words, what the C of shmbus does there. No order is
written down: a *site* names the C file and the statement, with `{}` where the macro has its order, and the order is
read from the source. So what is checked is what is compiled, and an order that somebody weakens there shows here.

May touch: reads the C sources. Must stay true: every SYNC label has a pattern, and the order of every site is needed by
one of its patterns, or named in `SPARE` of litmus.py with the reason why it stands there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias

from litmus_model import Access, Load, Order, Outcome, Program, Result, Rmw, Store, Thread

Orders: TypeAlias = Mapping[str, Order]
Run: TypeAlias = Generator[Access, int, Result]
Site: TypeAlias = tuple[str, str]

PLAIN, RELAXED, SEQ = Order.PLAIN, Order.RELAXED, Order.SEQ

LADDERS = {
    "LOAD": ("SEQ", "ACQUIRE", "RELAXED"),
    "STORE": ("SEQ", "RELEASE", "RELAXED"),
    "RMW": ("SEQ", "ACQ_REL", "RELAXED"),
}
"""What an access may have, strongest first."""


@dataclass(frozen=True)
class Pattern:
    """One litmus test; `forbidden` tells the outcomes that must not be, a data race never may."""

    name: str
    label: str
    says: str
    initial: Mapping[str, int]
    sites: Mapping[str, Site]
    threads: Callable[[Orders], list[Thread]]
    forbidden: Callable[[Outcome], bool]
    together: tuple[str, ...] = ()
    """Sites of which one is enough: the outcome is reached when all of them are relaxed, though not by one alone."""

    def ladder(self, site: str) -> tuple[str, ...]:
        """The orders that the access of a site may have, strongest first."""
        kind = self.sites[site][1].partition("_{}")[0].rpartition(" ")[2].rpartition("(")[2]
        return LADDERS.get(kind, LADDERS["RMW"])

    def orders(self, source: Path) -> dict[str, Order]:
        """The order of every site as the C source below `source` has it."""
        return {site: Order[_order_in(source / file, text)] for site, (file, text) in self.sites.items()}

    def program(self, orders: Orders) -> Program:
        """The litmus test with these orders."""
        return Program(self.initial, self.threads(orders))


@cache
def _code(path: Path) -> str:
    """A C file without comments, each run of white space a single blank."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(text.split())


def _order_in(path: Path, text: str) -> str:
    found = re.findall(re.escape(text).replace(r"\{\}", "([A-Z]+)"), _code(path))
    if len(found) != 1:
        raise LookupError(f"{path.name}: found {len(found)} times, not once: {text}")
    return str(found[0])


# ---- sites that several patterns share

TAIL = ("ring.c", "STORE_{}(&w->view.header->tail, w->head)")
WORK_TAIL = ("work.c", "STORE_{}(&w->view.header->tail, w->sequence)")
INTENT = ("ring.c", "STORE_{}(&w->view.header->intent, want)")
OLDEST = ("ring.c", "STORE_{}(&w->view.header->oldest, w->oldest)")
HEAD_WORD = ("ring.c", "STORE_{}(&words[0], sequence); STORE_RELEASE(&words[1], RECORD_META(length")
ROW_WORD = ("ring.c", "STORE_{}(&words[0], sequence); STORE_RELEASE(&words[1], RECORD_META(part->payload_length")
TIME_WORD = ("ring.c", "STORE_{}(&words[2], part->time_ns); if (padded)")
FRONTIER = ("ring.c", "STORE_{}(word_at(&w->view, w->head), w->sequence)")
HEAD_LOAD = ("ring.c", "out->sequence = LOAD_{}(&words[0])")
VALIDATE = ("reader.c", "return LOAD_{}(&r->view.header->intent) <= position")
BODY_WORD = ("ring.c", "STORE_{}(at++, value); } if (bytes)")
BODY_LINE = ("ring.c", "STORE_{}(at++, value); } }")
CURSOR_SCAN = ("ring.h", "return LOAD_{}(LOAD_ACQUIRE(&s->lossy) ? &s->position : &s->cursor)")
SEQUENCE_AT = ("ring.c", "*sequence = LOAD_{}(word_at(view, position))")
ADVANCE = (
    "reader.c",
    "STORE_{}(&r->slot->cursor, r->by_sequence ? r->sequence : r->position)",
)
ADVANCE_GATE = ("reader.c", "if (RARELY(r->by_sequence != r->lossy)) STORE_{}(&r->slot->position, r->position)")
WAITING = ("reader.c", "waiting = LOAD_{}(&view->header->waiting)")
READY_TAIL = ("work.c", "return behind(hint, LOAD_{}(&view->header->tail))")
READY_NEXT = ("work.c", "hint = LOAD_{}(&view->header->next); return behind(hint")
FRESH_NEXT = ("work.c", "return behind(LOAD_{}(&view->header->next), first)")
RAISE_CLAIM = ("work.c", "CAS_{}(&view->header->next, &hint, (hint & ~SEQUENCE_MASK) | ((sequence + 1)")
_RAISE = "if (from < tail) CAS_{}(&view->header->next, &hint, (hint & ~SEQUENCE_MASK) | (tail"
RAISE_EMPTY = ("work.c", f"return RING_CORRUPT; {_RAISE}")
RAISE_PEEK = ("work.c", "return RING_OK; } " + _RAISE)
_CLAIMS = "(generation & 0xffff); uint64_t hint = "
_PEEKS = "uint64_t *time_ns) { uint64_t hint = "
CLAIM_NEXT = ("work.c", _CLAIMS + "LOAD_{}(&view->header->next)")
PEEK_NEXT = ("work.c", _PEEKS + "LOAD_{}(&view->header->next)")
CLAIM_TAIL = ("work.c", _CLAIMS + "LOAD_SEQ(&view->header->next); uint64_t tail = LOAD_{}(&view->header->tail)")
GATE_LOAD = ("work.c", "uint64_t gate = LOAD_{}(&w->view.header->gate)")
GATE_CAS = ("work.c", "CAS_{}(&view->header->gate, &gate, to)")
GATE_CLAIM = ("work.c", "seen = LOAD_{}(&descriptor_of(view, to)->claim)")
CLAIM_LOAD = ("work.c", "seen = LOAD_{}(&d->claim); while")
PEEK_LOAD = ("work.c", "seen = LOAD_{}(&d->claim); if")
CLAIMS = ("work.c", "CAS_{}(&d->claim, &seen, mine)")
_READY = "STORE_{}(&d->claim, WORD(lap_of(&w->view, w->sequence), CLAIM_READY, 0, 0, 0)); "
READY_WORD = ("work.c", _READY + "w->head = position")
READY_ROW = ("work.c", _READY + "w->sequence++; part.payload")
DONE = ("work.c", "CAS_{}(&descriptor_of(view, sequence)->claim, &expected, done)")
GIVE_BACK = ("work.c", "CAS_{}(&descriptor_of(view, sequence)->claim, &expected, ready)")
NOTE = ("delay.c", "} while (!CAS_{}(at, &seen, fresh));")
DELAY = ("delay.c", "CAS_{}(&descriptor_of(view, sequence)->claim, &expected, delayed)")
LOWER_DUE = ("delay.c", "CAS_{}(&view->header->due, &hint, lowered)")
RAISE_DUE = ("delay.c", "CAS_{}(&view->header->due, &hint, ((hint >> SEQUENCE_BITS) + 1)")
PROMOTE_DUE = ("delay.c", "hint = LOAD_{}(&view->header->due), now")
PROMOTE_CLAIM = ("delay.c", "seen = LOAD_{}(w); if (STATE_OF(seen) != CLAIM_DELAYED")
ANY_DUE = ("work.h", "return LOAD_{}(&view->header->due) << 16 >> 16 << TICK_BITS")
LOWER = ("work.c", "CAS_{}(&view->header->next, &hint, lowered)")
PARK = ("wait.c", "OR_{}(w->parked, w->bit)")
UNPARK = ("wait.c", "AND_{}(w->parked, ~w->bit)")
WAKE = ("wake.c", "AND_{}(&parked[i], ~bit)")
ANY_SUBSCRIBER = ("publish.c", "if (LOAD_{}(&line->parked))")
ANY_WORKER = ("publish.c", "any |= LOAD_{}(&line->parked[w])")
ANY_SIBLING = ("claims.c", "parked |= LOAD_{}(&self->line->parked[i])")
OR = ("words.c", "OR_{}(at, value)")
AND = ("words.c", "AND_{}(at, value)")
ADD = ("words.c", "ADD_{}(at, value)")
WORD_STORE = ("words.c", "STORE_{}(at, value)")
WORD_LOAD = ("words.c", "LOAD_{}(at)")


def put(value: int) -> Callable[[int], int]:
    return lambda _: value


def cas(expected: int, value: int) -> Callable[[int], int | None]:
    return lambda seen: value if seen == expected else None


# ---- shapes that several patterns have


Step: TypeAlias = Callable[[Orders], Access]


def dekker(mine: list[Step], theirs: list[Step]) -> Callable[[Orders], list[Thread]]:
    """Two threads, each of which announces and then looks; what they saw last is `mine` and `theirs`."""

    def build(o: Orders) -> list[Thread]:
        def run(name: str, accesses: list[Step]) -> Run:
            seen = 0
            for access in accesses:
                seen = yield access(o)
            return {name: seen}

        return [lambda: run("mine", mine), lambda: run("theirs", theirs)]

    return build


def neither(o: Outcome) -> bool:
    return o.seen["mine"] == 0 and o.seen["theirs"] == 0


def load(at: str, site: str) -> Step:
    return lambda o: Load(at, o[site])


def store(at: str, site: str) -> Step:
    return lambda o: Store(at, 1, o[site])


def rmw(at: str, site: str) -> Step:
    return lambda o: Rmw(at, put(1), o[site])


def passed(data: list[tuple[str, str]], flag: str, look: str) -> Callable[[Orders], list[Thread]]:
    """One thread writes data, then a flag; the other looks at the flag, and where it is up, at the data.

    `data` gives for each word the writer's site and the reader's: or "relaxed", or "plain" for a read in place.
    """

    def build(o: Orders) -> list[Thread]:
        def writer() -> Run:
            for i, (site, _) in enumerate(data):
                yield Store(f"data{i}", 1, o.get(site, RELAXED))
            yield Store("flag", 1, o[flag])
            return {}

        def reader() -> Run:
            if (yield Load("flag", o[look])) == 0:
                return {"stale": 0}
            stale = 0
            for i, (_, site) in enumerate(data):
                stale |= 1 - (yield Load(f"data{i}", o.get(site, PLAIN if site == "plain" else RELAXED)))
            return {"stale": stale}

        return [writer, reader]

    return build


def stale(o: Outcome) -> bool:
    return o.seen["stale"] != 0
