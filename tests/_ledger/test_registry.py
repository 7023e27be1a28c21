"""The bus segment: of many creators one creates, and what is no bus of ours is refused by name."""

from __future__ import annotations

import os
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from events import ORDERS, Order, take
from support import SHM, Processes, entries, line

import shmbus
from shmbus import Bus, Topic, _core, inspect
from shmbus._ledger import slots

# -- many at once
from shmbus._shm.names import segment_name


def create_all(name: str, go: str, threads: str) -> None:
    import os
    import sys
    import threading
    import time

    from events import ORDERS, Order

    from shmbus import Bus

    def create(number: int) -> None:
        while not os.path.exists(go):
            time.sleep(0.001)  # not a wait: the interval of the poll
        bus = Bus(name)
        buses.append(bus)
        pub, worker = bus.publisher(ORDERS), bus.worker(ORDERS, group="g")
        pub.publish(Order(number))
        kept.extend((pub, worker))

    buses: list[Bus] = []
    kept: list[object] = []
    pid = os.getpid()
    runners = [threading.Thread(target=create, args=(pid * 100 + n,)) for n in range(int(threads))]
    for runner in runners:
        runner.start()
    print("ready")
    for runner in runners:
        runner.join()
    print(len(buses))
    sys.stdin.readline()
    for bus in buses:
        bus.close()


def test_hundred_creators(bus_name: str, processes: Processes, tmp_path: Path) -> None:
    """A hundred that create the same bus, topic and group at once make one of each, and all are heard."""
    go = tmp_path / "go"
    children = [processes.spawn(create_all, bus_name, go, 5) for _ in range(20)]
    assert [line(child) for child in children] == ["ready"] * 20
    go.touch()
    assert [line(child) for child in children] == ["5"] * 20
    with Bus.attach(bus_name) as bus, bus.subscriber(ORDERS, start="oldest") as sub:
        stats = bus.stats()
        assert [t.name for t in stats.topics] == ["orders"]
        assert [(c.kind, c.name) for c in stats.consumers if c.kind == "group"] == [("group", "g")]
        assert len(stats.participants) == 101
        assert len(stats.consumers[0].workers) == 100
        expected = [Order(child.pid * 100 + n) for child in children for n in range(5)]
        assert sorted(take(sub, 100)) == sorted(expected)
        for child in children:
            child.communicate("done\n")
            assert child.returncode == 0
        with bus.worker(ORDERS, group="g") as worker:
            found = take(worker, len(set(expected)) - _delivered(bus))
            worker.ack()
        assert set(found) <= set(expected)
        assert bus.stats().consumers[0].depth == 0


def _delivered(bus: Bus) -> int:
    return bus.stats().consumers[0].delivered


def test_come_and_go(bus_name: str, processes: Processes) -> None:
    """Processes that open and close a bus at the same time, the last one removing it, never see a half of it."""
    code = """
        import sys
        from events import ORDERS, Order
        from shmbus import Bus
        for number in range(100):
            with Bus(sys.argv[1], supervise=False) as bus, bus.subscriber(ORDERS) as sub:
                with bus.publisher(ORDERS) as pub:
                    pub.publish(Order(number))
                    while sub.receive(timeout=60) != Order(number):
                        pass
        print("done")
    """
    children = [processes.spawn(code, bus_name) for _ in range(4)]
    assert [line(child) for child in children] == ["done"] * 4
    assert [child.wait() for child in children] == [0] * 4
    assert not entries(bus_name)


# -- what is no bus of ours


def test_many_read_at_once(bus_name: str) -> None:
    """Threads that read documents of many topics and of few with one memory of sections each get the whole."""
    with Bus(bus_name, supervise=False) as bus:
        few = slots.encode(bus._session.document())
        kept = [bus.publisher(Topic(f"t{n}", int, capacity=4096)) for n in range(40)]
        many = slots.encode(bus._session.document())
        assert kept
    known: dict[int, tuple[bytes, Any]] = {}
    failed: list[BaseException] = []

    def look(bodies: tuple[bytes, ...]) -> None:
        try:
            for _ in range(100):
                assert [len(slots.decode(body, known).topics) for body in bodies] == [
                    0 if body is few else 40 for body in bodies
                ]
        except BaseException as error:
            failed.append(error)

    looking = [threading.Thread(target=look, args=(bodies,)) for bodies in [(few, many), (many, few)] * 2]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in looking:
            thread.start()
    finally:
        for thread in looking:
            thread.join()
        sys.setswitchinterval(interval)
    assert not failed


def segment(bus: str) -> Path:
    return SHM / segment_name(bus)


def patch(bus: str, offset: int, value: int) -> None:
    with segment(bus).open("r+b") as file:
        file.seek(offset)
        file.write(struct.pack("<Q", value))


def both(bus: str) -> list[Callable[[], object]]:
    from shmbus import inspect

    return [lambda: Bus(bus), lambda: Bus.attach(bus), lambda: inspect.stats_of(bus)]


@pytest.mark.parametrize("content", [b"x" * 10, b"\0" * 4096, os.urandom(1 << 16)])
def test_foreign_file(bus_name: str, content: bytes) -> None:
    """A file of that name that shmbus did not make is a LayoutMismatchError, and is left as it is."""
    segment(bus_name).write_bytes(content)
    try:
        for opening in both(bus_name):
            with pytest.raises(shmbus.LayoutMismatchError, match=bus_name):
                opening()
        assert segment(bus_name).read_bytes() == content
    finally:
        segment(bus_name).unlink()


def test_empty_file(bus_name: str) -> None:
    """An empty file is a CorruptSegmentError."""
    segment(bus_name).touch()
    try:
        for opening in both(bus_name):
            with pytest.raises(shmbus.CorruptSegmentError, match=bus_name):
                opening()
    finally:
        segment(bus_name).unlink()


@pytest.mark.parametrize(
    ("offset", "expected", "words"),
    [
        (0, shmbus.LayoutMismatchError, "magic"),
        (_core.BUS_LAYOUT_VERSION, shmbus.LayoutMismatchError, "version"),
        (_core.BUS_BOOT_ID, shmbus.LayoutMismatchError, "reboot"),
        (_core.BUS_BOOT_ID + 8, shmbus.LayoutMismatchError, "reboot"),
    ],
)
def test_identity(bus_name: str, offset: int, expected: type[Exception], words: str) -> None:
    """Another magic, an older layout, another boot: each is refused by its name."""
    with Bus(bus_name, supervise=False):
        own = struct.unpack("<Q", segment(bus_name).read_bytes()[offset : offset + 8])[0]
        patch(bus_name, offset, own ^ 1)
        for opening in both(bus_name):
            with pytest.raises(expected, match=words):
                opening()
        patch(bus_name, offset, own)
        Bus.attach(bus_name, supervise=False).close()


@pytest.mark.parametrize("size", [8, 64, 4096, 1 << 20])
def test_truncated(bus_name: str, size: int) -> None:
    """A bus segment that somebody cut short is refused with an error of ours, never with SIGBUS."""
    with Bus(bus_name, supervise=False):
        whole = segment(bus_name).read_bytes()
    segment(bus_name).write_bytes(whole[:size])
    try:
        for opening in both(bus_name):
            with pytest.raises((shmbus.CorruptSegmentError, shmbus.LayoutMismatchError), match=bus_name):
                opening()
    finally:
        segment(bus_name).unlink()


def test_corrupt_document(bus_name: str) -> None:
    """A registry document that fails its checksum is a CorruptSegmentError."""
    bus = Bus(bus_name, supervise=False)
    version = struct.unpack_from("<Q", segment(bus_name).read_bytes(), _core.BUS_VERSION)[0]
    at = _core.DOCUMENTS + (version & 1) * _core.DOCUMENT_BYTES + _core.DOCUMENT_BODY
    patch(bus_name, at, 0xFFFF_FFFF_FFFF)
    with pytest.raises(shmbus.CorruptSegmentError):
        bus.close()
    try:
        for opening in both(bus_name):
            with pytest.raises(shmbus.CorruptSegmentError):
                opening()
    finally:
        inspect.remove(bus_name, force=True)


def test_symlink(bus_name: str, tmp_path: Path) -> None:
    """A symlink of that name is an AccessError, and is not followed."""
    target = tmp_path / "target"
    target.write_bytes(b"x" * 4096)
    segment(bus_name).symlink_to(target)
    try:
        for opening in both(bus_name):
            with pytest.raises(shmbus.AccessError) as caught:
                opening()
            assert isinstance(caught.value, PermissionError)
        assert target.read_bytes() == b"x" * 4096
    finally:
        segment(bus_name).unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_user(bus_name: str) -> None:
    """A bus of another user is an AccessError that says whose it is."""
    with Bus(bus_name, supervise=False):
        os.chown(segment(bus_name), 54321, -1)
        for opening in both(bus_name):
            with pytest.raises(shmbus.AccessError, match="54321"):
                opening()
        os.chown(segment(bus_name), os.geteuid(), -1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_ring_of_another_user(bus_name: str) -> None:
    """A ring that another user put in the place of one of ours is an AccessError, and is not read."""
    with Bus(bus_name, supervise=False) as bus, bus.publisher(ORDERS) as pub:
        pub.publish(Order(1))
        (ring,) = [SHM / entry for entry in entries(bus_name) if "ring" in entry]
        os.chown(ring, 54321, -1)
        with pytest.raises(shmbus.AccessError, match="54321"), Bus(bus_name, supervise=False) as other:
            other.subscriber(ORDERS, start="oldest")
        os.chown(ring, os.geteuid(), -1)
