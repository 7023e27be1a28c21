"""What this host offers to shmbus, what it lacks, what was left behind; and what to do about each.

May touch: /proc, /sys and /dev/shm, to read; a segment and a semaphore of its own, named after this process,
to try them, removed at once. It removes nothing else, and perturbs no bus.
"""

from __future__ import annotations

import os
import platform
import re
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from shmbus import _leftovers
from shmbus._shm import place, segment, waker

if TYPE_CHECKING:
    from collections.abc import Callable

Status = Literal["ok", "warn", "fail"]
"""ok; warn: works, but not everywhere or not for long; fail: shmbus cannot work like this."""


class Finding(msgspec.Struct, frozen=True):
    """One look at one thing."""

    check: str
    status: Status
    value: str
    """What was found."""
    advice: str = ""
    """What to do about it; '' when there is nothing to do."""


_MIB: Final = 1 << 20
_KERNEL: Final = (5, 3)  # pidfd_open
_GLIBC: Final = (2, 30)  # sem_clockwait
_SMALL_SHM: Final = 64 * _MIB  # what container runtimes give by default: some thirty rings of the default size
_LITTLE_FREE: Final = 16 * _MIB
_FEW_FILES: Final = 256  # a mapped ring takes a descriptor before Python 3.13, an awaiting handle always does
_FIRST_NAMESPACE: Final = 0xEFFFFFFC  # the inode of the host's own PID namespace (PROC_PID_INIT_INO)
_PAGE: Final = 4096
_RAISE_SHM: Final = "docker run --shm-size=1g, or mount -o remount,size=1g /dev/shm"


def examine() -> list[Finding]:
    """Run every check; one that cannot be made is a failed one. Takes a few milliseconds."""
    checks: tuple[Callable[[], Finding], ...] = (
        check_kernel,
        check_pidfd,
        check_libc,
        check_mount,
        check_room,
        check_segment,
        check_semaphore,
        check_descriptors,
        check_namespace,
        check_memory_limit,
    )
    return [*map(_run, checks), *_check_leftovers()]


def _run(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # whatever a broken host answers is a finding
        name = check.__name__.removeprefix("check_").replace("_", " ")
        return Finding(name, "fail", f"{type(error).__name__}: {error}")


def check_kernel() -> Finding:
    """Whether the kernel tells of deaths at once."""
    release = platform.release()
    if _version(release) >= _KERNEL:
        return Finding("kernel", "ok", release)
    return Finding(
        "kernel",
        "warn",
        release,
        "5.3 or later sees a death at once; here it is looked for, 5 times a second",
    )


def check_pidfd() -> Finding:
    """Whether a process may be watched through a pidfd; a sandbox can forbid what the kernel has."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError) as error:
        advice = "allow pidfd_open in the sandbox (seccomp); until then deaths are looked for, 5 times a second"
        return Finding("pidfd", "warn", f"pidfd_open: {error}", advice)
    return Finding("pidfd", "ok", "a death is seen at once")


def check_libc() -> Finding:
    """Whether the C library can sleep on a semaphore by the monotonic clock."""
    name, version = platform.libc_ver()
    found = f"{name or 'unknown'} {version}".strip()
    if name == "glibc" and _version(version) >= _GLIBC:
        return Finding("C library", "ok", found)
    if name == "glibc":
        return Finding("C library", "fail", found, "shmbus needs glibc 2.30 or later (sem_clockwait)")
    return Finding("C library", "warn", found, "shmbus is tested with glibc only")


def check_mount() -> Finding:
    """Whether /dev/shm is a tmpfs that can be written to."""
    mount = _mount_of(place.SHM_DIR)
    if mount is None:
        if not os.path.isdir(place.SHM_DIR):
            return Finding("/dev/shm", "fail", "missing", "mount -t tmpfs -o size=1g shm /dev/shm")
        return Finding("/dev/shm", "warn", "a folder, not a mount", "mount -t tmpfs -o size=1g shm /dev/shm")
    shown = f"{mount.kind} ({mount.options})"
    if "ro" in mount.options.split(","):
        return Finding("/dev/shm", "fail", shown, "mount -o remount,rw /dev/shm")
    if mount.kind != "tmpfs":
        return Finding("/dev/shm", "warn", shown, "a tmpfs is expected; another file system may write to a disk")
    return Finding("/dev/shm", "ok", shown)


def check_room() -> Finding:
    """Whether /dev/shm has room for more than a few rings."""
    status = os.statvfs(place.SHM_DIR)
    total, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    shown = f"{_mib(total)}, {_mib(total - free)} used, {_mib(free)} free"
    if status.f_files and not status.f_favail:
        return Finding("room", "fail", f"{shown}, no inode free", "remove files from /dev/shm")
    if not total:  # a tmpfs without a limit
        return Finding("room", "ok", "no limit")
    if free < _LITTLE_FREE:
        return Finding("room", "fail" if free < _MIB else "warn", shown, f"remove leftovers, or {_RAISE_SHM}")
    if total <= _SMALL_SHM:
        return Finding("room", "warn", shown, f"little for shared memory: {_RAISE_SHM}")
    return Finding("room", "ok", shown)


def check_segment() -> Finding:
    """Whether a segment can be created, reserved, named, mapped and removed."""
    name = f"{_leftovers.DOCTOR}:segment-{os.getpid()}"
    try:
        segment.Segment.create(name, _PAGE, lambda memory: None).close()
        segment.Segment.attach(name).close()
    except OSError as error:
        return Finding("segments", "fail", str(error), f"/dev/shm must be a writable tmpfs, with room: {_RAISE_SHM}")
    finally:
        segment.unlink(name)
    return Finding("segments", "ok", "created, mapped and removed one")


def check_semaphore() -> Finding:
    """Whether a POSIX semaphore between processes can be made, posted and slept on."""
    name = f"{_leftovers.DOCTOR}:semaphore-{os.getpid()}"
    posts = waker.Posts()
    try:
        sleeper = waker.Sleeper(name)
        posted = posts.post(name)
        awake = sleeper.sleep(1.0)
        sleeper.close()
    finally:
        posts.close()
        waker.unlink_all(name)
    if posted and awake:
        return Finding("semaphores", "ok", "a sleeper was woken")
    advice = "POSIX semaphores between processes do not work here; see the C library and the sandbox"
    return Finding("semaphores", "fail", "a sleeper was not woken", advice)


def check_descriptors() -> Finding:
    """Whether a process may have enough descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = f"{_limit(soft)}, up to {_limit(hard)}"
    if soft == resource.RLIM_INFINITY or soft >= _FEW_FILES:
        return Finding("descriptors", "ok", shown)
    return Finding("descriptors", "warn", shown, "ulimit -n 1024: a mapped ring takes one, an awaiting handle too")


def check_namespace() -> Finding:
    """In which PID namespace this process is: only processes of the same one can share a bus."""
    inode = os.stat("/proc/self/ns/pid").st_ino
    if inode == _FIRST_NAMESPACE:
        return Finding("PID namespace", "ok", f"{inode}, the host's")
    advice = "shared with processes of this container only; --pid=host or --pid=container:NAME joins another"
    return Finding("PID namespace", "ok", f"{inode}, a container's", advice)


def check_memory_limit() -> Finding:
    """Whether a memory limit leaves room: what lies in /dev/shm counts against the cgroup that wrote it."""
    for limit_file, usage_file in _cgroup_files():
        try:
            limit, usage = limit_file.read_text().strip(), int(usage_file.read_text())
        except (OSError, ValueError):
            continue
        if not limit.isdigit() or int(limit) >= 1 << 60:  # "max"; version 1 says no limit in a huge number
            return Finding("memory limit", "ok", "none")
        shown = f"{_mib(int(limit))}, {_mib(usage)} used"
        if int(limit) - usage < _SMALL_SHM:
            advice = "shared memory counts against it: raise it (docker run --memory), or expect to be killed"
            return Finding("memory limit", "warn", shown, advice)
        return Finding("memory limit", "ok", shown)
    return Finding("memory limit", "ok", "no cgroup to be seen")


def _check_leftovers() -> list[Finding]:
    try:
        found = _leftovers.find()
    except OSError as error:
        return [Finding("leftovers", "fail", str(error))]
    if not found:
        return [Finding("leftovers", "ok", "none")]
    return [Finding("leftovers", "warn", leftover.what, leftover.advice) for leftover in found]


@dataclass(frozen=True)
class _Mount:
    kind: str
    options: str


def _mount_of(path: str) -> _Mount | None:
    """What is mounted at `path` itself; the last entry lies on top."""
    found = None
    with open("/proc/self/mounts", encoding="utf-8", errors="replace") as file:
        for entry in file:
            _, point, kind, options, *_ = entry.split(" ")
            if point == path:
                found = _Mount(kind, options)
    return found


def _cgroup_files() -> list[tuple[Path, Path]]:
    """Where the memory limit and the usage of this process may stand, the likeliest first."""
    root = Path("/sys/fs/cgroup")
    groups = Path("/proc/self/cgroup").read_text().splitlines()
    files: list[tuple[Path, Path]] = []
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if not controllers:
            folder = root / path.lstrip("/")
            files.append((folder / "memory.max", folder / "memory.current"))
        elif "memory" in controllers.split(","):
            folder = root / "memory"
            for place in (folder / path.lstrip("/"), folder):
                files.append((place / "memory.limit_in_bytes", place / "memory.usage_in_bytes"))
    return [*files, (root / "memory.max", root / "memory.current")]


def _version(text: str) -> tuple[int, ...]:
    """The first two numbers: "6.1.0-13-amd64" is (6, 1)."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


def _mib(size: int) -> str:
    return f"{size / _MIB:,.0f} MiB"


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)
