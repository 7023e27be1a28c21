"""The suite: every workload with every peer, interleaved, repeated, and the middle of it.

Whatever else the machine does falls upon all peers alike: within a workload they take turns, and each round begins with
another one. A short run first says how many events each peer needs for a run of about the same length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from bench import peers, processes, results, workloads
from bench.contract import BenchError, Plan
from bench.results import PeerResult, WorkloadResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_TRIAL: Final = 10_000  # events of the run that measures how many a run takes
_LEAST: Final = 5_000
_MOST: Final = 5_000_000


@dataclass(frozen=True)
class Options:
    """How long and how often."""

    repeats: int
    seconds: float
    """Of one run of a workload that goes as fast as it can."""
    rate: int
    """Events a second, and for how many seconds, of a paced one."""
    paced_seconds: float
    events: int | None = None
    """Events of every run, whatever time they take."""


def installed(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Of some peers those that are here, and why the others are not."""
    here: list[str] = []
    missing: dict[str, str] = {}
    for name in names:
        try:
            peers.load(name)
            here.append(name)
        except ImportError as error:
            missing[name] = str(error)
    return here, missing


def measure(
    workload: str, peer_names: Sequence[str], options: Options, progress: Callable[[str], None]
) -> WorkloadResult:
    """One workload with every peer that can do it."""
    plans = {name: plan for name in peer_names if (plan := plan_of(workload, name, options))}
    found = {name: PeerResult() for name in plans}
    if options.events is None and not workloads.load(workload).PACED:
        for name, plan in plans.items():
            progress(f"{workload} {name}: how many events")
            trial = _try(plan, found[name])
            if trial:
                plans[name] = replace(plan, events=_events(plan, trial, options.seconds))
    for round in range(options.repeats):
        for name in _rotated(list(plans), round):
            if not found[name].failures:
                progress(f"{workload} {name}: run {round + 1} of {options.repeats}")
                run = _try(plans[name], found[name])
                found[name].runs.extend([run] if run else [])
    for result in found.values():
        result.median = results.median_of(result.runs)
    return WorkloadResult(title=workloads.title(workload), peers=found)


def plan_of(workload: str, peer: str, options: Options) -> Plan | None:
    """The plan of a workload with a peer; None where they have nothing to say to each other."""
    module = workloads.load(workload)
    if module.SHAPE not in peers.load(peer).SHAPES or (peer == "ceiling" and not module.CEILING):
        return None
    events = options.events or (int(options.rate * options.paced_seconds) if module.PACED else _TRIAL)
    return Plan(
        workload=workload,
        peer=peer,
        shape=module.SHAPE,
        events=_whole(events, module.BATCH),
        receivers=module.RECEIVERS,
        batch=module.BATCH,
        rate=options.rate if module.PACED else 0,
    )


def _try(plan: Plan, result: PeerResult) -> results.Run | None:
    try:
        return results.run_of(plan, processes.run(plan))
    except BenchError as error:
        result.failures.append(str(error))
        return None


def _events(plan: Plan, trial: results.Run, seconds: float) -> int:
    wanted = int(plan.events * seconds / trial.seconds)
    return _whole(min(max(wanted, _LEAST), _MOST), plan.batch)


def _whole(events: int, batch: int) -> int:
    return max(1, events // batch) * batch


def _rotated(names: list[str], by: int) -> list[str]:
    by %= len(names) or 1
    return names[by:] + names[:by]
