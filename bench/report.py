"""The results as tables on a terminal: what each peer took, as ratios against shmbus and against the codec ceiling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.table import Table
from rich.text import Text

from .peers import YARDSTICKS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from .contract import Latency
    from .results import Growth, Idle, Median, PeerResult, Results, WorkloadResult

OWN: Final = "shmbus"
CEILING: Final = "ceiling"
COPY: Final = "memcpy"


def render(results: Results) -> Iterator[RenderableType]:
    """Everything worth printing, in order."""
    yield Text(heading(results))
    for result in results.workloads.values():
        yield latency_table(result) if has_latency(result) else throughput_table(result)
        for name, text, failed in remarks(result):
            yield Text(f"{name} {text}", style="red" if failed else "")
    for growth in results.growth:
        yield growth_table(growth)
    for idle in results.idle:
        yield Text(idle_line(idle))
    for workload, failure in results.failures.items():
        yield Text(f"{workload} failed: {_last_line(failure)}", style="red")


def heading(results: Results) -> str:
    """Machine, versions, revision."""
    machine = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    return (
        f"{machine.cpu}, {machine.usable_cpus} of {machine.cpus} CPUs, "
        f"Linux {machine.kernel}, load {machine.load[0]:.1f}\n"
        f"{results.python}, {versions}\nrevision {results.revision or 'unknown'}"
    )


def remarks(result: WorkloadResult) -> Iterator[tuple[str, str, bool]]:
    """Peer, what is to be said of its runs, and whether that is a failure."""
    for name, peer in result.peers.items():
        yield from ((name, note, False) for note in peer.notes)
        yield from ((name, f"failed: {_last_line(failure)}", True) for failure in peer.failures)


def throughput_table(result: WorkloadResult) -> Table:
    """A line a peer: the higher its times, the slower it is."""
    yardsticks = yardsticks_of(result)
    over = [f"over {name}" for name in yardsticks] + ["× shmbus"] + [f"× {name}" for name in yardsticks]
    table = _table(result.title, "events/s", "ns/event", "least", "most", *over, "CPU ns/event")
    own = median_of(result, OWN)
    for name, median in medians(result):
        table.add_row(
            name,
            f"{median.rate:,.0f}",
            *(_figure(ns) for ns in (median.ns, median.ns_least, median.ns_most)),
            *(f"{median.ns - yardstick.ns:+,.1f}" for yardstick in yardsticks.values()),
            _ratio(median.ns, own.ns if own else None),
            *(_ratio(median.ns, yardstick.ns) for yardstick in yardsticks.values()),
            f"{_figure(median.sender_cpu_ns)} + {_figure(median.receiver_cpu_ns)}",
        )
    return table


def latency_table(result: WorkloadResult) -> Table:
    """A line a peer: latencies in microseconds, what passed between two events, and what an event costs both sides."""
    own, yardstick = _latency(result, OWN), _yardstick(result)
    columns = ["p50 µs", "p99 µs", "p99.9 µs", "max µs", "µs/event", "p50 × shmbus", "p99 × shmbus"]
    columns += [f"p50 × {yardstick}"] if yardstick else []
    table = _table(result.title, *columns, "lost", "CPU ns/event")
    least = _latency(result, yardstick)
    for name, median in medians(result):
        if (latency := median.latency) is None:
            continue
        table.add_row(
            name,
            *(f"{ns / 1e3:,.1f}" for ns in (latency.p50, latency.p99, latency.p999, latency.max, median.ns)),
            _ratio(latency.p50, own.p50 if own else None),
            _ratio(latency.p99, own.p99 if own else None),
            *([_ratio(latency.p50, least.p50 if least else None)] if yardstick else []),
            f"{median.lost:,}",
            f"{median.sender_cpu_ns:,.0f} + {median.receiver_cpu_ns:,.0f}",
        )
    return table


def growth_table(growth: Growth) -> Table:
    """A line a curve, a column a place on the axis: ns an event."""
    places = sorted({point.at for points in growth.curves.values() for point in points})
    table = _table(
        f"{growth.workload.capitalize()}: ns an event by {growth.axis}", *(quantity(at, growth.unit) for at in places)
    )
    for curve, points in growth.curves.items():
        at = {point.at: f"{point.ns:,.0f}" for point in points}
        table.add_row(curve, *(at.get(place, "-") for place in places))
    return table


def idle_line(idle: Idle) -> str:
    """A sentence."""
    return (
        f"Idle: {idle.processes} parked subscribers take {idle.cpu:.2%} of a core together, their supervisor "
        f"{idle.supervisor_cpu:.2%}; {idle.pss / 2**20:.1f} MiB (PSS) a process"
    )


def quantity(number: int, unit: str) -> str:
    """A number, in KiB or MiB where it is in bytes and large."""
    if unit == "bytes":
        for name, size in (("MiB", 1 << 20), ("KiB", 1 << 10)):
            if number >= size:
                return f"{number // size} {name}"
        return f"{number} B"
    return str(number)


def has_latency(result: WorkloadResult) -> bool:
    """Whether it is about latency."""
    return any(median.latency for _, median in medians(result))


def medians(result: WorkloadResult) -> Iterator[tuple[str, Median]]:
    """Of those that have one."""
    return ((name, peer.median) for name, peer in result.peers.items() if peer.median)


def excuse(peer: PeerResult) -> str:
    """Why a peer has no figure to be shown, in a word or two; empty where it has one."""
    if peer.failures:
        return "failed"
    return "" if peer.median else "left out"


def median_of(result: WorkloadResult, name: str) -> Median | None:
    """Of one peer."""
    peer = result.peers.get(name)
    return peer.median if peer else None


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def yardsticks_of(result: WorkloadResult) -> dict[str, Median]:
    """The yardsticks that a workload was run with."""
    return {name: median for name, median in medians(result) if name in YARDSTICKS}


def _figure(ns: float) -> str:
    """Nanoseconds; those of rows are few."""
    return f"{ns:,.0f}" if ns >= 100 else f"{ns:,.1f}"


def _yardstick(result: WorkloadResult) -> str:
    return next((name for name, _ in medians(result) if name in YARDSTICKS), "")


def _latency(result: WorkloadResult, name: str) -> Latency | None:
    median = median_of(result, name)
    return median.latency if median else None


def _ratio(value: float, against: float | None) -> str:
    return f"{value / against:,.2f}" if against else "-"


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1]
