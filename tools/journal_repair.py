"""Shows that a lossy subscriber that repairs from a journal sees every event in order at full speed, and how fast.

Two processes publish as fast as the journal's recorder, in a third, lets them; a fourth subscribes with
`mode="lossy", on_gap="repair"`, and stands still now and then for longer than the ring lasts, so that most of what it
gets was overrun. It must see each publisher's events one by one, by count and by sequence. Beside it, in turns and
with the same pauses, a reliable subscriber, for which everybody waits.

    python tools/journal_repair.py                     a million events of 256 bytes through rings of a MiB
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import shmbus
from shmbus import inspect
from shmbus.journal import Recorder

SIZE = 256
LOT = 512
GRACE = 120.0
PUBLISHERS = 2
RAW = shmbus.Topic("raw", bytes, capacity=1 << 20)


def publish(bus_name: str, name: str, count: str) -> None:
    """Publish events that carry their number, once told to."""
    with shmbus.Bus(bus_name) as bus, bus.publisher(RAW, name=name) as publisher:
        sys.stdin.readline()
        for first in range(1, int(count) + 1, LOT):
            lot = range(first, min(first + LOT, int(count) + 1))
            publisher.publish_many([number.to_bytes(SIZE, "little") for number in lot])
        publisher.flush(timeout=None)


def receive(bus_name: str, path: str, mode: str, count: str, every: str, pause: str) -> None:
    """Take all, in each publisher's order, or end with what is not; say how long it took and how many were overrun."""
    last = {f"p{number}": 0 for number in range(PUBLISHERS)}
    left, due = PUBLISHERS * int(count), int(every)
    began = 0.0
    with shmbus.Bus(bus_name) as bus, shmbus.Journal(path) as journal:
        options = {"mode": "lossy", "on_gap": "repair", "journal": journal} if mode == "lossy" else {}
        with bus.subscriber(RAW, name="sink", **options) as subscriber:  # type: ignore[arg-type]
            told("ready")
            for message in subscriber.messages():
                began = began or time.perf_counter()
                number, name = int.from_bytes(message.event, "little"), message.publisher
                if number != last[name] + 1 or message.sequence != number:
                    raise AssertionError(f"{name}: {number} (sequence {message.sequence}) came after {last[name]}")
                last[name] = number
                left -= 1
                if not left:
                    break
                if left % due == 0:
                    time.sleep(float(pause))  # not a wait: the stall that the ring overruns
            took = time.perf_counter() - began
            assert subscriber.try_receive() is None
            books = next(c for c in bus.stats().consumers if c.name == "sink")
            told(f"{took} {books.overrun}")


def told(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run(mode: str, arguments: argparse.Namespace, folder: Path) -> tuple[float, int]:
    """Seconds that the subscriber took, and how many events the rings had lost by when it came."""
    bus_name = f"jrepair-{os.getpid()}-{mode}"
    path = folder / f"{mode}.journal"
    bus = shmbus.Bus(bus_name)
    Recorder(bus, RAW, path).close()  # which makes the file
    own = [__file__, "--as"]
    each = arguments.events // PUBLISHERS
    children: list[subprocess.Popen[str]] = []

    def start(*words: object) -> subprocess.Popen[str]:
        command = [sys.executable, *map(str, words)]
        errors = subprocess.DEVNULL if "-m" in words else None
        pipe = subprocess.PIPE
        children.append(subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=errors))
        return children[-1]

    try:
        start("-m", "shmbus", "journal", bus_name, "--topic", "raw", "--path", path)
        sink = start(*own, "receive", bus_name, path, mode, each, arguments.every, arguments.pause)
        publishers = [start(*own, "publish", bus_name, f"p{number}", each) for number in range(PUBLISHERS)]
        assert sink.stdout is not None
        assert sink.stdout.readline() == "ready\n"
        until(lambda: len(bus.stats().publishers) == PUBLISHERS, "the publishers")
        until(lambda: any(c.kind == "group" and c.workers for c in bus.stats().consumers), "the journal")
        for publisher in publishers:
            assert publisher.stdin is not None
            publisher.stdin.write("go\n")
            publisher.stdin.flush()
        answer = sink.stdout.readline().split()
        if not answer:
            raise AssertionError(f"the subscriber ended: exit code {sink.wait()}")
        return float(answer[0]), int(answer[1])
    finally:
        for child in children:
            child.kill()
            child.communicate()
        bus.close()
        with suppress(shmbus.BusNotFoundError):  # its supervisor was faster
            inspect.remove(bus_name, force=True)


def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + GRACE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {GRACE:g} s: {what}")
        time.sleep(0.01)  # not a wait: the interval of the poll


def main() -> int:
    if sys.argv[1:2] == ["--as"]:
        roles: dict[str, Callable[..., None]] = {"publish": publish, "receive": receive}
        roles[sys.argv[2]](*sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--every", type=int, default=10_000, help="events between two pauses of the subscriber")
    parser.add_argument("--pause", type=float, default=0.05, help="seconds")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for mode in ("lossy", "reliable"):
            took, overrun = run(mode, arguments, Path(folder))
            what = "lossy, with repair" if mode == "lossy" else "reliable"
            events, share = arguments.events, 100 * overrun / arguments.events
            told(f"{what}: {events} events in {took:.1f} s, {events / took:,.0f}/s, each once and in order")
            told(f"    {overrun} of them ({share:.0f} %) had been overrun")
    return 0


if __name__ == "__main__":
    sys.exit(main())
