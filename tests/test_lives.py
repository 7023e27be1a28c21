"""Lives that end badly, or oddly: the short form of tools/lives.py, which says what must hold in each part."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LIVES = Path(__file__).resolve().parents[1] / "tools" / "lives.py"


PARTS = (
    *("reuse", "limbo", "forks", "exits", "crowd", "signals"),
    *("exec", "undumpable", "hidepid", "timens", "pidns", "containers"),
)


@pytest.mark.parametrize("part", PARTS)
def test_lives(part: str) -> None:
    """The living go on with exact books whatever becomes of a process beside them, and nothing of it is left."""
    command = [sys.executable, str(LIVES), "--short", part]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-5000:]}"
    if "SKIPPED" in done.stdout:
        pytest.skip(done.stdout.strip())
