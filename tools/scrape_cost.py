"""What a scrape costs: CPU time of reading the books and of the whole exposition, for a bus of so many consumers.

python tools/scrape_cost.py [--consumers 512]
"""

from __future__ import annotations

import argparse
import logging
import os
import time

from prometheus_client.exposition import generate_latest

import shmbus
from shmbus import inspect
from shmbus.observe import metrics


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--consumers", type=int, default=512)
    arguments = parser.parse_args()
    logging.getLogger("shmbus").setLevel(logging.ERROR)
    name = f"scrape-cost-{os.getpid()}"
    topics = [shmbus.Topic(f"t{n}", int, capacity=1 << 12) for n in range(-(-arguments.consumers // 64))]
    with shmbus.Bus(name) as bus:
        consumers = [bus.subscriber(topics[n // 64], name=f"s{n}", mode="lossy") for n in range(arguments.consumers)]
        publishers = [bus.publisher(topic, name="p") for topic in topics]
        for _ in range(3):
            for publisher in publishers:
                publisher.publish_many(range(300))
            for consumer in consumers:
                consumer.receive_many(90)
        registry = metrics.registry([name])
        for _ in range(3):
            begun = time.process_time()
            inspect.stats_of(name)
            read = time.process_time()
            text = generate_latest(registry)
            done = time.process_time()
            print(
                f"books {1e3 * (read - begun):.0f} ms, scrape {1e3 * (done - read):.0f} ms,"
                f" {len(text) >> 10} KiB, {text.count(10)} lines"
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
