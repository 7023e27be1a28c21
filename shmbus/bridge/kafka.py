"""Kafka: a topic a topic, an idempotent producer that waits for all replicas, a consumer group a bridge.

Kafka drops what a producer retries, and nothing of what another life of the bridge sends again: there the id tells.
Options of the URL: `prefix` (default: none), and every option of librdkafka by its name, as `compression.type=zstd`.
More brokers than one are named with commas: kafka://a:9092,b:9092. `kafkas://` is TLS; a user means SASL PLAIN, unless
`sasl.mechanisms` says otherwise.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from shmbus.bridge.driver import Away, Incoming
from shmbus.errors import BridgeError

try:
    import confluent_kafka
except ImportError as error:
    raise ImportError("kafka:// needs confluent-kafka: pip install 'shmbus[kafka]'") from error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shmbus.bridge.driver import Outgoing, Setup

_TIMEOUT: Final = 10.0
_SILENCE: Final = 60.0  # seconds after which we ask anew to join our group: a coordinator that froze may have forgotten
_REFUSED: Final = {
    confluent_kafka.KafkaError._AUTHENTICATION,
    confluent_kafka.KafkaError.SASL_AUTHENTICATION_FAILED,
    confluent_kafka.KafkaError.TOPIC_AUTHORIZATION_FAILED,
    confluent_kafka.KafkaError.GROUP_AUTHORIZATION_FAILED,
    confluent_kafka.KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    confluent_kafka.KafkaError.MSG_SIZE_TOO_LARGE,
}
_OWN: Final = ("prefix",)


class KafkaDriver:
    """A producer and a consumer of a Kafka cluster; librdkafka's calls wait in threads."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._producer: Any = None
        self._consumer: Any = None
        self._topic = ""
        self._told: list[Any] = []

    async def connect(self) -> None:
        """Find out whether the cluster answers."""
        await asyncio.to_thread(self._connect)

    def _connect(self) -> None:
        safe = {"enable.idempotence": True, "acks": "all", "delivery.timeout.ms": int(_TIMEOUT * 1000)}
        few = {"linger.ms": 5, "delivery.report.only.error": True}  # of the others `flush` tells
        self._producer = self._made(confluent_kafka.Producer, {**safe, **few})
        try:
            self._producer.list_topics(timeout=5)
        except confluent_kafka.KafkaException as error:
            self._raise(error.args[0])

    async def open_out(self, topic: str) -> None:
        """Name the topic; a cluster that makes none by itself must have it."""
        prefix = self._setup.options.get("prefix")
        self._topic = (f"{prefix}." if prefix else "") + topic.replace("/", ".")

    async def open_in(self, topic: str) -> None:
        """Join our group."""
        await self.open_out(topic)
        own = {"group.id": self._setup.name, "enable.auto.commit": False, "auto.offset.reset": "earliest"}
        limits = {"session.timeout.ms": 6000, "max.poll.interval.ms": int(_SILENCE * 1000)}
        self._consumer = self._made(confluent_kafka.Consumer, {**own, **limits})
        self._consumer.subscribe([self._topic])

    async def send(self, events: Sequence[Outgoing]) -> None:
        """Produce all, and wait for each to be confirmed."""
        await asyncio.to_thread(self._send, events)

    def _send(self, events: Sequence[Outgoing]) -> None:
        errors: list[Any] = []

        def failed(error: Any, message: Any) -> None:
            if error is not None:
                errors.append(error)

        try:
            produce, topic = self._producer.produce, self._topic
            for event in events:
                produce(topic, event.payload, event.key, headers=event.headers, on_delivery=failed)
        except (confluent_kafka.KafkaException, BufferError) as error:
            self._raise(error.args[0])
        left = self._producer.flush(_TIMEOUT + 5)
        if errors or left:
            self._raise(errors[0] if errors else "no confirmation")

    async def fetch(self, most: int, timeout: float) -> list[Incoming]:
        """What the group has for us."""
        found = await asyncio.to_thread(self._consumer.consume, most, timeout)
        events = []
        for message in found:
            if message.error() is None:
                headers = {key: (value or b"").decode(errors="replace") for key, value in message.headers() or ()}
                events.append(Incoming(headers, message.value() or b"", message))
            elif message.error().code() != confluent_kafka.KafkaError.UNKNOWN_TOPIC_OR_PART:  # not there yet
                self._raise(message.error())
        return events

    async def acked(self, events: Sequence[Incoming]) -> None:
        """Commit the offset behind the last of each partition."""
        last = {event.token.partition(): event.token for event in events}
        offsets = [confluent_kafka.TopicPartition(m.topic(), m.partition(), m.offset() + 1) for m in last.values()]
        try:
            await asyncio.to_thread(self._consumer.commit, offsets=offsets, asynchronous=False)
        except confluent_kafka.KafkaException as error:
            self._raise(error.args[0])

    async def close(self) -> None:
        """Leave the group, and drop what was not sent."""
        producer, consumer, self._producer, self._consumer = self._producer, self._consumer, None, None
        if consumer is not None:
            await asyncio.to_thread(consumer.close)
        if producer is not None:
            producer.purge()
            await asyncio.to_thread(producer.flush, 1)

    def _made(self, kind: Any, own: dict[str, Any]) -> Any:
        setup, secrets = self._setup, self._setup.secrets
        config: dict[str, Any] = {
            "bootstrap.servers": setup.url.netloc,
            "client.id": f"shmbus-{setup.name}",
            "error_cb": self._told.append,
            "log_level": 0,
            **own,
        }
        tls = setup.url.scheme == "kafkas" or "cafile" in secrets
        for option, key in (("ssl.ca.location", "cafile"), ("ssl.certificate.location", "certfile")):
            if tls and key in secrets:
                config[option] = secrets[key]
        if tls and "keyfile" in secrets:
            config["ssl.key.location"] = secrets["keyfile"]
        if "user" in secrets:
            config |= {"sasl.username": secrets["user"], "sasl.password": secrets.get("password", "")}
            config["sasl.mechanisms"] = "PLAIN"
        if tls or "user" in secrets:
            config["security.protocol"] = ("sasl_" if "user" in secrets else "") + ("ssl" if tls else "plaintext")
        config |= {key: value for key, value in setup.options.items() if key not in _OWN}
        try:
            return kind(config)
        except (confluent_kafka.KafkaException, ValueError, TypeError) as error:
            raise BridgeError(f"librdkafka refuses the options for {setup.address}: {error}") from error

    def _raise(self, error: Any) -> None:
        for one in (error, *self._told):
            if isinstance(one, confluent_kafka.KafkaError) and one.code() in _REFUSED:
                raise BridgeError(f"{self._setup.address} refuses us: {one.str()}")
        raise Away(error.str() if isinstance(error, confluent_kafka.KafkaError) else str(error))
