"""Plugins: what other distributions bring, found by name in entry points, loaded at first use.

Must stay true: nothing is imported before its name is asked for; what is ours wins over a plugin of the same name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from shmbus.errors import ConfigError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

KINDS: Final = ("shmbus.codecs", "shmbus.journals", "shmbus.bridges")
"""Groups of entry points."""
OURS: Final = {
    "shmbus.codecs": {
        "arrow": "shmbus.codecs.arrow:ArrowCodec",
        "avro": "shmbus.codecs.avro:AvroCodec",
        "protobuf": "shmbus.codecs.protobuf:ProtobufCodec",
    },
    "shmbus.journals": {"sqlite": "shmbus.journal.sqlite:SqliteStore"},
    "shmbus.bridges": {
        "nats": "shmbus.bridge.nats:NatsDriver",
        "tls": "shmbus.bridge.nats:NatsDriver",
        "redis": "shmbus.bridge.redis:RedisDriver",
        "rediss": "shmbus.bridge.redis:RedisDriver",
        "kafka": "shmbus.bridge.kafka:KafkaDriver",
        "kafkas": "shmbus.bridge.kafka:KafkaDriver",
        "amqp": "shmbus.bridge.amqp:AmqpDriver",
        "amqps": "shmbus.bridge.amqp:AmqpDriver",
    },
}


def found(kind: str) -> dict[str, str]:
    """The plugins of a kind, name to "module:attribute", ours included; imports none of them."""
    return {**{entry.name: entry.value for entry in _entries(kind)}, **OURS[kind]}


def load(kind: str, name: str) -> Any:
    """What a plugin is. Raises ConfigError for a name that nobody has, or whose module does not load."""
    value = OURS[kind].get(name)
    if value is None:
        entry = next((entry for entry in _entries(kind) if entry.name == name), None)
        if entry is None:
            raise ConfigError(f"no plugin of {kind} is named {name!r}; there is {', '.join(sorted(found(kind)))}")
        value = entry.value
    module, _, attribute = value.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"plugin {name!r} of {kind} does not load ({value}): {error}") from error


def _entries(kind: str) -> list[EntryPoint]:
    from importlib.metadata import entry_points  # 10 ms, which only a look for plugins is worth

    return list(entry_points(group=kind))
