"""Lives that end badly, or oddly: the short form of tools/lives.py, which says what must hold in each part."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[1] / "tools"


PARTS = (
    *("reuse", "limbo", "forks", "exits", "crowd", "signals"),
    *("exec", "lines", "undumpable", "hidepid", "timens", "pidns", "containers"),
)


@pytest.mark.parametrize("part", PARTS)
def test_lives(part: str) -> None:
    """The living go on with exact books whatever becomes of a process beside them, and nothing of it is left."""
    command = [sys.executable, str(TOOLS / "lives.py"), "--short", part]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-5000:]}"
    if "SKIPPED" in done.stdout:
        pytest.skip(done.stdout.strip())


@pytest.mark.parametrize("handles", [(), ("--publisher", "--subscriber")], ids=["bus", "handles"])
def test_starts(handles: tuple[str, ...]) -> None:
    """Of many fresh processes that open one bus at once none fails, also where it comes and goes meanwhile."""
    command = [sys.executable, str(TOOLS / "starts.py"), "--processes", "32", "--rounds", "1", *handles]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-5000:]}"
