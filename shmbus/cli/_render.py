"""How figures and names look on a screen: numbers, sizes, durations, shortened names, tables that never wrap.

Pure: no bus is touched here. What must stay true: nothing that a segment holds reaches the terminal as an
escape sequence; a row is one line at any width.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rich.console import ConsoleOptions, RenderResult

T = TypeVar("T")

SEPARATOR: Final = " · "
_ELLIPSIS: Final = "…"
_HUGE: Final = 10**10
_NAME_MIN: Final = 8  # cells that a name keeps in the tightest table


def console(*, stderr: bool = False) -> Console:
    """A console that colours on a terminal only and takes text as it is."""
    return _Console(file=sys.stderr if stderr else sys.stdout, highlight=False, markup=False, emoji=False)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Let `main` say what that means: rich would exit with code 1."""
        raise BrokenPipeError


def printable(text: str) -> str:
    """The text with everything that a terminal would act upon replaced by "?"."""
    return "".join(char if char.isprintable() else "?" for char in text)


def shorten(text: str, width: int) -> str:
    """The text in at most `width` cells, an ellipsis in the middle where some of it had to go."""
    if cell_len(text) <= width:
        return text
    if width <= 1:
        return _ELLIPSIS[:width]
    tail = (width - 1) // 2
    head = width - 1 - tail
    return f"{_leading(text, head)}{_ELLIPSIS}{_leading(text[::-1], tail)[::-1]}"


def _leading(text: str, width: int) -> str:
    """As much of the text as fits; a wide character that would stick out is left out."""
    return set_cell_size(text, width).rstrip()


def whole(number: int) -> str:
    """1234567 as "1,234,567"; from ten thousand million on as `short` has it."""
    return f"{number:,}" if abs(number) < _HUGE else short(number)


def short(number: float) -> str:
    """At most seven characters: "999,999", then "1.23M", "4.56G", ..."""
    if abs(number) < 999_999.5:
        return f"{number:,.0f}"
    units = list("MGTPE")
    number /= 1e6
    while abs(number) >= 999.5 and len(units) > 1:
        number /= 1e3
        del units[0]
    digits = 2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0
    return f"{number:.{digits}f}{units[0]}"


def size(number: int) -> str:
    """Bytes as "512 B", "1.5 KiB", "20 MiB"."""
    if number < 1024:
        return f"{number} B"
    value = float(number)
    units = ["KiB", "MiB", "GiB", "TiB"]
    while (value := value / 1024) >= 1023.5 and len(units) > 1:
        del units[0]
    return f"{value:.1f} {units[0]}" if value < 9.95 else f"{value:.0f} {units[0]}"


def duration(ns: int) -> str:
    """At most six characters: "-" for 0, then "12 ns", "34 µs", "5.6 ms", "78 s", "9 min", "10 h", "11 d"."""
    if ns <= 0:
        return "-"
    for unit, length, limit in (("ns", 1, 999.5), ("µs", 1e3, 999.5), ("ms", 1e6, 999.5), ("s", 1e9, 99.5)):
        value = ns / length
        if value < limit:
            return f"{value:.0f} {unit}" if value >= 9.95 or unit in ("ns", "µs") else f"{value:.1f} {unit}"
    minutes = ns / 60e9
    if minutes < 99.5:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.0f} h" if minutes < 48 * 60 else f"{minutes / 1440:.0f} d"


def plural(count: int, noun: str) -> str:
    """`1 event`, `2 events`, `3 processes`."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


def line(text: str, style: str = "") -> Text:
    """One line, cut off with an ellipsis where it does not fit."""
    return Text(printable(text), style=style, no_wrap=True, overflow="ellipsis")


class Clipped:
    """A cell that gives way when its table is tight: names lose their middle, other text its end."""

    def __init__(self, text: str, style: str = "", *, middle: bool = False) -> None:
        self.text: Final = printable(text)
        self.style: Final = style
        self.middle: Final = middle

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render into the width that the table grants."""
        text = shorten(self.text, options.max_width) if self.middle else self.text
        yield Text(text, style=self.style, no_wrap=True, overflow="ellipsis")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Tell the table how narrow the cell may become."""
        length = cell_len(self.text)
        return Measurement(min(length, _NAME_MIN), length)


@dataclass(frozen=True)
class Column(Generic[T]):
    """A column of a table of `T`; it is there on screens of `low` to below `high` cells."""

    header: str
    cell: Callable[[T], Text | Clipped | str]
    right: bool = False
    gives: bool = False
    """It becomes narrower where the table is tight; its cells are `Clipped`."""
    low: int = 0
    high: int = sys.maxsize


class Rows(Generic[T]):
    """A table that picks its columns by the width it gets; a row is one line."""

    def __init__(self, columns: Sequence[Column[T]], rows: Iterable[T]) -> None:
        self.columns: Final = columns
        self.rows: Final = tuple(rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render into the width at hand."""
        width = options.max_width
        gap = 2 if width >= 100 else 1
        table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="dim")
        shown = [column for column in self.columns if column.low <= width < column.high]
        for column in shown:
            table.add_column(
                column.header,
                justify="right" if column.right else "left",
                no_wrap=not column.gives,
                overflow="ellipsis",
            )
        for row in self.rows:
            table.add_row(*(column.cell(row) for column in shown))
        yield table
