"""Brokers for the tests of this folder: each is started once a session by whoever asks first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import Broker, Kafka, Nats, Rabbit, Redis

Factory = pytest.TempPathFactory
Factory = pytest.TempPathFactory
KINDS: dict[str, type[Broker]] = {"nats": Nats, "redis": Redis, "kafka": Kafka, "amqp": Rabbit}


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Broker]]:
    """The brokers that run, by scheme."""
    found: dict[str, Broker] = {}
    yield found
    for broker in found.values():
        broker.kill()


@pytest.fixture(params=sorted(KINDS))
def broker(
    request: pytest.FixtureRequest, started: dict[str, Broker], tmp_path_factory: pytest.TempPathFactory
) -> Broker:
    """A broker of each kind, that runs; the test is skipped, with the reason, where it cannot be had."""
    return running(KINDS[request.param], started, tmp_path_factory.mktemp(request.param))


def running(kind: type[Broker], started: dict[str, Broker], folder: Path) -> Broker:
    """The broker of a kind, started if need be."""
    if why := kind.unavailable():
        pytest.skip(why)
    if kind.scheme not in started:
        broker = kind(folder)
        broker.start()
        started[kind.scheme] = broker
    return started[kind.scheme]
