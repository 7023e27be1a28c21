"""The suite: every workload with every peer, interleaved, repeated, and the middle of it.

Whatever else the machine does falls upon all peers alike: within a workload they take turns, and each round begins with
another one. Short runs first say how many events each peer needs for a run of about the same length.

Must stay true: what failed, fell behind or was left out is in the results, with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from . import peers, processes, results, workloads
from .contract import BenchError, Plan, UnableError
from .results import PeerResult, WorkloadResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MOST: Final = 5_000_000
_TELLING: Final = 0.1  # of the length of a run: a shorter trial says little
_BEHIND: Final = 1.5  # times as long as the pace has it: there is no point in further runs


@dataclass(frozen=True)
class Options:
    """How long and how often."""

    repeats: int
    seconds: float
    """Of one run of a workload that goes as fast as it can."""
    rate: int
    """Events a second, and for how many seconds, of a paced one."""
    paced_seconds: float
    rounds: int
    """Of what shmbus is measured with alone; a round is short."""
    idlers: int
    """Processes that wait, and for how long they are looked at."""
    idle_seconds: float
    events: int | None = None
    """Events of every run, whatever time they take."""


def installed(names: Sequence[str], shapes: Sequence[str] = ("one",)) -> tuple[list[str], dict[str, str]]:
    """Of some peers those that are here for any of the shapes, and why the others are not."""
    here: list[str] = []
    missing: dict[str, str] = {}
    for name in names:
        for shape in shapes:
            if name in peers.known(shape):
                try:
                    peers.carrier(name, shape)
                    here.append(name)
                    break
                except ImportError as error:
                    missing[name] = str(error)
    return here, {name: why for name, why in missing.items() if name not in here}


def shape_of(workload: str) -> str:
    """The shape of a workload of `workloads.MODULES`."""
    return workloads.load(workload).SETUP.shape


def usual(workload: str, names: Sequence[str]) -> list[str]:
    """Of some peers those that a workload is run with unless others are asked for."""
    setup = workloads.load(workload).SETUP
    known = [name for name in names if name in peers.known(setup.shape)]
    return [name for name in known if setup.variants or not peers.is_variant(name, setup.shape)]


def measure(
    workload: str, peer_names: Sequence[str], options: Options, progress: Callable[[str], None]
) -> WorkloadResult:
    """One workload with every peer that can do it."""
    plans = {name: plan for name in peer_names if (plan := plan_of(workload, name, options))}
    found = {name: PeerResult() for name in plans}
    if options.events is None and not workloads.load(workload).SETUP.paced:
        for name, plan in plans.items():
            progress(f"{workload} {name}: how many events")
            plans[name] = _of_length(plan, options.seconds, found[name])
    for round in range(options.repeats):
        for name in _rotated(list(plans), round):
            if not (found[name].failures or found[name].notes):
                progress(f"{workload} {name}: run {round + 1} of {options.repeats}")
                run = _try(plans[name], found[name])
                found[name].runs.extend([run] if run else [])
    for result in found.values():
        result.median = results.median_of(result.runs)
    return WorkloadResult(title=workloads.title(workload), peers=found)


def plan_of(workload: str, peer: str, options: Options) -> Plan | None:
    """The plan of a workload with a peer; None where they have nothing to say to each other."""
    setup = workloads.load(workload).SETUP
    yardstick = peer in peers.YARDSTICKS
    if (
        peer not in peers.known(setup.shape)
        or setup.shape not in _shapes(peer, setup.shape)
        or (yardstick and peer not in setup.yardsticks)
    ):
        return None
    events = options.events or (int(options.rate * options.paced_seconds) if setup.paced else setup.trial)
    return Plan(
        workload=workload,
        peer=peer,
        shape=setup.shape,
        events=_whole(events, setup.batch * setup.senders),
        senders=setup.senders,
        receivers=setup.receivers,
        batch=setup.batch,
        rate=options.rate if setup.paced else 0,
        size=setup.size,
        capacity=setup.capacity,
        idle=peers.known(setup.shape)[peer][1],
    )


def _shapes(peer: str, shape: str) -> frozenset[str]:
    """What a peer can carry; an echo is two ways of "one"."""
    shapes: frozenset[str] = peers.carrier(peer, shape).SHAPES
    return shapes | {"echo"} if "one" in shapes and peer not in peers.YARDSTICKS else shapes


def _try(plan: Plan, result: PeerResult) -> results.Run | None:
    try:
        run = results.run_of(plan, processes.run(plan))
    except UnableError as error:
        result.notes.append(f"left out: {error}")
        return None
    except BenchError as error:
        result.failures.append(str(error))
        return None
    if plan.rate and run.seconds > _BEHIND * plan.events / plan.rate:
        rate = run.events / run.seconds
        result.notes.append(f"could not keep the pace, so this was its last run: {rate:,.0f} of {plan.rate:,} events/s")
    return run


def _of_length(plan: Plan, seconds: float, result: PeerResult) -> Plan:
    """The plan with as many events as a run of this length takes, found by trials."""
    step = plan.batch * plan.senders
    while trial := _try(plan, result):
        most = _MOST * (plan.batch if plan.shape == "rows" else 1)
        wanted = _whole(min(max(int(plan.events * seconds / trial.seconds), plan.events), most), step)
        telling = trial.seconds >= _TELLING * seconds or plan.events * 10 > most
        plan = replace(plan, events=wanted if telling else plan.events * 10)
        if telling:
            break
    return plan


def _whole(events: int, step: int) -> int:
    return max(1, events // step) * step


def _rotated(names: list[str], by: int) -> list[str]:
    by %= len(names) or 1
    return names[by:] + names[:by]
