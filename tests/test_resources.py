"""What a process has comes back, and what it cannot have is an error that leaves nothing half-made.

Limits are set in children of their own. The long form of the cycles is `python tools/resources.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from events import PATIENT, RAW, assert_balanced, opened
from support import Processes

import shmbus
from shmbus import _core, inspect

TOOL = Path(__file__).resolve().parents[1] / "tools" / "resources.py"


def test_cycles() -> None:
    """After hundreds of openings and closings the process has what it had, and /dev/shm is empty."""
    done = subprocess.run([sys.executable, str(TOOL), "--cycles", "300"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("start", [2**32, 2**40, 2**47])
def test_counters_that_a_year_reaches(bus_name: str, monkeypatch: pytest.MonkeyPatch, start: int) -> None:
    """Sequences and positions pass 2**32 and more like any others: events, claims, losses, books and tail."""
    broadcast, work = _core.BroadcastRing.format, _core.WorkRing.format
    first = start - 50

    def far(layout: Any) -> staticmethod[..., None]:
        return staticmethod(
            lambda memory, capacity, id, _: layout(memory, capacity, id, sequence=first, position=start - 1600)
        )

    monkeypatch.setattr(_core.BroadcastRing, "format", far(broadcast))
    monkeypatch.setattr(_core.WorkRing, "format", far(work))
    with opened(bus_name) as bus, bus.publisher(RAW, on_full="raise") as publisher:
        with (
            bus.subscriber(RAW, name="all") as all_,
            bus.subscriber(RAW, name="some", mode="lossy") as some,
            bus.worker(RAW, group="pool") as worker,
            inspect.Tail(bus_name, "raw", oldest=True) as tail,
        ):
            sequences, seen = [], []
            for count in range(200):
                sequences.append(publisher.publish(b"%03d" % count + bytes(40)))
                message, claimed = next(all_.messages()), next(worker.messages())
                assert (message.sequence, claimed.sequence) == (sequences[-1], sequences[-1])
                assert claimed.event == message.event == b"%03d" % count + bytes(40)
                claimed.ack()
                seen += [item.sequence for item in tail.read()]
            assert sequences == seen == list(range(first, first + 200))
            received = [message.sequence for message in islice(some.messages(), 20)]
            assert received == list(range(received[0], received[0] + 20))
            assert received[0] > first
            stats = bus.stats()
            assert_balanced(stats)
            books = {c.name: (c.offered, c.delivered, c.overrun, c.depth) for c in stats.consumers}
            assert books["all"] == books["pool"] == (200, 200, 0, 0)
            lost = received[0] - first
            assert books["some"] == (200, 20, lost, 180 - lost)
            assert stats.publishers[0].published == first + 199
            worker.close()
            publisher.publish(b"the last")
            with bus.worker(RAW, group="pool") as next_worker:
                assert next_worker.receive(timeout=PATIENT) == b"the last"


def few_descriptors(name: str) -> None:
    import errno
    import os
    import resource
    from collections.abc import Callable
    from contextlib import closing

    import shmbus
    from shmbus._ledger import registry as _registry

    topic = shmbus.Topic("raw", bytes, capacity=4096)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd")) - 1

    def entered() -> list[int]:
        registry = _registry.Registry.peek(name)
        d = registry.read()
        registry.close()
        return [len(t) for t in (d.participants, d.publishers, d.consumers, d.workers, d.rings)]

    def ladder(what: str, opening: Callable[[], Any]) -> None:
        """One descriptor more at a time, until it works."""
        for more in range(40):
            before, books = descriptors(), entered()
            resource.setrlimit(resource.RLIMIT_NOFILE, (before + more, most[1]))
            problem = None
            try:
                handle = opening()
            except OSError as error:
                problem = error
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, most)
            if problem is None:
                with closing(handle):
                    assert more, f"{what} needs no descriptor"
                break
            assert problem.errno == errno.EMFILE, repr(problem)
            assert descriptors() <= before + 3, f"{what} with {more} more: descriptors leak"  # those of wake-ups stay
            assert entered() == books, f"{what} with {more} more: half-made: {books}, now {entered()}"
        else:
            raise AssertionError(f"{what} never works")

    with shmbus.Bus(name, supervise=False) as bus:
        bus.group(topic, "first")
        with bus.subscriber(topic), bus.publisher(topic):
            ladder("bus", lambda: shmbus.Bus(name, supervise=False))
            ladder("publisher", lambda: bus.publisher(topic))
            ladder("subscriber", lambda: bus.subscriber(topic, start="oldest"))
            ladder("worker", lambda: bus.worker(topic, group="first"))
            ladder("group", lambda: bus.worker(topic, group="second"))


def little_memory(name: str) -> None:
    import os
    import resource

    import shmbus

    with shmbus.Bus(name, supervise=False) as bus:
        with bus.publisher(shmbus.Topic("raw", bytes, capacity=4096)) as publisher:
            with open("/proc/self/statm") as file:
                size = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            before = os.listdir("/dev/shm")
            resource.setrlimit(resource.RLIMIT_AS, (size + (32 << 20), resource.RLIM_INFINITY))
            try:
                bus.publisher(shmbus.Topic("large", bytes, capacity=1 << 26))
            except (shmbus.NoSpaceError, shmbus.errors.ResourceLimitError):
                pass
            else:
                raise AssertionError("64 MiB fit into 32")
            assert [entry for entry in os.listdir("/dev/shm") if name in entry and entry not in before] == []
            assert publisher.publish(b"goes on") == 1
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            with bus.publisher(shmbus.Topic("large", bytes, capacity=1 << 26)) as large:
                assert large.publish(b"recovered") == 1


def small_files(name: str) -> None:
    import errno
    import os
    import resource
    from collections.abc import Callable

    import shmbus

    def refused(opening: Callable[[], Any]) -> None:
        problem = None
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        try:
            opening()
        except shmbus.NoSpaceError as error:
            problem = error
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert problem is not None, "a segment of more than 1 MiB was made"
        assert problem.errno == errno.EFBIG
        assert problem.size > 1 << 20
        assert "ulimit -f" in str(problem)

    large = shmbus.Topic("large", bytes, capacity=1 << 21)
    refused(lambda: shmbus.Bus(name, supervise=False))
    assert not [entry for entry in os.listdir("/dev/shm") if name in entry]
    with shmbus.Bus(name, supervise=False) as bus:
        before = sorted(entry for entry in os.listdir("/dev/shm") if name in entry)
        refused(lambda: bus.publisher(large))
        assert sorted(entry for entry in os.listdir("/dev/shm") if name in entry) == before
        with bus.publisher(large) as publisher:
            assert publisher.publish(b"recovered") == 1


@pytest.mark.parametrize("limit", [few_descriptors, little_memory, small_files])
def test_limits(bus_name: str, processes: Processes, limit: Any) -> None:
    """Where descriptors, memory or file sizes run out, opening says so, leaves nothing, and works with more."""
    child = processes.spawn(limit, bus_name)
    assert child.wait(PATIENT) == 0


@pytest.mark.skipif(os.statvfs("/dev/shm").f_blocks == 0, reason="/dev/shm has no limit here")
def test_full_shm(bus_name: str) -> None:
    """A ring that /dev/shm cannot hold is NoSpaceError with the sizes, leaves nothing, and a smaller one fits."""
    with opened(bus_name) as bus, bus.subscriber(RAW, name="other"):
        before = bus.stats()
        with pytest.raises(shmbus.NoSpaceError) as caught:
            bus.publisher(shmbus.Topic("raw", bytes, capacity=1 << 40))
        assert caught.value.size > 1 << 40
        assert caught.value.free < caught.value.size
        assert (bus.stats().publishers, bus.stats().bytes) == (before.publishers, before.bytes)
        with bus.publisher(RAW) as publisher:
            assert publisher.publish(b"fits") == 1
