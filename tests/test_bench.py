"""The benchmarks run: every workload with every peer, a few hundred events, from the clone as a user starts them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from support import Processes, child_environment, entries

ROOT = Path(__file__).resolve().parents[1]
EVENTS = 320
WORKLOADS = ("w1", "w1b", "w2", "w3", "w5")
PEERS = [
    "shmbus",
    "mp.Queue",
    pytest.param("pyzmq", marks=pytest.mark.skipif(not importlib.util.find_spec("zmq"), reason="needs pyzmq")),
    "ceiling",
]


def bench(processes: Processes, *arguments: object) -> tuple[int, str]:
    """Run the benchmarks to their end: the exit code and what they printed. They leave nothing in /dev/shm."""
    command = [sys.executable, "-m", "bench", *map(str, arguments)]
    # Python must look into the working directory, where bench/ is.
    child = processes.run(command, cwd=ROOT, env=child_environment(PYTHONSAFEPATH=""))
    output, _ = child.communicate()
    assert not entries(f"bench-{child.pid}-")
    return child.returncode, output


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_smoke(processes: Processes, tmp_path: Path, workload: str, peer: str) -> None:
    """Each workload comes to a result with each peer that it is made for, every event checked by its receiver."""
    file = tmp_path / "out.json"
    options = ("--events", EVENTS, "--repeats", 1, "--only", workload, "--peers", peer, "--json", file)
    code, output = bench(processes, *options)
    assert code == 0, output
    results = json.loads(file.read_bytes())
    found: dict[str, Any] = results["workloads"][workload]["peers"]
    if peer == "ceiling" and workload == "w2":
        assert not found
        return
    assert not found[peer]["failures"]
    assert [run["events"] for run in found[peer]["runs"]] == [EVENTS]
    assert found[peer]["median"]["lost"] == 0
    assert peer in output
    assert results["machine"]["cpus"] >= 1
    assert results["versions"]["msgspec"]


def test_usage(processes: Processes) -> None:
    """An unknown workload is a usage error."""
    code, _ = bench(processes, "--only", "w99")
    assert code == 2
