"""Request and reply: one server a call, one caller a reply, and an end for each call."""

from __future__ import annotations

import asyncio
import itertools
import os
import pickle
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from events import PATIENT, opened
from support import Processes, entries, eventually, line

import shmbus
from shmbus.service import HEADER


class Quote(msgspec.Struct, frozen=True):
    symbol: str


class Price(msgspec.Struct, frozen=True):
    cents: int


PRICE = shmbus.Service("price", Quote, Price)


@contextmanager
def served(bus: shmbus.Bus, service: Any = PRICE, **options: Any) -> Iterator[Counter[str]]:
    """A server in a thread that prices a symbol by its length; counts what it was asked."""
    asked: Counter[str] = Counter()
    server = bus.server(service, **options)

    def serve() -> None:
        for call in server:
            asked[call.event.symbol] += 1
            if call.event.symbol == "none":
                call.fail("no such symbol")
            else:
                call.reply(Price(len(call.event.symbol)))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield asked
    finally:
        server.close()
        thread.join()


def kill_at(bus_name: str, symbol: str) -> None:
    """In a child: a server that dies of the call for `symbol`, by SIGKILL."""
    import os
    import signal

    import test_service

    import shmbus

    with shmbus.Bus(bus_name, supervise=False) as bus, bus.server(test_service.PRICE) as server:
        print("ready", flush=True)
        for call in server:
            if call.event.symbol == symbol:
                os.kill(os.getpid(), signal.SIGKILL)
            call.reply(test_service.Price(call.attempt))


def test_deaths_are_named(bus_name: str, processes: Processes) -> None:
    """A call that killed each server it was handed to fails with how they died, and so says its dead letter."""
    with shmbus.Bus(bus_name) as bus, bus.client(PRICE) as client:  # supervised: it sees the deaths
        letters = bus.subscriber(shmbus.dead_letter_topic(PRICE.requests))
        future = client.submit(Quote("fatal"))
        victims = [processes.spawn(kill_at, bus_name, "fatal") for _ in range(2)]
        for victim in victims:  # not waited for before they are reclaimed: how they died a zombie tells, of any kernel
            os.waitid(os.P_PID, victim.pid, os.WEXITED | os.WNOWAIT)
        eventually(lambda: bus.stats().deaths == len(victims))
        for victim in victims:
            assert victim.wait() == -signal.SIGKILL
        with bus.server(PRICE, max_deliver=2) as server:
            thread = threading.Thread(target=lambda: list(server))
            thread.start()
            error = future.exception(PATIENT)
            server.cancel()
            thread.join()
        assert isinstance(error, shmbus.CallFailed)
        assert sorted(error.deaths) == sorted(f"process {victim.pid}: killed by SIGKILL" for victim in victims)
        assert "killed by SIGKILL" in str(error)
        assert "killed by SIGKILL" in letters.receive(PATIENT).reason
        letters.close()


def ask_and_wait(bus_name: str) -> None:
    """In a child: a client that had a reply, and stays."""
    import sys

    import test_service

    import shmbus

    with shmbus.Bus(bus_name, supervise=False) as bus, bus.client(test_service.PRICE) as client:
        print(client.call(test_service.Quote("abc"), timeout=60.0).cents, flush=True)
        sys.stdin.readline()


def test_call(bus_name: str) -> None:
    """A call returns the reply to it, or raises what the server said."""
    with opened(bus_name) as bus, served(bus), bus.client(PRICE) as client:
        assert client.call(Quote("abc"), timeout=PATIENT) == Price(3)
        with pytest.raises(shmbus.CallFailed, match="no such symbol") as caught:
            client.call(Quote("none"), timeout=PATIENT)
        assert (caught.value.service, caught.value.reason, caught.value.deaths) == ("price", "no such symbol", ())
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
        assert client.open == 0


def test_call_object(bus_name: str) -> None:
    """A server sees request, attempt, headers and deadline, and not how calls are marked; a second answer is none."""
    with opened(bus_name) as bus, bus.server(PRICE) as server, bus.client(PRICE) as client:
        before = time.monotonic()
        future = client.submit(Quote("abc"), timeout=PATIENT, headers={"user": 7})
        call = next(iter(server))
        assert (call.event, call.attempt, call.headers) == (Quote("abc"), 1, {"user": 7})
        assert call.deadline is not None
        assert before + PATIENT - 1 < call.deadline <= time.monotonic() + PATIENT
        assert call.reply(Price(1))
        assert not call.reply(Price(2))
        assert not call.fail("late")
        assert future.result(PATIENT) == Price(1)
        assert HEADER not in call.headers


def test_timeout(bus_name: str) -> None:
    """Past its timeout a call raises CallTimeout, a TimeoutError, and is not handed out any more."""
    with opened(bus_name) as bus, bus.client(PRICE) as client:
        with pytest.raises(shmbus.CallTimeout, match=r"timeout=0\.05") as caught:
            client.call(Quote("late"), timeout=0.05)
        assert isinstance(caught.value, TimeoutError)
        with pytest.raises(shmbus.CallTimeout):
            client.submit(Quote("late"), timeout=0.05).result(PATIENT)
        with pytest.raises(shmbus.CallTimeout):
            asyncio.run(client.acall(Quote("late"), timeout=0.05))
        with served(bus) as asked:
            assert client.call(Quote("abc"), timeout=PATIENT) == Price(3)
            assert asked == {"abc": 1}
        assert client.open == 0


def give_up(client: shmbus.Client[Quote, Price], seconds: float) -> None:
    with pytest.raises(shmbus.CallTimeout):
        client.call(Quote("x"), timeout=seconds)


def hand_to_one_that_gives_up(client: shmbus.Client[Quote, Price], seconds: float) -> bool:
    """Let go of the client's replies, and tell a caller that gives up after that; False if it was faster."""
    hasty = threading.Thread(target=give_up, args=(client, seconds))
    hasty.start()
    eventually(lambda: client.open == 2 or not hasty.is_alive())
    client._receiving.release()  # and told the hasty one alone, which is about to give up
    in_time = client.open == 2
    hasty.join()
    return in_time or not client._receiving.acquire(blocking=False)


def test_receiving_is_handed_on(bus_name: str) -> None:
    """Who was told to receive for all, and gives up, tells the next one."""
    with opened(bus_name) as bus, bus.server(PRICE) as server, bus.client(PRICE) as client:
        found: list[Price] = []
        client._receiving.acquire()  # as if another thread received
        patient = threading.Thread(target=lambda: found.append(client.call(Quote("abc"))))
        patient.start()
        eventually(lambda: client.open == 1)
        seconds = 0.2
        while not hand_to_one_that_gives_up(client, seconds):
            seconds *= 2
        next(iter(server)).reply(Price(3))
        patient.join()
        assert found == [Price(3)]


def test_late_reply(bus_name: str) -> None:
    """A reply that comes after its caller gave up is nobody's; the next call gets its own."""
    with opened(bus_name) as bus, bus.server(PRICE) as server, bus.client(PRICE) as client:
        future = client.submit(Quote("a"))
        late = next(iter(server))
        assert future.cancel()
        with pytest.raises(CancelledError):
            future.result()
        late.reply(Price(99))
        other = client.submit(Quote("b"))
        next(iter(server)).reply(Price(2))
        assert other.result(PATIENT) == Price(2)


def test_full_of_requests(bus_name: str) -> None:
    """A call that finds no room for its request ends at its timeout too."""
    small = shmbus.Service("price", Quote, Price, capacity=4096)
    with opened(bus_name) as bus, bus.client(small) as client:
        with pytest.raises(shmbus.CallTimeout):
            list(iter(lambda: client.submit(Quote("x"), timeout=0.05), None))


def test_thousands(bus_name: str) -> None:
    """Thousands of calls may be open at once, and are answered in any order."""
    with opened(bus_name) as bus, bus.server(PRICE) as server, bus.client(PRICE) as client:
        futures = [client.submit(Quote(str(number))) for number in range(3000)]
        calls = list(itertools.islice(server, len(futures)))
        for call in reversed(calls):
            call.reply(Price(int(call.event.symbol)))
        assert [future.result(PATIENT).cents for future in futures] == list(range(3000))


def test_directed(bus_name: str) -> None:
    """Of clients that call at once, in threads, each gets its own replies; none is sent another's."""
    with opened(bus_name) as bus, served(bus), served(bus) as asked:

        def calls(client: shmbus.Client[Quote, Price], length: int) -> None:
            for _ in range(50):
                assert client.call(Quote("x" * length), timeout=PATIENT) == Price(length)

        with bus.client(PRICE) as one, bus.client(PRICE) as two:
            threads = [threading.Thread(target=calls, args=(c, n)) for n, c in enumerate([one, two, one, two], 1)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            replies = [c for c in bus.stats().consumers if c.topic.startswith("price/")]
            assert [c.delivered for c in replies] == [100, 100]
        assert sum(asked.values()) > 0


def test_acall(bus_name: str) -> None:
    """Tasks share a client; servers iterate and reply in an event loop too."""

    async def serve(server: shmbus.Server[Quote, Price]) -> None:
        async for call in server:
            if call.event.symbol == "none":
                await call.afail("no such symbol")
            else:
                await call.areply(Price(len(call.event.symbol)))

    async def main() -> None:
        server = bus.server(PRICE)
        serving = asyncio.create_task(serve(server))
        found = await asyncio.gather(*(client.acall(Quote("x" * n), timeout=PATIENT) for n in range(100)))
        assert found == [Price(n) for n in range(100)]
        with pytest.raises(shmbus.CallFailed):
            await client.acall(Quote("none"))
        cancelled = asyncio.create_task(client.acall(Quote("x")))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert client.open == 0
        server.cancel()
        await serving
        server.close()

    with opened(bus_name) as bus, bus.client(PRICE) as client:
        asyncio.run(main())


def test_death_of_a_server(bus_name: str, processes: Processes) -> None:
    """A call whose server is killed goes to another one, as its second attempt."""
    with opened(bus_name) as bus, bus.client(PRICE) as client:
        victim = processes.spawn(kill_at, bus_name, "fatal")
        assert line(victim) == "ready"
        future = client.submit(Quote("fatal"))
        assert victim.wait() == -signal.SIGKILL
        heir = processes.spawn(kill_at, bus_name, "other")
        assert line(heir) == "ready"
        assert future.result(PATIENT) == Price(2)


def test_exhausted(bus_name: str) -> None:
    """A call that was handed out `max_deliver` times in vain fails, and is among the dead letters."""
    with opened(bus_name) as bus, bus.client(PRICE) as client:
        letters = bus.subscriber(shmbus.dead_letter_topic(PRICE.requests))
        future = client.submit(Quote("fatal"))
        for attempt in (1, 2):
            with bus.server(PRICE, max_deliver=2) as server:
                assert next(iter(server)).attempt == attempt
        with served(bus, max_deliver=2) as asked:
            with pytest.raises(shmbus.CallFailed, match="handed out 2 times without a reply"):
                future.result(PATIENT)
            assert client.call(Quote("abc"), timeout=PATIENT) == Price(3)
        assert asked == {"abc": 1}
        assert letters.receive(PATIENT).attempts == 2
        letters.close()


@pytest.mark.parametrize("how", ["close", "kill"])
def test_end_of_a_caller(bus_name: str, processes: Processes, how: str) -> None:
    """Of a caller that left or died nothing is left: no topic, no ring, no file."""
    with opened(bus_name) as bus:
        with served(bus):
            caller = processes.spawn(ask_and_wait, bus_name)
            assert line(caller) == "3"
            assert any(t.name.startswith("price/") for t in bus.stats().topics)
            if how == "kill":
                caller.kill()
            else:
                caller.communicate("\n")
            caller.wait()

            def left() -> list[str]:
                stats = bus.stats()
                names = [p.topic for p in stats.publishers] + [t.name for t in stats.topics]
                return [name for name in names if name != "price"]

            eventually(lambda: not left() and not stale(bus_name), lambda: f"{left()}, {entries(bus_name)}")


def stale(bus_name: str) -> list[str]:
    """Rings in /dev/shm: with no client there is none."""
    return [name for name in entries(bus_name) if ":ring-" in name]


def test_caller_that_stands_still(
    bus_name: str, processes: Processes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server goes on where a caller takes no replies: it waits a bounded time once, then not, and says so."""
    monkeypatch.setattr("shmbus.server.PATIENCE", 0.05)
    small = shmbus.Service("price", Quote, Price, reply_capacity=4096)
    with opened(bus_name) as bus, bus.server(small) as server, bus.client(small) as still, bus.client(small) as other:
        for _ in range(300):
            still._ask(next(still._numbers), Quote("x"), None, None)  # as of a process that was stopped
        sent = [call.reply(Price(1)) for call in itertools.islice(server, 300)]
        assert sent.count(True) > 50
        assert sent.count(False) > 100
        future = other.submit(Quote("y"))
        next(iter(server)).reply(Price(2))
        assert future.result(PATIENT) == Price(2)
    assert "takes no replies" in caplog.text


def test_close_with_open_calls(bus_name: str) -> None:
    """Closing a client, or its bus, ends calls that are open at once."""
    with opened(bus_name):
        failures: list[BaseException] = []

        def ask(client: shmbus.Client[Quote, Price]) -> None:
            try:
                client.call(Quote("x"))
            except shmbus.ClosedError as error:
                failures.append(error)

        for end in ("client", "bus"):
            with shmbus.Bus(bus_name, supervise=False) as its:
                client = its.client(PRICE)
                threads = [threading.Thread(target=ask, args=(client,)) for _ in range(3)]
                for thread in threads:
                    thread.start()
                eventually(lambda client=client: client.open == 3)  # type: ignore[misc]
                future = client.submit(Quote("x"))
                (client if end == "client" else its).close()
                with pytest.raises(shmbus.ClosedError):
                    future.result(PATIENT)
                for thread in threads:
                    thread.join()
                with pytest.raises(shmbus.ClosedError):
                    client.call(Quote("x"), timeout=PATIENT)
                client.close()
        assert len(failures) == 6


def test_fork(bus_name: str) -> None:
    """A forked child gets ForkedError from client and server, and closing them there does nothing."""
    with opened(bus_name) as bus, served(bus), bus.client(PRICE) as client:
        assert client.submit(Quote("abc")).result(PATIENT) == Price(3)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for ask in (client.call, client.submit):
                    with pytest.raises(shmbus.ForkedError):
                        ask(Quote("x"))
                client.close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert client.call(Quote("abcd"), timeout=PATIENT) == Price(4)
