"""Lives: bytes that tell the living from the dead, and a lock that is fair and that no dead process can hold."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from support import Processes, eventually, line

from shmbus import _core
from shmbus._shm import place, segment
from shmbus._shm import processes as told
from shmbus._shm.lives import Lives, LockHeldError
from shmbus.errors import AccessError, LockTimeoutError

PATIENT = 60.0


@pytest.fixture
def name(bus_name: str) -> Iterator[str]:
    """The name of a lives file."""
    yield f"shmbus-{bus_name}:lives"
    segment.unlink(f"shmbus-{bus_name}:lives")


@pytest.fixture
def lives(name: str) -> Iterator[Lives]:
    found = Lives.open(name, create=True)
    yield found
    found.close()


def nobody() -> str:
    return "nobody"


def live(name: str, life: str) -> None:
    import sys

    from shmbus._shm.lives import Lives

    lives = Lives.open(name)
    lives.begin(int(life))
    print("living")
    for order in sys.stdin:
        if order == "exec\n":
            import os

            os.execv(sys.executable, [sys.executable, "-c", "import sys; print('other'); sys.stdin.read()"])
        elif order == "fork\n":
            import os

            child = os.fork()
            if child == 0:
                os.write(1, f"{os.getpid()} {Lives.open(name).holder(int(life))}\n".encode())
                os._exit(0)
            os.waitpid(child, 0)
        elif order == "close\n":
            import os

            os.closerange(3, 1000)
            print(lives.lost())


def order(child: object, text: str) -> None:
    stdin = child.stdin  # type: ignore[attr-defined]
    stdin.write(text + "\n")
    stdin.flush()


def test_a_death_frees_the_byte(lives: Lives, name: str, processes: Processes) -> None:
    """A life is held as long as its process lives, a zombie holds none, and the holder's pid is told."""
    child = processes.spawn(live, name, 7)
    assert line(child) == "living"
    assert lives.holder(7) == child.pid
    assert not lives.alive(8)
    child.send_signal(signal.SIGSTOP)
    assert lives.alive(7)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not lives.alive(7)


def test_an_exec_frees_the_byte(lives: Lives, name: str, processes: Processes) -> None:
    """The process lives on as another program, and its life is over."""
    child = processes.spawn(live, name, 7)
    assert line(child) == "living"
    order(child, "exec")
    assert line(child) == "other"
    assert child.poll() is None
    assert not lives.alive(7)


def test_a_fork_takes_no_part(lives: Lives, name: str, processes: Processes) -> None:
    """A forked child holds no life, sees its parent's, and takes it from nobody when it opens, closes and dies."""
    child = processes.spawn(live, name, 7)
    assert line(child) == "living"
    order(child, "fork")
    forked, holder = line(child).split()
    assert int(holder) == child.pid != int(forked)
    assert lives.holder(7) == child.pid


def test_a_lost_byte_is_told(lives: Lives, name: str, processes: Processes) -> None:
    """A process whose descriptors were closed by somebody else can tell that it holds its life no longer."""
    child = processes.spawn(live, name, 7)
    assert line(child) == "living"
    order(child, "close")
    assert line(child) == "True"
    assert not lives.alive(7)


def test_one_object_a_file(lives: Lives, name: str) -> None:
    """Whatever opens and closes the file in a process, its locks stay until the last of them has closed it."""
    lives.begin(3)
    for writable in (True, False):
        again = Lives.open(name, writable=writable)
        assert again is lives
        assert again.shared
        again.close()
    assert not lives.lost()
    assert not lives.shared
    assert lives.life == 3


def test_another_users_file_is_refused(name: str) -> None:
    """A file of somebody else under the name is an error, and is not written."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make a file of somebody else")
    path = f"{place.SHM_DIR}/{name}"
    with open(path, "wb"):
        os.chown(path, 12345, -1)
    with pytest.raises(AccessError):
        Lives.open(name, create=True)
    assert os.stat(path).st_size == 0


def hold(name: str) -> None:
    import sys

    from shmbus._shm.lives import Lives

    with Lives.open(name).locked(60, lambda: "?"):
        print("held")
        sys.stdin.readline()
    print("free")
    sys.stdin.read()


def test_lock_is_freed_by_sigkill(lives: Lives, name: str, processes: Processes) -> None:
    """The lock names its holder while it is held, and is free once that is killed."""
    child = processes.spawn(hold, name)
    assert line(child) == "held"
    with pytest.raises(LockTimeoutError, match=r"not free within 0.05 s, held by nobody"), lives.locked(0.05, nobody):
        pass
    assert lives.lock_holder() == child.pid
    child.kill()
    with lives.locked(PATIENT, nobody):
        assert lives.lock_holder() is None


def hold_and_fork(name: str) -> None:
    import os
    import sys

    from shmbus._shm.lives import Lives

    lives = Lives.open(name)
    with lives.locked(60, lambda: "?"):
        child = os.fork()
        if child == 0:
            os.write(1, f"{Lives.open(name).lock_holder() == os.getppid()}\n".encode())
            os._exit(0)
        os.waitpid(child, 0)
        sys.stdin.readline()


def test_forked_child_has_no_part_in_the_lock(lives: Lives, name: str, processes: Processes) -> None:
    """A child forked under the lock does not hold it, and does not free it."""
    child = processes.spawn(hold_and_fork, name)
    assert line(child) == "True"
    assert lives.lock_holder() == child.pid


def queue(name: str, order: str) -> None:
    import time

    from shmbus._shm.lives import Lives

    lives = Lives.open(name)
    print("queueing")
    with lives.locked(60, lambda: "?"):
        print(time.monotonic_ns(), order)


def tickets(lives: Lives) -> int:
    return _core.load(lives._map, _core.LIVES_TICKETS)


def test_first_come_first_served(lives: Lives, name: str, processes: Processes) -> None:
    """Those who wait for the lock get it in the order in which they came, and one who died in line costs nobody."""
    seen: list[str] = []
    lock = ExitStack()
    lock.enter_context(lives.locked(PATIENT, nobody))
    children = []
    for n in range(6):
        before = tickets(lives)
        children.append(processes.spawn(queue, name, n))
        assert line(children[-1]) == "queueing"
        eventually(lambda before=before: tickets(lives) > before, "it stands in line")  # type: ignore[misc]
    children[2].kill()
    children[2].wait()

    def read(child: object) -> None:
        with suppress(AssertionError):
            seen.append(line(child))  # type: ignore[arg-type]

    readers = [threading.Thread(target=read, args=(child,)) for child in children if child is not children[2]]
    for reader in readers:
        reader.start()
    lock.close()
    for reader in readers:
        reader.join()
    served = sorted((int(at), who) for at, who in map(str.split, seen))
    assert [who for _, who in served] == ["0", "1", "3", "4", "5"]


def stopped_in_line(lives: Lives, name: str, processes: Processes) -> subprocess.Popen[str]:
    """Somebody who stands in line as the first ever, and is stopped."""
    child = processes.spawn(queue, name, "first")
    assert line(child) == "queueing"
    eventually(lambda: tickets(lives) == 1, "it stands in line")
    child.send_signal(signal.SIGSTOP)
    eventually(lambda: told.stopped(child.pid), "it stands still")
    return child


def test_a_stopped_waiter_is_passed_over(lives: Lives, name: str, processes: Processes) -> None:
    """Who is stopped in line holds up nobody behind it, and gets the lock when it wakes."""
    with lives.locked(PATIENT, nobody):
        first = stopped_in_line(lives, name, processes)
        second = processes.spawn(queue, name, "second")
        assert line(second) == "queueing"
        eventually(lambda: tickets(lives) == 2, "it stands in line")
    assert line(second).endswith("second")
    first.send_signal(signal.SIGCONT)
    assert line(first).endswith("first")


def test_a_stopped_waiter_holds_up_nobody_who_only_tries(lives: Lives, name: str, processes: Processes) -> None:
    """Who is stopped in line keeps the lock neither from who tries without waiting, nor for long from anybody twice."""
    with lives.locked(PATIENT, nobody):
        first = stopped_in_line(lives, name, processes)
    with pytest.raises(LockTimeoutError), lives.locked(0, nobody):
        pass  # it may be about to come

    def tried() -> bool:
        with suppress(LockTimeoutError), lives.locked(0, nobody):
            return True
        return False

    eventually(tried, "whoever tries has the lock")
    second = processes.spawn(queue, name, "second")
    assert line(second) == "queueing"
    assert line(second).endswith("second")
    assert second.wait(PATIENT) == 0
    assert _core.load(lives._map, _core.LIVES_NEXT) == 2  # it queued, and has passed the first over for everybody
    lives._let_lie = (-1, 0.0)
    assert tried()
    first.send_signal(signal.SIGCONT)
    assert line(first).endswith("first")
    assert _core.load(lives._map, _core.LIVES_NEXT) == 2


def test_a_lying_next_costs_order_only(lives: Lives, name: str, processes: Processes) -> None:
    """A word that says that everybody has been served, or nobody ever, keeps the lock from none."""
    for lie in (1 << 61, 2**64 - 1, 5):
        _core.store(lives._map, _core.LIVES_NEXT, lie)
        before = tickets(lives)
        with lives.locked(PATIENT, nobody):
            child = processes.spawn(queue, name, lie)
            assert line(child) == "queueing"
            eventually(lambda before=before: tickets(lives) > before, "it stands in line")  # type: ignore[misc]
        assert line(child).endswith(str(lie))


def test_lock_excludes_threads(lives: Lives) -> None:
    """Threads of one process exclude each other, and none waits for ever."""
    value = 0

    def add() -> None:
        nonlocal value
        for _ in range(200):
            with lives.locked(PATIENT, nobody):
                before = value
                os.sched_yield()
                value = before + 1

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value == 800


def test_coming_back_is_told_at_once(lives: Lives) -> None:
    """A thread that holds the lock is told so when it comes back, and what it defers happens once it has let go."""
    done: list[bool] = []
    with lives.locked(PATIENT, nobody):
        with pytest.raises(LockHeldError), lives.locked(PATIENT, nobody):
            pass
        lives.defer(lambda: done.append(lives._owner == 0))
        assert not done
    assert done == [True]
    with lives.locked(0, nobody):
        pass


def test_an_error_releases(lives: Lives) -> None:
    """An error under the lock releases it."""
    with pytest.raises(ZeroDivisionError), lives.locked(PATIENT, nobody):
        raise ZeroDivisionError
    with lives.locked(0, nobody):
        pass


def interrupted(name: str) -> None:
    import signal
    import sys
    import threading
    import time

    from shmbus._shm.lives import Lives

    class Interrupt(Exception):
        pass

    def interrupt(number: int, frame: object) -> None:
        raise Interrupt

    # Another thread takes the signals as well: then the handler comes between any two lines of the main thread.
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    signal.signal(signal.SIGALRM, interrupt)
    lives = Lives.open(name)
    count = 0
    end = time.monotonic() + 2
    while time.monotonic() < end:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0001 + count % 40 * 5e-6)
            while True:
                with lives.locked(60, lambda: "?"):
                    pass
        except Interrupt:
            count += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(count > 100, lives._owner, lives._turn.locked())
    sys.stdout.flush()
    with lives.locked(60, lambda: "?"):
        print("again")
    sys.stdin.read()


def test_interrupts_leave_the_lock_free(lives: Lives, name: str, processes: Processes) -> None:
    """A signal handler that raises anywhere around the lock leaves it free, within the process and for others."""
    child = processes.spawn(interrupted, name)
    assert line(child) == "True 0 False"
    assert line(child) == "again"
    with lives.locked(5, nobody):
        assert child.poll() is None


def test_words_that_lie_cost_time_alone(lives: Lives, name: str, processes: Processes) -> None:
    """Whatever stands in the words of the file, the lock excludes and is had."""
    for value in (0, 2**64 - 1, 2**63, 12345):
        for at in (_core.LIVES_TICKETS, _core.LIVES_RELEASES, _core.LIVES_NEXT):
            _core.store(lives._map, at, value)
        child = processes.spawn(hold, name)
        assert line(child) == "held"
        waiting = processes.spawn(queue, name, "mine")
        assert line(waiting) == "queueing"
        with pytest.raises(LockTimeoutError), lives.locked(0.1, nobody):
            pass
        order(child, "go")
        assert line(waiting).endswith("mine")
        started = time.monotonic()
        with lives.locked(PATIENT, nobody):
            assert time.monotonic() - started < PATIENT
