"""Fork: what a forked child can do with what it inherited, and what it cannot do to its parent."""

from __future__ import annotations

import json

from support import Processes, entries, eventually, line


def fork_and_use(name: str) -> None:
    import asyncio
    import json
    import os

    from events import ORDERS, Order, orders, take

    from shmbus import Bus

    bus = Bus(name, supervise=False)
    pub, sub, worker = bus.publisher(ORDERS), bus.subscriber(ORDERS), bus.worker(ORDERS, group="g")
    pub.publish_many(orders(2))
    message = next(worker.messages())
    calls = {
        "publish": lambda: pub.publish(Order(1)),
        "publish_many": lambda: pub.publish_many(orders(2)),
        "next": lambda: next(iter(sub)),
        "messages": lambda: next(sub.messages()),
        "receive": lambda: sub.receive(timeout=0),
        "try_receive": sub.try_receive,
        "receive_many": lambda: sub.receive_many(3, timeout=0),
        "areceive": lambda: asyncio.run(sub.areceive(timeout=0)),
        "worker next": lambda: next(iter(worker)),
        "worker messages": lambda: next(worker.messages()),
        "worker receive": lambda: worker.receive(timeout=0),
        "worker try_receive": worker.try_receive,
        "worker receive_many": lambda: worker.receive_many(3, timeout=0),
        "worker ack": worker.ack,
        "message ack": message.ack,
        "message nack": message.nack,
        "message reject": message.reject,
        "publisher": lambda: bus.publisher(ORDERS),
        "subscriber": lambda: bus.subscriber(ORDERS),
        "worker": lambda: bus.worker(ORDERS, group="g"),
        "group": lambda: bus.group(ORDERS, "h"),
        "stats": bus.stats,
        "losses": bus.losses,
    }
    if os.fork() == 0:
        found = {}
        for name_of_call, call in calls.items():
            try:
                call()
                found[name_of_call] = "nothing"
            except BaseException as error:
                found[name_of_call] = type(error).__name__
        with Bus(name, supervise=False) as own, own.publisher(ORDERS) as mine:
            mine.publish(Order(3))
        for handle in (pub, sub, worker, bus):
            handle.close()
        print(json.dumps(found), flush=True)
        return  # a forked child that ends in the ordinary way, atexit and all
    assert os.wait()[1] == 0
    message.ack()
    assert sorted(take(sub, 3)) == orders(3)
    assert sorted(take(worker, 2)) == orders(2, 2)
    worker.ack()
    assert [p.pid for p in bus.stats().participants] == [os.getpid()]
    bus.close()
    print("whole")


def test_fork(bus_name: str, processes: Processes) -> None:
    """In a forked child every inherited handle raises ForkedError, Bus(name) works, and the parent is unharmed."""
    child = processes.spawn(fork_and_use, bus_name)
    found = json.loads(line(child))
    assert set(found.values()) == {"ForkedError"}, found
    assert line(child) == "whole"
    assert child.wait() == 0
    eventually(lambda: not entries(bus_name))
