"""The journal's throughput beside a bare SQLite insert loop and beside writing the bytes: 256-byte events, in turns.

Each puts the same payloads on the same disk, durably: the bytes with an fsync a MiB, the loop with an insert an event
and a commit (WAL, synchronous=FULL) every thousand, the journal as it does, from a ring that is full of them.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import shmbus
from shmbus.journal import Recorder

SIZE = 256
RAW = shmbus.Topic("raw", bytes, capacity=1 << 26)


def write_bytes(payloads: list[bytes], path: Path) -> None:
    with path.open("wb") as file:
        for at in range(0, len(payloads), 4096):
            file.write(b"".join(payloads[at : at + 4096]))
            file.flush()
            os.fsync(file.fileno())


def insert(payloads: list[bytes], path: Path) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, time INTEGER, publisher TEXT, payload BLOB)")
    for at in range(0, len(payloads), 1000):
        db.execute("BEGIN")
        for payload in payloads[at : at + 1000]:
            db.execute(
                "INSERT INTO events (time, publisher, payload) VALUES (?, ?, ?)", (time.time_ns(), "web", payload)
            )
        db.execute("COMMIT")
    db.close()


def journal(payloads: list[bytes], path: Path) -> float:
    with shmbus.Bus(f"jbench-{os.getpid()}", supervise=False) as bus, bus.publisher(RAW) as publisher:
        with Recorder(bus, RAW, path) as recorder:
            bus.group(RAW, f"journal:{recorder._store.id}")
            publisher.publish_many(payloads)
            thread = threading.Thread(target=recorder.run)
            began = time.perf_counter()
            thread.start()
            while recorder.written < len(payloads):
                time.sleep(0.001)
            took = time.perf_counter() - began
            recorder.stop()
            thread.join()
    return took


def timed(function: object, payloads: list[bytes], path: Path) -> float:
    began = time.perf_counter()
    took = function(payloads, path)  # type: ignore[operator]
    return took if isinstance(took, float) else time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="on the disk that is meant (default: that of temporary files)")
    arguments = parser.parse_args()
    payloads = [os.urandom(SIZE) for _ in range(arguments.events)]
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for turn in range(arguments.rounds):
            for function in (write_bytes, insert, journal):
                took = timed(function, payloads, Path(folder) / f"{function.__name__}-{turn}")
                found.setdefault(function.__name__, []).append(took / arguments.events)
    for name, times in found.items():
        each = statistics.median(times)
        beside = statistics.median(found["insert"]) / each
        sys.stdout.write(f"{name:12} {each * 1e6:7.2f} us an event  {1 / each:10,.0f}/s  {beside:5.2f} x insert\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
