"""The types of the public API: mypy and pyright accept what is right, and reject each line that is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import shmbus

FOLDER = Path(__file__).resolve().parent / "typing"


def environment() -> dict[str, str]:
    """That of a stranger: the checkers find shmbus where this run found it, and no configuration of ours."""
    path = str(Path(shmbus.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": path, "MYPYPATH": "" if "site-packages" in path else path}


def mypy(file: Path, cache: Path) -> set[int]:
    """Lines that `mypy --strict` rejects."""
    options = [
        "--strict",
        "--output=json",
        "--config-file=",
        f"--cache-dir={cache}",
        "--python-executable",
        sys.executable,
    ]
    command = [sys.executable, "-m", "mypy", *options, "--follow-imports=silent", str(file)]
    run = subprocess.run(command, env=environment(), cwd=cache, text=True, capture_output=True, check=False)
    assert run.returncode in (0, 1), run.stdout + run.stderr
    found = [json.loads(text) for text in run.stdout.splitlines() if text.startswith("{")]
    assert {entry["file"] for entry in found} <= {str(file), os.path.relpath(file, cache)}, found
    return {entry["line"] for entry in found if entry["severity"] == "error"}


def pyright(file: Path, folder: Path) -> set[int]:
    """Lines that pyright rejects in its standard mode."""
    settings = {"typeCheckingMode": "standard", "extraPaths": [environment()["PYTHONPATH"]]}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    shutil.copy(file, folder)
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(folder)]
    run = subprocess.run(command, env=environment(), cwd=folder, text=True, capture_output=True, check=False)
    assert run.returncode in (0, 1), run.stdout + run.stderr
    found = json.loads(run.stdout)
    assert found["summary"]["filesAnalyzed"] == 1, found
    return {
        entry["range"]["start"]["line"] + 1 for entry in found["generalDiagnostics"] if entry["severity"] == "error"
    }


@pytest.mark.parametrize("checker", [mypy, pyright])
@pytest.mark.parametrize("name", ["right.py", "wrong.py"])
def test_checkers(tmp_path: Path, checker: Callable[[Path, Path], set[int]], name: str) -> None:
    """Exactly the lines marked `# wrong` are rejected: none in right.py, all of them in wrong.py."""
    file = FOLDER / name
    lines = file.read_text(encoding="utf-8").splitlines()
    marked = {number for number, text in enumerate(lines, 1) if re.search(r"  # wrong$", text)}
    assert bool(marked) == (name == "wrong.py")
    rejected = checker(file, tmp_path)
    accepted = [f"{number}: {lines[number - 1].strip()}" for number in sorted(marked - rejected)]
    refused = [f"{number}: {lines[number - 1].strip()}" for number in sorted(rejected - marked)]
    assert not accepted, f"{checker.__name__} accepts what is wrong"
    assert not refused, f"{checker.__name__} rejects what is right"
