"""The results as pictures, SVG and PNG: throughput, latencies, ping-pong, growth. Needs matplotlib.

On a light card of their own, so that they can be read on pages of any colour; colours of Okabe and Ito, which everybody
can tell apart, and never colour alone.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from .peers import YARDSTICKS
from .report import CEILING, OWN, excuse, has_latency, idle_line, median_of, medians, quantity, yardsticks_of
from .table import duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from .contract import Latency
    from .results import Growth, Results, WorkloadResult

_CARD, _INK, _FAINT, _GRID = "#fcfcfb", "#24292f", "#57606a", "#d8dee4"
_BLUE, _SKY, _GREY, _RED, _GREEN, _ORANGE = "#0072b2", "#56b4e9", "#a7b0ba", "#d55e00", "#009e73", "#e69f00"
_STYLE: Final[Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture everywhere
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.facecolor": _CARD,
    "axes.labelcolor": _FAINT,
    "axes.titlecolor": _INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": _CARD,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "ytick.labelcolor": _INK,
    "svg.hashsalt": "shmbus",  # the same file from the same results
}


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw what there is; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    with mpl.rc_context(_STYLE):
        for name, figure in _figures(results):
            for suffix, options in ((".svg", {"metadata": {"Date": None}}), (".png", {"dpi": 160})):
                path = folder / f"{name}{suffix}"
                figure.savefig(path, **options)
                files.append(path)
    return files


def _figures(results: Results) -> Iterator[tuple[str, Any]]:
    throughput = [result for result in results.workloads.values() if not has_latency(result) and _found(result)]
    if throughput:
        yield "throughput", _throughput(results, throughput)
    for name, result in results.workloads.items():
        if has_latency(result) and _found(result):
            yield name, _latency(results, result)
    if results.growth:
        yield "growth", _growth(results)


def _found(result: WorkloadResult) -> bool:
    return any(name not in YARDSTICKS and not excuse(result.peers[name]) for name, _ in medians(result))


def _throughput(results: Results, workloads: Sequence[WorkloadResult]) -> Any:
    """A bar a peer, in a panel a workload."""
    columns = min(2, len(workloads))
    rows = -(-len(workloads) // columns)
    most = max(len(result.peers) for result in workloads)
    figure = _figure(results, 6 * columns, 0.8 + rows * (1.1 + 0.24 * most))
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel, result in zip(panels, workloads, strict=False):
        _bars(panel, result)
    for panel in panels[len(workloads) :]:
        panel.set_visible(False)
    return figure


def _bars(panel: Any, result: WorkloadResult) -> None:
    own, yardsticks = median_of(result, OWN), yardsticks_of(result)
    found = [(name, m.ns) for name, m in medians(result) if name not in YARDSTICKS and not excuse(result.peers[name])]
    found.sort(key=lambda pair: -pair[1])
    excused = _excused(result)
    names, times = [*excused, *(name for name, _ in found)], [ns for _, ns in found]
    ends = [*times, *(yardstick.ns for yardstick in yardsticks.values())]
    least, most = min(ends), max(ends)
    panel.set_title(textwrap.fill(result.title, 62), pad=17)
    panel.barh(names, [least / 2] * len(excused) + times, color=[_colour(name) for name in names], height=0.72)
    for number, name in enumerate(excused):
        panel.text(least / 2 * 1.06, number, excused[name], va="center", fontsize=8, color=_RED)
    for number, (name, ns) in enumerate(found, len(excused)):
        ratio = f"   {ns / own.ns:.3g} ×" if own and name != OWN else ""
        panel.text(ns * 1.06, number, f"{duration(ns)}{ratio}", va="center", fontsize=8, color=_INK)
    for name, yardstick in yardsticks.items():
        panel.axvline(yardstick.ns, color=_RED, linewidth=1.4, linestyle=(0, (4, 2)))
        panel.annotate(
            f"{'codec ceiling' if name == CEILING else name} {duration(yardstick.ns)}",
            (yardstick.ns, 1),
            (3, 2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color=_RED,
            fontsize=7.5,
            va="bottom",
        )
    panel.set_xlim(least / 2, most * (most / least) ** 0.6 * 1.5)
    _time_axis(panel, "time an event (log), and as a multiple of shmbus")
    _highlight(panel)


def _latency(results: Results, result: WorkloadResult) -> Any:
    """A row a peer, from its median to its last percentile."""
    found = [(name, m.latency) for name, m in medians(result) if m.latency and not excuse(result.peers[name])]
    found.sort(key=lambda pair: (pair[0] not in YARDSTICKS, -pair[1].p99))
    excused = _excused(result)
    figure = _figure(results, 9, 1.6 + 0.34 * (len(found) + len(excused)))
    panel = figure.subplots()
    panel.set_title(textwrap.fill(result.title, 110), pad=22)
    marks = (("p50", "o", _BLUE), ("p99", "s", _ORANGE), ("p99.9", "D", _GREEN), ("max", "|", _RED))
    for number, (_, latency) in enumerate(found):
        panel.plot([latency.p50, latency.max], [number] * 2, color=_GRID, linewidth=5, solid_capstyle="round", zorder=1)
    rows = list(range(len(found)))
    for label, marker, colour in marks:
        times = [_percentile(latency, label) for _, latency in found]
        size = 90 if marker == "|" else 34
        panel.scatter(times, rows, marker=marker, s=size, color=colour, label=label, zorder=3)
    for row, name in enumerate(excused):
        panel.text(
            0.01, -1 - row, excused[name], va="center", fontsize=8, color=_RED, transform=panel.get_yaxis_transform()
        )
    panel.set_yticks([*rows, *(-1 - row for row in range(len(excused)))], [*(name for name, _ in found), *excused])
    panel.set_ylim(-0.6 - len(excused), len(found) - 0.4)
    panel.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, frameon=False, handletextpad=0.1, fontsize=8)
    what = "round trip" if result.title.startswith("W7") else "one-way latency"
    _time_axis(panel, f"{what} (log)")
    _highlight(panel)
    return figure


def _excused(result: WorkloadResult) -> dict[str, str]:
    """Peers without a figure to be shown, and the word for it."""
    return {name: word for name, peer in result.peers.items() if (word := excuse(peer))}


def _percentile(latency: Latency, label: str) -> int:
    return {"p50": latency.p50, "p99": latency.p99, "p99.9": latency.p999, "max": latency.max}[label]


def _growth(results: Results) -> Any:
    """A panel an axis."""
    rows = -(-len(results.growth) // 3)
    figure = _figure(results, 12, 0.7 + 3.1 * rows)
    panels = list(figure.subplots(rows, 3, squeeze=False).flat)
    for panel, growth in zip(panels, results.growth, strict=False):
        _curves(panel, growth)
    for panel in panels[len(results.growth) :]:
        panel.set_axis_off()
    if results.idle and len(panels) > len(results.growth):
        panels[-1].set_title("Idle")
        panels[-1].text(
            0, 0.9, textwrap.fill(idle_line(results.idle[0]).removeprefix("Idle: "), 44), va="top", wrap=True
        )
    return figure


def _curves(panel: Any, growth: Growth) -> None:
    looks = zip((_BLUE, _ORANGE, _GREEN), ("o", "s", "D"), strict=True)
    for (curve, points), (colour, marker) in zip(growth.curves.items(), looks, strict=False):
        at, ns = [point.at for point in points], [point.ns for point in points]
        panel.plot(at, ns, color=colour, marker=marker, markersize=5, linewidth=1.6, label=curve)
    highest = max(point.ns for points in growth.curves.values() for point in points)
    lowest = min(point.ns for points in growth.curves.values() for point in points)
    places = sorted({point.at for points in growth.curves.values() for point in points})
    panel.set_title(f"by {growth.axis}")
    panel.set_xscale("log", base=2)
    panel.set_xticks(places, [quantity(at, growth.unit) for at in places], fontsize=8)
    panel.xaxis.set_minor_locator(NullLocator())
    if highest > 20 * lowest:
        panel.set_yscale("log")
        panel.set_ylim(lowest / 2, highest * 3)
    else:
        panel.set_ylim(0, highest * 1.35)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda ns, _: duration(ns)))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.set_xlabel(f"{growth.axis}{', size' if growth.unit else ', number'}")
    panel.set_ylabel("time an event")
    panel.grid(axis="y")
    panel.tick_params(length=0)
    panel.legend(frameon=False, loc="upper left", fontsize=8)


# -- what all figures share


def _figure(results: Results, width: float, height: float) -> Any:
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    machine = results.machine
    figure.supxlabel(
        f"{machine.cpu}, {machine.usable_cpus} CPUs, Linux {machine.kernel} · {results.python} · "
        f"shmbus {results.versions.get('shmbus', '')} · {results.taken[:10]}",
        fontsize=7.5,
        color=_FAINT,
        x=0.99,
        ha="right",
    )
    return figure


def _time_axis(panel: Any, label: str) -> None:
    panel.set_xscale("log")
    least, most = panel.get_xlim()
    panel.xaxis.set_major_locator(LogLocator(base=10, subs=(1,) if most > 60 * least else (1, 2, 5)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda ns, _: duration(ns)))
    panel.set_xlabel(label)
    panel.grid(axis="x")
    panel.tick_params(length=0, which="both")
    panel.spines["left"].set_visible(False)


def _highlight(panel: Any) -> None:
    for label in panel.get_yticklabels():
        if label.get_text().startswith(OWN):
            label.set_fontweight("bold")
        if label.get_text() in YARDSTICKS:
            label.set_fontstyle("italic")


def _colour(name: str) -> str:
    if name == OWN:
        return _BLUE
    return _SKY if name.startswith(OWN) else _GREY
