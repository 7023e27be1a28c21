"""What the demo shows: a progress bar and a live panel on a terminal, plain lines elsewhere, and the result.

Renders only. The live part is gone when its block ends; what was said and the result stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from shmbus.cli._bus_view import BusView
from shmbus.cli._render import console, line, plural, printable, shorten, whole

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from shmbus.cli._demo_work import Found, Function
    from shmbus.stats import BusStats, ConsumerStats

_PLAIN_STEPS: Final = 4  # lines of progress where nothing can be drawn over
_TERMS: Final = (
    (" ", "offered"),
    ("=", "delivered"),
    ("+", "depth"),
    ("+", "overrun"),
    ("+", "refused"),
    ("+", "abandoned"),
    ("+", "undecodable"),
    ("+", "rejected"),
)


class Screen(Protocol):
    """Where a stage of the demo is shown while it lasts."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def progress(self, done: int) -> None:
        """So many files are done."""

    def stats(self, stats: BusStats) -> None:
        """The bus looks like this now."""

    def say(self, text: str) -> None:
        """A line that stays."""


class LiveScreen:
    """A bar and a panel that are drawn over in place."""

    def __init__(self, title: str, total: int) -> None:
        bar = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*bar)
        self._task = self._progress.add_task(title, total=total)
        self._live = Live(self._progress, console=console(), refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def progress(self, done: int) -> None:
        """So many files are done."""
        self._progress.update(self._task, completed=done)

    def stats(self, stats: BusStats) -> None:
        """The bus looks like this now."""
        self._live.update(Group(self._progress, Panel(BusView(stats), title="shmbus stat", style="")))

    def say(self, text: str) -> None:
        """A line that stays, above the bar."""
        self._live.console.print(Text(text))


class PlainScreen:
    """A line for every quarter, none when `quiet`."""

    def __init__(self, title: str, total: int, *, quiet: bool = False) -> None:
        self._title = title
        self._total = total
        self._step = 1
        self._quiet = quiet

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def progress(self, done: int) -> None:
        """So many files are done."""
        while self._step <= _PLAIN_STEPS and done * _PLAIN_STEPS >= self._step * self._total:
            self._step += 1
            self.say(f"{self._title}: {done:,} of {self._total:,}")

    def stats(self, stats: BusStats) -> None:
        """The bus looks like this now; not shown."""

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self._quiet:
            print(text, flush=True)


def show_result(found: Sequence[Found], longest: Sequence[tuple[Found, Function]]) -> None:
    """What the files hold, and the longest functions."""
    out = console()
    unparsed = sum(bool(item.error) for item in found)
    failed = f"  ({plural(unparsed, 'file')} more, which {'do' if unparsed > 1 else 'does'} not parse)"
    sums = Table(box=None, show_header=False, pad_edge=False)
    sums.add_column()
    sums.add_column(justify="right", style="bold")
    sums.add_column()
    sums.add_row("modules", whole(len(found) - unparsed), failed if unparsed else "")
    sums.add_row("lines", whole(sum(item.lines for item in found)))
    sums.add_row("classes", whole(sum(item.classes for item in found)))
    sums.add_row("functions", whole(sum(len(item.functions) for item in found)))
    out.print(sums)
    if longest:
        out.print("\nlongest functions", style="dim")
    for item, function in longest:
        where = shorten(f"{item.path}:{function.line}", out.width // 2)
        out.print(line(f"{function.lines:>6,} lines  {function.name}  {where}"))


def show_books(stats: BusStats) -> None:
    """Every consumer's terms as a ledger, and whether they balance."""
    ledger = Table(box=None, pad_edge=False, header_style="dim")
    ledger.add_column("books, in events", style="dim", no_wrap=True)
    for consumer in stats.consumers:
        ledger.add_column(f"{consumer.topic}/{consumer.name}", justify="right")
    for sign, term in _TERMS:
        ledger.add_row(f"{sign} {term}", *(whole(getattr(consumer, term)) for consumer in stats.consumers))
    ledger.add_row("", *(_verdict(consumer) for consumer in stats.consumers))
    console().print("", ledger)


def _verdict(consumer: ConsumerStats) -> Text:
    return Text("balances", "green") if balanced(consumer) else Text("DOES NOT BALANCE", "bold red")


def balanced(consumer: ConsumerStats) -> bool:
    """Whether every event offered to the consumer is accounted for."""
    return consumer.offered == consumer.delivered + consumer.depth + consumer.dropped


def show_differences(paths: Sequence[str]) -> None:
    """The files for which two runs found different things."""
    for path in paths[:10]:
        print(f"  differs: {printable(path)}")
