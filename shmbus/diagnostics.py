"""What this host offers to shmbus, what it lacks, what was left behind; and what to do about each.

May touch: /proc, /sys, /etc/systemd and /dev/shm, to read; a segment, a semaphore and a lives file of its own, named
after this process, to try them, removed at once. It removes nothing else, and perturbs no bus.
"""

from __future__ import annotations

import math
import os
import platform
import pwd
import re
import resource
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from shmbus import _leftovers, _plugins
from shmbus._shm import cores, place, segment, spawn, waker
from shmbus._shm.lives import Lives

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
_FEW_FILES: Final = 256  # an awaiting handle takes one, and so does everybody who wakes it
_FIRST_NAMESPACE: Final = 0xEFFFFFFC  # the inode of the host's own PID namespace (PROC_PID_INIT_INO)
_PAGE: Final = 4096
_SYSTEM_UIDS: Final = 999  # the last one, where /etc/login.defs does not say
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
        check_locks,
        check_remove_ipc,
        check_supervisor,
        check_descriptors,
        check_cores,
        check_namespace,
        check_memory_limit,
        check_plugins,
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


def check_locks() -> Finding:
    """Whether the file system of /dev/shm has the record locks that prove who lives."""
    name = f"{_leftovers.DOCTOR}:lives-{os.getpid()}"
    try:
        lives = Lives.open(name, create=True)
        try:
            lives.begin(1)
            held = not lives.lost()
        finally:
            lives.close()
    finally:
        segment.unlink(name)
    if held:
        return Finding("locks", "ok", "a life was locked")
    return Finding("locks", "fail", "a lock was taken and is not held", "/dev/shm must be a tmpfs of this very kernel")


def check_remove_ipc(root: str = "", uid: int | None = None) -> Finding:
    """Whether systemd-logind removes this user's files of /dev/shm at the last logout, under running services."""
    uid = os.geteuid() if uid is None else uid
    if not os.path.isdir(f"{root}/run/systemd/users"):
        return Finding("logout", "ok", "no systemd-logind")
    if not _removes_ipc(root):
        return Finding("logout", "ok", "logind: RemoveIPC=no")
    if uid <= _last_system_uid(root):
        return Finding("logout", "ok", f"logind: RemoveIPC=yes, not for system users: uid={uid}")
    user = _user_name(uid)
    if os.path.exists(f"{root}/var/lib/systemd/linger/{user}"):
        return Finding("logout", "ok", f"logind: RemoveIPC=yes, but {user} lingers")
    advice = (
        "every bus of this user goes with the last session that ends: RemoveIPC=no in /etc/systemd/logind.conf, "
        f"loginctl enable-linger {user}, or a system user for services"
    )
    return Finding("logout", "warn", "logind: RemoveIPC=yes", advice)


def check_supervisor() -> Finding:
    """Whether a supervisor can be started from here; without one the participants do its work."""
    reason = spawn.can_spawn()
    if reason is None:
        return Finding("supervisor", "ok", f"can be started by {sys.executable}")
    return Finding("supervisor", "warn", reason, "shmbus supervise BUS elsewhere; without, participants stand in")


def check_cores() -> Finding:
    """How many processes can run at once; where there are more on a bus, nobody spins."""
    quota = cores.quota()
    shown = "" if math.isinf(quota) else f", of which the cgroup's quota leaves {quota:g}"
    return Finding("cores", "ok", f"{len(os.sched_getaffinity(0))}{shown}")


def check_descriptors() -> Finding:
    """Whether a process may have enough descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = f"{_limit(soft)}, up to {_limit(hard)}"
    if soft == resource.RLIM_INFINITY or soft >= _FEW_FILES:
        return Finding("descriptors", "ok", shown)
    return Finding("descriptors", "warn", shown, "ulimit -n 1024: an awaiting handle takes one")


def check_namespace() -> Finding:
    """In which PID namespace this process is. Whoever sees this /dev/shm takes part, from whichever."""
    inode = os.stat("/proc/self/ns/pid").st_ino
    if inode == _FIRST_NAMESPACE:
        return Finding("PID namespace", "ok", f"{inode}, the host's")
    advice = "containers that share a bus need the same /dev/shm: --ipc=container:NAME, or one mount in all of them"
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


def check_plugins() -> Finding:
    """What other distributions bring; none of it is loaded."""
    brought = [
        f"{kind.removeprefix('shmbus.')}: {name} ({value})"
        for kind in _plugins.KINDS
        for name, value in sorted(_plugins.found(kind).items())
        if name not in _plugins.OURS[kind]
    ]
    return Finding("plugins", "ok", ", ".join(brought) or "none but ours")


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


def _removes_ipc(root: str) -> bool:
    """What logind was told last: the main file, then the drop-ins by name; of one name that of the first folder."""
    folders = [f"{root}{folder}/systemd" for folder in ("/etc", "/run", "/usr/local/lib", "/usr/lib")]
    main = [path for folder in folders if os.path.exists(path := f"{folder}/logind.conf")][:1]
    drop_ins: dict[str, str] = {}
    for folder in folders:
        for drop_in in Path(f"{folder}/logind.conf.d").glob("*.conf"):
            drop_ins.setdefault(drop_in.name, str(drop_in))
    found = ""
    for path in [*main, *(drop_ins[name] for name in sorted(drop_ins))]:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
        for value in re.findall(r"^[ \t]*RemoveIPC[ \t]*=[ \t]*(\S*)", text, re.MULTILINE):
            found = value
    return found.lower() not in ("no", "false", "n", "f", "off", "0")


def _last_system_uid(root: str) -> int:
    with suppress(OSError):
        found = re.search(r"^[ \t]*SYS_UID_MAX[ \t]+(\d+)", Path(f"{root}/etc/login.defs").read_text(), re.MULTILINE)
        if found:
            return int(found.group(1))
    return _SYSTEM_UIDS


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


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
