"""Kills: the short form of tools/kill_campaign.py, which says what must hold; the long form is `--kills 5000`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).resolve().parents[1] / "tools" / "kill_campaign.py"


@pytest.mark.parametrize(
    ("roles", "kills"),
    [
        ("publisher", 15),
        ("subscriber,lossy", 15),
        ("worker", 20),
        ("supervisor", 10),
        ("publisher,subscriber,lossy,worker,supervisor", 40),
    ],
)
def test_kills(roles: str, kills: int) -> None:
    """Processes killed under load hang nobody, lose nothing, and leave exact books and an empty /dev/shm."""
    done = subprocess.run(
        [sys.executable, str(CAMPAIGN), "--kills", str(kills), "--roles", roles],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-5000:]}"
    assert f"{kills} kills" in done.stdout


@pytest.mark.parametrize("supervisor", ["stopped", "absent"])
def test_kills_without_a_supervisor(supervisor: str) -> None:
    """The same holds while every supervisor stands still, and where none can be started."""
    command = [sys.executable, str(CAMPAIGN), "--kills", "40", "--supervisor", supervisor]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-5000:]}"
    assert "40 kills" in done.stdout


def test_failpoints() -> None:
    """A death at any named line of a slow path hangs nobody, loses nothing, and is repaired by whoever comes next."""
    done = subprocess.run(
        [sys.executable, str(CAMPAIGN.with_name("kill_points.py"))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-5000:]}"
    assert "failpoints" in done.stdout


def test_kills_with_views() -> None:
    """Processes that die with views in hand, loans open and acks behind them leave nothing used, and hurt nobody."""
    command = [sys.executable, str(CAMPAIGN.with_name("pool_kills.py")), "--kills", "12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-5000:]}"
    assert "12 kills" in done.stdout
