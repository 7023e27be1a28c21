"""AMQP 0.9.1 (RabbitMQ): a durable fanout exchange a topic, a durable queue a bridge that receives, publisher confirms.

An exchange keeps nothing: until a queue is bound to it, what is sent comes back, and is sent again. A bridge's queue is
there from its first `--in` on, whether it runs or not. RabbitMQ drops no duplicates: the id tells.
Options of the URL: `prefix`, `queue` (`quorum` or `classic`, the default); the path is the virtual host.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from shmbus.bridge.driver import Away, Incoming, away
from shmbus.errors import BridgeError

try:
    import aio_pika
    import aiormq.exceptions
except ImportError as error:
    raise ImportError("amqp:// needs aio-pika: pip install 'shmbus[amqp]'") from error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shmbus.bridge.driver import Outgoing, Setup

_TIMEOUT: Final = 10.0
_PREFETCH: Final = 1024
_REFUSED: Final = (
    aiormq.exceptions.AuthenticationError,
    aiormq.exceptions.ProbableAuthenticationError,
    aiormq.exceptions.IncompatibleProtocolError,
    aiormq.exceptions.ChannelAccessRefused,
    aiormq.exceptions.ChannelPreconditionFailed,
    aiormq.exceptions.ConnectionNotAllowed,
)


class AmqpDriver:
    """A connection and a channel of an AMQP broker."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._connection: Any = None
        self._channel: Any = None
        self._exchange: Any = None
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
        """Make the exchange."""
        name = f"{self._setup.prefix}.{topic.replace('/', '.')}"
        fanout = aio_pika.ExchangeType.FANOUT
        self._exchange = await self._asked(self._channel.declare_exchange(name, fanout, durable=True))

    async def open_in(self, topic: str) -> None:
        """Make our queue, bind it, and take what is in it."""
        await self.open_out(topic)
        kind = self._setup.options.get("queue", "classic")
        name = f"{self._exchange.name}.{self._setup.name}"
        queue = self._channel.declare_queue(name, durable=True, arguments={"x-queue-type": kind})
        found = await self._asked(queue)
        await self._asked(found.bind(self._exchange))
        await self._asked(self._channel.set_qos(prefetch_count=_PREFETCH))
        await self._asked(found.consume(self._arrived.put))

    async def send(self, events: Sequence[Outgoing]) -> None:
        """Publish all, and wait for each to be confirmed, which is when it is on disk."""
        await self._asked(asyncio.gather(*[self._published(event) for event in events]))

    async def _published(self, event: Outgoing) -> None:
        message = aio_pika.Message(
            event.payload,
            headers=dict(event.headers),
            message_id=event.id,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        await self._exchange.publish(message, event.key, mandatory=True)

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
        return [
            Incoming({str(key): _text(value) for key, value in message.headers.items()}, message.body, message)
            for message in found
        ]

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
        except _REFUSED as error:
            raise BridgeError(f"{self._setup.address} refuses us: {error}") from error
        except aiormq.exceptions.PublishError as error:
            raise Away(f"no queue is bound to {self._exchange.name}: {error}") from error
        except (aiormq.exceptions.AMQPError, OSError, TimeoutError, RuntimeError) as error:
            raise away(error) from error


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
