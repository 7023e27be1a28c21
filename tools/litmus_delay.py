"""Litmus patterns of what is given back for later or unseen, and of what is taken back.

May touch, must stay true: see litmus_patterns.py. N is a worker that gives back, W one that looks, Z one whose claim
was taken from it, P is a publisher.
"""

from __future__ import annotations

from litmus_model import Load, Rmw, Store, Thread
from litmus_patterns import (
    ANY_DUE,
    BODY_WORD,
    CLAIMS,
    DELAY,
    GATE_CAS,
    GATE_LOAD,
    GIVE_BACK,
    LOWER_DUE,
    NOTE,
    PARK,
    PROMOTE_CLAIM,
    PROMOTE_DUE,
    RAISE_DUE,
    TIME_WORD,
    Orders,
    Pattern,
    Run,
    cas,
    dekker,
    load,
    neither,
    put,
    rmw,
)

CLAIMED, DELAYED, OTHERS = 1, 2, 3
_TAG = 16  # `due` is tag * _TAG + ticks


def _raise(o: Orders) -> list[Thread]:
    """N delays a record and lowers `due`; W, for which another one was due, finds nothing delayed and raises it."""

    def giver() -> Run:
        yield Rmw("claim", cas(CLAIMED, DELAYED), o["N delays"])
        hint = yield Load("due", o["N due"])
        while True:
            seen = yield Rmw("due", cas(hint, (hint // _TAG + 1) * _TAG + 1), o["N lowers"])
            if seen == hint:
                return {}
            hint = seen

    def worker() -> Run:
        hint = yield Load("due", o["W due"])
        if (yield Load("claim", o["W claim"])) != DELAYED:
            yield Rmw("due", cas(hint, (hint // _TAG + 1) * _TAG), o["W raises"])
        return {}

    return [giver, worker]


def _noted(o: Orders) -> list[Thread]:
    """Whoever writes a note does so before the claim word that it is for; the other reads it after that word."""

    def writer() -> Run:
        yield Rmw("note", put(1), o["note"])
        yield Rmw("claim", cas(CLAIMED, DELAYED), o["claim"])
        return {}

    def reader() -> Run:
        if (yield Load("claim", o["look"])) != DELAYED:
            return {"stale": 0}
        return {"stale": 1 - (yield Load("note", o["read"]))}

    return [writer, reader]


def _zombie(o: Orders) -> list[Thread]:
    """N has the claim that was Z's; each writes its note, Z only if it sees its claim after the note."""

    def successor() -> Run:
        yield Rmw("claim", put(OTHERS), o["N claims"])
        seen = yield Load("note", o["seen"])
        while (before := (yield Rmw("note", cas(seen, OTHERS), o["note"]))) != seen:
            seen = before
        return {}

    def zombie() -> Run:
        seen = yield Load("note", o["seen"])
        if (yield Load("claim", o["Z claim"])) == CLAIMED:
            yield Rmw("note", cas(seen, CLAIMED), o["note"])
        return {}

    return [successor, zombie]


def _copied(o: Orders) -> list[Thread]:
    """Z copies what it claimed, N has taken the claim and moves the gate, P writes over the record."""

    def slow() -> Run:
        seen = yield Load("body", o["Z body"])
        return {"torn": seen if (yield Load("claim", o["Z claim"])) == CLAIMED else 0}

    def other() -> Run:
        yield Rmw("claim", put(OTHERS), o["N takes"])
        yield Rmw("gate", cas(0, 1), o["N gate"])
        return {}

    def publisher() -> Run:
        if (yield Load("gate", o["P gate"])) == 1:
            yield Store("body", 1, o["P body"])
        return {}

    return [slow, other, publisher]


PATTERNS = [
    Pattern(
        "due, parking",
        "due",
        "a worker sleeps past a due time, and who made it the first one sees nobody parked",
        {"due": 0, "parked": 0},
        {
            "N lowers": LOWER_DUE,
            "N parked": ("wake.c", "bits = LOAD_{}(&parked[i])"),
            "W parks": PARK,
            "W due": ANY_DUE,
        },
        dekker([rmw("due", "N lowers"), load("parked", "N parked")], [rmw("parked", "W parks"), load("due", "W due")]),
        neither,
    ),
    Pattern(
        "due",
        "due",
        "a record is delayed, and `due` says that none is",
        {"claim": CLAIMED, "due": 1},
        {
            "N delays": DELAY,
            "N due": ("delay.c", "hint = LOAD_{}(&view->header->due), before"),
            "N lowers": LOWER_DUE,
            "W due": PROMOTE_DUE,
            "W claim": PROMOTE_CLAIM,
            "W raises": RAISE_DUE,
        },
        _raise,
        lambda o: o.memory["claim"] == DELAYED and o.memory["due"] % _TAG == 0,
    ),
    Pattern(
        "due, note",
        "due",
        "a worker finds a record delayed, and reads an old note of when it is due",
        {"note": 0, "claim": CLAIMED},
        {
            "note": NOTE,
            "claim": DELAY,
            "look": PROMOTE_CLAIM,
            "read": ("delay.c", "due = LOAD_{}(&note_of(view, sequence)->due)"),
        },
        _noted,
        lambda o: o.seen["stale"] != 0,
    ),
    Pattern(
        "due, taken",
        "due",
        "a worker whose claim is another's writes over the note of that one",
        {"note": 0, "claim": CLAIMED},
        {
            "N claims": CLAIMS,
            "seen": ("delay.c", "ticks, seen = LOAD_{}(at)"),
            "note": NOTE,
            "Z claim": ("delay.c", "if (LOAD_{}(w) != claim->word)"),
        },
        _zombie,
        lambda o: o.memory["note"] != OTHERS,
    ),
    Pattern(
        "spared",
        "spared",
        "a record is reclaimed, and an old note of its unseen claims is read",
        {"note": 0, "claim": CLAIMED},
        {
            "note": ("delay.c", "(seen < fresh && !CAS_{}(at, &seen, fresh))"),
            "claim": CLAIMS,
            "look": ("work.c", "seen = LOAD_{}(w); if (!holds(view, sequence, seen, holder)) continue; uint64_t ready"),
            "read": ("delay.c", "seen = LOAD_{}(&note_of(view, sequence)->spared)"),
        },
        _noted,
        lambda o: o.seen["stale"] != 0,
    ),
    Pattern(
        "record copied",
        "claim",
        "a worker copies what the publisher writes over it, and finds its claim as it was",
        {"body": 0, "claim": CLAIMED, "gate": 0},
        {
            "Z body": ("work.c", "value = LOAD_{}(from++)"),
            "Z claim": ("work.c", "return LOAD_{}(&descriptor_of(view, r->sequence)->claim) == claim->word"),
            "N takes": GIVE_BACK,
            "N gate": GATE_CAS,
            "P gate": GATE_LOAD,
            "P body": BODY_WORD,
        },
        _copied,
        lambda o: o.seen["torn"] != 0,
    ),
    Pattern(
        "record peeked",
        "claim",
        "who compares rings reads the time of the record that comes next there, and finds the claim word as it was",
        {"body": 0, "claim": CLAIMED, "gate": 0},
        {
            "Z body": ("work.c", "*time_ns = LOAD_{}(word_at(view"),
            "Z claim": ("work.c", "if (LOAD_{}(&d->claim) == seen)"),
            "N takes": CLAIMS,
            "N gate": GATE_CAS,
            "P gate": GATE_LOAD,
            "P body": TIME_WORD,
        },
        _copied,
        lambda o: o.seen["torn"] != 0,
    ),
]
