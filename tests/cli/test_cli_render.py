"""What the command line shows: a bus as tables that never wrap, numbers in few characters, no escape sequences."""

from __future__ import annotations

import io
import re

import msgspec
import pytest
from rich.console import Console

from shmbus.cli import _render
from shmbus.cli._bus_view import BusView
from shmbus.stats import (
    BusStats,
    ConsumerStats,
    Latency,
    ParticipantStats,
    PublisherStats,
    SupervisorStats,
    TopicStats,
    WorkerStats,
)


def crowded() -> BusStats:
    """A bus with long names, huge numbers and every kind of trouble."""
    long = "a-name-of-sixty-three-bytes-which-is-as-long-as-a-name-may-be.."
    return BusStats(
        bus="x" * 48,
        time_ns=2_000_000_000_000,
        created_ns=1_000_000_000_000,
        bytes=123_456_789_012,
        supervisor=SupervisorStats(pid=0, state="none"),
        topics=(TopicStats(name="orders", capacity=1 << 30, codec="msgpack", type="Order"),),
        participants=(ParticipantStats(id=1, pid=4194304, command="python x.py " + long, state="stopped"),),
        publishers=(
            PublisherStats(
                id=1,
                name=long,
                topic="t" * 48,
                state="stalled",
                pid=4194303,
                published=987_654_321_987,
                unrouted=1,
                refused=12_345_678,
                capacity=1 << 30,
                used=1 << 30,
                waiting=True,
                blocked_by=(long, "audit"),
                rate=12_345_678.9,
            ),
        ),
        consumers=(
            ConsumerStats(
                name="audit",
                topic="orders",
                kind="subscriber",
                mode="reliable",
                state="slow",
                pid=12,
                lag_ns=1_500_000_000,
                offered=2_000_000,
                delivered=1_000_000,
                depth=1_000_000,
                blocks=("till",),
                latency=Latency(count=999_990, p50_ns=155_871, p99_ns=1_500_000, max_ns=99_000_000_000),
            ),
            ConsumerStats(
                name=long,
                topic="t" * 48,
                kind="group",
                mode="reliable",
                state="dead",
                pid=0,
                lag_ns=10**18,
                offered=10**12,
                delivered=1,
                depth=10**12 - 16,
                overrun=1,
                refused=2,
                abandoned=3,
                undecodable=4,
                rejected=5,
                rate=1e9,
                latency=Latency(count=2**48, p50_ns=127, p99_ns=10**18, max_ns=2**63 - 1),
                workers=tuple(WorkerStats(name=f"w-{n}", pid=4_194_000 + n, held=n, state="dead") for n in range(3)),
            ),
            ConsumerStats(
                name="evil\x1b[2Jname\n",
                topic="orders",
                kind="subscriber",
                mode="lossy",
                state="ok",
                pid=3,
                lag_ns=0,
            ),
        ),
    )


def rendered(stats: BusStats, width: int, *, terminal: bool = False, **environment: str) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, _environ={"TERM": "xterm", **environment})
    console.print(BusView(stats))
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 99, 100, 149, 150, 200])
def test_rows_never_wrap(width: int) -> None:
    """At any width from 80 on every row is one line, no line is longer, and no column is lost."""
    lines = rendered(crowded(), width)
    assert max(map(len, lines)) <= width
    headers = [index for index, text in enumerate(lines) if "STATE" in text]
    assert len(headers) == 2
    publishers, consumers = headers
    assert lines[publishers + 2].startswith("  ")  # one row, then its notes
    assert all(text and not text.startswith(" ") for text in lines[consumers + 1 : consumers + 4])
    assert lines[consumers + 4].startswith("  ")


def test_names_lose_their_middle() -> None:
    """A name that does not fit keeps its beginning and its end."""
    [row] = [text for text in rendered(crowded(), 100) if " 4194303 " in text]
    assert re.match(r"t+…t+ +a-nam[^ ]*…[^ ]*be\.\. ", row), row


def test_wide_screens_show_every_cause() -> None:
    """From 150 columns on there is a column for each cause of a drop, below that one for their sum."""
    causes = ("OVERRUN", "REFUSED", "ABANDONED", "UNDECODABLE", "REJECTED")
    wide, narrow = ("\n".join(rendered(crowded(), width)) for width in (150, 80))
    assert all(cause in wide for cause in causes)
    assert "DROPPED" not in wide
    assert "DROPPED" in narrow


def test_latencies() -> None:
    """Consumers that have latencies stand in a table of their own, one line each at any width."""
    for width in (80, 150):
        lines = rendered(crowded(), width)
        [head] = [index for index, text in enumerate(lines) if text.startswith("LATENCY")]
        assert lines[head].split() == ["LATENCY", "P50", "P99", "MAX"]
        assert lines[head + 1].split()[1:] == ["156", "µs", "1.5", "ms", "99", "s"]
        assert lines[head + 2].split()[1:] == ["127", "ns", "11574", "d", "106752", "d"]
        assert len(lines) == head + 3


def test_no_latencies() -> None:
    """Where nothing was sampled there is no such table."""
    stats = crowded()
    bare = msgspec.structs.replace(stats, consumers=stats.consumers[2:])
    assert "LATENCY" not in "\n".join(rendered(bare, 80))


def test_notes() -> None:
    """Sentences below the tables say who waits for whom, what was lost for which cause, and who is not well."""
    text = "\n".join(rendered(crowded(), 150))
    assert "waits for a-name-of-…-may-be.., audit: 1,073,741,824 bytes unread" in text
    assert "lost 15 events: 1 overrun, 2 refused, 3 abandoned, 4 undecodable, 5 rejected" in text
    assert "refused 12,345,678 events" in text
    assert "worker 4194002 is dead, holds 2 events" in text
    assert "process 4194304" in text
    assert "no supervisor" in text


def test_nothing_from_a_segment_steers_the_terminal() -> None:
    """Escape sequences and line breaks in names are shown as question marks."""
    text = "\n".join(rendered(crowded(), 200))
    assert "\x1b" not in text
    assert "evil?[2Jname?" in text


def test_colour_on_terminals_only() -> None:
    """There is colour on a terminal, none on one with NO_COLOR, and no escape sequence in a file."""
    colour = re.compile(r"\x1b\[[\d;]*3[1-7]m")
    assert any(colour.search(text) for text in rendered(crowded(), 80, terminal=True))
    assert not any(colour.search(text) for text in rendered(crowded(), 80, terminal=True, NO_COLOR="1"))
    assert not any("\x1b" in text for text in rendered(crowded(), 80))


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (_render.short(0), "0"),
        (_render.short(999_999), "999,999"),
        (_render.short(999_999.9), "1.00M"),
        (_render.short(12_345_678), "12.3M"),
        (_render.short(999_600_000), "1.00G"),
        (_render.short(987_654_321_987), "988G"),
        (_render.size(1023), "1023 B"),
        (_render.size(1024), "1.0 KiB"),
        (_render.size(1 << 20), "1.0 MiB"),
        (_render.size(1023 << 20), "1023 MiB"),
        (_render.size(3 << 50), "3072 TiB"),
        (_render.duration(0), "-"),
        (_render.duration(400), "400 ns"),
        (_render.duration(999_499), "999 µs"),
        (_render.duration(1_500_000), "1.5 ms"),
        (_render.duration(999_900_000), "1.0 s"),
        (_render.duration(99_000_000_000), "99 s"),
        (_render.duration(120_000_000_000), "2 min"),
        (_render.duration(10**18), "11574 d"),
        (_render.shorten("abcdefgh", 8), "abcdefgh"),
        (_render.shorten("abcdefgh", 7), "abc…fgh"),
        (_render.shorten("日本語の名前", 8), "日本…前"),
        (_render.shorten("abc", 1), "…"),
        (_render.plural(1, "process"), "1 process"),
        (_render.plural(1200, "process"), "1,200 processes"),
    ],
)
def test_figures(shown: str, expected: str) -> None:
    """Numbers, sizes, durations and names are shown in few characters."""
    assert shown == expected
