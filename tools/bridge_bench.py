"""Each bridge's throughput beside a bare publish loop of the same client library: 256-byte events, 512 in flight.

The bare loop sends payloads without headers and without ids; the bridge claims events, sends them with what they are
known by, and acks them once they are confirmed. One run each, in turns; medians.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import shmbus
from shmbus.bridge import Bridge

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from brokers import Broker, Kafka, Nats, Rabbit, Redis

SIZE, FLIGHT = 256, 512
KINDS: dict[str, type[Broker]] = {"nats": Nats, "redis": Redis, "kafka": Kafka, "amqp": Rabbit}


async def bare_nats(broker: Any, payloads: list[bytes]) -> float:
    import nats

    client = await nats.connect(f"nats://127.0.0.1:{broker.port}")
    js = client.jetstream()
    await js.add_stream(name="bare", subjects=["bare"])
    began = time.perf_counter()
    for at in range(0, len(payloads), FLIGHT):
        pending = [await js.publish_async("bare", payload) for payload in payloads[at : at + FLIGHT]]
        await asyncio.gather(*pending)
    took = time.perf_counter() - began
    await js.delete_stream("bare")
    await client.close()
    return took


async def bare_redis(broker: Any, payloads: list[bytes]) -> float:
    import redis.asyncio

    async with redis.asyncio.Redis(port=broker.port) as client:
        began = time.perf_counter()
        for at in range(0, len(payloads), FLIGHT):
            pipeline = client.pipeline(transaction=False)
            for payload in payloads[at : at + FLIGHT]:
                pipeline.xadd("bare", {"payload": payload})
            await pipeline.execute()
        return time.perf_counter() - began


async def bare_kafka(broker: Any, payloads: list[bytes]) -> float:
    import confluent_kafka

    options = {"bootstrap.servers": broker.url.removeprefix("kafka://"), "enable.idempotence": True, "linger.ms": 5}
    producer = confluent_kafka.Producer(options)
    producer.list_topics(timeout=10)
    began = time.perf_counter()
    for at in range(0, len(payloads), FLIGHT):
        for payload in payloads[at : at + FLIGHT]:
            producer.produce("bare", payload, on_delivery=lambda error, message: None)
        producer.flush(10)
    return time.perf_counter() - began


async def bare_amqp(broker: Any, payloads: list[bytes]) -> float:
    import aio_pika

    connection = await aio_pika.connect(broker.url)
    channel = await connection.channel(publisher_confirms=True)
    await channel.declare_queue("bare", durable=True)
    exchange = channel.default_exchange
    persistent = aio_pika.DeliveryMode.PERSISTENT
    began = time.perf_counter()
    for at in range(0, len(payloads), FLIGHT):
        lot = payloads[at : at + FLIGHT]
        await asyncio.gather(*[exchange.publish(aio_pika.Message(p, delivery_mode=persistent), "bare") for p in lot])
    took = time.perf_counter() - began
    await connection.close()
    return took


BARE: dict[str, Callable[[Any, list[bytes]], Awaitable[float]]] = {
    "nats": bare_nats,
    "redis": bare_redis,
    "kafka": bare_kafka,
    "amqp": bare_amqp,
}


def bridged(broker: Broker, payloads: list[bytes], turn: int) -> float:
    topic = shmbus.Topic(f"bench-{turn}", bytes, capacity=1 << 26)
    with shmbus.Bus(f"bbench-{os.getpid()}", supervise=False) as bus, bus.publisher(topic) as publisher:
        with Bridge(bus, broker.url, in_=[topic], name="sink") as sink:  # so that a queue is bound
            thread = threading.Thread(target=sink.run)
            thread.start()
            time.sleep(3)
            sink.stop()
            thread.join()
        bridge = Bridge(bus, broker.url, out=[topic], name="bench")
        bus.group(topic, bridge.group)
        publisher.publish_many(payloads)
        thread = threading.Thread(target=bridge.run)
        thread.start()
        while not bridge.sent:
            time.sleep(0.0005)
        began, first = time.perf_counter(), bridge.sent  # connected: from here on it is the stream that counts
        while bridge.sent < len(payloads):
            time.sleep(0.0005)
        took = (time.perf_counter() - began) * len(payloads) / (len(payloads) - first)
        while any(c.depth for c in bus.stats().consumers):
            time.sleep(0.001)
        bridge.stop()
        thread.join()
    return took


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--events", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    payloads = [os.urandom(SIZE) for _ in range(arguments.events)]
    for kind in arguments.kinds:
        with tempfile.TemporaryDirectory() as folder:
            broker = KINDS[kind](Path(folder))
            broker.start()
            bare: list[float] = []
            ours: list[float] = []
            try:
                for turn in range(arguments.rounds):
                    bare.append(asyncio.run(BARE[kind](broker, payloads)))  # type: ignore[arg-type]
                    ours.append(bridged(broker, payloads, turn))
            finally:
                broker.kill()
        a, b = (statistics.median(times) / arguments.events for times in (bare, ours))
        sys.stdout.write(f"{kind:6} bare {a * 1e6:7.2f} us  bridge {b * 1e6:7.2f} us an event  {a / b:5.2f} x\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
