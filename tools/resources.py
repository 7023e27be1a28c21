"""Opens and closes everything again and again, and compares what the process has before and after.

    python tools/resources.py [--cycles 10000]

A cycle opens a bus of its own, with a publisher, a subscriber and a worker, and the same on a bus that lives on, with
events through all of them, received by a thread and by an event loop (FIFOs); then it closes them. Descriptors,
mappings, threads, and the names in /dev/shm must be as many as after the first cycles, and resident memory must have
settled. Prints both figures; exit code 1 when something grew.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sys
import time
from typing import Any, NamedTuple

import msgspec

import shmbus

WARM = 100  # cycles before the first look: caches fill, the heap finds its size
RSS_SLACK = 4 << 20  # bytes by which the heap may breathe; a leak of half a kilobyte a cycle exceeds it


class Note(msgspec.Struct, frozen=True):
    id: int


class Figures(NamedTuple):
    """What a process has."""

    descriptors: int
    mappings: int
    """Of files in /dev/shm: segments, semaphores."""
    anonymous: int
    """Other mappings: the heap takes one more now and then."""
    threads: int
    segments: int
    """Names in /dev/shm of segments and FIFOs."""
    semaphores: int
    rss: int


def measure(prefix: str) -> Figures:
    """The figures of this process, and of /dev/shm for the buses whose names begin with `prefix`."""
    gc.collect()
    with open("/proc/self/maps", encoding="utf-8") as file:
        maps = [line.split() for line in file]
    shared = sum(len(words) > 5 and words[5].startswith(("/dev/shm/", "/memfd:")) for words in maps)
    names = [name for name in os.listdir("/dev/shm") if prefix in name]
    semaphores = sum(name.startswith("sem.") for name in names)
    with open("/proc/self/statm", encoding="ascii") as file:
        rss = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return Figures(
        descriptors=len(os.listdir("/proc/self/fd")),
        mappings=shared,
        anonymous=len(maps) - shared,
        threads=len(os.listdir("/proc/self/task")),
        segments=len(names) - semaphores,
        semaphores=semaphores,
        rss=rss,
    )


async def _receive(*handles: Any) -> list[Any]:
    """One event for each handle, on its FIFO where it has to wait."""
    return list(await asyncio.gather(*(handle.areceive(timeout=60.0) for handle in handles)))


def use(bus: shmbus.Bus, topic: shmbus.Topic[Note], loop: asyncio.AbstractEventLoop) -> None:
    """Open handles on a bus, send events through them, close them."""
    with bus.publisher(topic) as publisher, bus.subscriber(topic) as subscriber, bus.worker(topic, group="g") as worker:
        for id in range(3):
            publisher.publish(Note(id), headers={"id": id})
        taken = [event.id for handle in (subscriber, worker) for event in handle.receive_many(3)]
        loop.call_soon(publisher.publish, Note(3))  # after both await, each on its FIFO
        received = loop.run_until_complete(_receive(subscriber, worker))
        worker.ack()
        if taken != [0, 1, 2, 0, 1, 2] or received != [Note(3), Note(3)]:
            raise AssertionError(f"received {taken}, {received}")
        bus.stats()


def main() -> int:
    """Run the cycles and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cycles", type=int, default=10_000)
    cycles: int = parser.parse_args().cycles
    prefix = f"resources-{os.getpid()}"
    topic = shmbus.Topic("notes", Note, capacity=4096)
    loop = asyncio.new_event_loop()
    with shmbus.Bus(f"{prefix}-kept", supervise=False) as kept:
        start = measure(prefix)
        began = time.monotonic()
        for cycle in range(-WARM, cycles):
            if cycle == 0:
                start = measure(prefix)
            use(kept, topic, loop)
            with shmbus.Bus(f"{prefix}-own", supervise=False) as own:
                use(own, topic, loop)
        end = measure(prefix)
    loop.close()
    left = [name for name in os.listdir("/dev/shm") if prefix in name]
    print(f"{cycles} cycles in {time.monotonic() - began:.0f} s\nstart {start}\nend   {end}")
    same = Figures._fields[:2] + Figures._fields[3:6]
    grown = [name for name in same if getattr(end, name) != getattr(start, name)]
    if end.rss > start.rss + RSS_SLACK:
        grown.append("rss")
    if end.anonymous > start.anonymous + cycles // 100 + 8:
        grown.append("anonymous")
    print(f"grown: {', '.join(grown) or 'nothing'}; left in /dev/shm: {', '.join(left) or 'nothing'}")
    return int(bool(grown or left))


if __name__ == "__main__":
    sys.exit(main())
