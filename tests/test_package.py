"""What an installation holds and says, and what a build says on a machine that lacks something."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import pytest
from support import child_environment

ROOT = Path(__file__).resolve().parents[1]
DISTRIBUTION = metadata.distribution("shmbus")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of what a build needs, so that nothing is written into the source tree."""
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "shmbus", tmp_path / "shmbus", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


def build(source: Path, prelude: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `setup.py build_ext` in the copy, after `prelude`, and return what it printed."""
    code = (
        "import runpy, sys, setuptools\n"
        f"sys.argv = ['setup.py', 'build_ext', '--inplace']\n{prelude}\n"
        "runpy.run_path('setup.py', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", code]
    env = child_environment(**environment)
    return subprocess.run(command, cwd=source, env=env, capture_output=True, text=True, check=False)


EXTRAS = {
    *("numpy", "arrow", "avro", "protobuf", "serve", "top", "otel", "nats", "redis", "kafka", "amqp"),  # for users
    *("test", "bench", "roads"),  # for who works on it
}


def test_metadata() -> None:
    """The distribution names its Python, its licence, its dependencies and its extras."""
    about = DISTRIBUTION.metadata
    needed = {line.split(";")[0].split(">")[0].strip() for line in DISTRIBUTION.requires or []}
    assert about["Requires-Python"] == ">=3.11"
    assert about["License-Expression"] == "Apache-2.0"
    assert {"msgspec", "posix-ipc", "psutil", "rich"} <= needed
    assert set(about.get_all("Provides-Extra") or []) == EXTRAS


def test_versions_agree() -> None:
    """The package and its metadata carry the same version."""
    import shmbus

    assert shmbus.__version__ == DISTRIBUTION.version


def test_entry_point() -> None:
    """The command `shmbus` is installed and leads to a function that can be called."""
    (entry,) = DISTRIBUTION.entry_points.select(group="console_scripts", name="shmbus")
    assert entry.value == "shmbus.cli:main"
    assert callable(entry.load())


def test_typing_files_are_installed() -> None:
    """Type checkers find the marker and the stub of the compiled core in the installed package."""
    package = resources.files("shmbus")
    assert (package / "py.typed").is_file()
    assert (package / "_core.pyi").is_file()


def test_no_sources_are_installed() -> None:
    """The installed package carries the compiled core and none of its C sources."""
    names = [str(path) for path in DISTRIBUTION.files or []]
    assert not [name for name in names if name.endswith((".c", ".h"))]


def test_needs_linux(source: Path) -> None:
    """A build on another system stops with a sentence that says what shmbus needs."""
    done = build(source, "import sysconfig; sysconfig.get_config_vars(); sys.platform = 'darwin'")
    assert done.returncode != 0
    assert "error: shmbus needs Linux: it uses /dev/shm" in done.stderr
    assert "platform='darwin'" in done.stderr


def test_needs_a_compiler(source: Path) -> None:
    """A build without a C compiler stops with a sentence that says what to install."""
    missing = str(source / "no-such-compiler")
    done = build(source, CC=missing, LDSHARED=missing)
    assert done.returncode != 0
    assert f"error: shmbus needs a C11 compiler, and there is no {missing!r} here" in done.stderr
    assert "apt-get install gcc libc6-dev" in done.stderr


def test_needs_headers(source: Path) -> None:
    """A build without Python.h stops with a sentence that says what was sought, where, and the cure."""
    code = "import runpy\nrunpy.run_path('setup.py', run_name='checks')['require_headers'](['/nonexistent/include'])\n"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=source,
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"shmbus needs the headers of Python {version}, and Python.h is not in /nonexistent/include" in done.stderr
    assert "python3-dev" in done.stderr


def test_broken_source_is_no_option(source: Path) -> None:
    """A core that does not compile fails the build, which says so and leaves no package without its core."""
    (source / "shmbus" / "_native" / "zz_broken.c").write_text("#error broken on purpose\n")
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler.split()[0]) is None:
        pytest.skip(f"no compiler: {compiler}")
    done = build(source)
    assert done.returncode != 0
    assert "broken on purpose" in done.stdout + done.stderr
    assert "shmbus needs a C11 compiler with <stdatomic.h>" in done.stderr
    assert not list((source / "shmbus").glob("_core*.so"))
