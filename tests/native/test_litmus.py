"""The checker of tools/litmus.py against the literature, against plain interleaving, and on the C of shmbus."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Generator
from itertools import product
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import litmus  # noqa: E402
from litmus_model import Access, Load, Order, Program, Result, Rmw, Store, executions  # noqa: E402
from litmus_patterns import Pattern  # noqa: E402

PLAIN, RLX, ACQ, REL, SEQ = Order.PLAIN, Order.RELAXED, Order.ACQUIRE, Order.RELEASE, Order.SEQ
Op: TypeAlias = tuple[str, str, int] | tuple[str, str]
Threads: TypeAlias = list[list[Op]]


def bump(value: int) -> int:
    return value + 1


def access(op: Op, store: Order, load: Order, rmw: Order) -> Access:
    """("W", at, value), ("R", at) or ("U", at), which adds one."""
    if op[0] == "W":
        return Store(op[1], int(op[2]), store)  # type: ignore[misc]
    return Load(op[1], load) if op[0] == "R" else Rmw(op[1], bump, rmw)


def thread(index: int, accesses: list[Access]) -> Callable[[], Generator[Access, int, Result]]:
    def run() -> Generator[Access, int, Result]:
        seen: dict[str, int] = {}
        for i, one in enumerate(accesses):
            value = yield one
            if not isinstance(one, Store):
                seen[f"{index}:{i}"] = value
        return seen

    return run


def outcomes(threads: list[list[Access]]) -> list[tuple[tuple[int, ...], dict[str, int], str]]:
    """What each execution ends with: the values read, in the order of the program, the memory, and a race."""
    initial = {one.at: 0 for accesses in threads for one in accesses}
    program = Program(initial, [thread(i, accesses) for i, accesses in enumerate(threads)])
    return [(tuple(value for _, value in sorted(o.seen.items())), o.memory, o.race) for o in executions(program)]


def reads(threads: Threads, store: Order, load: Order, rmw: Order = SEQ) -> set[tuple[int, ...]]:
    return {seen for seen, _, _ in outcomes([[access(op, store, load, rmw) for op in ops] for ops in threads])}


SB: Threads = [[("W", "x", 1), ("R", "y")], [("W", "y", 1), ("R", "x")]]
MP: Threads = [[("W", "x", 1), ("W", "y", 1)], [("R", "y"), ("R", "x")]]
LB: Threads = [[("R", "x"), ("W", "y", 1)], [("R", "y"), ("W", "x", 1)]]
IRIW: Threads = [[("W", "x", 1)], [("W", "y", 1)], [("R", "x"), ("R", "y")], [("R", "y"), ("R", "x")]]
WRC: Threads = [[("W", "x", 1)], [("R", "x"), ("W", "y", 1)], [("R", "y"), ("R", "x")]]
CORR: Threads = [[("W", "x", 1)], [("R", "x"), ("R", "x")]]


@pytest.mark.parametrize(
    ("threads", "outcome", "store", "load", "allowed"),
    [
        (SB, (0, 0), RLX, RLX, True),
        (SB, (0, 0), REL, ACQ, True),
        (SB, (0, 0), SEQ, ACQ, True),
        (SB, (0, 0), REL, SEQ, True),
        (SB, (0, 0), SEQ, SEQ, False),
        (MP, (1, 0), RLX, RLX, True),
        (MP, (1, 0), REL, RLX, True),
        (MP, (1, 0), RLX, ACQ, True),
        (MP, (1, 0), REL, ACQ, False),
        (MP, (1, 0), SEQ, SEQ, False),
        (LB, (1, 1), RLX, RLX, False),  # C11 allows it, RC11 does not: sb ∪ rf is acyclic
        (LB, (1, 1), REL, ACQ, False),
        (IRIW, (1, 0, 1, 0), RLX, RLX, True),
        (IRIW, (1, 0, 1, 0), REL, ACQ, True),
        (IRIW, (1, 0, 1, 0), SEQ, ACQ, True),
        (IRIW, (1, 0, 1, 0), SEQ, SEQ, False),
        (WRC, (1, 1, 0), RLX, RLX, True),
        (WRC, (1, 1, 0), REL, ACQ, False),
        (CORR, (1, 0), RLX, RLX, False),
    ],
)
def test_classic_verdicts(threads: Threads, outcome: tuple[int, ...], store: Order, load: Order, allowed: bool) -> None:
    """SB, MP, LB, IRIW, WRC and CoRR have the verdicts of RC11 under every order."""
    assert (outcome in reads(threads, store, load)) is allowed


@pytest.mark.parametrize(("order", "allowed"), [(RLX, True), (REL, True), (SEQ, False)])
def test_two_plus_two_writes(order: Order, allowed: bool) -> None:
    """2+2W: both first writes may come last in mo, unless all are seq_cst."""
    threads: list[list[Access]] = [
        [Store("x", 1, order), Store("y", 2, order)],
        [Store("y", 1, order), Store("x", 2, order)],
    ]
    assert any(memory == {"x": 1, "y": 1} for _, memory, _ in outcomes(threads)) is allowed


def test_sc_of_mixed_accesses() -> None:
    """Z6.U: RC11 allows what C11 before it forbade, and compilers do."""
    threads: list[list[Access]] = [
        [Store("x", 1, SEQ), Store("y", 1, REL)],
        [Rmw("y", bump, SEQ), Load("y", RLX)],
        [Store("y", 3, SEQ), Load("x", SEQ)],
    ]
    assert (1, 3, 0) in {seen for seen, _, _ in outcomes(threads)}


@pytest.mark.parametrize(
    ("middle", "outcome", "allowed"), [(Rmw("y", bump, RLX), (1, 2, 0), False), (Store("y", 2, RLX), (2, 0), True)]
)
def test_release_sequences(middle: Access, outcome: tuple[int, ...], allowed: bool) -> None:
    """A relaxed RMW carries on a release, a relaxed store of another thread does not."""
    threads: list[list[Access]] = [
        [Store("x", 1, RLX), Store("y", 1, REL)],
        [middle],
        [Load("y", ACQ), Load("x", RLX)],
    ]
    assert (outcome in {seen for seen, _, _ in outcomes(threads)}) is allowed


def test_rmw_is_atomic() -> None:
    """No increment is lost, whatever its order."""
    threads: list[list[Access]] = [[Rmw("x", bump, RLX)], [Rmw("x", bump, RLX)], [Rmw("x", bump, RLX)]]
    assert {memory["x"] for _, memory, _ in outcomes(threads)} == {3}


@pytest.mark.parametrize(("store", "load", "races"), [(RLX, RLX, True), (REL, RLX, True), (REL, ACQ, False)])
def test_data_races(store: Order, load: Order, races: bool) -> None:
    """A plain read races with a write unless every execution orders the two."""

    def reader() -> Generator[Access, int, Result]:
        if (yield Load("flag", load)):
            yield Load("data", PLAIN)
        return {}

    writer = thread(0, [Store("data", 1, RLX), Store("flag", 1, store)])
    found = {o.race for o in executions(Program({"data": 0, "flag": 0}, [writer, reader]))}
    assert ("data" in found) is races


def interleaved(threads: Threads) -> set[tuple[int, ...]]:
    """What sequential consistency allows, by running every interleaving."""
    found: set[tuple[int, ...]] = set()

    def run(places: list[int], memory: dict[str, int], seen: dict[str, int]) -> None:
        if all(place == len(ops) for place, ops in zip(places, threads, strict=True)):
            found.add(tuple(value for _, value in sorted(seen.items())))
        for i, ops in enumerate(threads):
            if places[i] < len(ops):
                kind, at, *value = ops[places[i]]
                now = {**memory, at: {"W": value[0] if value else 0, "R": memory[at], "U": memory[at] + 1}[kind]}
                add = {} if kind == "W" else {f"{i}:{places[i]}": memory[at]}
                run([*places[:i], places[i] + 1, *places[i + 1 :]], now, {**seen, **add})

    run([0] * len(threads), {op[1]: 0 for ops in threads for op in ops}, {})
    return found


LOCATIONS = st.sampled_from(["x", "y"])
OPS: st.SearchStrategy[Op] = st.one_of(
    st.tuples(st.just("W"), LOCATIONS, st.integers(1, 2)), st.tuples(st.sampled_from(["R", "U"]), LOCATIONS)
)


@given(st.lists(st.lists(OPS, min_size=1, max_size=3), min_size=2, max_size=3))
@settings(max_examples=60, deadline=None)
def test_seq_cst_is_interleaving(threads: Threads) -> None:
    """With seq_cst everywhere the outcomes are those of the interleavings, and weaker orders only add to them."""
    strong = reads(threads, SEQ, SEQ)
    assert strong == interleaved(threads)
    for store, load, rmw in product((SEQ, REL, RLX), (SEQ, ACQ, RLX), (SEQ, RLX)):
        assert strong <= reads(threads, store, load, rmw)


@pytest.mark.parametrize("pattern", litmus.PATTERNS, ids=lambda p: p.name)
def test_pattern(pattern: Pattern) -> None:
    """With the orders in the C sources the forbidden outcome cannot be reached, with some weaker ones it can."""
    verdict = litmus.judge(pattern)
    assert not verdict.reached
    assert verdict.variants


def test_every_label_has_a_pattern() -> None:
    """Each SYNC label of the C sources is checked by a pattern."""
    text = "".join(path.read_text(encoding="utf-8") for path in litmus.SOURCE.glob("*.[ch]"))
    labels = set(re.findall(r"\bSYNC (?!name\b)([a-z]+)", text))
    assert labels == {pattern.label for pattern in litmus.PATTERNS}
