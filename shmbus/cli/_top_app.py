"""The full screen of `top`: a table of consumers to sort and filter, a page for each, their history. Extra `top`.

May touch: nothing; it is given looks, and shows them.
"""

from __future__ import annotations

from collections import defaultdict, deque
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, Final

import msgspec
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.css.query import NoMatches
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Input, Label, Sparkline, Static

from shmbus.cli._bus_view import BusView, headline
from shmbus.cli._render import duration, plural, printable, short, shorten, whole
from shmbus.errors import BusNotFoundError, ShmbusError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shmbus.stats import BusStats, ConsumerStats

    Key = tuple[str, str, str]

_POINTS: Final = 120  # looks that a history goes back
_NAME: Final = 40
_STYLES: Final = {"bad": "bold red", "warn": "yellow", "gone": "dim", "": ""}
_ILL: Final = ("stalled", "stopped", "dead")

_SORTS: Final[dict[str, Callable[[ConsumerStats], tuple[float, str]]]] = {
    "trouble": lambda c: (_rank(c), c.name),
    "name": lambda c: (0, f"{c.topic}/{c.name}"),
    "rate": lambda c: (-c.rate, c.name),
    "depth": lambda c: (-c.depth, c.name),
    "lag": lambda c: (-c.lag_ns, c.name),
    "lost": lambda c: (-c.dropped, c.name),
}


def _rank(consumer: ConsumerStats) -> float:
    return ("bad", "warn", "", "gone").index(_tone(consumer)) - min(consumer.depth, 10**12) / 10**13


def _tone(consumer: ConsumerStats) -> str:
    if consumer.blocks or (consumer.state in _ILL and consumer.pid):
        return "bad"
    if consumer.state in ("closed", "dead"):
        return "gone"
    return "warn" if consumer.state in ("slow", "idle") and consumer.depth else ""


def _state(consumer: ConsumerStats) -> str:
    return f"{consumer.state}, quarantined" if consumer.quarantined_ns else consumer.state


def _key(consumer: ConsumerStats) -> Key:
    return consumer.topic, consumer.kind, consumer.name


class History:
    """The last looks at each consumer: rates and depths, the newest at the end."""

    def __init__(self) -> None:
        self.rates: defaultdict[Key, deque[float]] = defaultdict(lambda: deque(maxlen=_POINTS))
        self.depths: defaultdict[Key, deque[float]] = defaultdict(lambda: deque(maxlen=_POINTS))

    def note(self, stats: BusStats) -> None:
        """Keep a look; who is no longer told of is forgotten."""
        present = {_key(consumer) for consumer in stats.consumers}
        for kept in (self.rates, self.depths):
            for gone in kept.keys() - present:
                del kept[gone]
        for consumer in stats.consumers:
            self.rates[_key(consumer)].append(consumer.rate)
            self.depths[_key(consumer)].append(consumer.depth)


def rows(stats: BusStats, sort: str, wanted: str) -> list[ConsumerStats]:
    """The consumers that have a text in their name, topic, kind or state, in an order."""
    text = wanted.lower()
    found = [c for c in stats.consumers if text in f"{c.topic}/{c.name} {c.kind} {c.mode} {_state(c)}".lower()]
    return sorted(found, key=_SORTS[sort])


def _cells(consumer: ConsumerStats) -> list[Text]:
    style = _STYLES[_tone(consumer)]
    state = f"blocks {', '.join(consumer.blocks)}" if consumer.blocks else _state(consumer)
    kind = plural(len(consumer.workers), "worker") if consumer.kind == "group" else consumer.mode
    numbers = (short(consumer.delivered), short(consumer.rate), short(consumer.depth), duration(consumer.lag_ns))
    latency = duration(consumer.latency.p99_ns) if consumer.latency else "-"
    return [
        Text(shorten(printable(f"{consumer.topic}/{consumer.name}"), _NAME), style),
        Text(kind, style),
        *(Text(number, style, justify="right") for number in (*numbers, latency, short(consumer.dropped))),
        Text(printable(state), style),
    ]


class _Table(DataTable[Text]):
    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "select_cursor", "Its page")]  # which it would not show


class TopApp(App[str]):
    """`shmbus top BUS`. Ends with what is to be said of the end: "" when somebody has seen enough."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("s", "sort", "Sort"),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("p", "pause", "Pause"),
    ]
    CSS = (
        "#head { height: 1; } DataTable { height: 1fr; }"
        " #wanted { display: none; height: 3; } #wanted.shown { display: block; }"
    )
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, look: Callable[[], BusStats], interval: float) -> None:
        super().__init__()
        self._look = look
        self._interval = interval
        self.stats = look()
        self.history: Final = History()
        self.order = "trouble"
        self.wanted = ""
        self.paused = False

    def compose(self) -> ComposeResult:
        """Headline, filter, table, keys."""
        yield Static(id="head")
        yield Input(placeholder="name, topic, state", id="wanted")
        yield _Table(cursor_type="row", zebra_stripes=True)
        yield Footer()

    def on_mount(self) -> None:
        """Begin to look."""
        table = self.query_one(DataTable)
        for name in ("CONSUMER", "KIND", "DELIVERED", "RATE/S", "DEPTH", "LAG", "P99", "LOST", "STATE"):
            table.add_column(name, key=name)
        table.focus()
        self.turn()
        self.set_interval(self._interval, self.turn)

    def turn(self) -> None:
        """Look once more, and show it."""
        if self.paused:
            return
        try:
            self.stats = self._look()
        except BusNotFoundError:
            self.exit(f"bus {self.stats.bus!r} was removed")
            return
        except ShmbusError as error:
            self.exit(str(error))
            return
        self.history.note(self.stats)
        with suppress(NoMatches):  # at the end the widgets go before the timer does
            self.show()
            if isinstance(self.screen, ConsumerScreen):
                self.screen.show(self.stats, self.history)

    def show(self) -> None:
        """Fill the table; the cursor stays on its consumer."""
        head = headline(self.stats)
        head.append(f"  by {self.order}" + (f", like {self.wanted!r}" if self.wanted else ""), style="dim")
        root = self.screen_stack[0]
        root.query_one("#head", Static).update(head)
        table = root.query_one(DataTable)
        found = rows(self.stats, self.order, self.wanted)
        keys = ["\0".join(_key(consumer)) for consumer in found]
        if keys == [str(key.value) for key in table.rows]:
            for key, consumer in zip(keys, found, strict=True):
                for column, cell in zip(list(table.columns), _cells(consumer), strict=True):
                    table.update_cell(key, column, cell, update_width=True)
            return
        at = self._under_cursor(table)
        table.clear()
        for key, consumer in zip(keys, found, strict=True):
            table.add_row(*_cells(consumer), key=key)
        if at in keys:
            table.move_cursor(row=keys.index(at))

    @staticmethod
    def _under_cursor(table: DataTable[Text]) -> str:
        if not table.is_valid_row_index(table.cursor_row):
            return ""
        return str(table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """A consumer's page has no table to sort and to filter."""
        return action not in ("sort", "filter") or not isinstance(self.screen, ConsumerScreen)

    def action_sort(self) -> None:
        """Sort by the next of the orders."""
        orders = list(_SORTS)
        self.order = orders[(orders.index(self.order) + 1) % len(orders)]
        self.show()

    def action_pause(self) -> None:
        """Look no more, or again."""
        self.paused = not self.paused

    def action_filter(self) -> None:
        """Ask what the rows shall be like."""
        field = self.query_one("#wanted", Input)
        field.add_class("shown")
        field.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while it is typed."""
        self.wanted = event.value
        self.show()

    def on_input_submitted(self) -> None:
        """Back to the table."""
        field = self.query_one("#wanted", Input)
        field.set_class(bool(self.wanted), "shown")
        self.query_one(DataTable).focus()

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Open the page of a consumer."""
        topic, kind, name = str(event.row_key.value).split("\0")
        screen = ConsumerScreen((topic, kind, name))
        self.push_screen(screen)
        self.call_after_refresh(screen.show, self.stats, self.history)


class ConsumerScreen(Screen[None]):
    """A consumer's page: its books, what is behind them, its rate and depth over time."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q", "app.pop_screen", "Back", key_display="Esc")]
    CSS = "Sparkline { height: 4; margin: 0 0 1 0; }"

    def __init__(self, key: Key) -> None:
        super().__init__()
        self.key: Final = key

    def compose(self) -> ComposeResult:
        """Books, two histories, keys."""
        with VerticalScroll():
            yield Static(id="books")
            yield Label(id="rates")
            yield Sparkline(id="rate")
            yield Label(id="depths")
            yield Sparkline(id="depth")
            yield Static(id="rest")
        yield Footer()

    def show(self, stats: BusStats, history: History) -> None:
        """Show a look."""
        found = next((c for c in stats.consumers if _key(c) == self.key), None)
        if found is None:
            self.query_one("#books", Static).update("It is no longer on this bus.")
            return
        self.query_one("#books", Static).update(books(found))
        rates, depths = history.rates[self.key], history.depths[self.key]
        self.query_one("#rates", Label).update(_told("events a second", rates))
        self.query_one("#rate", Sparkline).data = _scaled(rates)
        self.query_one("#depths", Label).update(_told("events that wait", depths))
        self.query_one("#depth", Sparkline).data = _scaled(depths)
        publishers = tuple(p for p in stats.publishers if p.topic == found.topic)
        only = msgspec.structs.replace(stats, publishers=publishers, consumers=(found,))
        self.query_one("#rest", Static).update(BusView(only))


def _told(what: str, values: Sequence[float]) -> str:
    return f"{what}: {short(values[-1])}, at most {short(max(values))}" if values else what


def _scaled(values: Sequence[float]) -> list[float]:
    """From nothing on: a line draws the lowest that it is given as nothing, and what never changed would be none."""
    return [0.0, *values]


def books(consumer: ConsumerStats) -> Text:
    """Name and state, and the equation of its books."""
    said = Text(printable(f"{consumer.topic}/{consumer.name}"), style="bold")
    said.append(f"  {consumer.kind}, {consumer.mode}, {_state(consumer)}\n", style=_STYLES[_tone(consumer)])
    terms = ("delivered", "depth", "overrun", "refused", "abandoned", "undecodable", "rejected")
    sums = [f"{whole(getattr(consumer, term))} {term}" for term in terms if getattr(consumer, term)]
    said.append(f"{whole(consumer.offered)} offered = {' + '.join(sums) or '0'}\n")
    return said
