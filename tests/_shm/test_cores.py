"""Cores: what affinity and cgroup quotas leave, in trees as containers show them."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from shmbus._shm import cores

V2 = "30 23 0:26 {base} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup rw,nsdelegate\n"
V1 = "33 24 0:29 {base} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
OTHER = "34 24 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"


def tree(root: Path, cgroup: str, mounts: str, files: dict[str, str]) -> str:
    """A fake root: /proc/self, and files below the mount points."""
    for name, text in {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mounts, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


@pytest.mark.parametrize(
    ("cgroup", "base", "files", "expected"),
    [
        ("0::/", "/", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/", "/", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/", "/", {}, math.inf),
        ("0::/a/b", "/", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"}, 2.0),
        ("0::/a/b", "/", {"a/cpu.max": "50000 100000\n", "a/b/cpu.max": "400000 100000\n"}, 0.5),
        ("0::/docker/x", "/docker/x", {"cpu.max": "300000 100000\n"}, 3.0),
        ("0::/docker/x/y", "/docker/x", {"y/cpu.max": "300000 100000\n"}, 3.0),
        ("0::/../elsewhere", "/", {"cpu.max": "300000 100000\n"}, 3.0),
        ("0::/dockerx", "/docker", {"cpu.max": "300000 100000\n", "x/cpu.max": "100000 100000"}, 3.0),
        ("0::/", "/", {"cpu.max": "what 100000\n"}, math.inf),
        ("0::/", "/", {"cpu.max": "100000 0\n"}, math.inf),
    ],
)
def test_quota_of_version_2(tmp_path: Path, cgroup: str, base: str, files: dict[str, str], expected: float) -> None:
    """The tightest quota from this process's cgroup up to the mount counts, wherever that begins."""
    found = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    assert cores.quota(tree(tmp_path, cgroup + "\n", OTHER + V2.format(base=base), found)) == expected


@pytest.mark.parametrize(
    ("quota", "expected"), [("-1", math.inf), ("250000", 2.5), ("20000", 0.2)], ids=["none", "2.5", "0.2"]
)
def test_quota_of_version_1(tmp_path: Path, quota: str, expected: float) -> None:
    """The quota of the cpu controller counts, also beside an empty hierarchy of version 2."""
    folder = "sys/fs/cgroup/cpu,cpuacct"
    files = {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": "100000\n"}
    cgroup = "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n0::/docker/x\n"
    mounts = OTHER + V1.format(base="/docker/x") + V2.format(base="/").replace("/sys/fs/cgroup", "/sys/fs/unified")
    assert cores.quota(tree(tmp_path, cgroup, mounts, files)) == expected


def test_quota_without_cgroups(tmp_path: Path) -> None:
    """Without /proc, or without any cgroup, there is no quota."""
    assert cores.quota(str(tmp_path)) == math.inf


@pytest.mark.parametrize(("quota", "expected"), [(math.inf, 3), (8.0, 3), (2.9, 2), (1.0, 1), (0.25, 1)])
def test_usable(monkeypatch: pytest.MonkeyPatch, quota: float, expected: int) -> None:
    """Whole cores are counted, at least one, and never more than the affinity has."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 5})
    monkeypatch.setattr(cores, "_quota", (-math.inf, math.inf))
    monkeypatch.setattr(cores, "quota", lambda: quota)
    assert cores.usable() == expected
    monkeypatch.setattr(cores, "quota", lambda: 1 / 0)
    assert cores.usable() == expected
