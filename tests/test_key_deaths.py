"""What becomes of the keys of a group when its workers die, are too slow, or go."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from events import PATIENT, opened
from support import Processes, entries, line
from test_keys import MOVES, Move, held, kept, numbers, publisher

import shmbus
from shmbus import Bus
from shmbus._ledger import departures, reclaim


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    with opened(bus_name) as bus:
        yield bus
    kept.clear()


def take_two_and_wait(bus_name: str) -> None:
    """A worker that holds two events of different keys until it is killed."""
    import signal

    from events import PATIENT
    from test_keys import MOVES

    from shmbus import Bus

    with Bus(bus_name, supervise=False) as bus, bus.worker(MOVES, group="g", prefetch=2) as worker:
        messages = [worker.receive_message(PATIENT) for _ in range(2)]
        print([m.event.number for m in messages], flush=True)
        signal.pause()


def test_killed_with_keys_in_hand(bus: Bus, processes: Processes) -> None:
    """What a killed worker had in hand comes first, by key, and all else in order after it."""
    bus.group(MOVES, "g", key="account")
    publisher(bus, MOVES).publish_many(Move(number % 2, number) for number in range(8))
    child = processes.spawn(take_two_and_wait, bus.name)
    assert line(child) == "[0, 1]"
    with bus.worker(MOVES, group="g") as worker:
        assert held(worker) is None
        child.kill()
        child.wait()
        assert numbers_after(bus, worker) == list(range(8))


def numbers_after(bus: Bus, worker: shmbus.Worker[Move]) -> list[int]:
    """All numbers once the dead are reclaimed."""
    with bus._session.locked() as change:
        bus._session.reclaim_dead(change)
    found = numbers(worker)
    assert [n for n in found if n % 2] == list(range(1, 8, 2))
    return sorted(found)


def test_reclaim_cut_short(bus: Bus) -> None:
    """A reclaim that died between claims and keys is done again by the next one."""
    with bus.worker(MOVES, group="g", key="account") as one, bus.worker(MOVES, group="g") as two:
        pub = publisher(bus, MOVES)
        pub.publish_many([Move(1, 0), Move(1, 1)])
        one.receive_message(PATIENT)
        document = bus._session.document()
        group = next(c for c in document.consumers if c.kind == "group")
        mine = next(w for w in document.workers if w.name == one.name)
        ring = bus._session.rings.work(document.rings_of(group)[0])
        with bus._session.locked():
            ring.reclaim(mine.slot, mine.generation, bus._session.rings.lanes.map(group.id))  # and then it dies
        assert held(two) is None
        with bus._session.locked() as change:
            departures.give_back(change.document, bus._session.rings, group, mine.slot, mine.generation)
        assert numbers(two) == [0, 1]
        one._open.clear()


def test_taken_back(bus: Bus) -> None:
    """A claim that is held for too long goes back with its key; who had it can settle neither."""
    with bus.worker(MOVES, group="g", key="account", ack_within=30) as slow, bus.worker(MOVES, group="g") as two:
        pub = publisher(bus, MOVES)
        pub.publish_many([Move(1, 0), Move(1, 1)])
        message = slow.receive_message(PATIENT)
        session = bus._session
        group = next(c for c in session.document().consumers if c.kind == "group")
        ring = session.rings.work(session.document().rings_of(group)[0])
        with session.locked():
            assert ring.take_back(message.claim[1], message.claim[2], session.rings.lanes.map(group.id))
            assert not ring.take_back(message.claim[1], message.claim[2], session.rings.lanes.map(group.id))
        got = two.receive_message(PATIENT)
        assert got.event.number == 0
        with pytest.raises(shmbus.ReclaimedError):
            message.ack()
        assert held(slow) is None
        got.ack()
        assert numbers(slow) == [1]


def test_nothing_is_left(bus: Bus) -> None:
    """The lanes of a group go with it, and those of nobody with the next repair."""
    bus.group(MOVES, "g", key="account")
    assert sum("lanes-" in name for name in entries(bus.name)) == 1
    bus.remove_group(MOVES, "g")
    assert not any("lanes-" in name for name in entries(bus.name))
    bus._session.rings.lanes.create(4711)
    with bus._session.locked() as change:
        reclaim.repair(change, bus._session.rings)
    assert not any("lanes-" in name for name in entries(bus.name))


@pytest.mark.parametrize("options", [(), ("--publishers", "2", "--grow", "--prefetch", "3")])
def test_kills(options: tuple[str, ...]) -> None:
    """Workers are killed all along, and every key keeps its order: tools/key_kills.py."""
    tool = Path(__file__).parents[1] / "tools" / "key_kills.py"
    done = subprocess.run(
        [sys.executable, tool, "--events", "30000", "--workers", "4", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
