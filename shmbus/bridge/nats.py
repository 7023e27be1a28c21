"""NATS JetStream: a stream a topic, deduplicated by `Nats-Msg-Id`; a durable pull consumer a bridge.

Options of the URL: `prefix`, `window` (seconds in which the stream drops what it has already, 600), `ack_wait` (seconds
after which what was fetched and not acked comes again, 30).
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from shmbus.bridge.driver import Away, Incoming, away
from shmbus.errors import BridgeError, ConfigError

try:
    import nats
    import nats.errors
    import nats.js.errors
    from nats.aio.client import Client
    from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, StreamConfig
except ImportError as error:
    raise ImportError("nats:// needs nats-py: pip install 'shmbus[nats]'") from error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shmbus.bridge.driver import Outgoing, Setup

_TIMEOUT: Final = 5.0  # seconds for an answer; past it the broker is away
_ACK_WAIT: Final = 30.0  # seconds after which what was fetched and not acked comes again
_NAMES: Final = str.maketrans({"/": "_", ".": "_"})


class NatsDriver:
    """A connection to JetStream."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._client: Any = None
        self._js: Any = None
        self._subscription: Any = None
        self._subject = self._stream = ""

    async def connect(self) -> None:
        """Connect, once."""
        secrets = self._setup.secrets
        host, port = self._setup.host(4222)
        tls = self._setup.tls("tls")
        options: dict[str, Any] = {key: secrets[key] for key in ("user", "password", "token") if key in secrets}
        if "creds" in secrets:
            options["user_credentials"] = secrets["creds"]
        told: list[Exception] = []

        async def remember(error: Exception) -> None:
            told.append(error)

        try:
            self._client = Client()  # ours to close where it does not connect, too
            await asyncio.wait_for(
                self._client.connect(
                    f"{'tls' if tls else 'nats'}://{host}:{port}",
                    name=f"shmbus bridge {self._setup.name}",
                    allow_reconnect=False,
                    connect_timeout=2,
                    error_cb=remember,
                    tls=tls,
                    **options,
                ),
                _TIMEOUT,
            )
        except (nats.errors.Error, OSError, TimeoutError) as error:
            for one in (error, *told):
                if isinstance(one, nats.errors.AuthorizationError) or "uthoriz" in str(one) or "uthentic" in str(one):
                    raise BridgeError(f"{self._setup.address} refuses our credentials: {one}") from error
                if isinstance(one, ssl.SSLCertVerificationError):
                    raise BridgeError(f"{self._setup.address} is not who it says: {one}") from error
            raise away(error) from error
        self._js = self._client.jetstream(timeout=_TIMEOUT)

    async def open_out(self, topic: str) -> None:
        """Make the stream."""
        self._name(topic)
        window = float(self._setup.options.get("window", "600"))
        config = StreamConfig(name=self._stream, subjects=[self._subject], duplicate_window=window)
        try:
            await self._asked(self._js.stream_info(self._stream))
        except nats.js.errors.NotFoundError:
            try:
                await self._asked(self._js.add_stream(config))
            except nats.js.errors.BadRequestError as error:
                raise BridgeError(f"{self._setup.address} makes no stream {self._stream!r}: {error}") from error

    async def open_in(self, topic: str) -> None:
        """Make the stream, and our consumer of it."""
        await self.open_out(topic)
        durable = f"{self._setup.name}-{self._stream}".translate(_NAMES)
        wait = float(self._setup.options.get("ack_wait", _ACK_WAIT))
        config = ConsumerConfig(
            ack_policy=AckPolicy.EXPLICIT, ack_wait=wait, deliver_policy=DeliverPolicy.ALL, max_ack_pending=8192
        )
        self._subscription = await self._asked(
            self._js.pull_subscribe(self._subject, durable, stream=self._stream, config=config)
        )

    async def send(self, events: Sequence[Outgoing]) -> None:
        """Publish all at once, and wait for each to be confirmed."""
        try:
            async with asyncio.timeout(_TIMEOUT + len(events) / 1000):
                pending = []
                for event in events:
                    headers = {"Nats-Msg-Id": event.id, **event.headers}
                    sent = self._js.publish_async(self._subject, event.payload, stream=self._stream, headers=headers)
                    pending.append(await sent)
                await asyncio.gather(*pending)
        except nats.errors.MaxPayloadError as error:
            raise BridgeError(f"{self._setup.address} takes no event so large: {error}") from error
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise away(error) from error

    async def fetch(self, most: int, timeout: float) -> list[Incoming]:
        """What the consumer has for us."""
        try:
            found = await self._subscription.fetch(most, timeout=timeout)
        except (nats.errors.TimeoutError, TimeoutError):
            if not self._client.is_connected:
                raise Away("the connection was lost") from None
            return []
        except (nats.errors.Error, OSError) as error:
            raise away(error) from error
        return [Incoming(dict(message.headers or {}), message.data, message) for message in found]

    async def acked(self, events: Sequence[Incoming]) -> None:
        """Ack each; the last one's flush carries all."""
        try:
            for event in events:
                await event.token.ack()
            await self._client.flush(_TIMEOUT)
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise away(error) from error

    async def close(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        if client is not None:
            with suppress(Exception):  # it may be gone; after a failed handshake it waits for ever
                await asyncio.wait_for(client.close(), 2)
            with suppress(Exception):
                client._transport.close()

    def _name(self, topic: str) -> None:
        prefix = self._setup.prefix
        if not prefix.replace("_", "").replace("-", "").isalnum():
            raise ConfigError(f"prefix is a word, for a stream is named by it: {prefix=}")
        self._subject = f"{prefix}.{topic.replace('/', '.')}"
        self._stream = f"{prefix}-{topic.translate(_NAMES)}"

    async def _asked(self, question: Any) -> Any:
        try:
            return await question
        except (nats.js.errors.NotFoundError, nats.js.errors.BadRequestError):
            raise
        except nats.errors.NoRespondersError as error:
            raise Away("JetStream does not answer: is it enabled (nats-server -js)?") from error
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise away(error) from error
