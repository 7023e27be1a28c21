"""Each bridge's throughput beside a bare publish loop of the same client library: 256-byte events, 512 in flight.

The bare loop sends payloads without headers and without ids, and waits for the same confirmation; the bridge claims
events, sends them with what they are known by, and acks them once they are confirmed. Both run in an event loop that is
alone in its thread: a thread that looks at the bridge's counter every half millisecond takes the interpreter from it,
and cost it a quarter. In turns, each begun by the other one of the two; medians, of time by the clock and of CPU time
of this process, in which Kafka's mock brokers are too.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import shmbus
from shmbus.bridge import Bridge

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from brokers import Broker, Kafka, Nats, Rabbit, Redis

SIZE, FLIGHT = 256, 512
_LOOK = 0.005  # seconds between two looks at a counter, of a second or more
KINDS: dict[str, type[Broker]] = {"nats": Nats, "redis": Redis, "kafka": Kafka, "amqp": Rabbit}


class Took(NamedTuple):
    """Microseconds an event."""

    clock: float
    cpu: float


class Watch:
    """Runs from when it is made."""

    def __init__(self) -> None:
        self._clock, self._cpu = time.perf_counter(), time.process_time()

    def read(self, events: int) -> Took:
        clock, cpu = time.perf_counter() - self._clock, time.process_time() - self._cpu
        return Took(clock / events * 1e6, cpu / events * 1e6)


async def bare_nats(broker: Any, payloads: list[bytes]) -> Took:
    import nats

    client = await nats.connect(f"nats://127.0.0.1:{broker.port}")
    js = client.jetstream()
    await js.add_stream(name="bare", subjects=["bare"])
    watch = Watch()
    for at in range(0, len(payloads), FLIGHT):
        pending = [await js.publish_async("bare", payload) for payload in payloads[at : at + FLIGHT]]
        await asyncio.gather(*pending)
    took = watch.read(len(payloads))
    await js.delete_stream("bare")
    await client.close()
    return took


async def bare_redis(broker: Any, payloads: list[bytes]) -> Took:
    import redis.asyncio

    async with redis.asyncio.Redis(port=broker.port) as client:
        watch = Watch()
        for at in range(0, len(payloads), FLIGHT):
            pipeline = client.pipeline(transaction=False)
            for payload in payloads[at : at + FLIGHT]:
                pipeline.xadd("bare", {"payload": payload})
            await pipeline.execute()
        took = watch.read(len(payloads))
        await client.delete("bare")
        return took


async def bare_kafka(broker: Any, payloads: list[bytes]) -> Took:
    import confluent_kafka

    options = {"bootstrap.servers": broker.url.removeprefix("kafka://"), "enable.idempotence": True, "linger.ms": 5}
    producer = confluent_kafka.Producer(options)
    producer.produce("bare", b"")
    producer.flush(10)  # an idempotent producer waits half a second for its number, once
    watch = Watch()
    for at in range(0, len(payloads), FLIGHT):
        for payload in payloads[at : at + FLIGHT]:
            producer.produce("bare", payload, "bench", on_delivery=lambda error, message: None)
        producer.flush(10)
    return watch.read(len(payloads))


async def bare_amqp(broker: Any, payloads: list[bytes]) -> Took:
    import aio_pika

    connection = await aio_pika.connect(broker.url)
    channel = await connection.channel(publisher_confirms=True)
    queue = await channel.declare_queue("bare", durable=True)
    exchange = channel.default_exchange
    persistent = aio_pika.DeliveryMode.PERSISTENT
    watch = Watch()
    for at in range(0, len(payloads), FLIGHT):
        lot = payloads[at : at + FLIGHT]
        await asyncio.gather(*[exchange.publish(aio_pika.Message(p, delivery_mode=persistent), "bare") for p in lot])
    took = watch.read(len(payloads))
    await queue.delete(if_unused=False, if_empty=False)
    await connection.close()
    return took


BARE: dict[str, Callable[[Any, list[bytes]], Awaitable[Took]]] = {
    "nats": bare_nats,
    "redis": bare_redis,
    "kafka": bare_kafka,
    "amqp": bare_amqp,
}


async def until(predicate: Callable[[], bool]) -> None:
    """Wait for what a counter will say."""
    while not predicate():  # noqa: ASYNC110
        await asyncio.sleep(_LOOK)


async def bridged(broker: Broker, payloads: list[bytes]) -> Took:
    topic = shmbus.Topic(f"bench-{time.time_ns()}", bytes, capacity=1 << 26)
    with shmbus.Bus(f"bbench-{os.getpid()}", supervise=False) as bus, bus.publisher(topic) as publisher:
        sink = Bridge(bus, broker.url, in_=[topic], name="sink")  # so that a queue is bound
        task = asyncio.create_task(sink.arun())
        await until(lambda: len(bus.stats().publishers) == 2 or task.done())
        sink.stop()
        await task
        bridge = Bridge(bus, broker.url, out=[topic], name="bench")
        bus.group(topic, bridge.group)
        publisher.publish_many(payloads)
        task = asyncio.create_task(bridge.arun())
        await until(lambda: bridge.sent > 0 or task.done())
        watch, first = Watch(), bridge.sent  # connected: from here on it is the stream that counts
        await until(lambda: bridge.sent == len(payloads) or task.done())
        took = watch.read(len(payloads) - first)
        bridge.stop()
        await task
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
            took: dict[str, list[Took]] = {"bare": [], "bridge": []}
            ways = {"bare": BARE[kind], "bridge": bridged}
            try:
                for turn in range(arguments.rounds):
                    for way in sorted(ways, reverse=bool(turn % 2)):
                        took[way].append(asyncio.run(ways[way](broker, payloads)))  # type: ignore[arg-type]
            finally:
                broker.kill()
        a, b = (Took(*map(statistics.median, zip(*took[way], strict=True))) for way in ("bare", "bridge"))
        each = " ".join(f"{x.clock / y.clock:.2f}" for x, y in zip(took["bare"], took["bridge"], strict=True))
        figures = " ".join(f"{way} {t.clock:6.1f} us ({t.cpu:5.1f} CPU) " for way, t in (("bare", a), ("bridge", b)))
        ratios = f"{a.clock / b.clock:5.2f} x ({a.cpu / b.cpu:.2f} x in CPU)"
        sys.stdout.write(f"{kind:6} {figures} an event  {ratios}  turns: {each}\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
