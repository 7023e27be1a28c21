"""`shmbus top` on the full screen: sort, filter, a consumer's page, and how it ends."""

from __future__ import annotations

import asyncio
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from support import until

import shmbus

pytest.importorskip("textual", reason="the extra top is not installed")

from textual.pilot import Pilot
from textual.widgets import DataTable, Input, Sparkline, Static

from shmbus.cli import _top_app

NUMBERS = shmbus.Topic("numbers", int, capacity=4096)


def names(app: _top_app.TopApp) -> list[str]:
    table: DataTable[Any] = app.screen_stack[0].query_one(DataTable)
    return [str(key.value).split("\0")[2] for key in table.rows]


def text(app: _top_app.TopApp, selector: str) -> str:
    found = app.screen.query(selector).results(Static)
    return "".join(str(one.render()) for one in found)  # "" before it is there


def drive(bus: shmbus.Bus, script: Callable[[_top_app.TopApp, Pilot[str]], Any]) -> None:
    async def main() -> None:
        app = _top_app.TopApp(bus.stats, 0.05)
        async with app.run_test(size=(120, 40)) as pilot:
            await pilot.pause()
            await script(app, pilot)

    asyncio.run(main())


def test_sort_and_filter(bus_name: str) -> None:
    """Who is in trouble stands first; `s` goes through the orders, `/` leaves rows that have a text."""
    with shmbus.Bus(bus_name) as bus, bus.publisher(NUMBERS, name="web", on_full="drop") as publisher:
        quick = bus.subscriber(NUMBERS, name="a-quick")
        slow = bus.subscriber(NUMBERS, name="z-slow")
        publisher.publish_many(range(500))
        while quick.try_receive() is not None:
            pass

        async def script(app: _top_app.TopApp, pilot: Pilot[str]) -> None:
            await until(lambda: names(app) == ["z-slow", "a-quick"])
            await pilot.press("s")
            await until(lambda: (app.order, names(app)) == ("name", ["a-quick", "z-slow"]))
            await pilot.press("slash")
            await until(lambda: isinstance(app.focused, Input))
            await pilot.press(*"z-s")
            await until(lambda: names(app) == ["z-slow"])
            await pilot.press("enter")
            await until(lambda: isinstance(app.focused, DataTable))
            await pilot.press("q")

        drive(bus, script)
        slow.close()


def test_a_consumer_has_a_page(bus_name: str) -> None:
    """Enter opens a consumer's page with its books and histories, Esc leaves it."""
    with shmbus.Bus(bus_name) as bus, bus.publisher(NUMBERS, name="web") as publisher:
        audit = bus.subscriber(NUMBERS, name="audit")
        publisher.publish_many(range(20))
        audit.receive_many(15)

        async def script(app: _top_app.TopApp, pilot: Pilot[str]) -> None:
            await until(lambda: names(app) == ["audit"])
            await until(lambda: "Its&#160;page" in app.export_screenshot())
            await pilot.press("enter")
            await until(lambda: isinstance(app.screen, _top_app.ConsumerScreen))
            await until(lambda: "20 offered = 15 delivered + 5 depth" in text(app, "#books"))
            await until(lambda: list(app.screen.query_one("#depth", Sparkline).data or ())[-1:] == [5])
            data = app.screen.query_one("#depth", Sparkline).data or ()
            assert min(data) == 0  # or what never changed would be drawn as nothing
            assert "events that wait: 5, at most 5" in text(app, "#depths")
            await until(lambda: "1&#160;process&#160;" in app.export_screenshot())
            assert not app.check_action("sort", ())  # there is no table
            await pilot.press("escape")
            await until(lambda: not isinstance(app.screen, _top_app.ConsumerScreen))

        drive(bus, script)


def test_it_ends_with_the_bus(bus_name: str) -> None:
    """When the bus is removed the screen goes, and what is said then says so."""
    with shmbus.Bus(bus_name) as bus:
        stats = bus.stats()
    looks = iter([stats, stats])

    def look() -> shmbus.BusStats:
        for found in looks:
            return found
        raise shmbus.BusNotFoundError(bus_name)

    async def main() -> str | None:
        app = _top_app.TopApp(look, 0.01)
        async with app.run_test():
            await until(lambda: app.return_value is not None)
        return app.return_value

    assert asyncio.run(main()) == f"bus {bus_name!r} was removed"


@pytest.mark.parametrize("option", [[], ["--plain"]])
def test_on_a_terminal(bus_name: str, option: list[str]) -> None:
    """On a terminal `top` shows the bus in place, full screen or plain, and ends by q or Ctrl-C."""
    with shmbus.Bus(bus_name) as bus, bus.subscriber(NUMBERS, name="audit"):
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "shmbus", "top", bus_name, "-i", "0.1", *option]
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
        child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, close_fds=True)
        os.close(theirs)
        seen = b""
        deadline = time.monotonic() + 60
        try:
            while b"audit" not in seen:
                assert time.monotonic() < deadline, seen[-500:]
                if select.select([ours], [], [], 0.1)[0]:
                    seen += os.read(ours, 65536)
            if option:
                child.send_signal(signal.SIGINT)
            else:
                os.write(ours, b"q")
            while child.poll() is None:
                assert time.monotonic() < deadline
                if select.select([ours], [], [], 0.05)[0]:
                    try:
                        os.read(ours, 65536)
                    except OSError:
                        break
            assert child.wait(30) in ((130,) if option else (0,))
        finally:
            child.kill()
            child.wait()
            os.close(ours)


def test_the_timer_outlives_the_widgets(bus_name: str) -> None:
    """At the end the widgets go first: a look that comes then shows nothing, and is no error."""
    with shmbus.Bus(bus_name) as bus:

        async def script(app: _top_app.TopApp, pilot: Pilot[str]) -> None:
            await app.query_one("#head").remove()
            app.turn()

        drive(bus, script)
