"""The results as tables: what each peer took, as ratios against shmbus and against the codec ceiling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from bench.results import Median, Results, WorkloadResult

OWN: Final = "shmbus"
CEILING: Final = "ceiling"


def render(results: Results) -> Iterator[RenderableType]:
    """Everything worth printing, in order."""
    machine = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    yield Text(
        f"{machine.cpu}, {machine.usable_cpus} of {machine.cpus} CPUs, "
        f"Linux {machine.kernel}, load {machine.load[0]:.1f}\n"
        f"{results.python}, {versions}\nrevision {results.revision or 'unknown'}"
    )
    for result in results.workloads.values():
        yield latency_table(result) if _has_latency(result) else throughput_table(result)
        for name, peer in result.peers.items():
            for failure in peer.failures:
                yield Text(f"{name} failed: {failure.strip().splitlines()[-1]}", style="red")


def throughput_table(result: WorkloadResult) -> Table:
    """A line a peer: the higher its times, the slower it is."""
    table = _table(result.title, "events/s", "ns/event", "least", "most", "× shmbus", "× ceiling", "CPU ns/event")
    own, ceiling = _median(result, OWN), _median(result, CEILING)
    for name, median in _medians(result):
        table.add_row(
            name,
            f"{median.rate:,.0f}",
            f"{median.ns:,.0f}",
            f"{median.ns_least:,.0f}",
            f"{median.ns_most:,.0f}",
            _ratio(median.ns, own.ns if own else None),
            _ratio(median.ns, ceiling.ns if ceiling else None),
            f"{median.sender_cpu_ns:,.0f} + {median.receiver_cpu_ns:,.0f}",
        )
    return table


def latency_table(result: WorkloadResult) -> Table:
    """A line a peer: one-way latencies in microseconds, and what an event costs both sides."""
    table = _table(
        result.title, "p50 µs", "p99 µs", "p99.9 µs", "max µs", "p50 × shmbus", "p99 × shmbus", "lost", "CPU ns/event"
    )
    own = _median(result, OWN)
    mine = own.latency if own else None
    for name, median in _medians(result):
        if (latency := median.latency) is None:
            continue
        table.add_row(
            name,
            *(f"{ns / 1e3:,.1f}" for ns in (latency.p50, latency.p99, latency.p999, latency.max)),
            _ratio(latency.p50, mine.p50 if mine else None),
            _ratio(latency.p99, mine.p99 if mine else None),
            f"{median.lost:,}",
            f"{median.sender_cpu_ns:,.0f} + {median.receiver_cpu_ns:,.0f}",
        )
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("peer")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _has_latency(result: WorkloadResult) -> bool:
    return any(median.latency for _, median in _medians(result))


def _medians(result: WorkloadResult) -> Iterator[tuple[str, Median]]:
    return ((name, peer.median) for name, peer in result.peers.items() if peer.median)


def _median(result: WorkloadResult, name: str) -> Median | None:
    peer = result.peers.get(name)
    return peer.median if peer else None


def _ratio(value: float, against: float | None) -> str:
    return f"{value / against:,.2f}" if against else "-"
