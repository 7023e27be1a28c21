"""Litmus patterns of joining and of the broadcast ring.

May touch, must stay true: see litmus_patterns.py. P is a publisher, S a subscriber, R a lossy reader, J a joiner, O who
reads the books, W a worker, N a worker that gives back, C any consumer.
"""

from __future__ import annotations

from litmus_model import Load, Rmw, Store, Thread
from litmus_patterns import (
    ADVANCE,
    ADVANCE_GATE,
    BODY_LINE,
    BODY_WORD,
    CURSOR_SCAN,
    FRONTIER,
    HEAD_LOAD,
    HEAD_WORD,
    INTENT,
    OLDEST,
    PLAIN,
    SEQUENCE_AT,
    TAIL,
    VALIDATE,
    WAITING,
    Orders,
    Pattern,
    Run,
    passed,
    put,
    stale,
)

JOIN_INTENT = ("ring.c", "if (LOAD_{}(&h->intent) <= position + view->capacity)")
JOIN_AGAIN = ("ring.c", "break; position = LOAD_{}(start)")
RESUME = ("reader.c", "position = LOAD_{}(&r->view.header->oldest), sequence")
BOOKS_TAIL = ("reader.c", " tail = LOAD_{}(&view->header->tail)")

# ---- join


def _join(o: Orders) -> list[Thread]:
    """Position 0 is what both want; the slot's old cursor, 1, gates nobody. Intent 1 covers position 0."""

    def publisher() -> Run:
        yield Store("intent", 1, o["P intent"])
        if (yield Load("version", o["P version"])) != 0:
            yield Load("version", o["P scan"])
            if (yield Load("members", o["P members"])) and (yield Load("cursor", o["P cursor"])) == 0:
                yield Store("intent", 0, o["P take back"])
                return {"wrote": 0}
        yield Store("word", 1, o["P word"])
        return {"wrote": 1}

    def joiner() -> Run:
        yield Store("cursor", 0, o["J cursor"])
        yield Rmw("members", put(1), o["J members"])
        yield Rmw("version", lambda v: v + 1, o["J version"])
        sequence = yield Load("word", o["J sequence"])
        if (yield Load("intent", o["J intent"])) != 0:
            yield Store("cursor", 1, o["J moves"])
            return {"pinned": 0, "torn": 0}
        return {"pinned": 1, "torn": sequence | (yield Load("word", PLAIN))}

    return [publisher, joiner]


# ---- broadcast


def _lossy(o: Orders) -> list[Thread]:
    def publisher() -> Run:
        yield Store("intent", 1, o["P intent"])
        yield Store("head", 1, o["P head"])
        yield Store("body", 1, o["P body"])
        yield Store("next", 1, o["P frontier"])
        return {}

    def reader() -> Run:
        torn = yield Load("head", o["R head"])
        torn |= yield Load("body", o["R body"])
        torn |= yield Load("next", o["R sequence"])
        return {"torn": torn, "intent": (yield Load("intent", o["R intent"]))}

    return [publisher, reader]


def _reuse(o: Orders) -> list[Thread]:
    def subscriber() -> Run:
        seen = yield Load("body", PLAIN)
        yield Store("cursor", 1, o["S cursor"])
        return {"torn": seen}

    def publisher() -> Run:
        if (yield Load("cursor", o["P cursor"])) == 1:
            yield Store("body", 1, o["P body"])
        return {}

    return [subscriber, publisher]


def _books(o: Orders) -> list[Thread]:
    def publisher() -> Run:
        yield Store("tail", 1, o["P tail"])
        return {}

    def subscriber() -> Run:
        if (yield Load("tail", o["S tail"])) == 1:
            yield Store("cursor", 1, o["S cursor"])
        return {}

    def observer() -> Run:
        return {"cursor": (yield Load("cursor", o["O cursor"])), "tail": (yield Load("tail", o["O tail"]))}

    return [publisher, subscriber, observer]


def _room(o: Orders) -> list[Thread]:
    def publisher() -> Run:
        yield Store("waiting", 1, o["P waiting"])
        return {"cursor": (yield Load("cursor", o["P cursor"]))}

    def subscriber() -> Run:
        yield Store("cursor", 1, o["S advances"])
        yield Store("cursor", 1, o["S settles"])
        return {"waiting": (yield Load("waiting", o["S waiting"]))}

    return [publisher, subscriber]


# ---- the patterns

PATTERNS = [
    Pattern(
        "join",
        "join",
        "the joiner is pinned, and the publisher overwrites its position",
        {"intent": 0, "version": 0, "members": 0, "cursor": 1, "word": 0},
        {
            "P intent": INTENT,
            "P version": ("ring.c", "if (LOAD_{}(&w->view.header->gate_version) == w->gate_version)"),
            "P scan": ("ring.c", "w->gate_version = LOAD_{}(&w->view.header->gate_version)"),
            "P members": ("ring.c", "members = LOAD_{}(&view->header->members) & LOAD_SEQ(&view->header->reliable);"),
            "P cursor": CURSOR_SCAN,
            "P take back": ("ring.c", "STORE_{}(&w->view.header->intent, w->limit)"),
            "P word": HEAD_WORD,
            "J cursor": ("ring.c", "STORE_{}(&s->cursor, position); if (!lossy)"),
            "J members": ("ring.c", "OR_{}(&h->members, bit)"),
            "J version": ("ring.c", "ADD_{}(&h->gate_version, 1)"),
            "J sequence": SEQUENCE_AT,
            "J intent": JOIN_INTENT,
            "J moves": ("ring.c", "position = LOAD_ACQUIRE(start); STORE_{}(&s->cursor, position); }"),
        },
        _join,
        lambda o: o.seen["pinned"] == 1 and (o.seen["wrote"] | o.seen["torn"]) != 0,
    ),
    Pattern(
        "join, reliable again",
        "join",
        "who becomes reliable is pinned, and the publisher overwrites its position",
        {"intent": 0, "version": 0, "members": 0, "cursor": 1, "word": 0},
        {
            "P intent": INTENT,
            "P version": ("ring.c", "if (LOAD_{}(&w->view.header->gate_version) == w->gate_version)"),
            "P scan": ("ring.c", "w->gate_version = LOAD_{}(&w->view.header->gate_version)"),
            "P members": ("ring.c", "members = LOAD_SEQ(&view->header->members) & LOAD_{}(&view->header->reliable);"),
            "P cursor": CURSOR_SCAN,
            "P take back": ("ring.c", "STORE_{}(&w->view.header->intent, w->limit)"),
            "P word": HEAD_WORD,
            "J cursor": ("reader.c", "STORE_{}(&r->slot->position, r->position); OR_SEQ"),
            "J members": ("reader.c", "OR_{}(&h->reliable, 1ull << (r->slot - slot_of(&r->view, 0)))"),
            "J version": ("reader.c", "ADD_{}(&h->gate_version, 1)"),
            "J sequence": SEQUENCE_AT,
            "J intent": ("reader.c", "if (LOAD_{}(&h->intent) <= r->position + r->view.capacity)"),
            "J moves": ("reader.c", "break; STORE_{}(&r->slot->position, r->position); }"),
        },
        _join,
        lambda o: o.seen["pinned"] == 1 and (o.seen["wrote"] | o.seen["torn"]) != 0,
    ),
    *(
        Pattern(
            f"oldest before intent, {who}",
            "oldest",
            "whoever sees an intent sees an `oldest` that it overwrites",
            {"data0": 0, "flag": 0},
            {"P oldest": OLDEST, "P intent": INTENT, f"{who} intent": intent, f"{who} oldest": oldest},
            passed([("P oldest", f"{who} oldest")], "P intent", f"{who} intent"),
            stale,
        )
        for who, intent, oldest in (
            ("J", JOIN_INTENT, JOIN_AGAIN),
            ("R", VALIDATE, RESUME),
            (
                "C",
                ("reader.c", "uint64_t intent = LOAD_{}(&r->view.header->intent); if"),
                ("reader.c", "if (LOAD_{}(&r->view.header->oldest) + r->view.capacity < intent)"),
            ),
        )
    ),
    *(
        Pattern(
            f"record before oldest, {who}",
            "oldest",
            "who begins at `oldest` finds an older record there",
            {"data0": 0, "flag": 0},
            {"P record": HEAD_WORD, "P oldest": OLDEST, f"{who} oldest": oldest, f"{who} sequence": SEQUENCE_AT},
            passed([("P record", f"{who} sequence")], "P oldest", f"{who} oldest"),
            stale,
        )
        for who, oldest in (("J", JOIN_AGAIN), ("R", RESUME))
    ),
    *(
        Pattern(
            f"frontier before tail, {who}",
            "tail",
            "who looks up the sequence at the tail finds an older word there",
            {"data0": 0, "flag": 0},
            {"P frontier": FRONTIER, "P tail": TAIL, f"{who} tail": tail, f"{who} sequence": SEQUENCE_AT},
            passed([("P frontier", f"{who} sequence")], "P tail", f"{who} tail"),
            stale,
        )
        for who, tail in (("J", ("ring.c", "uint64_t position = LOAD_{}(start)")), ("O", BOOKS_TAIL))
    ),
    *(
        Pattern(
            f"lossy validation{how}",
            "intent",
            "a reader that sees a word of the next lap validates it by an older intent",
            {"intent": 0, "head": 0, "body": 0, "next": 0},
            {
                "P intent": INTENT,
                "P head": HEAD_WORD,
                "P body": body,
                "P frontier": FRONTIER,
                "R head": HEAD_LOAD,
                "R body": ("reader.c", "value = LOAD_{}(from++)"),
                "R sequence": SEQUENCE_AT,
                "R intent": VALIDATE,
            },
            _lossy,
            lambda o: o.seen["torn"] == 1 and o.seen["intent"] == 0,
        )
        for how, body in (("", BODY_WORD), (", a line", BODY_LINE))
    ),
    Pattern(
        "record before tail",
        "tail",
        "a reader sees a tail, and below it an old record, or an old sequence in front of it",
        {"data0": 0, "data1": 0, "flag": 0},
        {
            "P body": BODY_WORD,
            "P frontier": FRONTIER,
            "P tail": TAIL,
            "S tail": ("reader.c", "r->tail = LOAD_{}(&r->view.header->tail)"),
            "S frontier": SEQUENCE_AT,
        },
        passed([("P body", "plain"), ("P frontier", "S frontier")], "P tail", "S tail"),
        stale,
    ),
    *(
        Pattern(
            f"room used again{how}",
            "cursor",
            "a reliable subscriber reads in place what the publisher writes over it",
            {"body": 0, "cursor": 0},
            {"S cursor": cursor, "P cursor": CURSOR_SCAN, "P body": BODY_WORD},
            _reuse,
            lambda o: o.seen["torn"] != 0,
        )
        for how, cursor in (("", ADVANCE), (", reliable again", ADVANCE_GATE))
    ),
    Pattern(
        "depth",
        "cursor",
        "who reads the books sees a cursor beyond the tail",
        {"tail": 0, "cursor": 0},
        {
            "P tail": TAIL,
            "S tail": ("reader.c", "r->tail = LOAD_{}(&r->view.header->tail)"),
            "S cursor": ADVANCE,
            "O cursor": ("reader.c", "cursor = LOAD_{}(&s->cursor); for"),
            "O tail": BOOKS_TAIL,
        },
        _books,
        lambda o: o.seen["cursor"] > o.seen["tail"],
    ),
    Pattern(
        "losses",
        "losses",
        "who reads the books sees the flip, and the loss as it was before",
        {"data0": 0, "flag": 0},
        {
            "S count": ("reader.c", "STORE_{}(&loss->count, before + (last - first + 1))"),
            "S flip": ("reader.c", "STORE_{}(&s->flip, flip + 1)"),
            "O flip": ("reader.c", "&s->losses[LOAD_{}(&s->flip) & 1]"),
            "O count": ("reader.c", "overrun = LOAD_{}(&losses->overrun.count)"),
        },
        passed([("S count", "O count")], "S flip", "O flip"),
        stale,
    ),
    Pattern(
        "room, subscriber",
        "room",
        "the publisher that waits sees no room, the subscriber that made some sees nobody waiting",
        {"waiting": 0, "cursor": 0},
        {
            "P waiting": ("producer.c", "STORE_{}(&self->ring->view.header->waiting, waiting)"),
            "P cursor": CURSOR_SCAN,
            "S advances": ADVANCE,
            "S settles": ("reader.c", "STORE_{}(r->by_sequence ? &r->slot->position : &r->slot->cursor, r->position)"),
            "S waiting": WAITING,
        },
        _room,
        lambda o: o.seen["cursor"] == 0 and o.seen["waiting"] == 0,
    ),
]
