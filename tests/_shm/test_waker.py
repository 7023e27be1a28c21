"""Wake-up channels: posts across processes, sleeps that signals and closing end, forks, and names that go."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import posix_ipc
import psutil
import pytest
from support import SHM, Processes, entries, eventually, line

from shmbus._shm import descriptors, waker
from shmbus._shm.waker import Posts, Sleeper
from shmbus.errors import AccessError, ClosedError, CorruptSegmentError

PATIENT = 60.0


@pytest.fixture
def name(bus_name: str) -> Iterator[str]:
    """The name of a channel; its semaphore and FIFO are removed in the end."""
    own = f"shmbus-{bus_name}:sub-1-1"
    yield own
    waker.unlink_all(own)


@pytest.fixture
def posts() -> Iterator[Posts]:
    cache = Posts()
    yield cache
    cache.close()


@pytest.fixture
def sleeper(name: str) -> Iterator[Sleeper]:
    own = Sleeper(name)
    yield own
    own.close()


def readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def asleep(child: subprocess.Popen[str]) -> bool:
    return bool(psutil.Process(child.pid).status() == psutil.STATUS_SLEEPING)


def sleep_in_child(name: str) -> None:
    from shmbus._shm.waker import Sleeper

    sleeper = Sleeper(name)
    print("ready")
    print(sleeper.sleep(600))  # not a wait: what is tested


def test_post_wakes_another_process(name: str, posts: Posts, processes: Processes) -> None:
    """A process that sleeps on its semaphore is woken by the post of another one."""
    child = processes.spawn(sleep_in_child, name)
    assert line(child) == "ready"
    eventually(lambda: asleep(child), "the child sleeps")
    assert posts.post(name)
    assert line(child) == "True"


def test_early_posts_are_kept(sleeper: Sleeper, posts: Posts) -> None:
    """A post that comes before the sleep ends it at once, and each counts for one sleep."""
    assert posts.post(sleeper.name)
    assert posts.post(sleeper.name)
    sleeper.post()
    assert sleeper.sleep(PATIENT)  # not a wait: what is tested
    assert sleeper.drain() == 2
    assert sleeper.drain() == 0


@pytest.mark.parametrize("seconds", [0.0, -1.0, 0.02])
def test_sleep_runs_its_time(sleeper: Sleeper, seconds: float) -> None:
    """A sleep that nobody ends is False, after its whole time."""
    before = time.monotonic()
    assert not sleeper.sleep(seconds)  # not a wait: what is tested
    assert time.monotonic() - before >= seconds


def test_new_sleeper_finds_no_old_posts(sleeper: Sleeper, posts: Posts) -> None:
    """Whoever opens a channel again starts without the posts and bytes meant for its predecessor."""
    fd = sleeper.fifo()
    assert posts.post(sleeper.name)
    assert posts.post_fifo(sleeper.name)
    assert readable(fd)
    again = Sleeper(sleeper.name)
    assert again.drain() == 0
    assert not readable(again.fifo())
    again.close()


def test_semaphore_is_what_the_library_makes(sleeper: Sleeper, name: str) -> None:
    """The semaphore's file equals, byte by byte and in its mode, the one that sem_open() creates."""
    other = posix_ipc.Semaphore(f"/{name}-other", posix_ipc.O_CREX, mode=0o600, initial_value=0)
    other.close()
    ours, theirs = SHM / f"sem.{name}", SHM / f"sem.{name}-other"
    assert ours.read_bytes() == theirs.read_bytes()
    assert ours.stat().st_mode == theirs.stat().st_mode


def test_unknown_channels_are_told(name: str, posts: Posts) -> None:
    """A post to a channel that does not exist is False, creates nothing, and succeeds once it exists."""
    assert not posts.post(name)
    assert not posts.post_fifo(name)
    assert entries(name) == []
    sleeper = Sleeper(name)
    fd = sleeper.fifo()
    assert posts.post(name)
    assert posts.post_fifo(name)
    assert sleeper.drain() == 1
    assert readable(fd)
    sleeper.close()


def sleep_under_signals(name: str) -> None:
    import signal
    import sys

    from shmbus._shm.waker import Sleeper

    def leave(number: int, frame: object) -> None:
        sys.exit(7)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGUSR1, lambda number, frame: print("handled"))
    sleeper = Sleeper(name)
    while True:
        print("ready")
        try:
            print(sleeper.sleep(600))  # not a wait: what is tested
        except KeyboardInterrupt:
            print("interrupted")


def test_signals_end_a_sleep(name: str, processes: Processes) -> None:
    """A signal ends the sleep: its handler has run, and KeyboardInterrupt and SystemExit go up from it."""
    child = processes.spawn(sleep_under_signals, name)
    expected = [
        (signal.SIGUSR1, ["handled", "False"]),
        (signal.SIGINT, ["interrupted"]),
        (signal.SIGTERM, []),
    ]
    for number, said in expected:
        assert line(child) == "ready"
        eventually(lambda: asleep(child), "the child sleeps")
        child.send_signal(number)
        assert [line(child) for _ in said] == said
    assert child.wait(PATIENT) == 7


def test_close_ends_a_sleep(name: str) -> None:
    """Closing a sleeper ends the sleep of another thread, which finds it closed at its next one."""
    sleeper = Sleeper(name)
    slept, closed = threading.Event(), threading.Event()

    def sleep_until_closed() -> None:
        try:
            while True:
                slept.set()
                sleeper.sleep(600)  # not a wait: what is tested
        except ClosedError:
            closed.set()

    thread = threading.Thread(target=sleep_until_closed)
    thread.start()
    assert slept.wait(PATIENT)
    sleeper.close()
    sleeper.close()
    thread.join(PATIENT)
    assert closed.is_set()
    for use in (sleeper.drain, sleeper.post, sleeper.fifo):
        with pytest.raises(ClosedError):
            use()


def use_after_fork(name: str) -> None:
    import os

    from shmbus._shm.waker import Posts, Sleeper
    from shmbus.errors import ForkedError

    sleeper, posts = Sleeper(name), Posts()
    fd = sleeper.fifo()
    print(bool(posts.post(name)), posts.post_fifo(name), sleeper.drain(), os.read(fd, 9), flush=True)
    child = os.fork()
    if child == 0:
        try:
            sleeper.sleep(600)  # not a wait: it must be refused
        except ForkedError as error:
            print(str(os.getppid()) in str(error), flush=True)
        print(bool(posts.post(name)), posts.post_fifo(name), flush=True)
        sleeper.close()
        posts.close()
        os._exit(0)
    os.waitpid(child, 0)
    print(sleeper.drain(), os.read(fd, 9), bool(posts.post(name)), sleeper.drain())


def test_forked_child_posts_but_does_not_sleep(name: str, processes: Processes) -> None:
    """A forked child posts as before, may not sleep in its parent's place, and takes nothing from it."""
    child = processes.spawn(use_after_fork, name)
    assert [line(child) for _ in range(4)] == [
        r"True True 1 b'\x00'",
        "True",
        "True True",
        r"1 b'\x00' True 1",
    ]


def await_fifo(name: str) -> None:
    import asyncio

    from shmbus._shm.waker import Sleeper

    async def main() -> None:
        sleeper = Sleeper(name)
        woken = asyncio.Event()
        asyncio.get_running_loop().add_reader(sleeper.fifo(), woken.set)
        print("ready")
        await woken.wait()
        asyncio.get_running_loop().remove_reader(sleeper.fifo())
        sleeper.drain_fifo()
        print("awake")

    asyncio.run(main())


def test_fifo_wakes_an_event_loop(name: str, posts: Posts, processes: Processes) -> None:
    """A process that awaits its FIFO in an event loop is woken by the post of another one."""
    child = processes.spawn(await_fifo, name)
    assert line(child) == "ready"
    assert posts.post_fifo(name)
    assert line(child) == "awake"
    assert child.wait(PATIENT) == 0


def test_a_duplicate_is_of_the_fifo(sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever closes the sleeper while another thread duplicates its FIFO waits: the number is not another file's."""
    closing = threading.Thread(target=sleeper.close)

    def duplicate(fd: int) -> int:
        closing.start()
        closing.join(0.2)  # it never ends within: that is what is tested
        assert stat.S_ISFIFO(os.fstat(fd).st_mode)
        return os.dup(fd)

    monkeypatch.setattr(descriptors, "duplicate", duplicate)
    descriptor = sleeper.duplicate_fifo()
    closing.join()
    assert stat.S_ISFIFO(os.fstat(descriptor).st_mode)
    os.close(descriptor)
    with pytest.raises(ClosedError):
        sleeper.duplicate_fifo()


def test_full_fifo_is_a_wake_up(sleeper: Sleeper, posts: Posts) -> None:
    """Posting a full FIFO neither blocks nor fails, and one draining empties it."""
    sleeper.drain_fifo()
    fd = sleeper.fifo()
    assert fd == sleeper.fifo()
    room = fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 4096)
    for _ in range(room + 1):
        assert posts.post_fifo(sleeper.name)
    assert readable(fd)
    sleeper.drain_fifo()
    assert not readable(fd)


def post_to_the_dead(name: str) -> None:
    import signal

    from shmbus._shm.waker import Posts

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    posts = Posts()
    print(posts.post_fifo(name))
    input()
    print(posts.post_fifo(name))


def test_fifo_of_a_dead_sleeper_kills_nobody(name: str, processes: Processes) -> None:
    """A process that dies of SIGPIPE by its own choice may post to a FIFO whose sleeper is gone."""
    sleeper = Sleeper(name)
    sleeper.fifo()
    child = processes.spawn(post_to_the_dead, name)
    assert line(child) == "True"
    sleeper.close()
    assert child.stdin is not None
    child.stdin.write("closed\n")
    child.stdin.flush()
    assert line(child) == "True"
    assert child.wait(PATIENT) == 0


def test_impostors_are_refused(name: str, posts: Posts) -> None:
    """A file in the place of a FIFO, or a short one for a semaphore, is refused and not written to."""
    fifo, semaphore = SHM / f"{name}.fifo", SHM / f"sem.{name}"
    sleeper = Sleeper(name)
    fifo.touch()
    try:
        with pytest.raises(AccessError, match="not a FIFO"):
            sleeper.fifo()
        assert not posts.post_fifo(name)
        assert fifo.stat().st_size == 0
    finally:
        fifo.unlink()
    sleeper.close()
    semaphore.unlink()
    semaphore.write_bytes(b"short")
    with pytest.raises(CorruptSegmentError, match="size=5"):
        Sleeper(name)


def test_cache_is_bounded(name: str, posts: Posts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its bound the cache closes what was used longest ago, and opens it anew when needed."""
    monkeypatch.setattr(waker, "_MAX_FIFOS", 2)
    monkeypatch.setattr(waker, "_MAX_SEMAPHORES", 2)
    sleepers = [Sleeper(f"{name}-{i}") for i in range(4)]
    for sleeper in sleepers:
        sleeper.fifo()
    before = len(os.listdir("/proc/self/fd"))
    bounded = Posts()
    for _ in range(2):
        assert all(bounded.post(sleeper.name) and bounded.post_fifo(sleeper.name) for sleeper in sleepers)
    assert [sleeper.drain() for sleeper in sleepers] == [2, 2, 2, 2]
    assert len(os.listdir("/proc/self/fd")) == before + 2
    bounded.forget(sleepers[3].name)
    bounded.forget(sleepers[0].name)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    bounded.close()
    bounded.close()
    assert len(os.listdir("/proc/self/fd")) == before
    for sleeper in sleepers:
        sleeper.close()


def test_closed_in_between(sleeper: Sleeper, name: str, posts: Posts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is closed by a signal handler in the middle of a post wakes the sleeper all the same, and raises nothing."""
    for cache in (posts._semaphores, posts._fifos):

        def get(name: str, get: Any = cache.get) -> Any:
            found = get(name)
            posts.close()
            return found

        monkeypatch.setattr(cache, "get", get)
    assert posts.post(name) is None
    assert sleeper.sleep(60)  # not a wait: the post is there
    sleeper.fifo()
    assert not posts.post_fifo(name)


def test_names_are_found_and_removed(name: str) -> None:
    """The channels of a prefix are listed and their semaphores and FIFOs removed, of no other prefix any."""
    other = Sleeper(f"{name}x:1")
    sleepers = [Sleeper(f"{name}:{i}") for i in (2, 1)]
    sleepers[0].fifo()
    assert waker.names(f"{name}:") == [f"{name}:1", f"{name}:2"]
    assert waker.unlink_all(f"{name}:") == 3
    assert waker.unlink_all(f"{name}:") == 0
    assert waker.names(name) == [other.name]
    for sleeper in (other, *sleepers):
        sleeper.close()
