"""Where a run of the suite took place: the machine, the versions, the revision."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import psutil

from . import frames, peers

if TYPE_CHECKING:
    from collections.abc import Iterable


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where it ran."""

    cpu: str
    cpus: int
    usable_cpus: int
    memory: int
    """Bytes."""
    kernel: str
    architecture: str
    load: tuple[float, float, float]
    """Load averages when the suite began."""


def machine() -> Machine:
    """This one, now."""
    return Machine(
        cpu=_cpu(),
        cpus=os.cpu_count() or 1,
        usable_cpus=len(os.sched_getaffinity(0)),
        memory=psutil.virtual_memory().total,
        kernel=platform.release(),
        architecture=platform.machine(),
        load=os.getloadavg(),
    )


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def python() -> str:
    """Implementation and version."""
    return f"{platform.python_implementation()} {platform.python_version()}"


def versions(peer_names: Iterable[str]) -> dict[str, str]:
    """Of the distributions that take part."""
    adapters = [peers.load(name) if name in peers.MODULES else frames.load(name) for name in peer_names]
    wanted = {"msgspec", "shmbus", *(adapter.DISTRIBUTION for adapter in adapters)}
    return {name: _version(name) for name in sorted(filter(None, wanted))}


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # built in place: only the module knows
        return str(getattr(sys.modules.get(distribution), "__version__", "unknown"))


def revision() -> str | None:
    """Git revision of the clone that this file is part of, with "+" for uncommitted changes."""

    def git(*arguments: str) -> str:
        folder = Path(__file__).resolve().parent
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # an installation may lie within some other clone
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
