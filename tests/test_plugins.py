"""Plugins: found by name, loaded at first use, told by `doctor`; ours pass the conformance that others' must."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import shmbus
from shmbus import _plugins, diagnostics
from shmbus.journal.sqlite import SqliteStore
from shmbus.testing import journal_conformance


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A distribution that brings a store, and another that does not load."""
    info = tmp_path / "stores-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stores\nVersion: 1.0\n")
    points = ("memory = stores_plugin:Memory", "broken = stores_plugin:Nothing", "sqlite = stores_plugin:Memory")
    (info / "entry_points.txt").write_text("\n".join(["[shmbus.journals]", *points, ""]))
    (tmp_path / "stores_plugin.py").write_text("class Memory:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "stores_plugin"


def test_found_by_name_and_loaded_late(plugin: str) -> None:
    """A plugin is listed without being imported, is loaded by its name, and cannot take ours."""
    assert _plugins.found("shmbus.journals")["memory"] == "stores_plugin:Memory"
    finding = next(f for f in diagnostics.examine() if f.check == "plugins")
    assert "memory (stores_plugin:Memory)" in finding.value
    assert plugin not in sys.modules
    assert _plugins.load("shmbus.journals", "memory").__name__ == "Memory"
    assert _plugins.load("shmbus.journals", "sqlite") is SqliteStore
    with pytest.raises(shmbus.ConfigError, match="'broken' of shmbus"):
        _plugins.load("shmbus.journals", "broken")
    with pytest.raises(shmbus.ConfigError, match="is named 'none'; there is broken, memory, sqlite"):
        _plugins.load("shmbus.journals", "none")


def test_the_default_store_conforms(tmp_path: Path) -> None:
    """The SQLite store passes the conformance of journals."""
    journal_conformance(SqliteStore, tmp_path)
