"""W9: columns: batches of 4,096 rows of 64 and of 256 bytes, there by `publish_array`, received in place by `arrays`.

    python -m bench.columns [--rounds N] [--batches N]

Beside it, in turns: one `memcpy` of the rows into memory as large as the ring, the floor of whatever copies once; and
the codec ceiling, msgpack's encoder and decoder for the same Struct, whichever of the two takes longer. Two forms: both
ends in this process, by turns, so that no core is waited for, and two processes at once. Needs NumPy.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta

import shmbus

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH: Final = 4096
SIZES: Final = (64, 256)
CAPACITY: Final = 1 << 22
_PATIENCE: Final = 60.0  # seconds for the other process


def topic_of(size: int) -> shmbus.Topic[Any]:
    """A topic of records of `size` bytes: numbers, a flag, and what fills it up."""
    number = Annotated[int, Meta(ge=0, lt=1 << 32)]
    fields: list[tuple[str, Any]] = [("seq", int), ("ts", int), ("price", float), ("lots", number), ("live", bool)]
    note = Annotated[bytes, Meta(max_length=size - 29)]
    return shmbus.Topic(
        f"rows-{size}", msgspec.defstruct("Row", [*fields, ("note", note)]), codec="record", capacity=CAPACITY
    )


def rows_of(topic: shmbus.Topic[Any], size: int) -> Any:
    """One batch."""
    import numpy as np

    rows = np.zeros(BATCH, topic.dtype)
    rows["seq"], rows["note"] = np.arange(BATCH), b"n" * (size - 29)
    return rows


def ceiling(topic: shmbus.Topic[Any], size: int) -> float:
    """Ns that msgpack takes for an event of the same fields, the slower of its two sides."""
    event = topic.type(1, 2, 3.0, 4, True, b"n" * (size - 29))
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(topic.type).decode
    payload = encode(event)
    return max(_each(lambda: encode(event)), _each(lambda: decode(payload)))


def _each(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    for _ in range(BATCH):
        call()
    return (time.perf_counter_ns() - start) / BATCH


def by_turns(size: int, rounds: int) -> dict[str, float]:
    """Ns a row: the median of each part, both ends in this process."""
    import numpy as np

    topic, found = topic_of(size), {}
    rows = rows_of(topic, size)
    source, ring = rows.view(np.uint8), np.zeros(CAPACITY, np.uint8)
    laps = CAPACITY // len(source)
    with shmbus.Bus(f"bench-{os.getpid()}-columns-{size}", supervise=False) as bus:
        with bus.publisher(topic) as publisher, bus.subscriber(topic) as subscriber:
            arrays = subscriber.arrays()

            def receive() -> None:
                left = BATCH
                while left:
                    left -= len(next(arrays))

            def copy() -> None:
                for lap in range(laps):
                    ring[lap * len(source) : (lap + 1) * len(source)] = source

            parts: dict[str, tuple[Callable[[], object], int]] = {
                "publish_array": (lambda: publisher.publish_array(rows), BATCH),
                "arrays": (receive, BATCH),
                "memcpy": (copy, BATCH * laps),
            }
            times: dict[str, list[float]] = {name: [] for name in [*parts, "ceiling"]}
            for _ in range(rounds):
                for name, (call, count) in parts.items():
                    start = time.perf_counter_ns()
                    call()
                    times[name].append((time.perf_counter_ns() - start) / count)
                times["ceiling"].append(ceiling(topic, size))
            found = {name: statistics.median(values) for name, values in times.items()}
    return found


def _consume(name: str, size: int, count: int, news: Any) -> None:
    topic = topic_of(size)
    with shmbus.Bus(name) as bus, bus.subscriber(topic) as subscriber:
        news.put("ready")
        seen = 0
        for rows in subscriber.arrays():
            if rows["seq"][0] != seen % BATCH or rows["seq"][-1] != (seen + len(rows) - 1) % BATCH:
                raise SystemExit(f"another row than the next one: {rows['seq'][0]} after {seen}")
            seen += len(rows)
            if seen >= count:
                break
        news.put(time.monotonic_ns())


def side_by_side(size: int, batches: int) -> float:
    """Ns a row from the first call of a process to the last row in another."""
    topic, context = topic_of(size), multiprocessing.get_context("spawn")
    rows, news = rows_of(topic, size), context.Queue()
    name = f"bench-{os.getpid()}-columns"
    with shmbus.Bus(name) as bus, bus.publisher(topic) as publisher:
        child = context.Process(target=_consume, args=(name, size, batches * BATCH, news), daemon=True)
        child.start()
        news.get(timeout=_PATIENCE)
        start = time.monotonic_ns()
        for _ in range(batches):
            publisher.publish_array(rows)
        end = news.get(timeout=_PATIENCE)
        child.join()
    return float(end - start) / batches / BATCH


def main() -> None:
    """Measure, and print a line for each size."""
    parser = argparse.ArgumentParser(description="W9: columns")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--batches", type=int, default=2000)
    options = parser.parse_args()
    for size in SIZES:
        found = by_turns(size, options.rounds)
        both = side_by_side(size, options.batches)
        slower = max(found["publish_array"], found["arrays"])
        print(
            f"{size} bytes: ns a row: publish_array {found['publish_array']:.1f}, arrays {found['arrays']:.1f}, "
            f"two processes {both:.1f}; memcpy {found['memcpy']:.1f}, codec ceiling {found['ceiling']:.0f}; "
            f"{slower / found['memcpy']:.2f} memcpy, {found['ceiling'] / slower:.1f} x the ceiling "
            f"({both / found['memcpy']:.2f}, {found['ceiling'] / both:.1f} with two processes)"
        )


if __name__ == "__main__":
    main()
