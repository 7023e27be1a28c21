"""Litmus patterns of the pool, of who looks for the newest event, and of records that are written as rows.

May touch, must stay true: see litmus_patterns.py. P is a publisher, S a subscriber or whoever looks at an extent, R a
lossy reader.

Not here, for C11 does not have it: a copy by somebody who holds nothing (X4 of pool.h), and the payloads of rows beside
a lossy reader (record_write_row of ring.c). Both write by memcpy what another thread may be reading.
"""

from __future__ import annotations

from litmus_model import Load, Rmw, Store, Thread
from litmus_patterns import (
    HEAD_LOAD,
    HEAD_WORD,
    INTENT,
    PLAIN,
    ROW_WORD,
    TAIL,
    VALIDATE,
    Orders,
    Pattern,
    Run,
    dekker,
    load,
    neither,
    passed,
    put,
    rmw,
    stale,
    store,
)

EXTENT_BEGINS = ("extents.c", "STORE_{}(&e->generation, generation)")
EXTENT_ENDS = ("extents.c", "STORE_{}(generation, now + now % 2)")
HOLD = ("pool.c", "OR_{}(holds, bit)")
HELD_GENERATION = ("pool.c", "uint64_t now = LOAD_{}(&e->generation)")
LET_GO = ("pool.c", "AND_{}(&view->extents[block].holds[holder / 64], ~(1ull << holder % 64))")
HELD = ("pool.c", "any |= LOAD_{}(&view->extents[block].holds[i])")
READ_TAIL = ("reader.c", "r->tail = LOAD_{}(&r->view.header->tail)")
NEWEST_TAIL = ("reader.c", "r->tail = LOAD_{}(&h->tail)")


def _over(o: Orders) -> list[Thread]:
    """S looks at an extent in place and lets go of it; P, who has ended it, uses it again once nobody holds it."""

    def viewer() -> Run:
        seen = yield Load("bytes", PLAIN)
        yield Rmw("holds", put(0), o["S lets go"])
        return {"torn": seen}

    def publisher() -> Run:
        if (yield Load("holds", o["P holds"])) == 0:
            yield Store("bytes", 1, PLAIN)
        return {}

    return [viewer, publisher]


def _rows(o: Orders) -> list[Thread]:
    """P writes rows as memcpy does, and S reads them in place."""

    def publisher() -> Run:
        yield Store("head", 1, o["P head"])
        yield Store("body", 1, PLAIN)
        yield Store("tail", 1, o["P tail"])
        return {}

    def subscriber() -> Run:
        if (yield Load("tail", o["S tail"])) == 0:
            return {"stale": 0}
        head = yield Load("head", o["S head"])
        return {"stale": 1 - (head & (yield Load("body", PLAIN)))}

    return [publisher, subscriber]


def _lossy(o: Orders) -> list[Thread]:
    def publisher() -> Run:
        yield Store("intent", 1, o["P intent"])
        yield Store("head", 1, o["P head"])
        return {}

    def reader() -> Run:
        torn = yield Load("head", o["R head"])
        return {"torn": torn, "intent": (yield Load("intent", o["R intent"]))}

    return [publisher, reader]


PATTERNS = [
    Pattern(
        "extent",
        "extent",
        "the publisher sees nobody holding an extent that it ended, the holder sees the generation as it was",
        {"generation": 0, "holds": 0},
        {"P ends": EXTENT_ENDS, "P holds": HELD, "S holds": HOLD, "S generation": HELD_GENERATION},
        dekker(
            [store("generation", "P ends"), load("holds", "P holds")],
            [rmw("holds", "S holds"), load("generation", "S generation")],
        ),
        neither,
    ),
    Pattern(
        "extent used again",
        "extent",
        "a holder looks in place at what the publisher writes over it",
        {"bytes": 0, "holds": 1},
        {"S lets go": LET_GO, "P holds": HELD},
        _over,
        lambda o: o.seen["torn"] != 0,
    ),
    Pattern(
        "extent before tail",
        "extent",
        "a reader finds a record, and an older generation or older bytes in the extent that it names",
        {"data0": 0, "data1": 0, "flag": 0},
        {"P generation": EXTENT_BEGINS, "P tail": TAIL, "S tail": READ_TAIL, "S generation": HELD_GENERATION},
        passed([("P generation", "S generation"), ("bytes", "plain")], "P tail", "S tail"),
        stale,
    ),
    Pattern(
        "views",
        "views",
        "the publisher that waits sees the extent held, who lets go of it sees nobody waiting",
        {"waiting": 0, "let go": 0},
        {
            "P waiting": ("shipping.c", "STORE_{}(&self->view.header->waiting, PyObject_IsTrue(waits) > 0)"),
            "P holds": HELD,
            "S lets go": LET_GO,
            "S waiting": ("pool.c", "waiting = LOAD_{}(&view->header->waiting)"),
        },
        dekker(
            [store("waiting", "P waiting"), load("let go", "P holds")],
            [rmw("let go", "S lets go"), load("waiting", "S waiting")],
        ),
        neither,
    ),
    Pattern(
        "record before tail, newest",
        "tail",
        "who looks for the newest event sees a tail, and below it an older record",
        {"data0": 0, "flag": 0},
        {"P record": HEAD_WORD, "P tail": TAIL, "S tail": NEWEST_TAIL, "S record": HEAD_LOAD},
        passed([("P record", "S record")], "P tail", "S tail"),
        stale,
    ),
    Pattern(
        "record before tail, rows",
        "tail",
        "a reader sees a tail, and below it rows that are not there yet",
        {"head": 0, "body": 0, "tail": 0},
        {"P head": ROW_WORD, "P tail": TAIL, "S tail": READ_TAIL, "S head": HEAD_LOAD},
        _rows,
        stale,
    ),
    Pattern(
        "lossy validation, rows",
        "intent",
        "a reader that sees a row's header of the next lap validates it by an older intent",
        {"intent": 0, "head": 0},
        {"P intent": INTENT, "P head": ROW_WORD, "R head": HEAD_LOAD, "R intent": VALIDATE},
        _lossy,
        lambda o: o.seen["torn"] == 1 and o.seen["intent"] == 0,
    ),
]
