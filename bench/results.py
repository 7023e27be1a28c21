"""What is kept of a run of the suite: every single run, the medians, the machine and the versions, as JSON.

Numbers are plain: events, seconds, ns. Whoever plots or compares reads nothing but this.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import psutil

from bench import peers
from bench.contract import Latency

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bench.contract import Plan
    from bench.processes import Outcome


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one workload with one peer."""

    events: int
    seconds: float
    sender_cpu: float
    receiver_cpu: float
    """CPU seconds, of all receivers together."""
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
    median: Median | None = None


class WorkloadResult(msgspec.Struct, frozen=True, kw_only=True):
    """One workload."""

    title: str
    peers: dict[str, PeerResult]


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where it ran."""

    cpu: str
    cpus: int
    usable_cpus: int
    memory: int
    """Bytes."""
    kernel: str
    architecture: str
    load: tuple[float, float, float]
    """Load averages when the suite began."""


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the suite."""

    taken: str
    """UTC, ISO 8601."""
    machine: Machine
    python: str
    versions: dict[str, str]
    revision: str | None
    """Git revision of the clone, with "+" for uncommitted changes; None where there is no clone."""
    options: dict[str, object]
    workloads: dict[str, WorkloadResult]


def empty(peer_names: Iterable[str], options: dict[str, object]) -> Results:
    """Results to be filled in, with all that is known before the first run."""
    return Results(
        taken=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=_machine(),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        versions=_versions(peer_names),
        revision=_revision(),
        options=options,
        workloads={},
    )


def run_of(plan: Plan, outcome: Outcome) -> Run:
    """What one run comes to."""
    return Run(
        events=plan.events,
        seconds=outcome.seconds,
        sender_cpu=outcome.sent.cpu,
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
    """Write the JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")


def _median_latency(all: list[Latency]) -> Latency | None:
    if not all:
        return None
    fields = ("p50", "p99", "p999", "max")
    return Latency(*(int(statistics.median(getattr(one, field) for one in all)) for field in fields))


def _machine() -> Machine:
    return Machine(
        cpu=_cpu(),
        cpus=os.cpu_count() or 1,
        usable_cpus=len(os.sched_getaffinity(0)),
        memory=psutil.virtual_memory().total,
        kernel=platform.release(),
        architecture=platform.machine(),
        load=os.getloadavg(),
    )


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _versions(peer_names: Iterable[str]) -> dict[str, str]:
    wanted = {"msgspec", "shmbus", *(peers.load(name).DISTRIBUTION for name in peer_names)}
    return {name: _version(name) for name in sorted(filter(None, wanted))}


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # built in place: only the module knows
        return str(getattr(sys.modules.get(distribution), "__version__", "unknown"))


def _revision() -> str | None:
    def git(*arguments: str) -> str:
        folder = Path(__file__).resolve().parent
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
