"""`shmbus journal`, `replay`, `export` and `tail --journal`: from a bus to a file, and back."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
from events import ORDERS, Order, opened, orders
from journals import command, groups, ids, journal_process, publish, recording, settled
from support import Processes, child_environment, eventually


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), env=child_environment(), capture_output=True, text=True, timeout=60, check=False
    )


def test_a_journal_that_waits_for_its_topic(bus_name: str, tmp_path: Path, processes: Processes) -> None:
    """A journal that is started first waits for the topic, writes until SIGTERM, and goes on where it was."""
    path = tmp_path / "orders.journal"
    with opened(bus_name) as bus:
        child = journal_process(processes, bus_name, path)
        eventually(path.exists)
        with bus.publisher(ORDERS) as publisher:
            eventually(lambda: groups(bus), "it has found the topic")
            publish(publisher, orders(10))
            eventually(lambda: settled(bus))
            child.send_signal(signal.SIGTERM)
            assert child.wait() == 0
            publish(publisher, orders(10, 11))
            child = journal_process(processes, bus_name, path)
            eventually(lambda: settled(bus))
            child.send_signal(signal.SIGINT)
            assert child.wait() == 0
    assert ids(path) == list(range(1, 21))


@pytest.fixture
def journal(bus_name: str, tmp_path: Path) -> Path:
    path = tmp_path / "orders.journal"
    with opened(bus_name) as bus, recording(bus, path), bus.publisher(ORDERS, name="web") as publisher:
        publisher.publish(Order(1), headers={"trace": "a"})
        publish(publisher, orders(4, 2))
        eventually(lambda: settled(bus))
    return path


def test_replay_into_a_bus(bus_name: str, journal: Path) -> None:
    """What is replayed into a bus arrives with its headers, and one that says where it was first."""
    with opened(bus_name + "2") as bus, bus.subscriber(ORDERS) as subscriber:
        done = run("replay", journal, bus.name, "--until", "9999999999999999999"[:19])
        assert done.stdout == f"5 events published on {bus.name}\n", done.stderr
        messages = [next(subscriber.messages()) for _ in range(5)]
    assert [message.event.id for message in messages] == [1, 2, 3, 4, 5]
    origin = messages[0].headers.pop("replayed-from")
    assert messages[0].headers.get("trace") == "a"
    lines = [json.loads(line) for line in run("export", journal).stdout.splitlines()]
    assert origin == lines[0]["id"]


def test_export_json_lines(journal: Path, tmp_path: Path) -> None:
    """JSON lines have everything that the journal knows of an event."""
    lines = [json.loads(line) for line in run("export", journal, "--topic", "orders").stdout.splitlines()]
    assert [line["event"]["id"] for line in lines] == [1, 2, 3, 4, 5]
    assert lines[0]["headers"] == {"trace": "a"}
    assert (lines[0]["topic"], lines[0]["publisher"], lines[0]["sequence"]) == ("orders", "web", 1)
    done = run("export", journal, "--since", str(lines[2]["time_ns"]), "-o", tmp_path / "some.jsonl")
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "some.jsonl").read_text().splitlines()) == 3


def test_export_parquet(journal: Path, tmp_path: Path) -> None:
    """Parquet has a column for each field, of its type, beside those that say where an event is from."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra 'arrow'")
    done = run("export", journal, "--topic", "orders", "--format", "parquet", "-o", tmp_path / "orders.parquet")
    assert done.returncode == 0, done.stderr
    table = parquet.read_table(tmp_path / "orders.parquet")
    assert table.column("id").to_pylist() == [1, 2, 3, 4, 5]
    assert str(table.schema.field("_time").type) == "timestamp[ns, tz=UTC]"
    assert table.column("_publisher").to_pylist() == ["web"] * 5
    done = run("export", journal, "--format", "parquet")
    assert done.returncode == 1
    assert "say --topic and --output" in done.stderr


def test_tail_of_a_journal(bus_name: str, journal: Path) -> None:
    """`tail --journal` prints what the file has; with a bus it goes on with what that gets."""
    lines = run("tail", "--journal", journal, "--json").stdout.splitlines()
    assert [json.loads(line)["event"]["id"] for line in lines] == [1, 2, 3, 4, 5]
    with opened(bus_name + "2") as bus, bus.publisher(ORDERS) as publisher:
        publish(publisher, orders(3, 6))
        done = run("tail", bus.name, "orders", "--journal", journal, "--json", "-n", 8)
        assert [json.loads(line)["event"]["id"] for line in done.stdout.splitlines()] == list(range(1, 9))
    assert "it needs BUS and TOPIC" in run("tail").stderr


def test_errors_are_one_line(journal: Path, tmp_path: Path) -> None:
    """A journal that is not there, a topic that it does not have, and a bad time are told in a line."""
    assert run("replay", tmp_path / "none", "b").stderr == f"shmbus: no journal at '{tmp_path / 'none'}'\n"
    assert "has no topic 'bills'; it has orders" in run("export", journal, "--topic", "bills").stderr
    assert "a date and time, or ns since the epoch, not 'soon'" in run("export", journal, "--since", "soon").stderr
