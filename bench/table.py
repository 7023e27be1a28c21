"""The results as tables in Markdown, for a page that is read without the JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .peers import YARDSTICKS
from .report import CEILING, COPY, OWN, excuse, has_latency, heading, idle_line, median_of, quantity, remarks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .results import Growth, Results, WorkloadResult


def markdown(results: Results) -> str:
    """All tables, each with what has to be said about it."""
    parts = [heading(results).replace("\n", "  \n")]
    throughput = {name: result for name, result in results.workloads.items() if _is_throughput(result)}
    if throughput:
        parts.append(_throughput(throughput))
    for name, result in results.workloads.items():
        if name not in throughput:
            parts.append(f"{result.title}:\n\n{_latency(result)}")
    for workload in dict.fromkeys(growth.workload for growth in results.growth):
        curves = [growth for growth in results.growth if growth.workload == workload]
        parts.append(f"{workload.capitalize()}: cost an event of shmbus alone, by what grows:\n\n{_growth(curves)}")
    parts += [f"{idle_line(idle)}." for idle in results.idle]
    parts += [
        "\n".join(f"- {result.title.partition(':')[0]}, {name}: {text}" for name, text, _ in said)
        for result in results.workloads.values()
        if (said := list(remarks(result)))
    ]
    parts += [f"- {name} failed: {failure}" for name, failure in results.failures.items()]
    return "\n\n".join(parts)


def duration(ns: float) -> str:
    """Nanoseconds in the unit that fits."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns:.0f} ns"


def _throughput(workloads: dict[str, WorkloadResult]) -> str:
    """A column a workload: times an event of shmbus and the ceiling, the others as ratios to shmbus."""
    names = list(dict.fromkeys(name for result in workloads.values() for name in result.peers))
    names.sort(key=lambda name: (name != OWN, name in YARDSTICKS))  # the peers between shmbus and the yardsticks
    rows = [[f"**{name}**" if name == OWN else name, *(_cell(r, name) for r in workloads.values())] for name in names]
    rows.append(["shmbus over the ceiling", *(_against(r, OWN, CEILING) for r in workloads.values())])
    if any(COPY in result.peers for result in workloads.values()):
        rows.append(["shmbus over one memcpy", *(_against(r, OWN, COPY) for r in workloads.values())])
    legend = "\n".join(f"- {result.title}" for result in workloads.values())
    titles = [result.title.partition(":")[0] for result in workloads.values()]
    text = "Time an event of shmbus; of the others, `n ×` the time of shmbus in the same run:"
    return f"{text}\n\n{legend}\n\n{_lines(['', *titles], rows)}"


def _cell(result: WorkloadResult, name: str) -> str:
    peer = result.peers.get(name)
    if peer is None or peer.median is None or peer.failures:
        return excuse(peer) if peer else "–"
    return duration(peer.median.ns) if name in (OWN, *YARDSTICKS) else _against(result, name, OWN)


def _against(result: WorkloadResult, name: str, other: str) -> str:
    median, against = median_of(result, name), median_of(result, other)
    if median is None or against is None:
        return "–"
    ratio = median.ns / against.ns
    return f"{ratio:.2f} ×" if ratio < 10 else f"{ratio:,.0f} ×"


def _latency(result: WorkloadResult) -> str:
    rows = []
    for name, peer in result.peers.items():
        if peer.failures or not (peer.median and peer.median.latency):
            rows.append([name, excuse(peer), *[""] * 6])
            continue
        at, median = peer.median.latency, peer.median
        cpu = f"{median.sender_cpu_ns / median.ns:.0%} + {median.receiver_cpu_ns / median.ns:.0%}"
        times = map(duration, (at.p50, at.p99, at.p999, at.max, median.ns))
        rows.append([f"**{name}**" if name.startswith(OWN) else name, *times, f"{median.lost:,}", cpu])
    return _lines(["", "p50", "p99", "p99.9", "max", "an event each", "lost", "CPU of both sides"], rows)


def _growth(axes: Sequence[Growth]) -> str:
    rows = []
    for growth in axes:
        for curve, points in growth.curves.items():
            ends = [f"{quantity(point.at, growth.unit)}: {duration(point.ns)}" for point in (points[0], points[-1])]
            highest = max(point.ns for point in points) / points[0].ns - 1
            rows.append([growth.axis, curve, *ends, f"{points[-1].ns / points[0].ns - 1:+.0%}", f"{highest:+.0%}"])
    return _lines(["by", "cost", "first", "last", "change", "at most"], rows)


def _is_throughput(result: WorkloadResult) -> bool:
    return not has_latency(result)


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def lines() -> Iterator[str]:
        yield _line(head)
        yield _line(["---", *["---:"] * (len(head) - 1)])
        yield from map(_line, rows)

    return "\n".join(lines())


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
