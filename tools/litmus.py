"""Checks the patterns of shared accesses that the protocols rest on against the C11 memory model, exhaustively.

    python tools/litmus.py                     all patterns, and each of their orders weakened
    python tools/litmus.py --pattern NAME      one of them
    python tools/litmus.py --source DIR        with the orders of the C files of another folder

Independent of any machine: tools/litmus_model.py enumerates what RC11 allows. The orders are read from the C sources,
so this checks what is compiled. The table has for each pattern the executions, whether the forbidden outcome can be
reached, how many weakened orders reach it, and for each access whether its order is needed: one step weaker reaches it.
Exit code 1 when a forbidden outcome can be reached, when a pattern cannot fail, or when an order is stronger than
all patterns need and `SPARE` does not say why it stands there, or says so of one that is needed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # PYTHONSAFEPATH keeps it out

from litmus_delay import PATTERNS as DELAY  # noqa: E402
from litmus_lane import PATTERNS as LANE  # noqa: E402
from litmus_model import Order, executions  # noqa: E402
from litmus_park import PATTERNS as PARK  # noqa: E402
from litmus_patterns import (  # noqa: E402
    CLAIM_LOAD,
    CLAIM_NEXT,
    CLAIM_TAIL,
    CLAIMS,
    PEEK_LOAD,
    PEEK_NEXT,
    READY_ROW,
    READY_WORD,
    Orders,
    Pattern,
    Site,
)
from litmus_pool import EXTENT_BEGINS  # noqa: E402
from litmus_pool import PATTERNS as POOL  # noqa: E402
from litmus_ring import PATTERNS as RING  # noqa: E402
from litmus_work import PATTERNS as WORK  # noqa: E402

SOURCE = HERE.parent / "shmbus" / "_native"
PATTERNS: list[Pattern] = [*PARK, *RING, *WORK, *DELAY, *POOL, *LANE]

_WORDS = "words of the Python layer are seq_cst, all of them: one rule, and none of them is on the path of an event"
_BITS = "whoever gets here makes a system call: one rule for the words of the lines"
_SELDOM = "joining is seldom; what is stored before gate_version comes with it"
_ORDERED = "what is read next must not be read before it"
_TWICE = "a claim word and the tail both release the record: whoever finds one of them needs no other"
_COPIED = (
    "for who copies without holding (X4): with the loads behind it, it keeps the bytes behind it on x86-64 and aarch64;"
    " in C11 nothing does, for the bytes are written by plain stores"
)
_CASES = (
    "claim words, notes, `next`, `due` and the gate change by seq_cst CAS, and the CAS decides, not the look before it"
)
_LANES = "lanes change by seq_cst CAS, and what is looked at behind one is read so: one rule for them"

SPARE: dict[Site, str] = {
    ("words.c", "AND_{}(at, value)"): _WORDS,
    ("words.c", "STORE_{}(at, value)"): _WORDS,
    ("wake.c", "AND_{}(&parked[i], ~bit)"): _BITS,
    ("wake.c", "(LOAD_{}(&awaiting[i]) & bit)"): _BITS,
    ("receiver.c", "self->lines.epoch = LOAD_{}(&self->lines.topic->epoch)"): _WORDS,
    ("ring.c", "w->gate_version = LOAD_{}(&w->view.header->gate_version)"): _SELDOM,
    ("ring.c", "members = LOAD_{}(&view->header->members) & LOAD_SEQ(&view->header->reliable);"): _SELDOM,
    ("ring.c", "members = LOAD_SEQ(&view->header->members) & LOAD_{}(&view->header->reliable);"): _SELDOM,
    ("ring.c", "STORE_{}(&s->cursor, position); if (!lossy)"): _SELDOM,
    ("ring.c", "OR_{}(&h->members, bit)"): _SELDOM,
    ("ring.c", "position = LOAD_ACQUIRE(start); STORE_{}(&s->cursor, position); }"): _SELDOM,
    ("ring.c", "STORE_{}(&w->view.header->intent, w->limit)"): "it only lowers an intent that nobody has used",
    (
        "reader.c",
        "if (LOAD_{}(&r->view.header->oldest) + r->view.capacity < intent)",
    ): "compared only: one rule for `oldest`",
    ("reader.c", "STORE_{}(&r->slot->position, r->position); OR_SEQ"): _SELDOM,
    ("reader.c", "OR_{}(&h->reliable, 1ull << (r->slot - slot_of(&r->view, 0)))"): _SELDOM,
    ("reader.c", "break; STORE_{}(&r->slot->position, r->position); }"): "an older position gates more, not less",
    ("reader.c", "overrun = LOAD_{}(&losses->overrun.count)"): _ORDERED,
    ("lane.c", "if (CAS_{}(&table->lanes[lane], &by, 0))"): _LANES,
    ("lane.c", "!CAS_{}(&look->table->lanes[lane], &none, look->me)"): _LANES,
    ("lane.c", "return LOAD_{}(&ring->view->header->next) >> SEQUENCE_BITS != ring->hint"): _LANES,
    EXTENT_BEGINS: _COPIED,
    READY_WORD: _TWICE,
    READY_ROW: _TWICE,
    CLAIM_TAIL: _TWICE,
    CLAIM_LOAD: _TWICE,
    PEEK_LOAD: _TWICE,
    CLAIMS: _TWICE,
    ("work.c", "CAS_{}(&descriptor_of(view, sequence)->claim, &expected, ready)"): "lower_next follows and releases it",
    ("work.c", "uint64_t gate = LOAD_{}(&view->header->gate); for (;;)"): _CASES,
    ("work.c", "hint = LOAD_{}(&view->header->next), lowered"): _CASES,
    ("delay.c", "(seen < fresh && !CAS_{}(at, &seen, fresh))"): _CASES,
    ("delay.c", "CAS_{}(&descriptor_of(view, sequence)->claim, &expected, delayed)"): _CASES,
    ("delay.c", "} while (!CAS_{}(at, &seen, fresh));"): _CASES,
    ("delay.c", "hint = LOAD_{}(&view->header->due), before"): _CASES,
    ("delay.c", "CAS_{}(&view->header->due, &hint, ((hint >> SEQUENCE_BITS) + 1)"): _CASES,
    CLAIM_NEXT: _CASES,
    PEEK_NEXT: _CASES,
}
"""Statements whose order is stronger than all the patterns need, and why it stands there."""


@dataclass
class Verdict:
    """What was found out about one pattern."""

    pattern: Pattern
    orders: Orders
    executions: int = 0
    reached: str = ""  # how the forbidden outcome looks, or which location races
    weakest: dict[str, Order] = field(default_factory=dict)  # of each site, the others unchanged
    variants: int = 0  # weakened orders that reach the forbidden outcome


def reach(pattern: Pattern, orders: Orders) -> tuple[int, str]:
    """Executions, and how the forbidden outcome looks if one has it; stops there."""
    count = 0
    for outcome in executions(pattern.program(orders)):
        count += 1
        if outcome.race:
            return count, f"a data race on {outcome.race}"
        if pattern.forbidden(outcome):
            return count, " ".join(f"{name}={value}" for name, value in outcome.seen.items()) or str(outcome.memory)
    return count, ""


def weaken(verdict: Verdict) -> None:
    """Find the weakest order of each site with which the forbidden outcome stays out of reach, the others unchanged."""
    pattern, orders = verdict.pattern, verdict.orders
    for site, order in orders.items():
        verdict.weakest[site] = order
        for weaker in (Order[name] for name in pattern.ladder(site)):
            if weaker >= order:
                continue
            if reach(pattern, {**orders, site: weaker})[1]:
                verdict.variants += 1
            else:
                verdict.weakest[site] = weaker
    if pattern.together:
        verdict.variants += bool(reach(pattern, {**orders, **dict.fromkeys(pattern.together, Order.RELAXED)})[1])


def judge(pattern: Pattern, source: Path = SOURCE) -> Verdict:
    """Everything about one pattern with the orders of the C files in `source`."""
    orders = pattern.orders(source)
    verdict = Verdict(pattern, orders, *reach(pattern, orders))
    if not verdict.reached:
        weaken(verdict)
    return verdict


def problems(verdicts: list[Verdict]) -> Iterator[str]:
    """What makes the run a failure, a sentence each."""
    for v in verdicts:
        if v.reached:
            yield f"{v.pattern.name}: {v.pattern.says}: {v.reached}"
        elif not v.variants:
            yield f"{v.pattern.name}: no weakened order reaches what is forbidden: the test cannot fail"


def spare(verdicts: list[Verdict]) -> Iterator[tuple[Site, Order, Order]]:
    """Each statement whose order is stronger than all its patterns need, with the order that it has and the weakest."""
    needed: dict[Site, Order] = {}
    written: dict[Site, Order] = {}
    for v in verdicts:
        for name, site in v.pattern.sites.items():
            written[site] = v.orders[name]
            needed[site] = max(needed.get(site, Order.PLAIN), v.weakest.get(name, v.orders[name]))
    return ((site, order, needed[site]) for site, order in written.items() if order > needed[site])


def unexplained(found: list[tuple[Site, Order, Order]]) -> Iterator[str]:
    """Orders that are stronger than needed without a reason, and reasons without such an order."""
    sites = {site for site, _, _ in found}
    for (file, text), order, weakest in found:
        if (file, text) not in SPARE:
            yield f"{file}: {order.name} where {weakest.name} would do, and nobody says why: {text}"
    yield from (f"{file}: said to be stronger than needed, and is not: {text}" for file, text in SPARE.keys() - sites)


def describe(verdict: Verdict) -> Iterator[str]:
    """The lines of the table that one pattern takes."""
    pattern = verdict.pattern
    yield (
        f"{pattern.name:26} {pattern.label:9} {verdict.executions:10}  {'REACHED' if verdict.reached else 'never':17}"
        f" {verdict.variants:6}"
    )
    yield f"    {pattern.says}"
    for site, order in verdict.orders.items():
        weakest = verdict.weakest.get(site, order)
        note = "needed" if weakest == order else f"{weakest.name} would do here"
        yield f"    {site:14} {order.name:8} {'' if verdict.reached or order == Order.RELAXED else note}"


def main() -> int:
    """Judge the patterns and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pattern", choices=[p.name for p in PATTERNS], metavar="NAME")
    parser.add_argument("--source", type=Path, default=SOURCE, metavar="DIR")
    parser.add_argument("--short", action="store_true", help="accepted like everywhere; there is one form only")
    options = parser.parse_args()
    started = time.monotonic()
    print(f"{'pattern':26} {'label':9} {'executions':>10}  {'forbidden outcome':17} weakened orders that reach it")
    verdicts: list[Verdict] = []
    for pattern in PATTERNS:
        if options.pattern in (None, pattern.name):
            try:
                verdicts.append(judge(pattern, options.source))
            except LookupError as error:  # the statement was rewritten: the pattern must be read against it again
                raise SystemExit(f"FAILED {pattern.name}: {error}") from None
            print("\n".join(describe(verdicts[-1])), flush=True)
    failures = list(problems(verdicts))
    if not options.pattern and not failures:
        found = list(spare(verdicts))
        print("stronger than any pattern needs:")
        for site, order, weakest in found:
            print(f"    {site[0]:10} {site[1].replace('{}', order.name or '')}")
            print(f"               {weakest.name} would do; {SPARE.get(site, 'why?')}")
        failures += unexplained(found)
    print(
        f"\n{len(verdicts)} patterns, {sum(v.executions for v in verdicts)} executions,"
        f" {sum(v.variants for v in verdicts)} weakened orders reach what is forbidden;"
        f" {time.monotonic() - started:.1f} s"
    )
    for failure in failures:
        print(f"FAILED {failure}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
