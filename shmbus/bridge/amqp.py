"""AMQP 0.9.1 (RabbitMQ): a durable fanout exchange a topic, a durable queue a bridge that receives, publisher confirms.

An exchange keeps nothing: until a queue is bound to it, what is sent comes back, and is sent again. A bridge's queue is
there from its first `--in` on, whether it runs or not. RabbitMQ drops no duplicates: the id tells.

A bridge's own queue takes what it sends itself, too, so nothing comes back although nobody else is there: two buses
that bridge one topic both ways would lose what the first one sends before the second one's queue is bound. So a bridge
that has, or will have, a queue of its own asks first. A fanout exchange leaves nobody out; a headers exchange beside it
does: each queue is bound to it by every digit of its bridge's number turned over, any of which is enough. What has all
the digits of the sender thus reaches every queue but the sender's, or comes back.
Options of the URL: `prefix`, `queue` (`quorum` or `classic`, the default); the path is the virtual host.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import asyncio
import hashlib
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from shmbus.bridge.driver import Away, Incoming, away
from shmbus.errors import BridgeError

try:
    import aio_pika
    import aiormq.exceptions
    from aiormq import spec
except ImportError as error:
    raise ImportError("amqp:// needs aio-pika: pip install 'shmbus[amqp]'") from error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shmbus.bridge.driver import Outgoing, Setup

_TIMEOUT: Final = 10.0
_PREFETCH: Final = 1024
_FLIGHT: Final = 512  # events that are on their way at most
_UNREAD: Final = 1 << 18  # bytes that are written before it is awaited that the broker reads them
_ASKS: Final = "shmbus-asks"
"""The header of a message that only asks whether somebody receives."""
_REFUSED: Final = (
    aiormq.exceptions.AuthenticationError,
    aiormq.exceptions.ProbableAuthenticationError,
    aiormq.exceptions.IncompatibleProtocolError,
    aiormq.exceptions.ChannelAccessRefused,
    aiormq.exceptions.ChannelPreconditionFailed,
    aiormq.exceptions.ConnectionNotAllowed,
)


class _Missing(Away):
    """The broker has no such thing."""


class AmqpDriver:
    """A connection and a channel of an AMQP broker."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._connection: Any = None
        self._channel: Any = None
        self._exchange: Any = None
        self._others: Any = None
        self._received = False
        """A queue is known to be bound, of another bridge or of a stranger."""
        self._arrived: asyncio.Queue[Any] = asyncio.Queue()

    async def connect(self) -> None:
        """Connect, once."""
        secrets, tls = self._setup.secrets, self._setup.tls("amqps")
        host, port = self._setup.host(5671 if tls else 5672)
        self._connection = await self._asked(
            aio_pika.connect(
                host=host,
                port=port,
                login=secrets.get("user", "guest"),
                password=secrets.get("password", "guest"),
                virtualhost=unquote(self._setup.url.path[1:]) or "/",
                ssl=tls is not None,
                ssl_context=tls,
                client_properties={"connection_name": f"shmbus bridge {self._setup.name}"},
            )
        )
        self._channel = await self._asked(self._connection.channel(publisher_confirms=True, on_return_raises=True))

    async def open_out(self, topic: str) -> None:
        """Make the exchange, and see to it that what we send does not reach our own queue alone."""
        await self._declare(topic)
        if topic in self._setup.comes_in or await self._has_queue():
            message = aio_pika.Message(b"", headers={_ASKS: True, **_digits(self._setup.name)}, expiration=0)
            try:
                await self._asked(self._others.publish(message, "", mandatory=True))
            except _Missing as error:
                raise Away(f"nobody but us receives {self._exchange.name}") from error

    async def open_in(self, topic: str) -> None:
        """Make our queue, bind it, and take what is in it."""
        await self._declare(topic)
        kind = self._setup.options.get("queue", "classic")
        queue = self._channel.declare_queue(self._queue, durable=True, arguments={"x-queue-type": kind})
        found = await self._asked(queue)
        await self._asked(found.bind(self._exchange))
        turned = {key: not digit for key, digit in _digits(self._setup.name).items()}
        await self._asked(found.bind(self._others, arguments={"x-match": "any", **turned}))
        await self._asked(self._channel.set_qos(prefetch_count=_PREFETCH))
        await self._asked(found.consume(self._arrived.put))

    async def _declare(self, topic: str) -> None:
        name, kinds = f"{self._setup.prefix}.{topic.replace('/', '.')}", aio_pika.ExchangeType
        self._exchange = await self._asked(self._channel.declare_exchange(name, kinds.FANOUT, durable=True))
        self._others = await self._asked(self._channel.declare_exchange(f"{name}:others", kinds.HEADERS, durable=True))

    @property
    def _queue(self) -> str:
        return f"{self._exchange.name}.{self._setup.name}"

    async def _has_queue(self) -> bool:
        """A queue of ours is there, of an earlier `--in`."""
        channel = await self._asked(self._connection.channel())  # the answer no closes it
        try:
            await self._asked(channel.get_queue(self._queue))
        except _Missing:
            return False
        await self._asked(channel.close())
        return True

    async def send(self, events: Sequence[Outgoing]) -> None:
        """Publish all, and wait for each to be confirmed, which is when it is on disk.

        The first one of a connection goes alone: else a queue that is bound meanwhile has a batch's end and not its
        beginning, until all of it is sent again.
        """
        first = 0 if self._received else 1
        for part in filter(None, (events[:first], events[first:])):
            for at in range(0, len(part), _FLIGHT):
                await self._asked(self._send(part[at : at + _FLIGHT]))
            self._received = True

    async def _send(self, events: Sequence[Outgoing]) -> None:
        """Below aio-pika's `publish`, which waits for the socket event by event, and makes a message of each first."""
        if self._channel.is_closed:
            raise Away("the connection was lost")
        publish: Any = (await self._channel.get_underlay_channel()).basic_publish
        properties: Any = spec.Basic.Properties
        name, persistent = self._exchange.name, aio_pika.DeliveryMode.PERSISTENT.value
        confirmations, written = [], 0
        for event in events:
            written += len(event.payload)
            confirmations.append(
                publish(
                    event.payload,
                    exchange=name,
                    routing_key=event.key,
                    properties=properties(headers=event.headers, message_id=event.id, delivery_mode=persistent),
                    mandatory=True,
                    wait=written > _UNREAD,
                )
            )
            if written > _UNREAD:
                written = 0
        await asyncio.gather(*confirmations)

    async def fetch(self, most: int, timeout: float) -> list[Incoming]:
        """What has arrived."""
        found = []
        try:
            found.append(await asyncio.wait_for(self._arrived.get(), timeout))
        except TimeoutError:
            if self._connection.is_closed or self._channel.is_closed:
                raise Away("the connection was lost") from None
        while len(found) < most and not self._arrived.empty():
            found.append(self._arrived.get_nowait())
        events = []
        for message in found:
            if _ASKS in message.headers:
                await self._asked(message.ack())
            else:
                headers = {str(key): _text(value) for key, value in message.headers.items()}
                events.append(Incoming(headers, message.body, message))
        return events

    async def acked(self, events: Sequence[Incoming]) -> None:
        """Ack up to the last: they came in this order."""
        await self._asked(events[-1].token.ack(multiple=True))

    async def close(self) -> None:
        """Disconnect."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):  # it may be gone
                await asyncio.wait_for(connection.close(), 2)

    async def _asked(self, question: Any) -> Any:
        try:
            async with asyncio.timeout(_TIMEOUT):
                return await question
        except ssl.SSLCertVerificationError as error:
            raise BridgeError(f"{self._setup.address} is not who it says: {error}") from error
        except aiormq.exceptions.ChannelNotFoundEntity as error:
            raise _Missing(str(error)) from error
        except _REFUSED as error:
            raise BridgeError(f"{self._setup.address} refuses us: {error}") from error
        except aiormq.exceptions.PublishError as error:
            raise _Missing(f"no queue is bound to {self._exchange.name}: {error}") from error
        except (aiormq.exceptions.AMQPError, OSError, TimeoutError, RuntimeError) as error:
            raise away(error) from error


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _digits(name: str) -> dict[str, bool]:
    """The digits of a bridge's number, which another one has by a chance of 1 in 2**64."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return {f"shmbus-{place}": bool(number >> place & 1) for place in range(64)}
