"""Opens and closes handles again and again, and shows that whoever is gone costs nothing.

    python tools/churn.py [oneshot | handles] [--short] [--count N]

oneshot   10,000 publishers one after the other, from four processes, each for one numbered event in a ring of the
          default size, while a reliable subscriber, a lossy one and a worker lag by hundreds: in a /dev/shm of 64 MiB
          of its own (needs root, for `unshare --mount`; left out elsewhere, and that is said). Nothing may be refused;
          the numbers must come in order, and what the lossy one lacks must be told and on its books.
handles   100,000 openings and closings of each kind of handle by four processes on one bus, with events through them.

At each quarter it prints what the processes and the bus have then, and the time of a cycle; at the end the ratio of the
last quarter to the first. Exit code 1 when something grew, was lost, or came in another order. `--short`: for a test.
"""

from __future__ import annotations

import argparse
import itertools
import json
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import shmbus
from shmbus import _core, inspect
from shmbus._ledger.registry import Registry
from shmbus._shm.names import object_prefix

SHM_BYTES: Final = 64 << 20
PROCESSES: Final = 4
LAG: Final = 300
"""Events that the consumers of `oneshot` stay behind; of `--short` a tenth."""
SLACK: Final = 24
"""Descriptors and mappings by which a quarter may differ from another: consumers hold a window of rings."""
GROWTH: Final = 2.0
"""Ratio of document lengths that is no growth: ids get longer, and a look may come at any moment."""
FILLED: Final = 4000
"""Openings of which a quarter fills the tables of the document."""
LOOKS: Final = 6
"""At the processes in each quarter."""
WATCHDOG: Final = 120.0
"""Seconds without progress."""

NUMBERS: Final = shmbus.Topic("numbers", int)
NOTES: Final = shmbus.Topic("notes", int, capacity=1 << 16)


class Counter:
    """Two numbers that several processes see: how far one of them is, and how far it may go."""

    def __init__(self, path: str) -> None:
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 16)

    @property
    def value(self) -> int:
        return _core.load(self._map, 0)

    @value.setter
    def value(self, value: int) -> None:
        _core.store(self._map, 0, value)

    @property
    def allowed(self) -> int:
        return _core.load(self._map, 8)

    @allowed.setter
    def allowed(self, value: int) -> None:
        _core.store(self._map, 8, value)

    def wait_for(self, number: int, *, turn: bool) -> None:
        """Until `number` is allowed, and, with `turn`, is the next one."""
        while self.allowed <= number or (turn and self.value != number):
            time.sleep(0.0001)


class Quarter(NamedTuple):
    """What there is at one moment: all descriptors and the mappings of rings are the most that one process has."""

    descriptors: int
    mappings: int
    rings: int
    shm_kib: int
    document: int
    cycle_us: int


def measure(bus: str, pids: list[int], cycle_s: float) -> Quarter:
    """Look at the processes and the bus from outside."""
    prefix = f"{object_prefix(bus)}ring-"
    descriptors, mappings = [0], [0]
    for pid in pids:
        try:
            descriptors.append(len(os.listdir(f"/proc/{pid}/fd")))
            mappings.append(sum(prefix in line for line in Path(f"/proc/{pid}/maps").read_text().splitlines()))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
    rings = [name for name in os.listdir("/dev/shm") if name.startswith(prefix)]
    used = 0
    for name in rings:
        try:
            used += os.stat(f"/dev/shm/{name}").st_blocks // 2
        except FileNotFoundError:
            continue
    registry = Registry.peek(bus)
    version = _core.load(registry.map, _core.BUS_VERSION)
    at = _core.DOCUMENTS + (version & 1) * _core.DOCUMENT_BYTES + _core.DOCUMENT_LENGTH
    document = _core.load(registry.map, at)
    registry.close()
    return Quarter(max(descriptors), max(mappings), len(rings), used, document, round(cycle_s * 1e6))


def balanced(bus: str) -> list[str]:
    """Consumers whose books do not add up."""
    return [
        c.name
        for c in inspect.stats_of(bus).consumers
        if c.offered != c.delivered + c.depth + c.overrun + c.refused + c.abandoned + c.undecodable + c.rejected
    ]


def supervisor(bus: str) -> list[int]:
    pid = inspect.stats_of(bus).supervisor.pid
    return [pid] if pid else []


@contextmanager
def opened(name: str) -> Iterator[shmbus.Bus]:
    """A bus that is gone at the end, whatever came of it."""
    try:
        with shmbus.Bus(name) as bus:
            yield bus
    finally:
        with suppress(shmbus.BusNotFoundError):
            inspect.remove(name, force=True)


# -- oneshot


def publish_in_turn(bus_name: str, path: str, index: str, count: str) -> None:
    """Publish every fourth number, each when it is its turn, through a publisher of its own."""
    counter, mine, most = Counter(path), int(index), int(count)
    with shmbus.Bus(bus_name) as bus:
        for number in range(mine, most, PROCESSES):
            counter.wait_for(number, turn=True)
            with bus.publisher(NUMBERS) as publisher:
                publisher.publish(number)
            counter.value = number + 1
        counter.wait_for(most, turn=False)
    print("{}")


def consume(bus_name: str, path: str, kind: str, count: str, lag: str) -> None:
    """Receive all numbers, `lag` behind the publishers for as long as they go on; print what came."""
    counter, most, behind = Counter(path), int(count), int(lag)
    gaps: list[shmbus.Gap] = []
    got: list[int] = []
    with shmbus.Bus(bus_name) as bus:
        handle: Any
        if kind == "worker":
            handle = bus.worker(NUMBERS, group="group")
        else:
            mode = "lossy" if kind == "lossy" else "reliable"
            handle = bus.subscriber(NUMBERS, name=kind, mode=mode, on_gap=gaps.append)  # type: ignore[arg-type]
        with handle:
            print("ready", flush=True)
            while len(got) + sum(gap.count for gap in gaps) < most:
                reached = got[-1] + 1 if got else 0
                if counter.allowed <= most and counter.value - reached < behind:
                    time.sleep(0.001)
                    continue
                try:
                    got.append(handle.receive(timeout=0.1))
                except shmbus.Empty:
                    continue
            if kind == "worker":
                handle.ack()
            stats = next(c for c in bus.stats().consumers if c.name == ("group" if kind == "worker" else kind))
    result = {
        "received": len(got),
        "told": sum(gap.count for gap in gaps),
        "ordered": all(a < b for a, b in itertools.pairwise(got)),
        "delivered": stats.delivered,
        "overrun": stats.overrun,
    }
    print(json.dumps(result))


def oneshot(count: int, lag: int) -> list[str]:
    """The part of that name, in the /dev/shm that there is; returns what is wrong."""
    name = f"churn-{os.getpid()}"
    wrong: list[str] = []
    with tempfile.NamedTemporaryFile() as file, opened(name):
        file.write(bytes(16))
        file.flush()
        counter = Counter(file.name)
        kinds = ("reliable", "lossy", "worker")
        consumers = [start("consume", name, file.name, kind, count, lag) for kind in kinds]
        for child in consumers:
            assert child.stdout is not None
            child.stdout.readline()
        publishers = [start("publish_in_turn", name, file.name, index, count) for index in range(PROCESSES)]
        children = [*consumers, *publishers]
        quarters = watch(name, children, count, [counter])
        wrong += grown(quarters)
        for kind, child in zip(kinds, consumers, strict=True):
            found = outcome(child)
            print(f"{kind:<9} {found}")
            if not found:
                wrong.append(f"{kind} ended with {child.returncode}")
                continue
            if not found["ordered"]:
                wrong.append(f"{kind} received in another order")
            if found["received"] + found["told"] != count or found["overrun"] != found["told"]:
                wrong.append(f"{kind} received {found['received']} and was told of {found['told']} of {count}")
            if kind != "lossy" and found["told"]:
                wrong.append(f"{kind} lost {found['told']}")
        wrong += [f"publisher ended with {child.returncode}" for child in publishers if outcome(child) is None]
    return wrong


def in_small_shm(arguments: list[str]) -> int | None:
    """Run this program again where /dev/shm has 64 MiB, and is nobody else's; None where that cannot be."""
    unshare = shutil.which("unshare")
    if os.geteuid() != 0 or unshare is None:
        return None
    mount = f"mount -t tmpfs -o size={SHM_BYTES} tmpfs /dev/shm"
    probe = [unshare, "--mount", "sh", "-c", mount]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        return None
    command = [sys.executable, __file__, *arguments, "--here"]
    return subprocess.run(
        [unshare, "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh", *command], check=False
    ).returncode


# -- handles


def cycle_handles(bus_name: str, path: str, index: str, count: str) -> None:
    """Open and close a handle of each kind, with an event through it."""
    counter, most = Counter(path), int(count)
    with shmbus.Bus(bus_name) as bus:
        for number in range(most):
            counter.wait_for(number, turn=False)
            with bus.subscriber(NOTES) as subscriber, bus.publisher(NOTES) as publisher:
                publisher.publish(number)
                subscriber.receive(timeout=WATCHDOG)
            bus.subscriber(NOTES, mode="lossy").close()
            with bus.worker(NOTES, group="group") as worker:
                worker.try_receive()
                worker.ack()
            counter.value = number + 1
        counter.wait_for(most, turn=False)
    print(json.dumps({"index": index}))


def handles(count: int) -> list[str]:
    """The part of that name; returns what is wrong."""
    name = f"churn-{os.getpid()}"
    wrong: list[str] = []
    each = count // PROCESSES
    with tempfile.TemporaryDirectory() as folder, opened(name) as bus:
        bus.group(NOTES, "group")
        paths = [f"{folder}/{index}" for index in range(PROCESSES)]
        for path in paths:
            Path(path).write_bytes(bytes(16))
        counters = [Counter(path) for path in paths]
        children = [start("cycle_handles", name, path, index, each) for index, path in enumerate(paths)]
        quarters = watch(name, children, each, counters)
        wrong += grown(quarters, document=count >= FILLED)
        wrong += [f"a process ended with {child.returncode}" for child in children if outcome(child) is None]
        with bus.worker(NOTES, group="group") as worker:  # what is left, so that the bus can go
            while worker.try_receive() is not None:
                pass
        wrong += [f"the books of {consumer} do not add up" for consumer in balanced(name)]
    return wrong


# -- both


def start(role: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--role", role, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def outcome(child: subprocess.Popen[str]) -> dict[str, Any] | None:
    """What a child printed last; None if it failed."""
    text = child.communicate(timeout=WATCHDOG)[0].strip()
    return None if child.returncode or not text else dict(json.loads(text.splitlines()[-1]))


def watch(bus: str, children: list[subprocess.Popen[str]], count: int, counters: list[Counter]) -> list[Quarter]:
    """Let the children go on for a quarter of `count` at a time, and measure when they stand still; then let them end.

    Kills them where nothing goes on.
    """
    quarters: list[Quarter] = []
    pids = [child.pid for child in children]
    print(f"{'':<10}{' '.join(f'{field:>11}' for field in Quarter._fields)}")
    for quarter in range(1, 5):
        goal = count * quarter // 4
        for counter in counters:
            counter.allowed = goal
        began = moved = time.monotonic()
        before, now = -1, [counter.value for counter in counters]
        steps = len(counters) * goal - sum(now)
        while min(now) < goal:
            if sum(now) != before:
                before, moved = sum(now), time.monotonic()
            if time.monotonic() - moved > WATCHDOG or any(child.poll() for child in children):
                for child in children:
                    child.kill()
                raise SystemExit(f"stands still at {now} of {goal}, exits {[child.poll() for child in children]}")
            time.sleep(0.001)
            now = [counter.value for counter in counters]
        passed = time.monotonic() - began
        found = [measure(bus, [*pids, *supervisor(bus)], passed / steps)]
        while len(found) < LOOKS:  # the supervisor looks round four times a second, and lets go of what is gone
            time.sleep(0.25)
            found.append(measure(bus, [*pids, *supervisor(bus)], passed / steps))
        quarters.append(min(found, key=lambda quarter: quarter.mappings))
        print(f"quarter {quarter} {' '.join(f'{value:>11}' for value in quarters[-1])}", flush=True)
        unbalanced = balanced(bus)
        if unbalanced:
            raise SystemExit(f"the books of {', '.join(unbalanced)} do not add up")
    for counter in counters:
        counter.allowed = count + 1
    ratios = [b / a if a else 1.0 for a, b in zip(quarters[0], quarters[-1], strict=True)]
    print(f"last/first{' '.join(f'{ratio:>11.2f}' for ratio in ratios)}")
    return quarters


def grown(quarters: list[Quarter], *, document: bool = True) -> list[str]:
    """What the last quarter has more of than the first half: in the first quarter a process may not have mapped all
    that it looks at. Time is for the reader: other programs take it too.

    The `document` has tables that fill up to their bounds, by hundreds of subscribers that left something.
    """
    first, last = quarters[0], quarters[-1]
    half = {field: max(getattr(q, field) for q in quarters[:2]) for field in ("descriptors", "mappings")}
    more = {field: getattr(last, field) for field, most in half.items() if getattr(last, field) > most + SLACK}
    found = [f"{field} grew from {half[field]} to {now}" for field, now in more.items()]
    if document and last.document > first.document * GROWTH:
        found.append(f"the document grew from {first.document} to {last.document} bytes")
    return found


def main() -> int:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("part", nargs="?", choices=("oneshot", "handles"), help="both, if left out")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--count", type=int, help="of publishers, or of openings of each kind")
    parser.add_argument("--here", action="store_true", help="oneshot in the /dev/shm that there is")
    options = parser.parse_args()
    code = 0
    if options.part != "handles":
        count = options.count or (600 if options.short else 10_000)
        status = None if options.here else in_small_shm(["oneshot", "--count", str(count), *short(options)])
        if options.here:
            print(f"{count} publishers, one event each, in {os.statvfs('/dev/shm').f_blocks * 4 >> 10} MiB")
            code |= told(oneshot(count, LAG // 10 if options.short else LAG))
        elif status is None:
            print("oneshot: skipped, for a /dev/shm of its own needs root and unshare --mount")
        else:
            code |= status
    if options.part != "oneshot":
        count = options.count or (500 if options.short else 100_000)
        print(f"{count} openings of each kind of handle by {PROCESSES} processes")
        code |= told(handles(count))
    return code


def short(options: argparse.Namespace) -> list[str]:
    return ["--short"] if options.short else []


def told(wrong: list[str]) -> int:
    print(f"wrong: {'; '.join(wrong) or 'nothing'}", flush=True)
    return int(bool(wrong))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--role"]:
        ROLES: dict[str, Callable[..., None]] = {f.__name__: f for f in (publish_in_turn, consume, cycle_handles)}
        ROLES[sys.argv[2]](*sys.argv[3:])
        sys.exit()
    sys.exit(main())
