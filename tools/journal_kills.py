"""Kills the process that writes a journal at random moments, and cuts the power of its disk, while events flow.

After each death: what its group has acked is on the disk. At the end, by a replay and by a subscriber that catches up:
every event is there, each once, each publisher's in order.

A power cut is made by tools/powercut.c, preloaded: the process dies at a random write, and its files are put back to
what was synced, with any part of what was not.

    python tools/journal_kills.py                       200 kills, 20 power cuts
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

import shmbus
from shmbus import inspect

GRACE = 60.0  # seconds for what takes milliseconds: past it, something hangs
PUBLISHERS = 3
SOURCE = Path(__file__).with_name("powercut.c")


class Note(msgspec.Struct, frozen=True):
    count: int
    filler: str = "x" * 100


NOTES = shmbus.Topic("notes", Note, capacity=1 << 14)


def wait(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + GRACE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {GRACE:g} s: {what}")
        time.sleep(0.005)


class Campaign:
    def __init__(self, bus: shmbus.Bus, folder: Path, seed: int) -> None:
        self.bus = bus
        self.path = folder / "notes.journal"
        self.folder = folder
        self.random = random.Random(seed)
        self.published = [0] * PUBLISHERS
        self.ending = threading.Event()
        self.child: subprocess.Popen[bytes] | None = None

    def publish(self, which: int) -> None:
        with self.bus.publisher(NOTES, name=f"p{which}") as publisher:
            while not self.ending.is_set():
                publisher.publish(Note(self.published[which] + 1))
                self.published[which] += 1
                time.sleep(0.0005)

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "shmbus", "journal", self.bus.name, "--topic", "notes", "--path", str(self.path)]
        self.child = subprocess.Popen(words, env={**os.environ, **environment}, stderr=subprocess.DEVNULL)
        return self.child

    def acked(self) -> int:
        found = [c for c in self.bus.stats().consumers if c.name.startswith("journal:")]
        return found[0].delivered if found else 0

    def on_disk(self) -> int:
        with shmbus.Journal(self.path) as journal:
            return sum(len(batch.entries) for batch in journal.store.after("notes", 0))

    def require_acked(self, after: str) -> None:
        acked, there = self.acked(), self.on_disk()
        if there < acked:
            raise AssertionError(f"{after}: {acked} events were acked, {there} are on the disk")

    def kill(self) -> None:
        """One life of the writer, of a random length."""
        before = self.acked()
        child = self.start()
        wait(lambda: self.acked() > before, "the writer acks")
        time.sleep(self.random.random() * 0.05)
        child.kill()
        child.wait()
        self.require_acked("killed")

    def cut(self, library: Path) -> None:
        """One life whose disk loses its power."""
        log = self.folder / "writes"
        log.unlink(missing_ok=True)
        with shmbus.Journal(self.path):
            pass  # folds the WAL in, so that what lies there is whole
        base = {path: path.read_bytes() for path in self.files()}
        disk = {"PREFIX": str(self.path), "LOG": str(log), "AT": str(self.random.randint(5, 200))}
        child = self.start(LD_PRELOAD=str(library), **{f"POWERCUT_{key}": value for key, value in disk.items()})
        child.wait()
        if child.returncode != -signal.SIGKILL:
            raise AssertionError(f"the writer ended by itself: {child.returncode}")
        self.lose(base, log)
        self.require_acked("power cut")

    def files(self) -> list[Path]:
        return [path for path in (self.path, Path(f"{self.path}-wal")) if path.exists()]

    def lose(self, base: dict[Path, bytes], log: Path) -> None:
        """Put the files to what was synced, and any part of what was not."""
        disk = {path: bytearray(data) for path, data in base.items()}
        pending: dict[Path, list[tuple[int, int, bytes]]] = {}
        for kind, path, offset, data in records(log):
            if kind < 2:
                pending.setdefault(path, []).append((kind, offset, data))
            for write in pending.pop(path, ()) if kind == 2 else ():
                apply(disk.setdefault(path, bytearray()), *write)
        for path, writes in pending.items():
            for kind, offset, data in writes:
                fate = self.random.random()
                part = data[: len(data) // 2] if fate > 0.8 else data
                if fate > 0.4:
                    apply(disk.setdefault(path, bytearray()), kind, offset, part)
        for path in (self.path, Path(f"{self.path}-wal"), Path(f"{self.path}-shm")):
            path.unlink(missing_ok=True)
        for path in (self.path, Path(f"{self.path}-wal")):
            if path in disk:
                path.write_bytes(disk[path])

    def end(self) -> None:
        """Let one writer finish, and compare."""
        self.ending.set()
        child = self.start()
        wait(lambda: not any(c.depth for c in self.bus.stats().consumers), "the writer is done")
        child.terminate()
        if child.wait() != 0:
            raise AssertionError(f"exit code {child.returncode}")
        with shmbus.Journal(self.path) as journal:
            replayed: dict[str, list[int]] = {}
            for message in journal.replay(NOTES):
                replayed.setdefault(message.publisher, []).append(message.event.count)
            with self.bus.subscriber(NOTES, start=journal) as subscriber:
                caught: dict[str, list[int]] = {}
                for _ in range(sum(self.published)):
                    message = next(subscriber.messages())
                    caught.setdefault(message.publisher, []).append(message.event.count)
                if subscriber.try_receive() is not None:
                    raise AssertionError("the subscriber got more than was published")
        expected = {f"p{which}": list(range(1, count + 1)) for which, count in enumerate(self.published)}
        for name, found in (("replay", replayed), ("subscriber", caught)):
            if found != expected:
                counts = {key: (len(value), len(set(value)), len(expected[key])) for key, value in found.items()}
                raise AssertionError(f"{name}: events, different ones, published: {counts}")


def records(log: Path) -> Iterator[tuple[int, Path, int, bytes]]:
    data, at = log.read_bytes() if log.exists() else b"", 0
    head = struct.Struct("<IIQQ")
    while at < len(data):
        kind, name, offset, length = head.unpack_from(data, at)
        at += head.size
        yield kind, Path(data[at : at + name].decode()), offset, data[at + name : at + name + length]
        at += name + length


def apply(disk: bytearray, kind: int, offset: int, data: bytes) -> None:
    if len(disk) < offset + len(data):
        disk.extend(bytes(offset + len(data) - len(disk)))
    if kind == 1:
        del disk[offset:]
    else:
        disk[offset : offset + len(data)] = data


def compiled(folder: Path) -> Path:
    library = folder / "powercut.so"
    compiler = shutil.which(os.environ.get("CC", "cc")) or "gcc"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return library


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--folder", type=Path, help="where the journal is to lie (default: a temporary folder)")
    arguments = parser.parse_args()
    name = f"jkills-{os.getpid()}"
    with tempfile.TemporaryDirectory() as temporary, shmbus.Bus(name) as bus:
        folder = (arguments.folder or Path(temporary)).resolve()
        library = compiled(folder)
        campaign = Campaign(bus, folder, arguments.seed)
        threads = [threading.Thread(target=campaign.publish, args=(which,)) for which in range(PUBLISHERS)]
        tap = bus.subscriber(NOTES, mode="lossy")  # so that the topic is there before its writer
        first = campaign.start()
        wait(lambda: len(bus.stats().consumers) > 1, "the group of the journal")
        tap.close()
        try:
            for thread in threads:
                thread.start()
            wait(lambda: campaign.acked() > 100, "the first events")
            first.terminate()
            first.wait()
            works = [campaign.kill] * arguments.kills + [lambda: campaign.cut(library)] * arguments.cuts
            campaign.random.shuffle(works)
            for done, work in enumerate(works, 1):
                work()
                if done % 20 == 0:
                    sys.stdout.write(f"{done} of {len(works)} deaths, {campaign.acked()} events acked\n")
                    sys.stdout.flush()
        finally:
            campaign.ending.set()
            if campaign.child is not None and campaign.child.poll() is None:
                campaign.child.kill()
                campaign.child.wait()
            if sys.exc_info()[0] is not None:  # a publisher may wait for the journal
                for group in {c.name for c in bus.stats().consumers if c.kind == "group"}:
                    bus.remove_group(NOTES, group, force=True)
        campaign.end()
        for thread in threads:
            thread.join()
    with contextlib.suppress(shmbus.BusNotFoundError):
        inspect.remove(name, force=True)
    total = sum(campaign.published)
    sys.stdout.write(f"{arguments.kills} kills, {arguments.cuts} power cuts, {total} events: none lost, none twice\n")
    sys.stdout.write(f"seed {arguments.seed}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
