"""A Bus in other processes of `multiprocessing` and `concurrent.futures`, and what does not pickle."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from events import ORDERS, Order
from support import Processes, entries

import shmbus
from shmbus import Bus

SCRIPT = """
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

from events import ORDERS, Order

from shmbus import Bus


def publish(bus, first):
    with bus, bus.publisher(ORDERS) as pub:
        pub.publish_many(Order(first + i) for i in range(10))


def adopt(bus):
    global pool_publisher
    pool_publisher = bus.publisher(ORDERS)


def job(number):
    pool_publisher.publish(Order(number))
    return number


if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[2])
    with Bus(sys.argv[1]) as bus, bus.subscriber(ORDERS) as sub:
        children = [context.Process(target=publish, args=(bus, first)) for first in (0, 100)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        with ProcessPoolExecutor(2, context, adopt, (bus,)) as pool:
            assert list(pool.map(job, range(200, 220))) == list(range(200, 220))
        got = sorted(sub.receive(timeout=60).id for _ in range(40))
        assert got == [*range(10), *range(100, 110), *range(200, 220)], got
        assert sub.try_receive() is None
        print([child.exitcode for child in children], len(bus.stats().participants))
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_bus_goes_to_children(bus_name: str, processes: Processes, tmp_path: Path, method: str) -> None:
    """A Bus pickles to spawned and forkserver children and into a pool's initializer, and nobody complains."""
    script = tmp_path / "main.py"
    script.write_text(SCRIPT)
    child = processes.run([sys.executable, str(script), bus_name, method], stderr=subprocess.PIPE)
    output, errors = child.communicate()
    assert (output.strip(), errors, child.returncode) == ("[0, 0] 1", "", 0)


def test_pickle_opens_the_same_bus(bus_name: str) -> None:
    """An unpickled Bus is another participant of the same bus."""
    with Bus(bus_name, supervise=False) as bus, pickle.loads(pickle.dumps(bus)) as copy:
        assert isinstance(copy, Bus)
        assert copy.name == bus_name
        assert len(bus.stats().participants) == 2


def test_handles_do_not_pickle(bus_name: str) -> None:
    """Publishers, subscribers and workers refuse to be pickled, and say what to do instead."""
    with Bus(bus_name, supervise=False) as bus:
        with bus.publisher(ORDERS) as pub, bus.subscriber(ORDERS) as sub, bus.worker(ORDERS, group="g") as worker:
            for handle in (pub, sub, worker):
                with pytest.raises(TypeError, match="Bus"):
                    pickle.dumps(handle)


def test_errors_pickle(bus_name: str) -> None:
    """Errors keep their type, message and values through a pickle, as a pool sends them."""
    with Bus(bus_name, supervise=False) as bus:
        with bus.publisher(ORDERS, on_full="raise") as pub, pytest.raises(shmbus.EventTooLargeError) as caught:
            pub.publish(Order(1), headers={"x": "y" * (1 << 19)})
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), str(copy), copy.topic) == (type(caught.value), str(caught.value), "orders")
    assert not entries(bus_name)
