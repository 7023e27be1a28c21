"""Litmus patterns of parking and waking.

May touch, must stay true: see litmus_patterns.py. P is a publisher, S a subscriber, W a worker, N a worker that gives
back, C any consumer.
"""

from __future__ import annotations

from litmus_model import Load, Rmw, Store, Thread
from litmus_patterns import (
    ADD,
    AND,
    ANY_SUBSCRIBER,
    ANY_WORKER,
    GATE_CAS,
    GATE_LOAD,
    LOWER,
    OR,
    PARK,
    READY_NEXT,
    READY_TAIL,
    TAIL,
    UNPARK,
    WAITING,
    WAKE,
    WORD_LOAD,
    WORK_TAIL,
    Orders,
    Pattern,
    Run,
    dekker,
    load,
    neither,
    put,
    rmw,
    store,
)

PLACES = (("", PARK), (", async", OR))
"""Who parks in a thread does it in wait.c, who awaits in the Python layer."""

PARKING = [
    pattern
    for place, parks in PLACES
    for pattern in (
        Pattern(
            f"park, subscriber{place}",
            "park",
            "the publisher sees nobody parked, the subscriber that parks sees no event",
            {"tail": 0, "parked": 0},
            {
                "P tail": TAIL,
                "P parked": ANY_SUBSCRIBER,
                "S parked": parks,
                "S tail": ("consumer.c", "if (LOAD_{}(&self->sources[i].ring->view.header->tail)"),
            },
            dekker(
                [store("tail", "P tail"), load("parked", "P parked")],
                [rmw("parked", "S parked"), load("tail", "S tail")],
            ),
            neither,
        ),
        Pattern(
            f"park, worker{place}",
            "park",
            "the publisher sees nobody parked, the worker that parks sees no record",
            {"tail": 0, "parked": 0},
            {"P tail": WORK_TAIL, "P parked": ANY_WORKER, "W parked": parks, "W tail": READY_TAIL},
            dekker(
                [store("tail", "P tail"), load("parked", "P parked")],
                [rmw("parked", "W parked"), load("tail", "W tail")],
            ),
            neither,
        ),
        Pattern(
            f"park, given back{place}",
            "park",
            "who gives a record back sees nobody parked, the worker that parks sees `next` where it was",
            {"next": 0, "parked": 0},
            {"N next": LOWER, "N parked": WORD_LOAD, "W parked": parks, "W next": READY_NEXT},
            dekker(
                [rmw("next", "N next"), load("parked", "N parked")],
                [rmw("parked", "W parked"), load("next", "W next")],
            ),
            neither,
        ),
        *(
            Pattern(
                f"park, new ring, {who}{place}",
                "epoch",
                f"the publisher of a new ring sees nobody parked, the {who} that parks sees the old epoch",
                {"epoch": 0, "parked": 0},
                {
                    "P epoch": ADD,
                    "P parked": parked,
                    "C parked": parks,
                    "C epoch": ("receiver.c", "return LOAD_{}(&self->lines.topic->epoch) != self->lines.epoch"),
                },
                dekker(
                    [rmw("epoch", "P epoch"), load("parked", "P parked")],
                    [rmw("parked", "C parked"), load("epoch", "C epoch")],
                ),
                neither,
            )
            for who, parked in (("subscriber", ANY_SUBSCRIBER), ("worker", ANY_WORKER))
        ),
    )
]


def _unpark(o: Orders) -> list[Thread]:
    """W ends its sleep by itself while P, who has seen its bit, comes to clear it."""

    def publisher() -> Run:
        yield Store("tail", 1, o["P tail"])
        seen = yield Load("parked", o["P parked"])
        return {"wakes": seen and (yield Rmw("parked", put(0), o["P clears"])), "seen": seen}

    def worker() -> Run:
        yield Rmw("parked", put(0), o["W clears"])
        return {"tail": (yield Load("tail", o["W tail"]))}

    return [publisher, worker]


def _await(o: Orders) -> list[Thread]:
    def sleeper() -> Run:
        yield Rmw("awaiting", put(1), o["S bits"])
        yield Rmw("parked", put(1), o["S bits"])
        return {}

    def waker() -> Run:
        cleared = yield Rmw("parked", put(0), o["W parked"])
        return {"cleared": cleared, "awaiting": (yield Load("awaiting", o["W awaiting"]))}

    return [sleeper, waker]


PATTERNS = [
    *PARKING,
    Pattern(
        "park, ended",
        "park",
        "the publisher finds that a worker has cleared its bit itself, and that worker sees no record",
        {"tail": 0, "parked": 1},
        {"P tail": WORK_TAIL, "P parked": ANY_WORKER, "P clears": WAKE, "W clears": UNPARK, "W tail": READY_TAIL},
        _unpark,
        lambda o: o.seen["seen"] == 1 and o.seen["wakes"] == 0 and o.seen["tail"] == 0,
    ),
    *(
        Pattern(
            f"park, awaiting{who}",
            "park",
            "a waker clears the parked bit and does not see that its owner sleeps on the FIFO",
            {"awaiting": 0, "parked": 0},
            {"S bits": OR, "W parked": clears, "W awaiting": looks},
            _await,
            lambda o: o.seen["cleared"] == 1 and o.seen["awaiting"] == 0,
        )
        for who, clears, looks in (
            ("", WAKE, ("wake.c", "(LOAD_{}(&awaiting[i]) & bit)")),
            (", Python", AND, WORD_LOAD),
        )
    ),
    Pattern(
        "room, worker",
        "room",
        "the publisher that waits sees the old gate, the worker that moved it sees nobody waiting",
        {"waiting": 0, "gate": 0},
        {
            "P waiting": ("producer.c", "STORE_{}(&self->groups[i].ring->view.header->waiting, waiting)"),
            "P gate": GATE_LOAD,
            "W gate": GATE_CAS,
            "W waiting": WAITING,
        },
        dekker(
            [store("waiting", "P waiting"), load("gate", "P gate")],
            [rmw("gate", "W gate"), load("waiting", "W waiting")],
        ),
        neither,
    ),
]
