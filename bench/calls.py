"""The cost of a call: `shmbus.Service` beside a ping-pong of two topics, `multiprocessing.Pipe` and pyzmq REQ/REP.

    python -m bench.calls [--calls 20000] [--rounds 3]

One caller, one server in another process, one call at a time, by turns in one run; the median of the rounds. All encode
and decode the same request and reply (msgspec Structs, msgpack), and the server looks at the request.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import msgspec

import shmbus


class Quote(msgspec.Struct):
    """A request."""

    symbol: str


class Price(msgspec.Struct):
    """A reply."""

    cents: int


PRICE = shmbus.Service("price", Quote, Price)
PING = shmbus.Topic("ping", Quote)
PONG = shmbus.Topic("pong", Price)
END = ""

Call = Callable[[Quote], Price]
encode = msgspec.msgpack.Encoder().encode
quote_of = msgspec.msgpack.Decoder(Quote).decode
price_of = msgspec.msgpack.Decoder(Price).decode


def serve(bus_name: str, ready: Any) -> None:
    """A server of the service."""
    with shmbus.Bus(bus_name) as bus, bus.server(PRICE) as server:
        ready.set()
        for call in server:
            call.reply(Price(len(call.event.symbol)))
            if call.event.symbol == END:
                return


def pong(bus_name: str, ready: Any) -> None:
    """The other side of the ping-pong."""
    with shmbus.Bus(bus_name) as bus, bus.subscriber(PING) as pings, bus.publisher(PONG) as pongs:
        ready.set()
        for ping in pings:
            pongs.publish(Price(len(ping.symbol)))
            if ping.symbol == END:
                return


def pipe(connection: Connection, ready: Any) -> None:
    """The other end of a pipe."""
    ready.set()
    while True:
        quote = quote_of(connection.recv_bytes())
        connection.send_bytes(encode(Price(len(quote.symbol))))
        if quote.symbol == END:
            return


def rep(address: str, ready: Any) -> None:
    """A REP socket."""
    zmq = importlib.import_module("zmq")
    with zmq.Context() as context, context.socket(zmq.REP) as socket:
        socket.bind(address)
        ready.set()
        while True:
            quote = quote_of(socket.recv())
            socket.send(encode(Price(len(quote.symbol))))
            if quote.symbol == END:
                return


@contextmanager
def beside(target: Callable[..., None], *args: object) -> Iterator[None]:
    """A child that has begun to serve; it ends by itself."""
    context = multiprocessing.get_context("forkserver")
    ready = context.Event()
    child = context.Process(target=target, args=(*args, ready))
    child.start()
    ready.wait()
    try:
        yield
    finally:
        child.join()


@contextmanager
def by_service() -> Iterator[Call]:
    """`client.call`."""
    name = f"calls-{os.getpid()}"
    with shmbus.Bus(name) as bus, beside(serve, name), bus.client(PRICE) as client:
        yield client.call


@contextmanager
def by_topics() -> Iterator[Call]:
    """A publish, and a receive."""
    name = f"calls-{os.getpid()}"
    with shmbus.Bus(name) as bus, beside(pong, name), bus.subscriber(PONG) as pongs, bus.publisher(PING) as pings:

        def call(quote: Quote) -> Price:
            pings.publish(quote)
            return pongs.receive()

        yield call


@contextmanager
def by_pipe() -> Iterator[Call]:
    """`multiprocessing.Pipe`."""
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs, beside(pipe, theirs):

        def call(quote: Quote) -> Price:
            ours.send_bytes(encode(quote))
            return price_of(ours.recv_bytes())

        yield call


@contextmanager
def by_zmq() -> Iterator[Call]:
    """Pyzmq."""
    zmq = importlib.import_module("zmq")
    address = f"ipc:///tmp/shmbus-calls-{os.getpid()}"
    with beside(rep, address), zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.connect(address)

        def call(quote: Quote) -> Price:
            socket.send(encode(quote))
            return price_of(socket.recv())

        yield call


def main(arguments: list[str] | None = None) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.calls", description="the cost of a call")
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    ways = {"Service": by_service, "two topics": by_topics, "multiprocessing.Pipe": by_pipe, "pyzmq REQ/REP": by_zmq}
    if importlib.util.find_spec("zmq") is None:
        del ways["pyzmq REQ/REP"]
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            with way() as call:
                for _ in range(100):
                    call(Quote("warm"))
                began = time.perf_counter()
                for _ in range(options.calls):
                    call(Quote("symbol"))
                times[name].append((time.perf_counter() - began) / options.calls)
                call(Quote(END))
    ours = statistics.median(times["Service"])
    for name, taken in times.items():
        median = statistics.median(taken)
        print(f"{name:22} {median * 1e6:8.2f} µs a call   x {median / ours:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
