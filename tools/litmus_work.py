"""Litmus patterns of the work ring and of the registry document.

May touch, must stay true: see litmus_patterns.py. P is a publisher, V and W are workers, N is a worker that gives back,
L holds the bus lock, C is any participant.
"""

from __future__ import annotations

from litmus_model import Load, Outcome, Rmw, Store, Thread
from litmus_patterns import (
    ADD,
    ANY_SIBLING,
    ANY_WORKER,
    BODY_WORD,
    CLAIM_LOAD,
    CLAIM_NEXT,
    CLAIM_TAIL,
    CLAIMS,
    DONE,
    FRESH_NEXT,
    GATE_CAS,
    GATE_CLAIM,
    GATE_LOAD,
    GIVE_BACK,
    LOWER,
    OR,
    PARK,
    PEEK_LOAD,
    PEEK_NEXT,
    PLAIN,
    RAISE_CLAIM,
    RAISE_EMPTY,
    RAISE_PEEK,
    READY_NEXT,
    READY_ROW,
    READY_TAIL,
    READY_WORD,
    RELAXED,
    SEQ,
    WORD_LOAD,
    WORD_STORE,
    WORK_TAIL,
    Orders,
    Pattern,
    Run,
    cas,
    dekker,
    load,
    neither,
    put,
    rmw,
    store,
)

READY, CLAIMED, DONE_STATE = 1, 2, 3


def _advance(o: Orders, count: int) -> Run:
    """advance_gate of work.c over `count` descriptors."""
    gate = yield Load("gate", o["gate"])
    while True:
        tail = yield Load("tail", o["gate tail"])
        to = gate
        while to < tail and to < count and (yield Load(f"claim{to}", o["gate claim"])) == DONE_STATE:
            to += 1
        if to == gate:
            return {}
        seen = yield Rmw("gate", cas(gate, to), o["gate moves"])
        gate = to if seen == gate else seen


def _gate(o: Orders) -> list[Thread]:
    """V holds record 0; the publisher commits record 1, which W claims; both ack."""

    def publisher() -> Run:
        yield Store("claim1", READY, o["P claim"])
        yield Store("tail", 2, o["P tail"])
        return {}

    def holder() -> Run:
        yield Rmw("claim0", cas(CLAIMED, DONE_STATE), o["done"])
        return (yield from _advance(o, 2))

    def worker() -> Run:
        if (yield Load("tail", o["W tail"])) < 2 or (yield Load("claim1", o["W claim"])) != READY:
            return {}
        if (yield Rmw("claim1", cas(READY, CLAIMED), o["W claims"])) != READY:
            return {}
        yield Rmw("claim1", cas(CLAIMED, DONE_STATE), o["done"])
        return (yield from _advance(o, 2))

    return [publisher, holder, worker]


def _stuck(o: Outcome) -> bool:
    m = o.memory
    return m["claim0"] == DONE_STATE and m["claim1"] == DONE_STATE and m["gate"] < 2


def _reuse(o: Orders) -> list[Thread]:
    """W acks, V moves the gate, the publisher writes over what W read in place."""

    def worker() -> Run:
        seen = yield Load("body", PLAIN)
        yield Rmw("claim0", cas(CLAIMED, DONE_STATE), o["W done"])
        return {"torn": seen}

    def other() -> Run:
        if (yield Load("claim0", o["V claim"])) == DONE_STATE:
            yield Rmw("gate", cas(0, 1), o["V gate"])
        return {}

    def publisher() -> Run:
        if (yield Load("gate", o["P gate"])) == 1:
            yield Store("body", 1, o["P body"])
        return {}

    return [worker, other, publisher]


def _claim(o: Orders) -> list[Thread]:
    """W claims a record as soon as it sees it: its position by a relaxed load, its body in place."""

    def publisher() -> Run:
        yield Store("body", 1, o["P body"])
        yield Store("position", 1, o["P position"])
        yield Store("claim", READY, o["P claim"])
        yield Store("tail", 1, o["P tail"])
        return {}

    def worker() -> Run:
        if (yield Load("tail", o["W tail"])) == 0 or (yield Load("claim", o["W claim"])) != READY:
            return {"missed": 0, "stale": 0}
        yield Rmw("claim", cas(READY, CLAIMED), o["W claims"])
        position = yield Load("position", o["W position"])
        return {"stale": 1 - (position & (yield Load("body", PLAIN)))}

    return [publisher, worker]


_TAG = 16  # `next` is tag * _TAG + sequence


def _next(o: Orders) -> list[Thread]:
    """N gives record 0 back and lowers `next`; W finds nothing READY and raises it to the tail, 1."""

    def giver() -> Run:
        yield Rmw("claim", cas(CLAIMED, READY), o["N gives back"])
        hint = yield Load("next", o["N next"])
        while True:
            seen = yield Rmw("next", cas(hint, (hint // _TAG + 1) * _TAG), o["N lowers"])
            if seen == hint:
                return {}
            hint = seen

    def worker() -> Run:
        hint = yield Load("next", o["W next"])
        if (yield Load("claim", o["W claim"])) != READY:
            yield Rmw("next", cas(hint, hint // _TAG * _TAG + 1), o["W raises"])
            return {"missed": 1}
        return {"missed": 0}

    return [giver, worker]


def _chain(o: Orders) -> list[Thread]:
    """P commits record 0 and wakes W, then commits record 1; B parks. As publish.c, claims.c and wait.c do it:
    P wakes one more if `next` has come up to record 1, W claims record 0 and passes on, B sleeps unless one is ready.
    """

    def publisher() -> Run:
        yield Store("tail", 1, o["P tail"])
        yield Store("post", 1, SEQ)
        yield Store("tail", 2, o["P tail"])
        parked = yield Load("parked", o["P parked"])
        return {"P wakes": int(parked == 1 and (yield Load("next", o["P next"])) >= 1)}

    def worker() -> Run:
        if (yield Load("post", SEQ)) == 0:
            return {"W wakes": 1}
        yield Rmw("next", cas(0, 1), o["W raises"])
        if (yield Load("parked", o["W parked"])) == 0:
            return {"W wakes": 0}
        return {"W wakes": int((yield Load("next", o["next"])) < (yield Load("tail", o["tail"])))}

    def sleeper() -> Run:
        yield Rmw("parked", put(1), o["B parked"])
        return {"B sleeps": int((yield Load("next", o["next"])) >= (yield Load("tail", o["tail"])))}

    return [publisher, worker, sleeper]


def _unwoken(o: Outcome) -> bool:
    return o.seen["B sleeps"] == 1 and not o.seen["P wakes"] and not o.seen["W wakes"]


CHAIN = [
    *(
        Pattern(
            f"chain, {name}",
            "chain",
            "the publisher sees a backlog, and who raised `next` over it sees no new record",
            {"next": 0, "tail": 0},
            {"P tail": WORK_TAIL, "P next": FRESH_NEXT, "W raises": raises, "W tail": READY_TAIL},
            dekker(
                [store("tail", "P tail"), load("next", "P next")], [rmw("next", "W raises"), load("tail", "W tail")]
            ),
            neither,
        )
        for name, raises in (("claim", RAISE_CLAIM), ("empty look", RAISE_EMPTY), ("empty peek", RAISE_PEEK))
    ),
    *(
        Pattern(
            f"chain, parking{place}",
            "chain",
            "a worker sleeps with a record ready, and neither the publisher nor who claims the one before it wakes it",
            {"next": 0, "tail": 0, "parked": 0, "post": 0},
            {
                "P tail": WORK_TAIL,
                "P parked": ANY_WORKER,
                "P next": FRESH_NEXT,
                "W raises": RAISE_CLAIM,
                "W parked": ANY_SIBLING,
                "B parked": parks,
                "next": READY_NEXT,
                "tail": READY_TAIL,
            },
            _chain,
            _unwoken,
        )
        for place, parks in (("", PARK), (", async", OR))
    ),
]


def _document(o: Orders) -> list[Thread]:
    """Registry.read beside two commits. The body is two words that memcpy moves, here relaxed; the checksum of a body
    is right when both words are those that it was computed from.
    """

    def holder() -> Run:
        for version in (2, 3):
            slot = version & 1
            yield Store(f"left{slot}", version, RELAXED)
            yield Store(f"right{slot}", version, RELAXED)
            yield Store(f"sum{slot}", version, o["L words"])
            yield Store("version", version, o["L words"])
            yield Rmw("epoch", lambda e: e + 1, o["L epoch"])
        return {}

    def reader() -> Run:
        epoch = yield Load("epoch", o["C epoch"])
        version = yield Load("version", o["C words"])
        slot = version & 1
        left = yield Load(f"left{slot}", RELAXED)
        right = yield Load(f"right{slot}", RELAXED)
        whole = left == right == (yield Load(f"sum{slot}", o["C words"]))
        if not whole or (yield Load("version", o["C words"])) != version:
            return {"wrong": 0}
        return {"wrong": int(left != version or version < epoch + 1)}

    return [holder, reader]


def _notice(o: Orders) -> list[Thread]:
    """Who notices an epoch on the path of an event, then reads the version."""

    def holder() -> Run:
        yield Store("version", 1, o["L version"])
        yield Rmw("epoch", put(1), o["L epoch"])
        return {}

    def publisher() -> Run:
        if (yield Load("epoch", o["P epoch"])) == 0:
            return {"stale": 0}
        return {"stale": 1 - (yield Load("version", o["P version"]))}

    return [holder, publisher]


PATTERNS = [
    *CHAIN,
    Pattern(
        "gate",
        "gate",
        "two neighbours are DONE, and the gate stays below one of them",
        {"claim0": CLAIMED, "claim1": 0, "tail": 1, "gate": 0},
        {
            "P claim": READY_WORD,
            "P tail": WORK_TAIL,
            "W tail": CLAIM_TAIL,
            "W claim": CLAIM_LOAD,
            "W claims": CLAIMS,
            "done": DONE,
            "gate": ("work.c", "uint64_t gate = LOAD_{}(&view->header->gate); for (;;)"),
            "gate tail": ("work.c", "tail = LOAD_{}(&view->header->tail), to = gate"),
            "gate claim": GATE_CLAIM,
            "gate moves": GATE_CAS,
        },
        _gate,
        _stuck,
    ),
    Pattern(
        "record used again",
        "gate",
        "a worker reads in place what the publisher writes over it",
        {"body": 0, "claim0": CLAIMED, "gate": 0},
        {"W done": DONE, "V claim": GATE_CLAIM, "V gate": GATE_CAS, "P gate": GATE_LOAD, "P body": BODY_WORD},
        _reuse,
        lambda o: o.seen["torn"] != 0,
    ),
    *(
        Pattern(
            f"claim{how}",
            "claim",
            "a worker claims a record, and reads an old position or an old body",
            {"body": 0, "position": 0, "claim": 0, "tail": 0},
            {
                "P body": BODY_WORD,
                "P position": ("work.c", position + "; STORE_{}(&d->place, PLACE(position, part" + part + "lane))"),
                "P claim": ready,
                "P tail": WORK_TAIL,
                "W tail": CLAIM_TAIL,
                "W claim": CLAIM_LOAD,
                "W claims": CLAIMS,
                "W position": ("claim_word.h", "return POSITION_OF(LOAD_{}(&descriptor_of(view, sequence)->place))"),
            },
            _claim,
            lambda o: o.seen["stale"] != 0,
            ("P claim", "P tail"),
        )
        for how, position, part, ready in (
            ("", "RECORD_EVENT, part)", "->", READY_WORD),
            (", rows", "w->sequence, &part)", ".", READY_ROW),
        )
    ),
    *(
        Pattern(
            f"next{how}",
            "claim",
            "a record that was given back is READY, and `next` stays above it",
            {"claim": CLAIMED, "next": 0},
            {
                "N gives back": GIVE_BACK,
                "N next": ("work.c", "hint = LOAD_{}(&view->header->next), lowered"),
                "N lowers": LOWER,
                "W next": hint,
                "W claim": claim,
                "W raises": raises,
            },
            _next,
            lambda o: o.memory["claim"] == READY and o.memory["next"] % _TAG == 1,
        )
        for how, hint, claim, raises in (
            ("", CLAIM_NEXT, CLAIM_LOAD, RAISE_EMPTY),
            (", peek", PEEK_NEXT, PEEK_LOAD, RAISE_PEEK),
        )
    ),
    Pattern(
        "registry document",
        "document",
        "a reader takes a document that is torn, of another version than it believes, or older than the epoch it saw",
        {"version": 1, "epoch": 0, **{f"{word}{slot}": slot for word in ("left", "right", "sum") for slot in (0, 1)}},
        {
            "L words": WORD_STORE,
            "L epoch": ADD,
            "C epoch": ("receiver.c", "self->lines.epoch = LOAD_{}(&self->lines.topic->epoch)"),
            "C words": WORD_LOAD,
        },
        _document,
        lambda o: o.seen["wrong"] != 0,
    ),
    Pattern(
        "epoch",
        "epoch",
        "a publisher notices the epoch, and reads an older version of the registry",
        {"version": 0, "epoch": 0},
        {
            "L version": WORD_STORE,
            "L epoch": ADD,
            "P epoch": ("publish.c", "bool stale = LOAD_{}(&self->lines.topic->epoch) != self->lines.epoch"),
            "P version": WORD_LOAD,
        },
        _notice,
        lambda o: o.seen["stale"] != 0,
    ),
]
