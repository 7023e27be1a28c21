"""Ctrl-C in a notebook's kernel: at any moment of any call, while other threads publish and receive."""

from __future__ import annotations

from contextlib import suppress

from events import ORDERS, Order, assert_balanced
from support import Processes, line

from shmbus import Bus, Empty


def kernel(name: str, rounds: str) -> None:
    """A notebook's kernel: threads run, and Ctrl-C comes at random moments into whatever the cell does."""
    import contextlib
    import os
    import random
    import signal
    import threading

    from events import ORDERS, Order

    import shmbus

    bus = shmbus.Bus(name, supervise=False)
    auditor = bus.subscriber(ORDERS, name="auditor")
    over = threading.Event()
    heard: list[int] = []
    published = 0

    def listen() -> None:
        heard.extend(order.id for order in auditor if order.cents == 1)

    def background() -> None:
        nonlocal published
        with bus.publisher(ORDERS, name="background") as publisher:
            while not over.wait(0.001):
                publisher.publish(Order(published + 1, 1))
                published += 1

    threads = [threading.Thread(target=background), threading.Thread(target=listen)]
    for thread in threads:
        thread.start()
    armed = False

    def interrupt(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
    chance = random.Random(7)
    interrupted = 0
    for _ in range(int(rounds)):
        try:
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0002, 0.01), 0.01)
            while True:
                armed = True  # again: one that comes in a destructor is lost
                with shmbus.Bus(name, supervise=False) as own, own.publisher(ORDERS, name="cell") as publisher:
                    with own.subscriber(ORDERS, name="cell") as sub, own.worker(ORDERS, group="pool") as worker:
                        publisher.publish_many([Order(1), Order(2)])
                        sub.receive_many(2, timeout=60)
                        worker.receive_many(1 << 12, timeout=60)
                        own.stats()
                        with contextlib.suppress(shmbus.Empty):
                            sub.receive(timeout=0.001)
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    with bus.publisher(ORDERS, name="cell"), bus.subscriber(ORDERS, name="cell"):
        pass
    over.set()
    threads[0].join()
    alone = [p.pid for p in bus.stats().participants] == [os.getpid()]
    while len(heard) < published:
        threading.Event().wait(0.001)
    auditor.cancel()
    threads[1].join()
    bus.close()
    assert heard == list(range(1, published + 1))
    print(interrupted, alone, flush=True)


def test_notebook_kernel(bus_name: str, processes: Processes) -> None:
    """Ctrl-C in any call of a process with threads leaves no ghost, no lock, and nothing lost to others."""
    with Bus(bus_name, supervise=False) as bus:
        child = processes.spawn(kernel, bus_name, 150)
        with bus.publisher(ORDERS) as publisher:
            publisher.publish(Order(5))
        assert line(child) == "150 False"  # we are there too
        assert child.wait() == 0
        assert_balanced(bus.stats())
        with bus.worker(ORDERS, group="pool") as worker:
            with suppress(Empty):  # all of it may have been acked
                worker.receive_many(1 << 16, timeout=0)
                worker.ack()
