"""Everything that must pass before a change lands; a person and .ci/run call this same entry.

    python tools/check.py                        all steps, for the Python that runs this
    python tools/check.py --only lint,types      some of them
    python tools/check.py --python PATH ...      the tests on further Pythons too, each in a venv of its own

Needs `pip install '.[test]'` in the environment of that Python. Steps run in order, a failed one stops
none of the others, and the exit code is 1 if any failed. The tests see the installed package only.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = Path(sysconfig.get_path("scripts"))
NATIVE = ROOT / "shmbus" / "_native"

HARNESSES = (
    ("tools/sanitize.py", "--short"),
    ("tools/explore.py", "--short"),
    ("tools/litmus.py", "--short"),
    ("tools/thread_fuzz.py", "--short"),
)
"""Checks of the C that the step `native` runs, each in a Python of its own."""

CLOSING_LINE = re.compile(r"^=*\s*((?:\d+ \w+,? ?)+ in [\d.]+s.*?)\s*=*$")
"""What pytest prints last: `N passed, N skipped in N.NNs`."""

NO_TESTS_COLLECTED = 5  # pytest.ExitCode.NO_TESTS_COLLECTED


@dataclass
class Report:
    """What ran, how long it took, and whether it passed; `closing` keeps pytest's own last lines."""

    rows: list[tuple[str, float, bool]] = field(default_factory=list)
    closing: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether any command failed."""
        return any(not ok for _, _, ok in self.rows)

    def run(self, title: str, command: Sequence[str | Path], *, cwd: Path = ROOT, good: Sequence[int] = (0,)) -> bool:
        """Run one command, its output passed on as it comes; record the result under `title`."""
        print(f"\n=== {title}\n$ {shlex.join(map(str, command))}", flush=True)
        started = time.monotonic()
        try:
            code = self._stream(command, cwd)
        except OSError as error:
            print(error)
            code = -1
        ok = code in good
        self.rows.append((title, time.monotonic() - started, ok))
        print(f"--- {title}: {'ok' if ok else f'FAILED (exit code {code})'}", flush=True)
        return ok

    def note(self, title: str, problem: str) -> None:
        """Record a check that is no command: `problem` is empty if it passed."""
        print(f"\n=== {title}\n--- {title}: {'FAILED: ' + problem if problem else 'ok'}", flush=True)
        self.rows.append((title, 0.0, not problem))

    def _stream(self, command: Sequence[str | Path], cwd: Path) -> int:
        workers = len(os.sched_getaffinity(0)) + 1  # of `-n auto`: tests wait for processes as long as they compute
        defaults = {"PYTEST_XDIST_AUTO_NUM_WORKERS": str(workers)}
        env = {**defaults, **os.environ, "PYTHONSAFEPATH": "1", "SHMBUS_WERROR": "1"}
        last = ""
        with subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            assert process.stdout is not None
            for raw in process.stdout:
                line = raw.decode(errors="replace")
                print(line, end="", flush=True)
                last = line.strip() or last
        closing = CLOSING_LINE.match(last)
        if closing and re.search(r"\d (passed|failed|error)", closing[1]):
            self.closing.append(closing[1])
        return process.returncode

    def print_summary(self) -> None:
        """One line a command, then pytest's closing lines."""
        print("\n=== summary")
        for title, seconds, ok in self.rows:
            print(f"{'ok' if ok else 'FAILED':6}  {seconds:7.1f} s  {title}")
        for line in self.closing:
            print(line)


def tool(name: str) -> Path:
    """A command of this environment, whatever PATH says."""
    return SCRIPTS / name


def c_files() -> list[Path]:
    """The C of the package and of its harnesses."""
    return sorted([*NATIVE.glob("*.[ch]"), *(ROOT / "tests" / "native").rglob("*.[ch]")])


def lint(report: Report) -> None:
    """Style of Python and C."""
    report.run("lint: ruff check", [tool("ruff"), "check", "."])
    report.run("lint: ruff format", [tool("ruff"), "format", "--check", "."])
    report.run("lint: clang-format", [tool("clang-format"), "--dry-run", "-Werror", *c_files()])


def types(report: Report) -> None:
    """Types, by both checkers that users have."""
    report.run("types: mypy", [tool("mypy"), "--python-executable", sys.executable])
    report.run("types: pyright", [tool("pyright"), "--pythonpath", sys.executable])


def native(report: Report) -> None:
    """The C sources under the limited API, then their harnesses."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    flags = ["-std=c11", "-fsyntax-only", "-DPy_LIMITED_API=0x030B0000", "-Wall", "-Wextra", "-Werror"]
    includes = [f"-I{sysconfig.get_path('include')}", f"-I{NATIVE}"]
    report.run("native: limited API", [*compiler, *flags, *includes, *sorted(NATIVE.glob("*.c"))])
    for path, *arguments in HARNESSES:
        if (ROOT / path).is_file():
            report.run(f"native: {path}", [sys.executable, ROOT / path, *arguments])
        else:
            print(f"\n=== native: {path}: no such file, not run")


def build(report: Report) -> None:
    """The sdist, a wheel from that sdist, and what the wheel does in an environment of its own."""
    with tempfile.TemporaryDirectory(prefix="shmbus-build-") as name:
        scratch = Path(name)
        dist, venv = scratch / "dist", scratch / "venv"
        if not report.run("build: sdist and wheel", [sys.executable, "-m", "build", "--outdir", dist]):
            return
        report.note("build: sdist is whole", missing_from_sdist(next(dist.glob("*.tar.gz"))))
        if not create_venv(report, "build", sys.executable, venv):
            return
        python = venv / "bin" / "python"
        if report.run("build: install", [python, "-m", "pip", "install", "-q", next(dist.glob("*.whl"))]):
            report.run("build: import", [python, "-c", "import shmbus, shmbus._core"], cwd=scratch)
            report.run("build: command", [venv / "bin" / "shmbus", "--version"], cwd=scratch)


def missing_from_sdist(archive: Path) -> str:
    """What git tracks and the sdist lacks, as a sentence; empty if nothing, or if this is no clone."""
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    with tarfile.open(archive) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    missing = sorted(set(listing.stdout.split("\n")) - packed - {"", ".gitignore"})
    return f"MANIFEST.in leaves out {', '.join(missing)}" if missing else ""


def create_venv(report: Report, step: str, python: str, path: Path) -> bool:
    """Make a virtual environment at `path`."""
    return report.run(f"{step}: venv", [python, "-m", "venv", path])


def tests(report: Report) -> None:
    """The tests, for the Python that runs this."""
    run_pytest(report, "tests", tool("pytest"))


def tests_on(report: Report, python: str) -> None:
    """The tests for another Python, in an environment made for this run as the README makes it, but for those that
    take long and show the same on every Python.
    """
    with tempfile.TemporaryDirectory(prefix="shmbus-tests-") as name:
        step, venv = f"tests on {python}", Path(name) / "venv"
        if not create_venv(report, step, python, venv):
            return
        if report.run(f"{step}: install", [venv / "bin" / "pip", "install", "-q", ".[test]"]):
            run_pytest(report, step, venv / "bin" / "pytest", leaving_out=" and not once")


def run_pytest(report: Report, step: str, pytest: Path, leaving_out: str = "") -> None:
    """First all that run side by side, then those that must have the machine to themselves."""
    report.run(f"{step}: side by side", [pytest, "-n", "auto", "-m", f"not isolated{leaving_out}"])
    report.run(f"{step}: isolated", [pytest, "-m", "isolated"], good=(0, NO_TESTS_COLLECTED))


STEPS: dict[str, Callable[[Report], None]] = {
    "lint": lint,
    "types": types,
    "native": native,
    "build": build,
    "tests": tests,
}


def chosen_steps(text: str) -> list[str]:
    """The steps that `--only` names, in the order in which they run."""
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in STEPS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown step {', '.join(unknown)}; there are {', '.join(STEPS)}")
    return [name for name in STEPS if name in names]


def main() -> int:
    """Run the chosen steps and say what passed."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--only", type=chosen_steps, default=list(STEPS), metavar=",".join(STEPS))
    parser.add_argument("--python", nargs="+", default=[], metavar="PATH", help="test on these Pythons too")
    options = parser.parse_args()
    report = Report()
    for name in options.only:
        STEPS[name](report)
    for python in options.python:
        tests_on(report, python)
    report.print_summary()
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
