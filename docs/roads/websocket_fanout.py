"""uvicorn or gunicorn workers: what one client sends reaches the clients of all workers, without a broker.

    uvicorn websocket_fanout:app --workers 4
    gunicorn websocket_fanout:app -w 4 -k uvicorn.workers.UvicornWorker

The bus is opened when a worker has started (the lifespan), never while the module is imported: gunicorn forks with
`--preload`, and what is opened before a fork is the parent's.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import shmbus

CHAT = shmbus.Topic("chat", str)

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Fanout:
    """One worker: its clients, and its way to those of the others."""

    def __init__(self) -> None:
        self.clients: set[Send] = set()
        self.publisher: shmbus.Publisher[str] | None = None

    async def lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        with shmbus.Bus("roads-chat") as bus, bus.publisher(CHAT) as self.publisher, bus.subscriber(CHAT) as chat:
            passing_on = asyncio.create_task(self.pass_on(chat))
            await send({"type": "lifespan.startup.complete"})
            await receive()
            chat.cancel()
            await passing_on
        await send({"type": "lifespan.shutdown.complete"})

    async def pass_on(self, chat: shmbus.Subscriber[str]) -> None:
        async for line in chat:
            for client in list(self.clients):
                with suppress(Exception):  # it is just leaving
                    await client({"type": "websocket.send", "text": line})

    async def websocket(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        self.clients.add(send)
        try:
            while (message := await receive())["type"] == "websocket.receive":
                if self.publisher is not None:
                    await self.publisher.apublish(message["text"])
        finally:
            self.clients.discard(send)


fanout = Fanout()


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await fanout.lifespan(receive, send)
    elif scope["type"] == "websocket":
        await fanout.websocket(receive, send)
