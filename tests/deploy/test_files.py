"""Files that vanish under running participants, and places without room: logout, a reaper, a small /dev/shm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import psutil
import pytest
from events import PATIENT
from support import SHM, Processes, bus_processes, child_environment, child_source, entries, eventually, line

import shmbus
from shmbus import Bus

TICKS = shmbus.Topic("ticks", int)

VERBS = (
    "receive",
    "iterate",
    "try_receive",
    "areceive",
    "worker receive",
    "worker messages",
    "publish",
    "publish_many",
    "drop",
    "blocked",
    "open",
    "stats",
)


def lives_through(name: str, verb: str) -> None:
    """Uses a bus in one way for ever; says how that ended, and how leaving did."""
    import asyncio
    import contextlib
    import json
    import threading

    import shmbus
    from shmbus import Bus

    topic, small = shmbus.Topic("ticks", int), shmbus.Topic("small", bytes, capacity=4096)
    pause = threading.Event().wait
    bus = Bus(name)
    quiet = shmbus.Topic("quiet", int)
    sub, worker = bus.subscriber(quiet), bus.worker(quiet, group="pool")
    pub, drop = bus.publisher(topic), bus.publisher(small, on_full="drop")
    full = bus.subscriber(small)

    def ticking(call: object) -> None:
        while True:
            call()  # type: ignore[operator]
            pause(0.05)

    def quietly(call: object) -> None:
        with contextlib.suppress(shmbus.Empty):
            call()  # type: ignore[operator]

    uses: dict[str, Any] = {
        "receive": sub.receive,
        "iterate": lambda: list(sub),
        "try_receive": lambda: ticking(sub.try_receive),
        "areceive": lambda: asyncio.run(sub.areceive()),
        "worker receive": worker.receive,
        "worker messages": lambda: list(worker.messages()),
        "publish": lambda: ticking(lambda: pub.publish(1)),
        "publish_many": lambda: ticking(lambda: pub.publish_many([1, 2, 3])),
        "drop": lambda: ticking(lambda: drop.publish(bytes(100))),
        "blocked": lambda: list(map(bus.publisher(small).publish, iter(lambda: bytes(1000), b""))),
        "open": lambda: ticking(lambda: bus.subscriber(topic).close()),
        "stats": lambda: ticking(bus.stats),
    }
    print("uses", flush=True)
    try:
        uses[verb]()
        ended = "nothing"
    except Exception as error:
        ended = f"{type(error).__name__}: {error}"
    left = ""
    for handle in (sub, worker, pub, drop, full, bus):
        try:
            handle.close()
        except Exception as error:
            left += f"{type(error).__name__}: {error}; "
    print(json.dumps([ended, left]), flush=True)


def kept(entry: str, bus: str, what: str) -> bool:
    if what == "segment":
        return entry == f"shmbus-{bus}:{os.getuid()}"
    return what in entry


def answer(child: subprocess.Popen[str]) -> str:
    """All that it says until its end; that it hangs, after a while."""
    try:
        return child.communicate(timeout=PATIENT)[0].strip() or json.dumps(["died", f"exit code {child.wait()}"])
    except subprocess.TimeoutExpired:
        return json.dumps(["hang", ""])


@pytest.mark.parametrize("keeps", ["nothing", ":lives", "segment", ":ring-"])
def test_files_vanish(bus_name: str, processes: Processes, keeps: str) -> None:
    """When files of a bus are removed under it, every use ends with ClosedError, and the next Bus() is a new one."""
    users = {verb: processes.spawn(lives_through, bus_name, verb) for verb in VERBS}
    for child in users.values():
        assert line(child) == "uses"
    supervisors = [p for p in bus_processes(bus_name) if p.pid not in {c.pid for c in users.values()}]
    for entry in [entry for entry in entries(bus_name) if not kept(entry, bus_name, keeps)]:
        (SHM / entry).unlink(missing_ok=True)
    with Bus(bus_name) as fresh, fresh.subscriber(TICKS) as sub, fresh.publisher(TICKS) as pub:
        pub.publish(7)
        assert sub.receive(timeout=PATIENT) == 7
        told = {verb: json.loads(answer(child)) for verb, child in users.items()}
        assert {verb: ended for verb, (ended, _) in told.items() if not ended.startswith("ClosedError")} == {}
        assert {verb: left for verb, (_, left) in told.items() if left} == {}
        assert {child.wait() for child in users.values()} == {0}
        pub.publish(8)  # what the old ones let go is not ours
        assert sub.receive(timeout=PATIENT) == 8
        assert [p.pid for p in fresh.stats().participants] == [os.getpid()]
    eventually(lambda: not [p for p in supervisors if p.is_running() and p.status() != psutil.STATUS_ZOMBIE])


def crowded_place(name: str) -> None:
    """In a /dev/shm of its own that is almost full: joining fails in words, leaving and reclaiming go on."""
    import contextlib
    import os
    import signal

    import shmbus
    from shmbus import Bus

    topic = shmbus.Topic("ticks", int, capacity=1 << 16)

    def fill() -> None:
        with open("/dev/shm/ballast", "ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def refused(call: object) -> str:
        try:
            call()  # type: ignore[operator]
        except shmbus.ShmbusError as error:
            return type(error).__name__
        return "nothing"

    with Bus(name, supervise=False) as bus, bus.subscriber(topic, name="kept") as sub:
        pub, extra = bus.publisher(topic), bus.subscriber(topic, name="extra")
        worker = bus.worker(topic, group="pool")
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            own = Bus(name, supervise=False)
            mine = own.subscriber(topic, name="mortal"), own.publisher(topic, name="mortal")
            mine[1].publish(1)
            os.write(writer, b"x")
            signal.pause()
        os.read(reader, 1)
        fill()
        print("bus", refused(lambda: Bus(f"{name}-other", supervise=False)))
        print("publisher", refused(lambda: bus.publisher(topic)))
        pub.publish(2)
        print("got", sorted([sub.receive(timeout=60), sub.receive(timeout=60)]))
        extra.close()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while len(bus.stats().participants) > 1:
            with contextlib.suppress(shmbus.Empty):
                sub.receive(timeout=1.2)
        print("attached", refused(lambda: Bus(name, supervise=False).close()))
        print("worker", refused(lambda: bus.worker(topic, group="pool")))
        print("worked", sorted(worker.receive_many(2, timeout=60)))
        worker.ack()
        pub.close()
        states = {c.name: (c.state, c.offered == c.delivered + c.depth + c.dropped) for c in bus.stats().consumers}
        print("states", states)
    print("left", [entry for entry in os.listdir("/dev/shm") if entry != "ballast"], flush=True)


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="a small /dev/shm needs root and unshare(1)"
)
@pytest.mark.parametrize("limit", ["size=8m", "size=8m,nr_inodes=40"])
def test_full_place(processes: Processes, limit: str) -> None:
    """In a full /dev/shm whoever would join is told NoSpaceError, and leaving, reclaiming and working go on."""
    mount = f'mount -t tmpfs -o {limit} tmpfs /dev/shm && exec "$@"'
    enter = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    if subprocess.run([*enter, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no /dev/shm of its own can be mounted here")
    child = processes.run(
        [*enter, sys.executable, "-c", child_source(crowded_place), "crowded"], env=child_environment()
    )
    out, _ = child.communicate(timeout=2 * PATIENT)
    said = dict(text.split(" ", 1) for text in out.splitlines())
    assert child.returncode == 0, out
    assert said["bus"] == said["publisher"] == "NoSpaceError", said
    assert said["worker"] in ("NoSpaceError", "nothing"), said  # a semaphore that is there is taken
    assert said["got"] == "[1, 2]", said
    assert said["attached"] == "nothing", said
    assert said["worked"] == "[1, 2]", said
    assert said["left"] == "[]", said
    assert "False" not in said["states"], said
