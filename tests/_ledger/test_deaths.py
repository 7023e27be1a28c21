"""How workers died is in the dead letters of what they held, whoever is faster: the supervisor or the parent."""

from __future__ import annotations

import subprocess

import pytest
from routes import DEAD, GROUP, ORDERS, PATIENCE, depth, publish
from support import Processes, eventually, line

import shmbus
from shmbus import _core, deaths
from shmbus._ledger import deaths as ledger
from shmbus._ledger.document import Death, Document, HeldRun, Participant, RingEntry
from shmbus._ledger.slots import MAX_DEATHS

HOLDS = """
import shmbus, sys, os, signal, time
from routes import *
bus = shmbus.Bus(sys.argv[1], supervise=False)
worker = bus.worker(ORDERS, group=GROUP, prefetch=int(sys.argv[3]))
if sys.argv[2] == "promised":
    shmbus.deaths.promise(bus)
held = [next(worker.messages()) for _ in range(int(sys.argv[3]))]
print("holds", flush=True)
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGSEGV)
"""


def dies(processes: Processes, bus_name: str, promised: str = "promised", count: int = 1) -> subprocess.Popen[str]:
    """A worker that holds events, and dies once it is told to."""
    child = processes.spawn(HOLDS, bus_name, promised, count, stderr=subprocess.DEVNULL)
    assert line(child) == "holds"
    return child


def end(child: subprocess.Popen[str]) -> str:
    child.kill() if child.stdin is None else child.stdin.write("\n")
    if child.stdin is not None:
        child.stdin.flush()
    return deaths.cause(child.wait(PATIENCE))


@pytest.mark.parametrize("first", ["parent", "reclaim"])
def test_the_cause_is_in_the_letter(bus_name: str, processes: Processes, first: str) -> None:
    """Both deaths of an event's workers are in its letter, with signal, whoever finds out first."""
    with shmbus.Bus(bus_name, supervise=False) as bus, bus.subscriber(DEAD) as dead:
        bus.group(ORDERS, GROUP)
        publish(bus, 1)
        pids = []
        for _ in range(2):
            child = dies(processes, bus_name)
            pids.append(child.pid)
            how = end(child)
            if first == "reclaim":
                with bus._session.locked() as change:
                    bus._session.reclaim_dead(change)
            assert deaths.tell(bus, child.pid, f"{how}, peak RSS 9 MiB") == 1
            assert deaths.tell(bus, child.pid, "told twice") == 0
        with bus.worker(ORDERS, group=GROUP, max_deliver=2) as worker:
            assert worker.try_receive() is None
        words = "; ".join(f"process {pid}: killed by SIGSEGV, peak RSS 9 MiB" for pid in pids)
        assert dead.receive(PATIENCE).reason == f"delivered 2 times without an ack ({words})"


def test_a_letter_waits_for_what_was_promised(bus_name: str, processes: Processes) -> None:
    """A letter that would come before its cause waits for it, and no worker does; untold, it comes without."""
    with shmbus.Bus(bus_name, supervise=False) as bus, bus.subscriber(DEAD) as dead:
        bus.group(ORDERS, GROUP)
        publish(bus, 1)
        child = dies(processes, bus_name)
        how = end(child)
        with bus._session.locked() as change:
            bus._session.reclaim_dead(change)
        with bus.worker(ORDERS, group=GROUP, max_deliver=1) as worker:
            assert worker.try_receive() is None
            assert dead.try_receive() is None
            deaths.tell(bus, child.pid, how)
            with pytest.raises(shmbus.Empty):
                worker.receive(timeout=1.0)
            assert dead.receive(PATIENCE).reason.endswith(f"(process {child.pid}: killed by SIGSEGV)")
            publish(bus, 2)
            worker.close()
            child = dies(processes, bus_name)
            end(child)
        with bus.worker(ORDERS, group=GROUP, max_deliver=1) as worker:
            with pytest.raises(shmbus.Empty):
                worker.receive(timeout=4.0)
            assert dead.receive(PATIENCE).reason.endswith(f"(process {child.pid} died)")


def test_whoever_was_not_promised_is_not_waited_for(bus_name: str, processes: Processes) -> None:
    """Without a parent that tells, the letter is written at once, and names the process."""
    with shmbus.Bus(bus_name) as bus, bus.subscriber(DEAD) as dead:
        bus.group(ORDERS, GROUP)
        publish(bus, 1, 2, 3)
        child = dies(processes, bus_name, "not", 3)
        end(child)
        with bus.worker(ORDERS, group=GROUP, max_deliver=1) as worker:
            eventually(lambda: worker.try_receive() is None and depth(bus) == 0)
            letters = dead.receive_many(3, PATIENCE)
        assert [letter.sequence for letter in letters] == [1, 2, 3]
        [reason] = {letter.reason for letter in letters}
        start = f"delivered 1 times without an ack (process {child.pid}"
        known = [f"{start}{how})" for how in (" died", ": killed by SIGSEGV")]
        assert reason in known  # the supervisor sees the signal, unless the process was waited for already


def test_too_slow_is_a_cause_too(bus_name: str) -> None:
    """A letter says of an event that was taken back from a worker how long that had been allowed to hold it."""
    with shmbus.Bus(bus_name) as bus, bus.subscriber(DEAD) as dead:
        with (
            bus.worker(ORDERS, group=GROUP, ack_within=0.2) as slow,
            bus.worker(ORDERS, group=GROUP, max_deliver=1) as b,
        ):
            publish(bus, 1)
            message = next(slow.messages())
            letter = eventually(lambda: b.try_receive() or dead.try_receive())
            assert isinstance(letter, shmbus.DeadLetter)
            assert "held it for more than 0.2 s" in letter.reason
            with pytest.raises(shmbus.ReclaimedError):
                message.ack()


def test_deaths_are_bounded() -> None:
    """However many die, so many are known, the last ones; those whose rings are gone are forgotten first."""
    document = Document()
    document.rings = [RingEntry(1, 0, 1, 1, 4096)]
    one = Participant(1, 1, 7, 0, "x")
    for sequence in range(1, 2 * MAX_DEATHS):
        ledger._add(document, one, "", [HeldRun(1, sequence, sequence)], told=False)
    assert [d.held[0].first for d in document.deaths] == list(range(MAX_DEATHS, 2 * MAX_DEATHS))
    document.rings = [RingEntry(2, 0, 1, 1, 4096)]
    ledger._add(document, one, "", [HeldRun(2, 1, 1)], told=False)
    assert len(document.deaths) == 1
    assert ledger._runs(1, [5, 1, 2, 3, 7]) == [HeldRun(1, 1, 3), HeldRun(1, 5, 5), HeldRun(1, 7, 7)]
    assert (ledger.of(document, 2, 1), ledger.pending(document, 2, 1)) == (("process 7 died",), False)
    document.deaths = [Death(1, 7, 0, _core.host_ns(), True, False, "exit code 3", [HeldRun(2, 1, 1)])]
    assert (ledger.of(document, 2, 1), ledger.pending(document, 2, 1)) == (("process 7: exit code 3",), True)
    assert ledger.of(document, 2, 2) == ()
