"""Queues in one process and in several: order, bound, large objects, types, shutdown, names."""

from __future__ import annotations

import multiprocessing
import pickle
import queue as standard
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import queue_workers as workers
from support import SHM, eventually

from shmbus.errors import ConfigError, EventTypeError, SchemaMismatchError
from shmbus.queues import JoinableQueue, Queue, ShutDown, SimpleQueue

METHODS = ["fork", "spawn", "forkserver"]


class Order(msgspec.Struct):
    """What a typed queue carries."""

    id: int
    note: str = ""


@pytest.fixture
def made() -> Iterator[Callable[..., Any]]:
    """Makes queues, and looks that nothing of them is left."""
    queues: list[Queue[Any]] = []

    def make(cls: type[Queue[Any]] = Queue, *arguments: Any, **options: Any) -> Queue[Any]:
        queues.append(cls(*arguments, **options))
        return queues[-1]

    yield make
    names = [queue.name for queue in queues]
    for queue in queues:
        queue.close()
    for name in names:
        workers.nothing_left(name)


@pytest.mark.parametrize("method", METHODS)
def test_start_methods(made: Callable[..., Any], method: str) -> None:
    """A queue goes to a child as an argument under each start method, and both ways."""
    context: Any = multiprocessing.get_context(method)
    there, back = made(), made(SimpleQueue)
    child = context.Process(target=workers.echo, args=(there, back))
    child.start()
    for item in (1, "two", {"three": [3.0, None]}, None):
        there.put(item)
    assert [back.get() for _ in range(3)] == [1, "two", {"three": [3.0, None]}]
    child.join()
    assert child.exitcode == 0
    assert (there.qsize(), back.qsize()) == (0, 0)


def test_a_pool_takes_queues_as_arguments(made: Callable[..., Any]) -> None:
    """Unlike multiprocessing's a queue can be pickled at any time, into a pool's tasks too."""
    queue = made()
    with multiprocessing.get_context("forkserver").Pool(2) as pool:
        pool.starmap(workers.put_all, [(queue, [1]), (queue, [2])])
    assert sorted([queue.get(), queue.get()]) == [1, 2]


def test_order_across_putters(made: Callable[..., Any]) -> None:
    """What was put before another put began is got before it, whoever put the two."""
    queue = made()
    context = multiprocessing.get_context("fork")
    expected = []
    for number in range(20):
        queue.put(number)
        child = context.Process(target=workers.put_all, args=(queue, [f"child {number}"]))
        child.start()
        child.join()
        expected += [number, f"child {number}"]
    assert [queue.get() for _ in expected] == expected


def test_sentinels_come_last(made: Callable[..., Any]) -> None:
    """A sentinel that is put after living putters have said that they are done is got after all of theirs."""
    queue, told = made(), made()
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_put_and_say, args=(queue, told, n)) for n in range(3)]
    for child in children:
        child.start()
    for _ in children:
        told.get()
    queue.put(None)
    found = list(iter(queue.get, None))
    assert len(found) == 3 * 200
    assert queue.empty()
    for child in children:
        child.kill()
        child.join()


def _put_and_say(queue: Queue[Any], told: Queue[Any], name: int) -> None:
    for number in range(200):
        queue.put((name, number))
    told.put(name)
    threading.Event().wait()


def test_the_bound_is_strict(made: Callable[..., Any]) -> None:
    """However many put at once, a queue never holds more than it may, nor less than it could."""
    rounds, queue = 200, made(Queue, 3)
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(5, timeout=60)
    children = [context.Process(target=workers.race_for_room, args=(queue, barrier, rounds)) for _ in range(4)]
    for child in children:
        child.start()
    for _ in range(rounds):
        barrier.wait()
        barrier.wait()
        assert queue.qsize() == 3
        assert len({queue.get(timeout=30) for _ in range(3)}) == 1
        barrier.wait()
    for child in children:
        child.join()


def test_one_place_is_had_by_one_of_two(made: Callable[..., Any]) -> None:
    """Of many threads and no getter, exactly as many puts succeed as there are places."""
    queue = made(Queue, 5)
    outcomes: list[bool] = []

    def put() -> None:
        try:
            queue.put_nowait(1)
            outcomes.append(True)
        except standard.Full:
            outcomes.append(False)

    threads = [threading.Thread(target=put) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(True) == 5
    assert queue.full()
    assert queue.qsize() == 5


def test_an_unbounded_queue_takes_more_than_a_ring(made: Callable[..., Any]) -> None:
    """Puts without a getter go on past the first ring, and come out in order."""
    queue = made()
    items = [(number, b"x" * 5000) for number in range(400)]
    for item in items:
        queue.put(item)
    assert queue.qsize() == 400
    assert [queue.get() for _ in items] == items
    assert queue.empty()


@pytest.mark.parametrize("size", [60_000, 70_000, 5_000_000])
def test_large_objects(made: Callable[..., Any], size: int) -> None:
    """An object that no ring takes goes through a file, which is gone once it was got."""
    queue = made()
    for number in range(3):
        queue.put((number, b"x" * size))
    assert queue.qsize() == 3
    assert [queue.get()[0] for _ in range(3)] == [0, 1, 2]
    assert not list(SHM.glob(f"*{queue.name}*large-*"))


def test_large_typed_objects(made: Callable[..., Any]) -> None:
    """A typed queue takes them in a larger ring."""
    queue = made(Queue, type=Order)
    orders = [Order(number, "x" * 300_000) for number in range(3)]
    for order in orders:
        queue.put(order)
    assert [queue.get() for _ in orders] == orders


def test_typed(made: Callable[..., Any], bus_name: str) -> None:
    """With `type` msgspec writes what is put, another type raises in put, and another definition at the door."""
    queue = made(Queue, name=bus_name, type=Order, codec="json")
    queue.put(Order(1, "a"))
    assert queue.get() == Order(1, "a")
    with pytest.raises(EventTypeError):
        queue.put("no order")
    with pytest.raises((ConfigError, SchemaMismatchError)):
        Queue(name=bus_name, type=int)
    with pytest.raises(ConfigError, match="codec"):
        Queue(codec="json")


def test_what_does_not_pickle_raises_in_put(made: Callable[..., Any]) -> None:
    """There is no thread to raise it, and the queue is as before."""
    queue = made(Queue, 1)
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        queue.put(lambda: None)
    assert queue.empty()
    queue.put(1)
    assert queue.get() == 1


def test_what_does_not_unpickle_raises_in_get(made: Callable[..., Any]) -> None:
    """The getter is told, and the queue goes on."""
    queue = made()
    queue.put(_Sour())
    queue.put(2)
    with pytest.raises(ZeroDivisionError):
        queue.get()
    assert queue.get() == 2


class _Sour:
    def __reduce__(self) -> tuple[Any, ...]:
        return _divide, ()


def _divide() -> float:
    return 1 / 0


def test_reducers_of_multiprocessing(made: Callable[..., Any]) -> None:
    """Sockets and connections go through, by the reducers that multiprocessing has registered."""
    queue, told = made(), made()
    one, two = socket.socketpair()
    with one, two:
        queue.put({"socket": one})
        with queue.get()["socket"] as same:
            assert same.getsockname() == one.getsockname()
    one_end, other_end = multiprocessing.Pipe()
    queue.put(one_end)
    with queue.get() as received:
        received.send("through")
        assert other_end.recv() == "through"
    other_end.close()
    one_end.close()
    assert told.empty()


def test_threads_share_a_queue(made: Callable[..., Any]) -> None:
    """Threads put and get at once, as with multiprocessing's, and nothing is lost or doubled."""
    queue = made(Queue, 10)
    found: list[int] = []

    def get() -> None:
        found.extend(iter(queue.get, None))

    def put(start: int) -> None:
        for number in range(start, start + 200):
            queue.put(number)

    getters = [threading.Thread(target=get) for _ in range(3)]
    putters = [threading.Thread(target=put, args=(start,)) for start in (0, 200, 400)]
    for thread in getters + putters:
        thread.start()
    for thread in putters:
        thread.join()
    for _ in getters:
        queue.put(None)
    for thread in getters:
        thread.join()
    assert sorted(found) == list(range(600))


def test_timeouts(made: Callable[..., Any]) -> None:
    """Empty and Full are the standard library's, after the timeout or at once."""
    queue = made(Queue, 1)
    for get in (lambda: queue.get(False), lambda: queue.get(True, 0.01), queue.get_nowait, lambda: queue.get(True, -1)):
        with pytest.raises(standard.Empty):
            get()
    queue.put(1)
    for put in (lambda: queue.put(2, False), lambda: queue.put(2, timeout=0.01), lambda: queue.put_nowait(2)):
        with pytest.raises(standard.Full):
            put()  # type: ignore[no-untyped-call]
    assert queue.get() == 1


@pytest.mark.parametrize("call", ["get", "put"])
def test_close_ends_waits(made: Callable[..., Any], call: str) -> None:
    """A thread that waits in get() or put() is told that the queue is closed."""
    queue = made(Queue, 1)
    if call == "put":
        queue.put(1)
    told: list[BaseException] = []

    def wait() -> None:
        try:
            queue.put(2) if call == "put" else queue.get()
        except ValueError as error:
            told.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    eventually(lambda: _waits(thread))
    queue.close()
    thread.join(30)
    assert "closed" in str(told[0])


def _waits(thread: threading.Thread) -> bool:
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and "queues" in frame.f_code.co_filename


def test_shutdown_ends_waits_of_other_processes(made: Callable[..., Any]) -> None:
    """A process that waits in get() of an empty queue is told of the shutdown, and puts raise everywhere."""
    queue, told = made(), made()
    child = multiprocessing.get_context("fork").Process(target=workers.wait_for_get, args=(queue, told))
    child.start()
    assert told.get(timeout=30) == "ready"
    queue.shutdown()
    assert told.get(timeout=30) == "shut down"
    child.join()
    assert queue.is_shutdown
    with pytest.raises(ShutDown):
        queue.put(1)
    theirs = getattr(standard, "ShutDown", ShutDown)
    assert issubclass(ShutDown, theirs)


def test_joinable(made: Callable[..., Any]) -> None:
    """join() waits for task_done(), which raises once there is nothing to be done."""
    queue, told = made(JoinableQueue), made()
    queue.put(1)
    queue.put(2)
    child = multiprocessing.get_context("fork").Process(target=workers.join, args=(queue, told))
    child.start()
    assert told.get(timeout=30) == "ready"
    for _ in range(2):
        assert queue.unfinished_tasks > 0
        assert told.empty()
        queue.get()
        queue.task_done()
    assert told.get(timeout=30) == "joined"
    child.join()
    with pytest.raises(ValueError, match="too many"):
        queue.task_done()


def test_named(made: Callable[..., Any], bus_name: str) -> None:
    """A named queue is had by its name, keeps what is in it, and is of one kind."""
    first = Queue[Any](4, name=bus_name)
    first.put("kept")
    first.close()
    with pytest.raises(ConfigError, match="maxsize"):
        Queue(5, name=bus_name)
    second = made(Queue, 4, name=bus_name)
    assert second.get() == "kept"
