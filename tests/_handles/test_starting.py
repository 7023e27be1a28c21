"""Supervisors that are started and never come into office."""

from __future__ import annotations

import pytest
from support import eventually

from shmbus import Bus
from shmbus._handles import care
from shmbus._shm import spawn


def test_what_ends_at_once_is_not_started_for_ever(
    bus_name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where supervisors start, and end before they are in office, that is said once; a later one is tried later."""
    starts: list[str] = []
    start = spawn.spawn_supervisor

    def counted(bus: str) -> None:
        starts.append(bus)
        start(bus)

    monkeypatch.setattr(spawn, "START_NS", 100_000_000)
    monkeypatch.setattr(spawn, "spawn_supervisor", counted)
    code = spawn._CODE
    monkeypatch.setattr(spawn, "_CODE", "raise SystemExit('no memory')")
    with Bus(bus_name) as bus:

        def look() -> bool:
            bus._session._care._next_look = 0.0
            bus._session.care()
            return "was started ended before" in caplog.text

        eventually(look, "it is said")
        told, so_far = len(caplog.records), len(starts)
        for _ in range(50):
            look()
        assert (len(caplog.records), len(starts)) == (told, so_far)
        monkeypatch.setattr(spawn, "_CODE", code)
        monkeypatch.setattr(care, "_SPAWN_AGAIN", 0.0)
        monkeypatch.setattr(spawn, "START_NS", 5_000_000_000)
        eventually(lambda: look() and bus._session.supervised(), "a supervisor is in office")
