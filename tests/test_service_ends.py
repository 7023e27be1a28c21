"""Request and reply: a server that ends while a call is answered."""

from __future__ import annotations

import asyncio
import threading

import pytest
from events import PATIENT, opened
from support import eventually

import shmbus

SQUARE = shmbus.Service("square", int, int)


@pytest.mark.parametrize("in_loop", [False, True])
def test_the_server_closes_once_the_reply_is_there(
    bus_name: str, in_loop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has the reply may close the server: that waits until the call is acked, and nobody gets it again."""
    from shmbus import server as module

    answered: list[bool] = []
    with opened(bus_name) as bus:
        server = bus.server(SQUARE)

        def reach(point: str) -> None:
            """Between reply and ack: goes on once the server is being closed."""
            if point == "server.replied":
                eventually(lambda: server.closed, "it is being closed")

        monkeypatch.setattr(module, "reach", reach)

        async def aserve() -> None:
            async for call in server:
                answered.append(await call.areply(call.event**2))

        def serve() -> None:
            if in_loop:
                asyncio.run(aserve())
                return
            for call in server:
                answered.append(call.reply(call.event**2))

        thread = threading.Thread(target=serve)
        thread.start()
        with bus.client(SQUARE) as client:
            assert client.call(3, timeout=PATIENT) == 9
            server.close()
            thread.join()
        assert answered == [True]
        [group] = [c for c in bus.stats().consumers if c.kind == "group"]
        assert (group.delivered, group.depth) == (1, 0)


def test_a_server_that_was_closed_replies_to_nobody(bus_name: str) -> None:
    """A call that was open when its server closed is answered no more, in a loop as elsewhere; another one has it."""
    with opened(bus_name) as bus, bus.client(SQUARE) as client:
        future = client.submit(3)
        with bus.server(SQUARE) as server:
            call = next(iter(server))
        with pytest.raises(shmbus.ClosedError):
            call.reply(0)
        with pytest.raises(shmbus.ClosedError):
            asyncio.run(call.areply(0))
        assert not [p for p in bus.stats().publishers if p.topic != SQUARE.requests.name]
        with bus.server(SQUARE) as server:
            assert next(iter(server)).reply(9)
            assert future.result(PATIENT) == 9
