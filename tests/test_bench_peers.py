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
FEW = 20  # frames of 1 MiB
BATCH = 4096  # rows
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
LOANS = {"w6", "w6z", "w9"}
FRAMES = {
    "pyzmq": ("zmq", LOANS - {"w6z"}),
    "faster-fifo": ("faster_fifo", LOANS - {"w6z"}),
    "mmbus": ("mmbus", LOANS - {"w6z"}),
    "iceoryx2 spin": ("iceoryx2", LOANS),
    "iceoryx2 park": ("iceoryx2", LOANS),
    "momentumx": ("momentumx", LOANS),
}
"""The same at frames and rows."""


@pytest.mark.parametrize("peer", PEERS)
def test_peer(processes: Processes, tmp_path: Path, peer: str) -> None:
    """A peer does every workload that it is made for, each event checked by its receiver, and nothing stays."""
    module, workloads = PEERS[peer]
    if not find_spec(module) or (peer == "redis" and not shutil.which("redis-server")):
        pytest.skip(f"needs {module}")
    assert measured(processes, tmp_path / "out.json", peer, workloads) == {name: [EVENTS] for name in workloads}


@pytest.mark.parametrize("peer", FRAMES)
def test_frames(processes: Processes, tmp_path: Path, peer: str) -> None:
    """A peer carries frames, loans and rows, each looked at by its receiver, and nothing stays."""
    module, workloads = FRAMES[peer]
    if not find_spec(module) or not find_spec("numpy"):
        pytest.skip(f"needs {module} and numpy")
    found = measured(processes, tmp_path / "out.json", peer, workloads, FEW)
    assert found == {name: [BATCH if name == "w9" else FEW] for name in workloads}


def measured(
    processes: Processes, file: Path, peer: str, workloads: set[str], events: int = EVENTS
) -> dict[str, list[int]]:
    """The events of each run, none of which failed."""
    options = ("--events", events, "--repeats", 1, "--peers", peer, "--only", ",".join(workloads), "--json", file)
    command = [sys.executable, "-m", "bench", *map(str, options)]
    # Python must look into the working directory, where bench/ is.
    child = processes.run(command, cwd=ROOT, env=child_environment(PYTHONSAFEPATH=""))
    output, _ = child.communicate()
    assert child.returncode == 0, output
    assert not entries(f"bench-{child.pid}-")
    results = {name: found["peers"][peer] for name, found in json.loads(file.read_bytes())["workloads"].items()}
    assert {name: found["failures"] for name, found in results.items()} == {name: [] for name in workloads}
    return {name: [run["events"] for run in found["runs"]] for name, found in results.items()}
