"""What is kept of a run of the suite: every single run, the medians, the machine and the versions, as JSON.

Numbers are plain: events, seconds, ns. Whoever plots or compares reads nothing but this.
"""

from __future__ import annotations

import statistics
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from .contract import BenchError, Latency
from .machine import Machine, machine, python, revision, versions

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from .contract import Plan
    from .processes import Outcome


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one workload with one peer."""

    events: int
    seconds: float
    sender_cpu: float
    """CPU seconds, of all senders together."""
    receiver_cpu: float
    lost: int
    latency: Latency | None

    @property
    def ns(self) -> float:
        """Nanoseconds an event."""
        return self.seconds / self.events * 1e9


class Median(msgspec.Struct, frozen=True, kw_only=True):
    """The middle of all runs, each figure for itself; `lost` is the sum."""

    ns: float
    """Per event."""
    ns_least: float
    ns_most: float
    rate: float
    """Events a second."""
    sender_cpu_ns: float
    """Per event."""
    receiver_cpu_ns: float
    lost: int
    latency: Latency | None


class PeerResult(msgspec.Struct, kw_only=True):
    """One peer at one workload."""

    runs: list[Run] = []
    failures: list[str] = []
    notes: list[str] = []
    """Why there are no runs, or no more of them, although nothing failed."""
    median: Median | None = None


class WorkloadResult(msgspec.Struct, frozen=True, kw_only=True):
    """One workload."""

    title: str
    peers: dict[str, PeerResult]


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One place on a curve."""

    at: int
    ns: float
    """Median, per event."""
    ns_least: float


class Growth(msgspec.Struct, frozen=True, kw_only=True):
    """How costs of shmbus grow with one thing."""

    workload: str = "w8"
    axis: str
    unit: str
    """Of the axis: "" or "bytes"."""
    curves: dict[str, list[Point]]


class Idle(msgspec.Struct, frozen=True, kw_only=True):
    """What processes cost that wait for events."""

    processes: int
    seconds: float
    """How long it was looked at."""
    cpu: float
    """CPU seconds a second, of all of them together."""
    supervisor_cpu: float
    pss: float
    """Bytes a process, shared memory divided among those that share it."""


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the suite, or several of the same kind."""

    taken: str
    """UTC, ISO 8601."""
    machine: Machine
    python: str
    versions: dict[str, str]
    revision: str | None
    options: dict[str, object]
    workloads: dict[str, WorkloadResult]
    growth: list[Growth] = []
    idle: list[Idle] = []
    failures: dict[str, str] = {}
    """Of the workloads that no peer takes part in."""


def empty(peer_names: Iterable[str], options: dict[str, object]) -> Results:
    """Results to be filled in, with all that is known before the first run."""
    return Results(
        taken=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine(),
        python=python(),
        versions=versions(peer_names),
        revision=revision(),
        options=options,
        workloads={},
    )


def run_of(plan: Plan, outcome: Outcome) -> Run:
    """What one run comes to."""
    return Run(
        events=plan.events,
        seconds=outcome.seconds,
        sender_cpu=sum(s.cpu for s in outcome.sent),
        receiver_cpu=sum(r.cpu for r in outcome.received),
        lost=sum(r.lost for r in outcome.received),
        latency=outcome.received[0].latency,
    )


def median_of(runs: list[Run]) -> Median | None:
    """The middle of some runs; None of none."""
    if not runs:
        return None
    ns = statistics.median(r.ns for r in runs)
    return Median(
        ns=ns,
        ns_least=min(r.ns for r in runs),
        ns_most=max(r.ns for r in runs),
        rate=1e9 / ns,
        sender_cpu_ns=statistics.median(r.sender_cpu / r.events * 1e9 for r in runs),
        receiver_cpu_ns=statistics.median(r.receiver_cpu / r.events * 1e9 for r in runs),
        lost=sum(r.lost for r in runs),
        latency=_median_latency([r.latency for r in runs if r.latency]),
    )


def save(results: Results, path: Path) -> None:
    """Write the JSON, in one step."""
    draft = path.with_name(path.name + ".new")
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
    draft.replace(path)


def load(path: Path) -> Results:
    """Read the JSON. Raises BenchError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Results)
    except (OSError, msgspec.DecodeError) as error:
        raise BenchError(f"no results in {path}: {error}") from error


def joined(before: Results, now: Results) -> Results:
    """Results of two runs of the suite, those of `now` where both have them.

    Raises BenchError where they cannot be compared: another machine, version, revision or option.
    """
    pairs = {
        "machine": (_lasting(before.machine), _lasting(now.machine)),
        "python": (before.python, now.python),
        "revision": (before.revision, now.revision),
        "options": (before.options, now.options),
        **{name: (old, now.versions.get(name, old)) for name, old in before.versions.items()},
    }
    different = [f"{name}: {old} then, {new} now" for name, (old, new) in pairs.items() if old != new]
    if different:
        raise BenchError(f"these results are of another kind: {'; '.join(different)}")
    return msgspec.structs.replace(
        before,
        versions=dict(sorted({**before.versions, **now.versions}.items())),
        workloads={**before.workloads, **now.workloads},
        growth=grown(before.growth, now.growth),
        idle=now.idle or before.idle,
        failures={**before.failures, **now.failures},
    )


def grown(before: list[Growth], now: list[Growth]) -> list[Growth]:
    """The curves of both, those of `now` where both have the workload."""
    new = {growth.workload for growth in now}
    return [growth for growth in before if growth.workload not in new] + now


def _median_latency(all: list[Latency]) -> Latency | None:
    if not all:
        return None
    fields = ("p50", "p99", "p999", "max")
    return Latency(*(int(statistics.median(getattr(one, field) for one in all)) for field in fields))


def _lasting(machine: Machine) -> Machine:
    """What is the same as long as it is the same machine."""
    return msgspec.structs.replace(machine, load=(0.0, 0.0, 0.0))
