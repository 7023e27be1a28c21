"""Litmus patterns of lanes.

May touch, must stay true: see litmus_patterns.py. N is a worker that gives back and frees a lane, W one that takes it.
"""

from __future__ import annotations

from litmus_model import Load, Rmw, Thread
from litmus_patterns import LOWER, PARK, Orders, Pattern, Run, cas, dekker, load, neither, put, rmw

HELD, MINE = 1, 2

FREE = ("lane.c", "if (CAS_{}(&table->lanes[lane], &by, 0))")
COUNT = ("lane.c", "ADD_{}(&table->freed, 1)")
TAKE = ("lane.c", "!CAS_{}(&look->table->lanes[lane], &none, look->me)")
LOWERED = ("lane.c", "return LOAD_{}(&ring->view->header->next) >> SEQUENCE_BITS != ring->hint")
ANY_PARKED = ("claims_lanes.c", "parked |= LOAD_{}(&self->line->parked[i])")
ANY_FREED = ("claims_lanes.c", "LOAD_{}(&keys->table->freed) != keys->look.freed")


def _given_back(o: Orders) -> list[Thread]:
    """N lowers `next`, then frees the lane; W takes the lane, then looks at `next`."""

    def giver() -> Run:
        yield Rmw("next", put(1), o["N next"])
        yield Rmw("lane", cas(HELD, 0), o["N lane"])
        return {}

    def taker() -> Run:
        if (yield Rmw("lane", cas(0, MINE), o["W lane"])) != 0:
            return {"missed": 0}
        return {"missed": 1 - (yield Load("next", o["W next"]))}

    return [giver, taker]


PATTERNS = [
    Pattern(
        "lane, given back",
        "lane",
        "a worker takes a lane that was freed, and does not see what was given back before",
        {"next": 0, "lane": HELD},
        {"N next": LOWER, "N lane": FREE, "W lane": TAKE, "W next": LOWERED},
        _given_back,
        lambda o: o.seen["missed"] != 0,
        ("N next", "N lane"),
    ),
    Pattern(
        "lane, parked",
        "lane",
        "who frees a lane sees nobody parked, the worker that parks sees nothing freed",
        {"freed": 0, "parked": 0},
        {"N freed": COUNT, "N parked": ANY_PARKED, "W parked": PARK, "W freed": ANY_FREED},
        dekker(
            [rmw("freed", "N freed"), load("parked", "N parked")],
            [rmw("parked", "W parked"), load("freed", "W freed")],
        ),
        neither,
    ),
]
