"""The short form of tools/queue_kills.py: whose queue survives the death of one of its users."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "queue_kills.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TOOL, *arguments], capture_output=True, text=True, timeout=300, check=False)


def test_ours_survives() -> None:
    """In no round does a killed user leave the others of our queue wedged, or an object twice or out of order."""
    result = run("--rounds", "9", "--only", "ours")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.isolated
def test_the_original_does_not() -> None:
    """The same deaths leave users of multiprocessing's queue wedged: what is measured can happen."""
    result = run("--rounds", "9", "--only", "theirs")
    assert result.returncode == 0, result.stderr
    rows = [row.split() for row in result.stdout.splitlines() if "multiprocessing" in row]
    assert sum(int(row[-2]) for row in rows) >= 1
