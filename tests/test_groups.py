"""Groups that end: removed by hand, by a tool, or because no worker came for too long."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from events import (
    ORDERS,
    PATIENT,
    SMALL,
    Order,
    books,
    consumer,
    document,
    drain,
    fill,
    losses,
    opened,
    orders,
    publisher,
)
from support import Processes, eventually, line

import shmbus
from shmbus import Bus, inspect
from shmbus._ledger import groups, reclaim


@pytest.fixture
def bus(bus_name: str) -> Iterator[Bus]:
    with opened(bus_name) as bus:
        yield bus


def test_remove(bus: Bus) -> None:
    """A group that is removed is owed nothing; what it was owed is abandoned on its books, and a loss says which."""
    with bus.publisher(ORDERS, name="p") as pub:
        with bus.worker(ORDERS, group="g") as worker:
            pub.publish_many(orders(5))
            assert worker.try_receive() == Order(1)
            worker.ack()
            next(worker.messages()).nack(delay=60)
        assert bus.remove_group(ORDERS, "g") == 4
        assert books(bus, "g") == {"offered": 5, "delivered": 1, "abandoned": 4}
        assert consumer(bus, "g").state == "closed"
        assert list(losses(bus, "g")) == [("p", "abandoned", 2, 5, 4)]
        pub.publish(Order(6))
        assert books(bus, "g") == {"offered": 5, "delivered": 1, "abandoned": 4}
    assert len(bus.stats().publishers) <= 1


def test_remove_what_is_not_there(bus: Bus) -> None:
    """A group that is not there is an error that names those that are."""
    bus.group(ORDERS, "g")
    bus.group(SMALL, "other")
    with pytest.raises(shmbus.ConfigError, match=r"'h' of topic 'orders'.*orders/g, small/other"):
        bus.remove_group(ORDERS, "h")
    with pytest.raises(shmbus.ConfigError, match="'other' of topic 'orders'"):
        bus.remove_group(ORDERS, "other")
    bus.remove_group(ORDERS, "g")
    with pytest.raises(shmbus.ConfigError, match="'g' of topic 'orders'"):
        bus.remove_group(ORDERS, "g")


def test_remove_under_workers(bus: Bus) -> None:
    """A group with live workers is removed by force only; then they are told, and can settle nothing any more."""
    with bus.publisher(ORDERS) as pub, bus.worker(ORDERS, group="g", name="w") as worker:
        pub.publish_many(orders(4))
        held = next(worker.messages())
        with pytest.raises(shmbus.ConfigError, match=r"orders/g.*by force.*: w \(process \d+\)"):
            bus.remove_group(ORDERS, "g")
        assert bus.remove_group(ORDERS, "g", force=True) == 4
        with pytest.raises(shmbus.ReclaimedError):
            held.ack()
        with pytest.raises(shmbus.ReclaimedError, match="removed"):
            worker.receive(timeout=PATIENT)
        assert books(bus, "g") == {"offered": 4, "abandoned": 4}


def test_a_damaged_removal_ends(bus: Bus) -> None:
    """A removal that was cut short is finished also where a damaged document has workers of the group left."""
    with bus.worker(ORDERS, group="g"):
        with bus._session.locked() as change:
            change.document.consumers[0].state = "leaving"
            groups.finish_all(change, bus._session.rings)
        assert document(bus).workers == []
        assert document(bus).consumers == []


def test_a_group_that_names_a_process(bus: Bus) -> None:
    """A group belongs to nobody: where a damaged document says that it does, it does not go with whoever leaves."""
    with bus.worker(ORDERS, group="g"):
        with bus._session.locked() as change:
            change.document.consumers[0].participant = bus._session.participant
            reclaim.reclaim(change, bus._session.rings, bus._session.participant, dead=False)
        assert [c.name for c in document(bus).consumers] == ["g"]
        assert document(bus).workers == []


def test_a_sleeping_worker_is_told(bus: Bus) -> None:
    """A worker that sleeps when its group is removed wakes up to be told."""
    raised: list[type[BaseException]] = []
    with bus.worker(ORDERS, group="g", idle="park") as worker:

        def wait() -> None:
            try:
                worker.receive(timeout=PATIENT)
            except BaseException as error:
                raised.append(type(error))

        thread = threading.Thread(target=wait)
        thread.start()
        bus.remove_group(ORDERS, "g", force=True)
        thread.join()
        assert raised == [shmbus.ReclaimedError]


def test_a_dead_worker_keeps_no_group(bus: Bus, processes: Processes) -> None:
    """A group whose only worker was killed can be removed without force."""
    code = """
        import signal, sys
        from events import ORDERS
        from shmbus import Bus
        worker = Bus(sys.argv[1], supervise=False).worker(ORDERS, group="g")
        print("here", flush=True)
        signal.pause()
    """
    child = processes.spawn(code, bus.name)
    assert line(child) == "here"
    child.kill()
    child.wait()
    assert bus.remove_group(ORDERS, "g") == 0


def test_a_blocked_publisher_is_released(bus: Bus) -> None:
    """A publisher that waits for a group goes on when that is removed."""
    bus.group(SMALL, "g")
    with bus.publisher(SMALL, name="p") as pub:
        with bus.publisher(SMALL, on_full="raise") as other:
            assert fill(other)
        thread = threading.Thread(target=lambda: pub.publish_many(orders(500)))
        thread.start()
        eventually(lambda: publisher(bus, "p").waiting)
        assert publisher(bus, "p").blocked_by == ("g",)
        bus.remove_group(SMALL, "g")
        thread.join()
        assert publisher(bus, "p").published == 500
    assert books(bus, "g")["abandoned"] == books(bus, "g")["offered"]


def test_a_group_that_comes_back(bus: Bus) -> None:
    """A group that comes back under its name has nothing but its totals, and gets what comes from now on."""
    with bus.publisher(ORDERS) as pub:
        for turn in range(1, 4):
            bus.group(ORDERS, "g")
            pub.publish_many(orders(2))
            with bus.worker(ORDERS, group="g") as worker:
                assert worker.try_receive() == Order(1)
                worker.ack()
            bus.remove_group(ORDERS, "g")
            assert books(bus, "g") == {"offered": 2 * turn, "delivered": turn, "abandoned": turn}
        with bus.worker(ORDERS, group="g") as worker:
            pub.publish(Order(7))
            assert drain(worker) == [Order(7)]
        assert books(bus, "g") == {"offered": 7, "delivered": 4, "abandoned": 3}


def test_many_groups_come_and_go(bus: Bus) -> None:
    """Thousands of groups that are used once fill no table: of the oldest only the totals stay."""
    with bus.publisher(ORDERS) as pub:
        for number in range(200):
            bus.group(ORDERS, f"replica-{number}")
            pub.publish(Order(number))
            bus.remove_group(ORDERS, f"replica-{number}")
        stats = bus.stats()
        assert len(stats.consumers) <= 40
        assert sum(c.abandoned for c in stats.consumers) == 200


def test_removed_while_all_run(bus: Bus) -> None:
    """Each event of a group that is removed under its workers was acked or abandoned, once."""
    for _ in range(20):
        acked: list[int] = []

        def work(worker: shmbus.Worker[Order], acked: list[int] = acked) -> None:
            try:
                for message in worker.messages():
                    message.ack()
                    acked.append(message.event.id)
            except (shmbus.ReclaimedError, shmbus.ClosedError):
                pass

        before = books(bus, "g").get("delivered", 0) if any(c.name == "g" for c in bus.stats().consumers) else 0
        with bus.publisher(ORDERS) as pub, bus.worker(ORDERS, group="g") as one, bus.worker(ORDERS, group="g") as two:
            threads = [threading.Thread(target=work, args=(worker,)) for worker in (one, two)]
            for thread in threads:
                thread.start()
            pub.publish_many(orders(200))
            bus.remove_group(ORDERS, "g", force=True)
            for thread in threads:
                thread.join()
            assert len(set(acked)) == len(acked)
            assert books(bus, "g").get("delivered", 0) - before == len(acked)


# -- from outside


def rm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "shmbus", "rm", *arguments], capture_output=True, text=True, check=False
    )


def test_command(bus: Bus) -> None:
    """`shmbus rm BUS --group TOPIC/NAME` removes a group of a bus that is in use, by force one with workers."""
    with bus.publisher(ORDERS) as pub, bus.worker(ORDERS, group="a/b") as worker:
        pub.publish_many(orders(3))
        bus.group(ORDERS, "idle")
        refused = rm(bus.name, "--group", "orders/a/b")
        assert (refused.returncode, "by force" in refused.stderr) == (1, True)
        assert rm(bus.name, "--group", "orders/idle").returncode == 0
        done = rm(bus.name, "--group", "orders/a/b", "--force")
        assert (done.returncode, "owed 3 events" in done.stdout) == (0, True)
        with pytest.raises(shmbus.ReclaimedError):
            worker.try_receive()
        missing = rm(bus.name, "--group", "orders/nobody")
        assert (missing.returncode, "no group 'orders/nobody'" in missing.stderr) == (1, True)
        assert books(bus, "a/b") == {"offered": 3, "abandoned": 3}


def test_label_of_two_groups(bus: Bus) -> None:
    """A label that may be two groups is refused with both of them, and removes neither."""
    try:
        topic = shmbus.Topic("orders/a", Order)
    except shmbus.ConfigError:
        pytest.skip("topic names have no slash here")
    bus.group(ORDERS, "a/b")
    bus.group(topic, "b")
    with pytest.raises(
        shmbus.ConfigError, match="more than one group: 'a/b' of topic 'orders', 'b' of topic 'orders/a'"
    ):
        inspect.remove_group(bus.name, "orders/a/b")
    bus.remove_group(topic, "b")
    assert inspect.remove_group(bus.name, "orders/a/b") == 0


# -- expires


def gone(bus: Bus, name: str) -> bool:
    """Also with its topic, if nobody else needs that."""
    return all(c.state == "closed" for c in bus.stats().consumers if c.name == name)


def test_expires(bus: Bus) -> None:
    """A group without a worker for `expires` seconds is removed, and releases the publisher that waits for it."""
    bus.group(SMALL, "g", expires=0.1)
    with bus.publisher(SMALL, timeout=PATIENT) as pub:
        pub.publish_many(orders(1000))
        assert gone(bus, "g")
        assert books(bus, "g")["abandoned"] > 0


def test_expires_with_a_supervisor(bus_name: str) -> None:
    """A supervisor removes an expired group while nobody waits for anything."""
    with Bus(bus_name) as bus:
        with bus.worker(ORDERS, group="g", expires=0.1), bus.publisher(ORDERS) as pub:
            pub.publish(Order(1))
            bus.group(ORDERS, "h", expires=0.1)
            eventually(lambda: gone(bus, "h"))
            assert not gone(bus, "g")
        eventually(lambda: gone(bus, "g"))
        assert books(bus, "g") == {"offered": 1, "abandoned": 1}


def test_expires_after_a_death(bus_name: str, processes: Processes) -> None:
    """The time of a group begins when its last worker is gone, also by a kill."""
    code = """
        import signal, sys
        from events import ORDERS
        from shmbus import Bus
        worker = Bus(sys.argv[1]).worker(ORDERS, group="g", expires=0.1)
        print("here", flush=True)
        signal.pause()
    """
    with Bus(bus_name) as bus:
        child = processes.spawn(code, bus_name)
        assert line(child) == "here"
        assert not gone(bus, "g")
        child.kill()
        child.wait()
        eventually(lambda: gone(bus, "g"))


def test_the_last_word_on_expires(bus: Bus) -> None:
    """The last number that was given for a group is right; None leaves it; infinity is never."""

    def expires() -> float:
        return bus._session.document().consumers[0].expires_ns / 1e9

    bus.group(ORDERS, "g")
    assert expires() == 0
    bus.group(ORDERS, "g", expires=60)
    bus.worker(ORDERS, group="g").close()
    assert expires() == 60
    bus.worker(ORDERS, group="g", expires=30).close()
    assert expires() == 30
    bus.group(ORDERS, "g", expires=math.inf)
    assert expires() == 0
