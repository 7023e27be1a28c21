"""Diagnostics: what `doctor` finds of logind, of a place to lock in, and of an interpreter that starts nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from support import SHM

from shmbus import diagnostics

USER = 54321


def tree(root: Path, files: dict[str, str]) -> str:
    """A fake root with these files, where logind runs."""
    for name, text in {"run/systemd/users/.keep": "", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


MAIN = "etc/systemd/logind.conf"


@pytest.mark.parametrize(
    ("files", "status"),
    [
        ({}, "warn"),
        ({MAIN: "[Login]\n#RemoveIPC=no\n"}, "warn"),
        ({MAIN: "[Login]\nRemoveIPC=no\n"}, "ok"),
        ({MAIN: "[Login]\n  RemoveIPC = off\n"}, "ok"),
        ({MAIN: "[Login]\nRemoveIPC=no\nRemoveIPC=yes\n"}, "warn"),
        ({MAIN: "[Login]\nRemoveIPC=no\n", "etc/systemd/logind.conf.d/9.conf": "[Login]\nRemoveIPC=yes\n"}, "warn"),
        ({"usr/lib/systemd/logind.conf": "[Login]\nRemoveIPC=no\n"}, "ok"),
        ({MAIN: "", "usr/lib/systemd/logind.conf": "[Login]\nRemoveIPC=no\n"}, "warn"),
        (
            {
                "usr/lib/systemd/logind.conf.d/5.conf": "[Login]\nRemoveIPC=yes\n",
                "etc/systemd/logind.conf.d/5.conf": "[Login]\nRemoveIPC=no\n",
                "run/systemd/logind.conf.d/4.conf": "[Login]\nRemoveIPC=yes\n",
            },
            "ok",
        ),
        ({"etc/login.defs": "SYS_UID_MIN 100\nSYS_UID_MAX 60000\n"}, "ok"),
        ({"etc/login.defs": "SYS_UID_MAX 999\n"}, "warn"),
        ({f"var/lib/systemd/linger/{USER}": ""}, "ok"),
    ],
)
def test_logout(tmp_path: Path, files: dict[str, str], status: str) -> None:
    """What logind was told last decides, system users and those who linger aside; the default is to remove."""
    found = diagnostics.check_remove_ipc(tree(tmp_path, files), USER)
    assert found.status == status
    assert ("RemoveIPC=no in" in found.advice) == (status == "warn")


def test_logout_without_logind(tmp_path: Path) -> None:
    """Where logind does not run, and for system users, nothing is removed at a logout."""
    assert diagnostics.check_remove_ipc(str(tmp_path), USER).status == "ok"
    assert diagnostics.check_remove_ipc(tree(tmp_path, {}), 33).status == "ok"


def test_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter that cannot start a supervisor is a warning, with the reason."""
    assert diagnostics.check_supervisor().status == "ok"
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    found = diagnostics.check_supervisor()
    assert found.status == "warn"
    assert "frozen" in found.value


def test_locks() -> None:
    """Locks are tried on a file of its own, which is gone afterwards."""
    assert diagnostics.check_locks().status == "ok"
    assert not [entry for entry in os.listdir(SHM) if f"lives-{os.getpid()}" in entry]


def test_every_check_has_a_name() -> None:
    """`examine` makes each check once, and none of them fails where the tests run."""
    found = diagnostics.examine()
    names = [finding.check for finding in found if finding.check != "leftovers"]
    assert len(names) == len(set(names))
    assert {"locks", "logout", "supervisor", "cores"} <= set(names)
    assert [finding for finding in found if finding.status == "fail" and finding.check != "leftovers"] == []
