"""The journal's deaths: kill -9 at random and at each failpoint, a disk that is cut off, full, or torn.

The long form is tools/journal_kills.py.
"""

from __future__ import annotations

import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from events import ORDERS, Order, consumer, opened, orders
from journals import groups, ids, journal_process, publish, recording, settled
from support import Processes, child_environment, eventually

import shmbus

TOOL = Path(__file__).resolve().parents[2] / "tools" / "journal_kills.py"


def test_short_campaign(tmp_path: Path) -> None:
    """After four kills at random moments, and two power cuts, what was acked is on the disk, once, in order."""
    words = [sys.executable, str(TOOL), "--kills", "4", "--cuts", "2", "--folder", str(tmp_path)]
    done = subprocess.run(words, env=child_environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 kills, 2 power cuts" in done.stdout


DIES = """
import sys, shmbus
from shmbus._shm import failpoint
from shmbus.journal import Recorder
from events import ORDERS
failpoint.arm(sys.argv[3])
with shmbus.Bus(sys.argv[1], supervise=False) as bus, Recorder(bus, ORDERS, sys.argv[2]) as recorder:
    recorder.run()
"""


@pytest.mark.parametrize("point", ["journal.written", "journal.committed"])
def test_dies_on_either_side_of_the_commit(bus_name: str, tmp_path: Path, processes: Processes, point: str) -> None:
    """A recorder that dies before or after its commit, but before its acks, leaves each event in the journal once."""
    path = tmp_path / "orders.journal"
    with opened(bus_name) as bus, bus.publisher(ORDERS) as publisher:
        with recording(bus, path):
            pass  # the group exists from here on
        publish(publisher, orders(50))
        child = processes.spawn(DIES, bus_name, path, point)
        assert child.wait() == -signal.SIGKILL
        assert ids(path) == ([] if point == "journal.written" else list(range(1, 51)))
        assert consumer(bus, groups_name(bus)).depth == 50
        with recording(bus, path):
            eventually(lambda: settled(bus))
    assert ids(path) == list(range(1, 51))


def groups_name(bus: shmbus.Bus) -> str:
    return next(c.name for c in bus.stats().consumers if c.name.startswith("journal:"))


def notes(bus: shmbus.Bus) -> list[str]:
    return [note.state for p in bus.stats().participants for note in p.notes]


def test_many_deaths_with_one_event_in_hand(bus_name: str, tmp_path: Path, processes: Processes) -> None:
    """An event in whose hands ten recorders died is no dead letter: it is in the journal."""
    path = tmp_path / "orders.journal"
    with opened(bus_name) as bus, bus.publisher(ORDERS) as publisher:
        with recording(bus, path):
            pass
        publisher.publish(Order(1))
        for _ in range(10):
            assert processes.spawn(DIES, bus_name, path, "journal.written").wait() == -signal.SIGKILL
        with recording(bus, path):
            eventually(lambda: settled(bus))
        assert consumer(bus, groups_name(bus)).rejected == 0
    assert ids(path) == [1]


def test_a_full_disk(bus_name: str, tmp_path: Path, processes: Processes) -> None:
    """Where the disk is full nothing is acked and the log says so; with room it goes on, and nothing is lost."""
    path = tmp_path / "orders.journal"
    with opened(bus_name) as bus, bus.publisher(ORDERS) as publisher:
        child = journal_process(processes, bus_name, path, stderr=subprocess.PIPE)
        eventually(lambda: groups(bus))
        publish(publisher, orders(10))
        eventually(lambda: settled(bus))
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        publish(publisher, orders(200, 11))
        assert child.stderr is not None
        said = next(line for line in child.stderr if " ERROR " in line)
        assert "nothing is acked, it is tried again" in said
        assert groups(bus)[0].depth == 200
        eventually(lambda: notes(bus) == ["failing"], "what the journal says of itself")
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        eventually(lambda: settled(bus), "it goes on")
        eventually(lambda: notes(bus) == ["ok"], "what it says then")
        child.send_signal(signal.SIGTERM)
        assert child.wait() == 0
    assert ids(path) == list(range(1, 211))


def test_stopped_while_the_disk_is_full(bus_name: str, tmp_path: Path, processes: Processes) -> None:
    """A recorder that is ended while it cannot write ends, and what it had goes to the next one."""
    path = tmp_path / "orders.journal"
    with opened(bus_name) as bus, bus.publisher(ORDERS) as publisher:
        child = journal_process(processes, bus_name, path)
        eventually(lambda: groups(bus))
        publisher.publish(Order(1))
        eventually(lambda: settled(bus))  # it has made whatever it makes
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        publish(publisher, orders(4, 2))
        eventually(lambda: notes(bus) == ["failing"], "it holds what it cannot write")
        assert groups(bus)[0].claimed
        child.terminate()
        assert child.wait() == 0
        with recording(bus, path):
            eventually(lambda: settled(bus))
    assert ids(path) == [1, 2, 3, 4, 5]


def test_cut_short(bus_name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file without its end is opened at its last whole batch; the log says what is lost, and the old file is kept."""
    path = tmp_path / "orders.journal"
    blob = shmbus.Topic("raw", bytes)
    with opened(bus_name) as bus, bus.publisher(blob) as publisher:
        with recording(bus, path, blob):
            for id in range(40):
                publisher.publish(id.to_bytes(2, "big") + bytes(50_000))
                eventually(lambda: settled(bus))
        kept = path.read_bytes()
        for part in (0.4, 0.8):
            path.write_bytes(kept[: int(len(kept) * part)])
            with shmbus.Journal(path) as journal:
                got = [int.from_bytes(message.event[:2], "big") for message in journal.replay(blob)]
            assert got == list(range(len(got)))
            assert 40 * part - 8 < len(got) < 40
            assert f"{len(got)} events in {len(got)} batches are whole" in caplog.text
            assert f"{40 - len(got)} later batches are lost" in caplog.text
        with recording(bus, path, blob):
            publisher.publish((99).to_bytes(2, "big"))
            eventually(lambda: settled(bus))
        with shmbus.Journal(path) as journal:
            assert journal.store.last() == 41  # no number is used twice
    assert list(tmp_path.glob("orders.journal.damaged-*"))


def test_a_mending_that_is_cut_short(bus_name: str, tmp_path: Path, processes: Processes) -> None:
    """A process that dies while it mends a journal leaves it so that the next one ends with the same events."""
    path = tmp_path / "orders.journal"
    with opened(bus_name) as bus, recording(bus, path), bus.publisher(ORDERS) as publisher:
        for id in range(1, 1001):
            publisher.publish(Order(id))
        eventually(lambda: settled(bus))
    with sqlite3.connect(path) as db:  # large enough to be cut where no event is
        db.execute("CREATE TABLE filler AS SELECT randomblob(200000) AS x")
    db.close()
    path.write_bytes(path.read_bytes()[:-100_000])
    copy = tmp_path / "copy.journal"
    shutil.copy(path, copy)
    code = """
import sys, shmbus
from shmbus._shm import failpoint
failpoint.arm("journal.mending")
shmbus.Journal(sys.argv[1])
"""
    assert processes.spawn(code, path).wait() == -signal.SIGKILL
    assert ids(path) == ids(copy) == list(range(1, 1001))


def test_a_flipped_bit(bus_name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A batch that does not match its checksum is left out, and the log says how many events that was."""
    path = tmp_path / "orders.journal"
    with opened(bus_name) as bus, recording(bus, path), bus.publisher(ORDERS) as publisher:
        for id in range(1, 4):
            publisher.publish(Order(id))
            eventually(lambda: settled(bus))
    with sqlite3.connect(path) as db:
        db.execute("UPDATE batches SET crc = crc + 1 WHERE id = 2")
    db.close()
    assert ids(path) == [1, 3]
    assert "has lost 1 events of batch 2" in caplog.text
