"""Damaged segments: the short forms of tools/fuzz_segments.py and tools/fuzz_readers.py, which say what must hold."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def run(tool: str, *words: str) -> str:
    done = subprocess.run([sys.executable, str(TOOLS / tool), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-20_000:]}\n{done.stderr[-5000:]}"
    return done.stdout


def test_segments() -> None:
    """Whatever is damaged in the segments of a running bus, nobody crashes, hangs or raises what is not documented."""
    assert "0 failures" in run("fuzz_segments.py", "--short")


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_readers() -> None:
    """The C readers touch nothing outside of a damaged segment, and end."""
    output = run("fuzz_readers.py", "--runs", "50000")
    assert "50000 mutations" in output or "SKIPPED" in output


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_pool() -> None:
    """What reads a pool touches nothing outside of a damaged one, and no slip opens bytes outside of its extent."""
    output = run("fuzz_pool.py", "--mutations", "20000")
    assert "20000 mutations" in output or "SKIPPED" in output
