"""The benchmarks run: every workload, a few hundred events, from the clone as a user starts them, and as installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from support import Processes, child_environment, entries

from shmbus import cli

ROOT = Path(__file__).resolve().parents[1]
EVENTS = 320
WORKLOADS = ("w1", "w1b", "w2", "w3", "w4", "w5", "w6m", "w7")
YARDSTICKS = {"w2": "spin loop", "w7": "semaphores"}

needs_numpy = pytest.mark.skipif(not importlib.util.find_spec("numpy"), reason="needs numpy")
needs_matplotlib = pytest.mark.skipif(not importlib.util.find_spec("matplotlib"), reason="needs matplotlib")


def bench(processes: Processes, *arguments: object, installed: bool = False, **environment: str) -> tuple[int, str]:
    """Run the benchmarks to their end: the exit code and what they printed. They leave nothing in /dev/shm."""
    command = [sys.executable, "-m", *(("shmbus", "bench") if installed else ("bench",)), *map(str, arguments)]
    # Python must look into the working directory, where bench/ is.
    where: dict[str, Any] = {} if installed else {"cwd": ROOT}
    env = child_environment(**environment) if installed else child_environment(PYTHONSAFEPATH="", **environment)
    child = processes.run(command, stderr=subprocess.STDOUT, env=env, **where)
    output, _ = child.communicate()
    assert not entries(f"bench-{child.pid}-")
    return child.returncode, output


def measured(processes: Processes, file: Path, *arguments: object, installed: bool = False) -> dict[str, Any]:
    """Run them for the results in `file`, which must be without failures."""
    options = ("--events", EVENTS, "--repeats", 1, "--json", file)
    code, output = bench(processes, *options, *arguments, installed=installed)
    assert code == 0, output
    results: dict[str, Any] = json.loads(file.read_bytes())
    return results


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Results that no machine had."""
    latency = {"p50": 1_000, "p99": 20_000, "p999": 300_000, "max": 4_000_000}

    def peer(ns: float, of: dict[str, int] | None = None) -> dict[str, Any]:
        cpu = {"sender_cpu_ns": ns / 2, "receiver_cpu_ns": ns}
        return {"median": {"ns": ns, "ns_least": ns, "ns_most": ns, "rate": 1e9 / ns, **cpu, "lost": 0, "latency": of}}

    points = [{"at": at, "ns": 200.0 + at, "ns_least": 190.0} for at in (1, 2, 4)]
    fast = {"shmbus": peer(300.0), "mp.Queue": peer(6000.0), "ceiling": peer(240.0), "pyzmq": {"failures": ["a\nlost"]}}
    results = {
        "taken": "2026-01-01T00:00:00+00:00",
        "machine": {
            "cpu": "a processor", "cpus": 2, "usable_cpus": 2, "memory": 1 << 30, "kernel": "6.0",
            "architecture": "x86_64", "load": [0.0, 0.0, 0.0],
        },
        "python": "CPython 3.12.0",
        "versions": {"shmbus": "0.1.0"},
        "revision": None,
        "options": {},
        "workloads": {
            "w1": {"title": "W1: one", "peers": fast},
            "w2": {"title": "W2: paced", "peers": {"shmbus": peer(1e4, latency), "spin loop": peer(1e4, latency)}},
        },
        "growth": [{"axis": "subscribers", "unit": "", "curves": {"publish": points}}],
        "idle": [{"processes": 100, "seconds": 5.0, "cpu": 0.02, "supervisor_cpu": 0.01, "pss": 9e6}],
    }  # fmt: skip
    file = tmp_path / "recorded.json"
    file.write_text(json.dumps(results))
    return file


@pytest.mark.parametrize("workload", WORKLOADS)
def test_smoke(processes: Processes, tmp_path: Path, workload: str) -> None:
    """Each workload comes to a result with shmbus, a peer and its yardstick, every event checked by its receiver."""
    peers = ["shmbus", "mp.Queue", YARDSTICKS.get(workload, "ceiling")]
    if importlib.util.find_spec("zmq"):
        peers.append("pyzmq")
    results = measured(processes, tmp_path / "out.json", "--only", workload, "--peers", ",".join(peers))
    found = results["workloads"][workload]["peers"]
    assert set(found) == set(peers)
    for peer in found.values():
        assert [run["events"] for run in peer["runs"]] == [EVENTS]
        assert peer["median"]["lost"] == 0
        assert (peer["median"]["latency"] is not None) == (workload in YARDSTICKS)
    assert results["machine"]["cpus"] >= 1
    assert results["versions"]["msgspec"]


@needs_numpy
def test_frames(processes: Processes, tmp_path: Path) -> None:
    """Frames, loans and rows come to a result with shmbus, a peer and their yardsticks, and curves of shmbus alone."""
    peers, file = ("shmbus", "shared_memory", "memcpy", "ceiling"), tmp_path / "out.json"
    options = ("--quick", "--only", "w6,w6z,w6f,w9,w9w", "--peers", ",".join(peers))
    results = measured(processes, file, *options)
    found = {name: set(result["peers"]) for name, result in results["workloads"].items()}
    assert found == {"w6": {*peers[:3]}, "w6z": {*peers[:2]}, "w9": {*peers}, "w9w": {*peers}}
    for result in results["workloads"].values():
        assert all(peer["median"]["ns"] > 0 for peer in result["peers"].values())
    assert {growth["workload"] for growth in results["growth"]} == {"w6f"}
    assert {point["at"] for growth in results["growth"] for points in growth["curves"].values() for point in points}
    code, output = bench(processes, "table", file)
    assert code == 0
    assert "| shmbus over one memcpy |" in output
    assert "W6f: " in output


def test_variants(processes: Processes, tmp_path: Path) -> None:
    """Each way to wait comes to a result of its own."""
    peers = {"shmbus", "shmbus park", "shmbus spin"}
    results = measured(processes, tmp_path / "out.json", "--only", "w7", "--peers", ",".join(peers))
    assert all(results["workloads"]["w7"]["peers"][peer]["runs"] for peer in peers)


def test_alone(processes: Processes, tmp_path: Path) -> None:
    """Growth has a curve for each axis with a figure at each place, and those that wait cost something."""
    results = measured(processes, tmp_path / "out.json", "--quick", "--only", "w8,idle", "--peers", "shmbus")
    assert {growth["axis"] for growth in results["growth"]} >= {"subscribers", "publishers", "workers", "ring"}
    for growth in results["growth"]:
        assert all(point["ns"] > 0 for points in growth["curves"].values() for point in points)
    (idle,) = results["idle"]
    assert idle["processes"] > 1
    assert idle["pss"] > 0


def test_installed(processes: Processes, tmp_path: Path) -> None:
    """The installed command measures, keeps and prints as the clone does."""
    file = tmp_path / "out.json"
    results = measured(processes, file, "--only", "w1", "--peers", "shmbus,mp.Queue", installed=True)
    assert results["workloads"]["w1"]["peers"]["shmbus"]["runs"]
    code, output = bench(processes, "table", file, installed=True)
    assert code == 0
    assert "| mp.Queue |" in output


def test_joined(processes: Processes, tmp_path: Path) -> None:
    """Results gather in one file workload by workload, and runs of another kind are refused and change nothing."""
    file = tmp_path / "out.json"
    measured(processes, file, "--only", "w1", "--peers", "shmbus")
    results = measured(processes, file, "--only", "w3", "--peers", "shmbus")
    assert set(results["workloads"]) == {"w1", "w3"}
    before = file.read_bytes()
    code, output = bench(processes, "--events", EVENTS, "--repeats", 2, "--json", file, "--peers", "shmbus")
    assert code == 2
    assert "options: " in output
    assert file.read_bytes() == before


def test_table(processes: Processes, recorded: Path) -> None:
    """The table has times, ratios and what failed."""
    code, output = bench(processes, "table", recorded)
    assert code == 0
    assert "| **shmbus** | 300 ns |" in output
    assert "| mp.Queue | 20 × |" in output
    assert "| pyzmq | failed |" in output
    assert "- W1, pyzmq: failed: lost" in output
    assert "| subscribers | publish | 1: 201 ns | 4: 204 ns | +1% | +1% |" in output
    assert "100 parked subscribers" in output


@needs_matplotlib
def test_plot(processes: Processes, recorded: Path, tmp_path: Path) -> None:
    """Every figure is drawn as SVG and PNG, and the same results make the same SVG again."""
    drawn = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        code, output = bench(processes, "plot", recorded, "--to", folder)
        assert code == 0, output
        drawn.append({path.name: path.read_bytes() for path in folder.iterdir()})
    names = {f"{name}.{suffix}" for name in ("throughput", "w2", "growth") for suffix in ("svg", "png")}
    assert set(drawn[0]) == names
    assert all(drawn[0][name] == drawn[1][name] for name in names if name.endswith("svg"))


def test_broken_file(processes: Processes, tmp_path: Path) -> None:
    """A file that holds no results is told by its name."""
    file = tmp_path / "broken.json"
    file.write_text("{")
    code, output = bench(processes, "table", file)
    assert code == 2
    assert f"no results in {file}" in output


def test_usage(processes: Processes) -> None:
    """An unknown workload is a usage error."""
    code, _ = bench(processes, "--only", "w99")
    assert code == 2


def test_missing_peer(processes: Processes, tmp_path: Path) -> None:
    """A peer that was asked for and is not installed is told, with what to install."""
    (tmp_path / "zmq.py").write_text("raise ImportError('no such thing here')")
    code, output = bench(processes, "--peers", "pyzmq", "--only", "w1", installed=True, PYTHONPATH=str(tmp_path))
    assert code == 2
    assert "without pyzmq: no such thing here" in output
    assert "pip install 'shmbus[bench]'" in output


def test_not_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the package came without the benchmarks the command says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["bench", "--quick"]) == 1
    assert "pip install 'shmbus[bench]'" in capsys.readouterr().err


def test_packages_are_complete() -> None:
    """The list of packages in pyproject.toml names every folder of modules."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = [path.parent for top in ("shmbus", "bench") for path in (ROOT / top).rglob("__init__.py")]
    names = [os.path.relpath(folder, ROOT).replace(os.sep, ".") for folder in folders]
    packages = {f"shmbus.{name}" if name.startswith("bench") else name for name in names}
    assert set(project["tool"]["setuptools"]["packages"]) == packages
