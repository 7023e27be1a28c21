"""Making segments: whole or not at all, whoever dies or removes on the way, and within what a process may have."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator

import pytest
from support import SHM, Processes, entries, line

from shmbus import inspect
from shmbus._shm import segment as _segment
from shmbus._shm import waker
from shmbus._shm.segment import Segment
from shmbus.errors import NoSpaceError

PATIENT = 60.0
SIZE = 1 << 14


def fill(memory: object) -> None:
    memoryview(memory)[:5] = b"whole"  # type: ignore[arg-type]


@pytest.fixture
def name(bus_name: str) -> Iterator[str]:
    """The name of a segment; whatever begins with it is removed in the end."""
    own = f"shmbus-{bus_name}"
    yield own
    for left in _segment.names(own):
        _segment.unlink(left)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def create_each(*names: str) -> None:
    from shmbus._shm.segment import Segment

    def mark(memory: object) -> None:
        memoryview(memory)[-4:] = b"done"  # type: ignore[arg-type]

    print("ready")
    input()
    for each in names:
        try:
            Segment.create(each, 1 << 16, mark)
            won = 1
        except FileExistsError:
            won = 0
        print(won, Segment.attach(each).map[-4:].decode())


def test_one_of_many_creators_wins(name: str, processes: Processes) -> None:
    """Of 20 processes that create a name at once exactly one wins, and all find it initialised."""
    wanted = [f"{name}-{i}" for i in range(5)]
    children = [processes.spawn(create_each, *wanted) for _ in range(20)]
    for child in children:
        assert line(child) == "ready"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    answers = [[line(child).split() for _ in wanted] for child in children]
    for i in range(len(wanted)):
        assert sum(int(answer[i][0]) for answer in answers) == 1
        assert {answer[i][1] for answer in answers} == {"done"}
    assert entries(name) == wanted


def create_and_hang(name: str) -> None:
    from shmbus._shm.segment import Segment

    def hang(memory: object) -> None:
        print("inside")
        input()

    Segment.create(name, 1 << 16, hang)


def test_temporary_files_of_the_living_stay(name: str, processes: Processes) -> None:
    """A segment that is being made has a temporary name, which goes once its maker is dead and not before."""
    child = processes.spawn(create_and_hang, f"sem.{name}:{os.geteuid()}:sub-1-1")
    assert line(child) == "inside"
    (temporary,) = entries(name)
    assert temporary.startswith(f"{name}:{os.geteuid()}:tmp-")
    assert _segment.remove_temporaries(f"{name}:{os.geteuid()}:") == []
    child.kill()
    child.wait()
    assert entries(name) == [temporary]
    assert _segment.remove_temporaries(f"{name}:{os.geteuid()}:") == [temporary]
    assert entries(name) == []


def die_creating(name: str, point: str) -> None:
    from shmbus._shm import failpoint
    from shmbus._shm.segment import Segment

    failpoint.arm(point)
    Segment.create(name, 1 << 16, lambda memory: None)


@pytest.mark.parametrize(
    ("point", "made"), [("segment.begun", False), ("segment.filled", False), ("segment.linked", True)]
)
def test_killed_creator(name: str, processes: Processes, point: str, made: bool) -> None:
    """A creator killed at any point leaves a whole segment or none, and a file that no listing takes for anything."""
    assert processes.spawn(die_creating, f"{name}:{os.geteuid()}:ring-7", point).wait(PATIENT) == -signal.SIGKILL
    assert len(entries(name)) == 1 + made
    assert _segment.names(f"{name}:{os.geteuid()}:ring-") == [f"{name}:{os.geteuid()}:ring-7"] * made
    assert waker.names(name) == []
    assert name.removeprefix("shmbus-") not in inspect.buses()
    if made:
        assert Segment.attach(f"{name}:{os.geteuid()}:ring-7").size == 1 << 16
    else:
        Segment.create(f"{name}:{os.geteuid()}:ring-7", SIZE, fill).close()
    assert len(_segment.remove_temporaries(f"{name}:{os.geteuid()}:")) == 1
    assert entries(name) == [f"{name}:{os.geteuid()}:ring-7"]


def test_temporary_name_is_taken_away(name: str) -> None:
    """Whoever loses the temporary name to the removal of the whole bus makes the segment all the same."""
    taken: list[str] = []

    def take(memory: object) -> None:
        if not taken:
            taken.extend(_segment.names(f"{name}:tmp-"))
            _segment.unlink(taken[0])

    Segment.create(name, SIZE, take).close()
    assert taken
    assert entries(name) == [name]


def make_under_signals(name: str) -> None:
    import signal

    from shmbus._shm.segment import Segment

    count = 0

    def note(number: int, frame: object) -> None:
        nonlocal count
        count += 1

    signal.signal(signal.SIGALRM, note)
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    Segment.create(name, 256 << 20, lambda memory: None).close()
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(count > 0)


def test_reserving_goes_on_under_a_profiler(name: str, processes: Processes) -> None:
    """A large segment is made although signals come faster than its memory can be reserved in one piece."""
    assert line(processes.spawn(make_under_signals, name)) == "True"


def make_beyond_the_limit(name: str) -> None:
    import resource
    import signal

    from shmbus._shm.segment import Segment
    from shmbus.errors import NoSpaceError

    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # as in an embedded interpreter
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        Segment.create(name, 8192, lambda memory: None)
    except NoSpaceError as error:
        print(error.size, "ulimit -f" in str(error))


def test_file_size_limit_kills_nobody(name: str, processes: Processes) -> None:
    """A segment beyond RLIMIT_FSIZE is NoSpaceError, also where SIGXFSZ would kill."""
    assert line(processes.spawn(make_beyond_the_limit, name)) == "8192 True"
    assert entries(name) == []


def test_mode_does_not_depend_on_the_umask(name: str) -> None:
    """A segment can be attached by its owner, and by nobody else, whatever the umask was when it was made."""
    before = os.umask(0o777)
    try:
        Segment.create(name, SIZE, fill).close()
    finally:
        os.umask(before)
    assert (SHM / name).stat().st_mode & 0o777 == 0o600


def test_failed_initialisation_leaves_nothing(name: str) -> None:
    """What the initialiser raises goes up, and neither a file nor a descriptor is left."""
    before = open_files()
    with pytest.raises(ZeroDivisionError):
        Segment.create(name, SIZE, lambda memory: 1 // 0)
    assert entries(name) == []
    assert open_files() == before


def test_no_room(name: str) -> None:
    """A segment that /dev/shm cannot hold is NoSpaceError with the bytes asked and free, and no file."""
    before = open_files()
    with pytest.raises(NoSpaceError, match="--shm-size") as caught:
        Segment.create(name, 1 << 50, fill)
    assert caught.value.errno == errno.ENOSPC
    assert (caught.value.name, caught.value.size) == (name, 1 << 50)
    assert 0 <= caught.value.free < 1 << 50
    assert entries(name) == []
    assert open_files() == before


def create_without_descriptors(name: str) -> None:
    import os
    import resource

    from shmbus._shm.segment import Segment
    from shmbus.errors import ResourceLimitError

    used = os.dup(0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used, used))
    try:
        Segment.create(name, 4096, lambda memory: None)
    except ResourceLimitError as error:
        print(type(error).__name__, error.errno, error.limit, error.value == used, "ulimit -n" in str(error))


def test_lack_of_descriptors_is_not_lack_of_room(name: str, processes: Processes) -> None:
    """A creator without descriptors is told the limit, its value, and what to do."""
    said = line(processes.spawn(create_without_descriptors, name))
    assert said == f"ResourceLimitError {errno.EMFILE} RLIMIT_NOFILE True True"
    assert entries(name) == []


def attach_without_memory(name: str) -> None:
    import resource
    from pathlib import Path

    from shmbus._shm.segment import Segment
    from shmbus.errors import ResourceLimitError

    Segment.create(name, 64 << 20, lambda memory: None).close()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20), resource.RLIM_INFINITY))
    try:
        Segment.attach(name)
    except ResourceLimitError as error:
        print(error.limit, error.value > used, "ulimit -v" in str(error), name in str(error))


def test_lack_of_addresses(name: str, processes: Processes) -> None:
    """A segment that RLIMIT_AS keeps from being mapped is an error that says so."""
    assert line(processes.spawn(attach_without_memory, name)) == "RLIMIT_AS True True True"
