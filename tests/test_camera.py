"""The pipeline of docs/payloads.md, a camera with viewers and workers that are killed, in its short form."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from support import Processes

pytest.importorskip("numpy", reason="needs numpy")

TOOL = Path(__file__).resolve().parents[1] / "tools" / "camera.py"


@pytest.mark.isolated
def test_short_form(processes: Processes) -> None:
    """Every frame is seen by a worker, whole, under kills; in the end only what is looked at is used."""
    child = processes.run([sys.executable, str(TOOL), "--short", "--seed", "1"])
    output, errors = child.communicate()
    assert child.returncode == 0, errors
    assert re.search(r"120 frames, \d+ kills: all seen", output)
