"""NATS JetStream: a stream a topic, deduplicated by `Nats-Msg-Id`; a durable pull consumer a bridge.

Options of the URL: `prefix`, `window` (seconds in which the stream drops what it has already, 600), `ack_wait` (seconds
after which what was fetched and not acked comes again, 30).

What is sent is confirmed to one inbox, under the number that it was sent with. nats-py's own `publish_async` makes a
future, a semaphore's turn and a random name of each event, and hands over nothing before all of a batch is written.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import asyncio
import itertools
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec

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
_FLIGHT: Final = 512  # events that are on their way at most
_RUN: Final = 128  # events after which what is written goes out, and the server begins
_NAMES: Final = str.maketrans({"/": "_", ".": "_"})


class _Confirmation(msgspec.Struct):
    """What JetStream answers, as far as we ask."""

    seq: int = 0
    error: dict[str, Any] | None = None


_confirmation = msgspec.json.Decoder(_Confirmation).decode


class NatsDriver:
    """A connection to JetStream."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._client: Any = None
        self._js: Any = None
        self._subscription: Any = None
        self._subject = self._stream = self._inbox = ""
        self._numbers = itertools.count()
        self._flying: set[str] = set()
        """Where the confirmations of what is on its way will come."""
        self._landed = asyncio.Event()
        """Nothing flies any more, or what does will not land: `_failed` says why."""
        self._failed: Away | None = None

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
                    closed_cb=self._cut,
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
        """Publish all in their order, and wait for each to be confirmed."""
        try:
            async with asyncio.timeout(_TIMEOUT + len(events) / 1000):
                if not self._inbox:
                    inbox = self._client.new_inbox()
                    await self._client.subscribe(f"{inbox}.*", cb=self._confirmed)
                    self._inbox = inbox
                for at in range(0, len(events), _FLIGHT):
                    await self._send(events[at : at + _FLIGHT])
        except nats.errors.MaxPayloadError as error:
            raise BridgeError(f"{self._setup.address} takes no event so large: {error}") from error
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise away(error) from error

    async def _send(self, events: Sequence[Outgoing]) -> None:
        publish, subject, always = self._client.publish, self._subject, {"Nats-Expected-Stream": self._stream}
        replies = [f"{self._inbox}.{number}" for _, number in zip(events, self._numbers, strict=False)]
        self._landed.clear()
        self._flying.update(replies)
        for at, (event, reply) in enumerate(zip(events, replies, strict=True), 1):
            await publish(subject, event.payload, reply, {"Nats-Msg-Id": event.id, **always, **event.headers})
            if at % _RUN == 0:
                await asyncio.sleep(0)
        await self._landed.wait()
        if self._failed is not None:
            raise self._failed

    async def _confirmed(self, message: Any) -> None:
        """Something that flies has its answer."""
        try:
            answer = _confirmation(message.data)
        except msgspec.MsgspecError:  # nobody has taken it: there is a status instead
            answer = _Confirmation(error={"description": f"{message.data!r}, {message.headers}"})
        if answer.error is not None or not answer.seq:
            self._fail(f"JetStream does not take an event: {answer.error}")
            return
        self._flying.discard(message.subject)
        if not self._flying:
            self._landed.set()

    async def _cut(self) -> None:
        self._fail("the connection was lost")

    def _fail(self, why: str) -> None:
        """What flies is not confirmed any more: this connection has ended."""
        self._failed = self._failed or Away(why)
        self._landed.set()

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
