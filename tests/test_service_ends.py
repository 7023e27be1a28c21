"""Request and reply: a server that ends while a call is answered."""

from __future__ import annotations

import threading

import pytest
from events import PATIENT, opened
from support import eventually

import shmbus

SQUARE = shmbus.Service("square", int, int)


def test_the_server_closes_once_the_reply_is_there(bus_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
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

        def serve() -> None:
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
