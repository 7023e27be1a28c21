"""Every peer that is installed carries events in each of its shapes, whole and in order, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from support import Processes, child_environment, entries

ROOT = Path(__file__).resolve().parents[1]
EVENTS = 2048
ONE_TO_ONE = {"w1", "w1b", "w7"}
BROADCAST = ONE_TO_ONE | {"w3", "w4"}
QUEUE = BROADCAST | {"w5"}
PEERS = {
    "mp.Pipe": ("multiprocessing", ONE_TO_ONE),
    "pyzmq pub": ("zmq", ONE_TO_ONE | {"w3", "w4"}),
    "faster-fifo": ("faster_fifo", QUEUE),
    "cloudtoid": ("cloudtoid_interprocess", QUEUE),
    "subetha spin": ("subetha", BROADCAST),
    "subetha park": ("subetha", ONE_TO_ONE),
    "kickmsg": ("kickmsg", BROADCAST),
    "mmbus": ("mmbus", BROADCAST),
    "iceoryx2 spin": ("iceoryx2", BROADCAST),
    "iceoryx2 park": ("iceoryx2", BROADCAST),
    "redis": ("redis", QUEUE),
}
"""What to import, and the workloads that it can do."""


@pytest.mark.parametrize("peer", PEERS)
def test_peer(processes: Processes, tmp_path: Path, peer: str) -> None:
    """A peer does every workload that it is made for, each event checked by its receiver, and nothing stays."""
    module, workloads = PEERS[peer]
    if not find_spec(module) or (peer == "redis" and not shutil.which("redis-server")):
        pytest.skip(f"needs {module}")
    file = tmp_path / "out.json"
    options = ("--events", EVENTS, "--repeats", 1, "--peers", peer, "--only", ",".join(workloads), "--json", file)
    command = [sys.executable, "-m", "bench", *map(str, options)]
    # Python must look into the working directory, where bench/ is.
    child = processes.run(command, cwd=ROOT, env=child_environment(PYTHONSAFEPATH=""))
    output, _ = child.communicate()
    assert child.returncode == 0, output
    assert not entries(f"bench-{child.pid}-")
    results = {name: found["peers"][peer] for name, found in json.loads(file.read_bytes())["workloads"].items()}
    assert {name: found["failures"] for name, found in results.items()} == {name: [] for name in workloads}
    events = {name: [run["events"] for run in found["runs"]] for name, found in results.items()}
    assert events == {name: [EVENTS] for name in workloads}
