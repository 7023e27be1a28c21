"""Whether a driver of bridges keeps what `shmbus.bridge.driver` says; AssertionError says what it does not."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING, Any

from shmbus.bridge.driver import Away, Driver, Incoming, Outgoing, Setup

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 60.0
"""Seconds that an event may take."""


def bridge_conformance(driver: Callable[[Setup], Driver], url: str, *, nowhere: str, credentials: Any = None) -> None:
    """Put a driver through what a bridge relies on, at a broker that runs; nobody listens at the URL `nowhere`."""
    asyncio.run(_all(driver, url, nowhere, credentials))


def events(first: int, last: int) -> list[Outgoing]:
    """Events of one key, with payloads and headers of every kind that a wire has."""
    return [
        Outgoing(
            f"id-{n}",
            "key",
            {"shmbus-id": f"id-{n}", "plain": "a b", "empty": ""},
            n.to_bytes(2, "big") + b"\0\xff\r\n",
        )
        for n in range(first, last + 1)
    ]


async def _all(driver: Callable[[Setup], Driver], url: str, nowhere: str, credentials: Any) -> None:
    topic = f"conformance-{secrets.token_hex(4)}"
    await _awaits(driver(Setup(nowhere, "nowhere", credentials)))
    first, second = driver(Setup(url, "here", credentials)), driver(Setup(url, "there", credentials))
    try:
        await second.connect()
        await second.open_in(topic)
        await first.connect()
        await first.open_out(topic)
        assert await second.fetch(10, 0.1) == [], "nothing is there yet"
        await first.send(events(1, 300))
        got = await _fetched(second, 300)
        assert [event.payload for event in got] == [event.payload for event in events(1, 300)], "payloads, in order"
        assert [event.headers["shmbus-id"] for event in got] == [event.id for event in events(1, 300)], "ids"
        assert got[0].headers["plain"] == "a b", "headers"
        await second.acked(got[:200])
        await second.close()  # with a hundred that are not acked
        await first.send(events(301, 310))
        second = driver(Setup(url, "there", credentials))
        await second.connect()
        await second.open_in(topic)
        wanted = {event.id for event in events(201, 310)}
        again = await _until(second, wanted)
        assert "id-1" not in {event.headers["shmbus-id"] for event in again}, "what was acked does not come again"
        await second.acked(again)
        third = driver(Setup(url, "elsewhere", credentials))
        await third.connect()
        await third.open_in(topic)
        await first.send(events(311, 311))
        await _until(third, {"id-311"})
        await third.close()
    finally:
        await first.close()
        await second.close()
        await second.close()


async def _awaits(driver: Driver) -> None:
    try:
        await driver.connect()
    except Away:
        return
    finally:
        await driver.close()
    raise AssertionError("nobody is there, and connect() is not Away")


async def _fetched(driver: Driver, count: int) -> list[Incoming]:
    got: list[Incoming] = []
    deadline = time.monotonic() + PATIENCE
    while len(got) < count:
        assert time.monotonic() < deadline, f"{len(got)} of {count} events have come"
        got += await driver.fetch(count - len(got), 0.5)
    return got


async def _until(driver: Driver, wanted: set[str]) -> list[Incoming]:
    got: list[Incoming] = []
    deadline = time.monotonic() + PATIENCE
    while missing := wanted - {event.headers["shmbus-id"] for event in got}:
        assert time.monotonic() < deadline, f"{sorted(missing)} do not come, after {len(got)} events"
        got += await driver.fetch(100, 0.5)
    return got
