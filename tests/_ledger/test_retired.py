"""Rings of publishers that are gone: what they cost, and when they go."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from events import books, drain, losses, opened, take
from support import SHM, Processes, entries, eventually, line

import shmbus
from shmbus import Bus, _core, inspect
from shmbus._ledger import departures, past, retired, slots
from shmbus._ledger.document import RingEntry
from shmbus._shm.names import object_prefix
from shmbus._shm.rings import Rings

NUMBERS = shmbus.Topic("numbers", int)
BLOCKS = shmbus.Topic("blocks", bytes, capacity=1 << 20)
PAGE = _core.PAGE


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    with opened(bus_name) as bus:
        yield bus


def rings(name: str) -> list[str]:
    return sorted(entry for entry in entries(name) if ":ring-" in entry)


def allocated(name: str) -> int:
    """Bytes of memory in the rings of a bus."""
    return sum((SHM / entry).stat().st_blocks * 512 for entry in rings(name))


def mapped(name: str, pid: int | str = "self") -> int:
    """Rings of a bus that a process has mapped."""
    prefix = f"{object_prefix(name)}ring-"
    return sum(prefix in text for text in Path(f"/proc/{pid}/maps").read_text().splitlines())


def one_shot(bus: Bus, numbers: range) -> None:
    for number in numbers:
        with bus.publisher(NUMBERS, name=f"p{number}") as publisher:
            publisher.publish(number)


def sweep(bus: Bus) -> None:
    """What a supervisor does from time to time."""
    with bus._session.locked() as change:
        departures.sweep(change, bus._session.rings, None)


def opening(bus: Bus, kind: str) -> Any:
    if kind == "worker":
        return bus.worker(NUMBERS, group="g")
    return bus.subscriber(NUMBERS, mode="lossy" if kind == "lossy" else "reliable")


# -- memory


@pytest.mark.parametrize("kind", ["reliable", "lossy"])
def test_small_rings(bus: Bus, kind: str) -> None:
    """A publisher that wrote little leaves a page for the header, one for the cursor or two for the claims, one for
    records."""
    with opening(bus, kind) as consumer, bus.worker(NUMBERS, group="g") as worker:
        with bus.publisher(NUMBERS) as publisher:
            publisher.publish_many(range(3))
            assert allocated(bus.name) > 2 * NUMBERS.capacity
        assert allocated(bus.name) == (3 + 4) * PAGE  # the work ring has a page of notes beside the claims
        assert take(consumer, 3) == take(worker, 3) == [0, 1, 2]


@pytest.mark.parametrize("rounds", [1, 5])
def test_rings_shrink_as_they_are_drained(bus: Bus, rounds: int) -> None:
    """A full ring gives its memory back page by page while its consumers read it, and they read what was written."""
    block = bytes(range(256)) * 16
    with bus.subscriber(BLOCKS) as sub, bus.worker(BLOCKS, group="g", prefetch=1) as worker:
        with bus.publisher(BLOCKS) as publisher:
            for _ in range(rounds - 1):  # laps
                for number in range(200):
                    publisher.publish(number.to_bytes(2) + block)
                assert len(drain(sub)) == len(drain(worker)) == 200
            for number in range(200):
                publisher.publish(number.to_bytes(2) + block)
        for number in range(retired.HISTORY):  # so that it is no longer history
            with bus.publisher(BLOCKS) as publisher:
                publisher.publish(b"%d" % number)
        full = allocated(bus.name)
        assert take(sub, 150) == [number.to_bytes(2) + block for number in range(150)]
        assert len(take(worker, 150)) == 150
        sweep(bus)
        assert allocated(bus.name) < full - 2 * 100 * 4096
        assert take(sub, 50) == [number.to_bytes(2) + block for number in range(150, 200)]
        assert len(take(worker, 50)) == 50
        worker.ack()
        sweep(bus)
        assert len(rings(bus.name)) == 2 * retired.HISTORY
        assert [sub.try_receive() for _ in range(4)] == [b"0", b"1", b"2", b"3"]


def test_history_of_freed_slots(bus: Bus) -> None:
    """Whoever joins at the oldest event finds a cursor in a ring whose slots had gone with their memory."""
    one_shot(bus, range(6))
    assert allocated(bus.name) == retired.HISTORY * 2 * PAGE
    with bus.subscriber(NUMBERS, start="oldest") as sub, bus.subscriber(NUMBERS, mode="lossy", start="oldest") as lossy:
        assert drain(sub) == drain(lossy) == [2, 3, 4, 5]


def test_no_room_to_join(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where /dev/shm has no room for a cursor, history gives way, and nothing is left half-made."""
    one_shot(bus, range(3))
    asked: list[int] = []

    def full(self: Rings, entry: RingEntry, slot: int) -> _core.BroadcastRing:
        if entry.state == "active":
            return self.broadcast(entry)
        asked.append(entry.id)
        raise shmbus.NoSpaceError(errno.ENOSPC, "ring", PAGE, 0)

    monkeypatch.setattr(Rings, "joinable", full)
    with bus.subscriber(NUMBERS, start="oldest", name="s") as sub:
        assert len(asked) == 3
        assert rings(bus.name) == []
        one_shot(bus, range(3, 4))
        assert drain(sub) == [3]


# -- bounds


def test_lossy_backlog_is_bounded(bus: Bus) -> None:
    """Rings that a lossy subscriber never comes to are given up, the oldest first: it is told, and its books say so."""
    gaps: list[shmbus.Gap] = []
    count = 200
    with bus.subscriber(NUMBERS, name="s", mode="lossy", on_gap=gaps.append) as sub:
        one_shot(bus, range(count))
        assert len(rings(bus.name)) == retired.BACKLOG
        missing = count - retired.BACKLOG
        assert books(bus, "s") == {"offered": count, "overrun": missing, "depth": retired.BACKLOG}
        assert drain(sub) == list(range(missing, count))
        assert sum(gap.count for gap in gaps) == missing
        assert gaps[-1] == shmbus.Gap(f"p{missing - 1}", 1, 1, 1, "overrun")
        assert (gaps[0].publisher, gaps[0].count) == (past.DEPARTED, missing - slots.MAX_GIVEN_UP)
        assert books(bus, "s") == {"offered": count, "delivered": retired.BACKLOG, "overrun": missing}
        assert len(list(losses(bus, "s"))) == missing
        one_shot(bus, range(3))
        assert drain(sub) == [0, 1, 2]
        assert sum(gap.count for gap in gaps) == missing


def test_gaps_come_in_their_place(bus: Bus) -> None:
    """A lossy subscriber reads what it had open, is told of what was given up, and reads on."""
    seen: list[Any] = []
    with bus.subscriber(NUMBERS, name="s", mode="lossy", on_gap=lambda gap: seen.append(gap.count)) as sub:
        one_shot(bus, range(10))
        seen.append(sub.receive(timeout=0))  # opens the first ten
        one_shot(bus, range(10, 200))
        while (event := sub.try_receive()) is not None:
            seen.append(event)
        assert seen[:10] == list(range(10))
        assert all(isinstance(count, int) for count in seen)
        missing = 190 - retired.BACKLOG
        told = slots.MAX_GIVEN_UP + 1
        assert sum(seen[10 : 10 + told]) == missing
        assert seen[10 + told :] == list(range(10 + missing, 200))
        assert books(bus, "s") == {"offered": 200, "delivered": 200 - missing, "overrun": missing}


def test_gap_error_once_each(bus: Bus) -> None:
    """With `on_gap="raise"` each gap is raised once, and the events follow."""
    with bus.subscriber(NUMBERS, mode="lossy", on_gap="raise") as sub:
        one_shot(bus, range(retired.BACKLOG + 3))
        raised: list[str] = []
        got: list[int] = []
        while len(got) < retired.BACKLOG:
            try:
                got.append(sub.receive(timeout=0))
            except shmbus.GapError as error:
                raised.append(cast("shmbus.Gap", error.gap).publisher)
        assert raised == ["p0", "p1", "p2"]
        assert got == list(range(3, retired.BACKLOG + 3))


def test_lossy_backlog_in_bytes(bus: Bus) -> None:
    """A lossy subscriber keeps no more memory than a few full rings have, however many publishers filled theirs."""
    with bus.subscriber(BLOCKS, name="s", mode="lossy") as sub:
        for _ in range(10):
            with bus.publisher(BLOCKS) as publisher:
                for _ in range(300):
                    publisher.publish(bytes(4096))
        assert len(rings(bus.name)) <= retired.HISTORY
        count = len(drain(sub))
        assert books(bus, "s") == {"offered": 3000, "delivered": count, "overrun": 3000 - count}
        assert count > 700


def test_reliable_keeps_all(bus: Bus) -> None:
    """A reliable subscriber and a group are owed all, whatever a lossy one is behind them."""
    with (
        bus.subscriber(NUMBERS, name="all") as sub,
        bus.subscriber(NUMBERS, name="some", mode="lossy") as lossy,
        bus.worker(NUMBERS, group="g") as worker,
    ):
        one_shot(bus, range(150))
        assert drain(lossy) == drain(sub) == drain(worker) == list(range(150))
        sweep(bus)
        assert len(rings(bus.name)) == retired.HISTORY


def die_giving_up(name: str) -> None:
    import shmbus
    from shmbus._shm import failpoint

    with shmbus.Bus(name, supervise=False) as bus:
        publisher = bus.publisher(shmbus.Topic("numbers", int))
        publisher.publish(-1)
        failpoint.arm("sweep.given_up")
        publisher.close()


def test_death_between_giving_up_and_the_books(bus: Bus, processes: Processes) -> None:
    """Whoever dies with a ring half given up leaves it for the next sweep: told once, and on the books once."""
    gaps: list[shmbus.Gap] = []
    with bus.subscriber(NUMBERS, name="s", mode="lossy", on_gap=gaps.append) as sub:
        one_shot(bus, range(retired.BACKLOG))
        assert processes.spawn(die_giving_up, bus.name).wait() == -signal.SIGKILL
        offered = retired.BACKLOG + 1
        assert books(bus, "s") == {"offered": offered, "depth": offered}
        assert gaps == []
        with bus._session.locked() as change:
            assert bus._session.reclaim_dead(change) == 1
        sweep(bus)
        assert drain(sub) == [*range(1, retired.BACKLOG), -1]
        assert gaps == [shmbus.Gap("p0", 1, 1, 1, "overrun")]
        assert books(bus, "s") == {"offered": offered, "delivered": offered - 1, "overrun": 1}


def test_opened_or_given_up(bus: Bus) -> None:
    """A ring that a lossy reader has opened is not given up, and one that was given up is not opened."""
    with bus.publisher(NUMBERS), bus.subscriber(NUMBERS, mode="lossy"):
        entry = bus._session.document().rings[0]
        ring = bus._session.rings.broadcast(entry)
        consumer: _core.Consumer[bytes] = _core.Consumer(bus._session.map, 0, None)
        ring.join(5, lossy=True)
        assert consumer._add_source(ring, 5, "p")
        assert not ring.give_up(5)
        ring.join(6, lossy=True)
        assert ring.give_up(6)
        assert ring.give_up(6)
        other: _core.Consumer[bytes] = _core.Consumer(bus._session.map, 0, None)
        assert not other._add_source(ring, 6, "p")
        ring.leave(5)
        ring.leave(6)


# -- mappings


def hold_subscriber(name: str) -> None:
    import contextlib

    import shmbus

    topic = shmbus.Topic("numbers", int)
    with shmbus.Bus(name, supervise=False) as bus, bus.subscriber(topic) as sub:
        print("ready")
        count = 0
        for event in sub:
            count += 1
            if event < 0:
                break
        print(count)
        with contextlib.suppress(shmbus.ClosedError):
            sub.receive(timeout=1000.0)


def test_mappings_of_a_subscriber(bus: Bus, processes: Processes) -> None:
    """A process with one subscriber has what it needs mapped after hundreds of publishers, without anybody's help."""
    child = processes.spawn(hold_subscriber, bus.name)
    assert line(child) == "ready"
    one_shot(bus, range(200))
    one_shot(bus, range(-1, 0))
    assert line(child) == "201"
    eventually(lambda: mapped(bus.name, child.pid) == 0, lambda: f"{mapped(bus.name, child.pid)} mapped")


def test_mappings_of_a_publisher(bus: Bus) -> None:
    """A process that opens and closes publishers, whose rings others have yet to drain, keeps none of them mapped."""
    with bus.subscriber(NUMBERS), bus.subscriber(NUMBERS, mode="lossy"):
        bus.group(NUMBERS, "g")
        one_shot(bus, range(50))
        bus.stats()
        assert mapped(bus.name) == 0
        with bus.publisher(NUMBERS):
            assert mapped(bus.name) == 2


def test_backlog_is_mapped_in_part(bus: Bus) -> None:
    """Consumers that lag have a window of the rings mapped that they have yet to read."""
    with bus.subscriber(NUMBERS) as sub, bus.worker(NUMBERS, group="g") as worker:
        one_shot(bus, range(100))
        for count in range(1, 101):
            assert (sub.receive(timeout=0), worker.receive(timeout=0)) == (count - 1, count - 1)
            assert mapped(bus.name) <= 2 * 17
        assert sub.try_receive() is None
        assert worker.try_receive() is None
        assert mapped(bus.name) == 0


def test_tail_lets_go(bus: Bus) -> None:
    """A tail shows the events of publishers that followed each other in order, and keeps no ring that is gone."""
    one_shot(bus, range(-1, 0))
    with inspect.Tail(bus.name, "numbers") as tail:
        got: list[int] = []
        for first in range(0, 60, 10):
            one_shot(bus, range(first, first + 10))
            got += [item.event for item in tail.read()]
        assert got == sorted(got)
        assert got[-4:] == [56, 57, 58, 59]
        tail.read()
        assert mapped(bus.name) == retired.HISTORY


# -- sweeping


def test_a_sweep_ends_early(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the lock no more rings are looked at than it takes to know that the rest is not drained either."""
    with bus.subscriber(NUMBERS), bus.worker(NUMBERS, group="g"):
        one_shot(bus, range(100))
        looked: set[int] = set()

        def counting(original: Callable[..., Any]) -> Callable[..., Any]:
            def look(self: Rings, entry: RingEntry) -> Any:
                looked.add(entry.id)
                return original(self, entry)

            return look

        for name in ("broadcast", "work"):
            monkeypatch.setattr(Rings, name, counting(getattr(Rings, name)))
        one_shot(bus, range(100, 101))
        assert len(looked) <= 2 * retired.PATIENCE + 4


def test_supervisor_keeps_what_it_looks_at(bus_name: str) -> None:
    """A supervisor maps each retired ring once, however often it looks, and lets go of those that are gone."""
    from shmbus.supervisor import _Supervisor

    with opened(bus_name) as bus, bus.subscriber(NUMBERS) as sub:
        supervisor = _Supervisor(bus_name, foreground=True)
        one_shot(bus, range(40))
        supervisor.sweep()
        before = dict(supervisor.rings._kept)
        supervisor.sweep()
        assert len(before) == 40
        assert all(supervisor.rings._kept[id] is ring for id, ring in before.items())
        before.clear()
        assert len(drain(sub)) == 40
        supervisor.sweep()
        supervisor.sweep()
        assert mapped(bus_name) == retired.HISTORY
        supervisor.registry.close()
        supervisor.rings.keep_only(())


def test_churn() -> None:
    """The short form of tools/churn.py finds nothing that grows, is lost, or comes in another order."""
    tool = Path(__file__).resolve().parents[2] / "tools" / "churn.py"
    done = subprocess.run([sys.executable, str(tool), "--short"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
