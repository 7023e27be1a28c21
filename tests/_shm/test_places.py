"""Places that lack: no /dev/shm, a read-only or a full one, one on a disk; privileges and descriptors that are gone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest
from support import Processes, child_environment, child_source, entries, line

from shmbus._shm import descriptors

PATIENT = 60.0


def in_mounts(processes: Processes, mount: str, code: Callable[..., object], *args: str) -> subprocess.Popen[str]:
    """Run code in a mount namespace of its own, after a line of shell."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare, for a mount namespace")
    script = f'{mount}\nexec "$@"'
    command = [sys.executable, "-c", child_source(code), *args]
    return processes.run(["unshare", "-m", "sh", "-ec", script, "sh", *command], env=child_environment())


def open_what_cannot_be(name: str) -> None:
    import shmbus
    from shmbus import inspect

    for use in (lambda: shmbus.Bus(name), lambda: shmbus.Bus.attach(name), inspect.buses):
        try:
            use()
        except (shmbus.errors.ShmbusError, LookupError) as error:
            print(type(error).__name__, "|", error)
        else:
            print("opened")


def test_no_place(bus_name: str, processes: Processes) -> None:
    """Without /dev/shm everything says that it is not there, and what to do."""
    # What lies under /dev is seen again, without the shm that is mounted there.
    mount = "mount -t tmpfs none /dev; mknod /dev/null c 1 3; mknod /dev/urandom c 1 9"
    child = in_mounts(processes, mount, open_what_cannot_be, bus_name)
    for _ in range(3):
        said = line(child)
        assert said.startswith("NoSharedMemoryError | ")
        assert "/dev/shm is not there" in said
        assert "mount -t tmpfs" in said


def test_read_only_place(bus_name: str, processes: Processes) -> None:
    """In a read-only /dev/shm no bus can be made, which says so, and there is none."""
    child = in_mounts(processes, "mount -t tmpfs -o ro none /dev/shm", open_what_cannot_be, bus_name)
    assert "NoSharedMemoryError | [Errno 30] /dev/shm is mounted read-only (mount -o remount,rw" in line(child)
    assert line(child).startswith("BusNotFoundError")
    assert line(child) == "opened"


def open_without_rights(name: str) -> None:
    import os

    import shmbus

    bus = shmbus.Bus  # what is imported, before nothing can be
    os.setuid(54321)
    try:
        bus(name, supervise=False)
    except shmbus.errors.AccessError as error:
        print(error)


def test_place_of_another_mode(bus_name: str, processes: Processes) -> None:
    """Where this user may make no file in /dev/shm the error names mode and owner, and what to do."""
    child = in_mounts(processes, "mount -t tmpfs -o mode=755 none /dev/shm", open_without_rights, bus_name)
    said = line(child)
    assert "/dev/shm lets this user make no file: mode=755, owner uid=0, own uid=54321" in said
    assert "chmod 1777 /dev/shm" in said


def use_a_bus(name: str) -> None:
    import shmbus

    topic = shmbus.Topic("t", int)
    with shmbus.Bus(name) as bus, bus.subscriber(topic) as sub, bus.publisher(topic) as pub:
        pub.publish(7)
        print(sub.receive(timeout=30))
    from shmbus import diagnostics

    found = diagnostics.check_mount()
    print(found.status, found.value)


@pytest.mark.parametrize(
    ("mount", "status"),
    [
        ("mkdir $T/place; mount --bind $T/place /dev/shm", "warn"),
        ("mount -t tmpfs -o noexec,nosuid,nodev none /dev/shm", "ok"),
    ],
    ids=["disk", "noexec"],
)
def test_place_that_works(bus_name: str, tmp_path: object, processes: Processes, mount: str, status: str) -> None:
    """A bus works in a folder of a disk, of which `doctor` warns, and where nothing can be executed."""
    child = in_mounts(processes, mount.replace("$T", str(tmp_path)), use_a_bus, bus_name)
    assert line(child) == "7"
    assert line(child).split()[0] == status
    assert child.wait(PATIENT) == 0


def drop_privileges(name: str) -> None:
    import logging
    import os

    import shmbus

    logging.disable()
    topic = shmbus.Topic("t", int)
    bus = shmbus.Bus(name, supervise=False)
    pub = bus.publisher(topic)
    os.seteuid(54321)
    pub.publish(1)
    for use in (lambda: bus.subscriber(topic), lambda: bus.publisher(topic)):
        try:
            use()
        except shmbus.errors.AccessError as error:
            print(error)
    os.seteuid(0)
    bus.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_dropped_privileges(bus_name: str, processes: Processes) -> None:
    """A bus that was opened as root says so where it is used as another user, and what is open goes on."""
    child = processes.spawn(drop_privileges, bus_name)
    for _ in range(2):
        assert "opened as uid 0, now uid 54321: open the bus after dropping privileges" in line(child)
    assert child.wait(PATIENT) == 0


def work_in_a_full_place(name: str) -> None:
    import contextlib
    import os

    import shmbus
    from shmbus._shm.waker import Posts, Sleeper

    Sleeper(f"{name}:0:sub-1-1").close()
    rest = os.open("/dev/shm/rest", os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while True:
            os.write(rest, bytes(4096))
    sleeper, posts = Sleeper(f"{name}:0:sub-1-1"), Posts()
    print(bool(posts.post(sleeper.name)), sleeper.sleep(30))  # not a wait: what is tested
    for use in (lambda: Sleeper(f"{name}:0:sub-1-2"), lambda: shmbus.Bus("x" + name.removeprefix("shmbus-"))):
        try:
            use()
        except shmbus.errors.NoSpaceError as error:
            print(error.free, error.size > 0)
    print(sorted(os.listdir("/dev/shm")))


def test_full_place(bus_name: str, processes: Processes) -> None:
    """In a full /dev/shm an existing channel is attached, and what has to be made is NoSpaceError, no more."""
    mount = "mount -t tmpfs -o size=1m none /dev/shm"
    child = in_mounts(processes, mount, work_in_a_full_place, f"shmbus-{bus_name}")
    assert line(child) == "True True"
    assert line(child) == "0 True"
    assert line(child) == "0 True"
    left = line(child)
    assert "tmp-" not in left
    assert f"sem.shmbus-{bus_name}:0:sub-1-1" in left


def work_without_standard_descriptors(name: str, report: str) -> None:
    import asyncio
    import contextlib
    import os

    import shmbus

    for number in range(3):
        os.close(number)
    topic = shmbus.Topic("t", int)

    def ours() -> list[str]:
        links = [f"/proc/self/fd/{number}" for number in range(3)]
        return [os.readlink(link) for link in links if os.path.lexists(link)]

    with shmbus.Bus(name) as bus, bus.subscriber(topic) as sub, bus.publisher(topic) as pub:
        low = ours()

        async def main() -> int:
            asyncio.get_running_loop().call_later(0.01, pub.publish, 7)
            return await sub.areceive(timeout=30)

        got = asyncio.run(main())
        while not bus.stats().supervisor.pid:
            os.sched_yield()
        for number in range(3):
            with contextlib.suppress(OSError):
                os.write(number, b"what a print would write\n")
        pub.publish(8)
        low += ours()
        got += sub.receive(timeout=30)
    with open(report, "w") as file:
        file.write(f"{got} {low}")


def test_descriptors_are_above_the_standard_ones(bus_name: str, tmp_path: object, processes: Processes) -> None:
    """In a daemon that closed its standard descriptors nothing of ours gets their numbers."""
    report = f"{tmp_path}/report"
    child = processes.spawn(work_without_standard_descriptors, bus_name, report)
    assert child.wait(PATIENT) == 0
    with open(report) as file:
        assert file.read() == "15 []"


def test_low_numbers_are_given_up() -> None:
    """A descriptor below 3 is moved, one above stays as it is, and no copy of either is inherited."""
    fd = os.open("/dev/null", os.O_RDONLY)
    assert descriptors.above(fd) == fd
    copy = descriptors.duplicate(fd)
    assert copy > 2
    assert not os.get_inheritable(copy)
    os.close(copy)
    os.close(fd)


def open_without_descriptors(name: str) -> None:
    import os
    import resource

    import shmbus
    import shmbus.inspect

    topic = shmbus.Topic("t", int)
    bus = shmbus.Bus(name, supervise=False)
    used = os.dup(0)
    os.close(used)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
    for use in (lambda: bus.publisher(topic), lambda: shmbus.Bus(f"{name}-2"), shmbus.inspect.buses):
        try:
            use()
        except shmbus.errors.ResourceLimitError as error:
            print(type(error).__name__, error.limit, error.value == used)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    bus.close()


def test_limit_of_descriptors(bus_name: str, processes: Processes) -> None:
    """Without a descriptor left, opening handles, buses and listings says which limit that is."""
    child = processes.spawn(open_without_descriptors, bus_name)
    for _ in range(3):
        assert line(child) == "ResourceLimitError RLIMIT_NOFILE True"
    assert child.wait(PATIENT) == 0
    assert [entry for entry in entries(bus_name) if "tmp-" in entry] == []
