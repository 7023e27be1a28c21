"""An answer of a broker that is lost on its way: what it had handed out is owed all the same."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path

import msgspec
from bridges import bridging, own, topic_of
from brokers import Redis
from events import PATIENT, Order, opened


class Cutter:
    """Stands between a client and a broker, and cuts the connection that has the first answer with `word` in it."""

    def __init__(self, port: int, word: bytes) -> None:
        self.to, self.word = port, word
        self.cut = threading.Event()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.threads = [threading.Thread(target=self.accept)]
        self.threads[0].start()

    def accept(self) -> None:
        with suppress(OSError):  # the end
            while True:
                client = self.server.accept()[0]
                broker = socket.create_connection(("127.0.0.1", self.to))
                for pair in ((client, broker, b""), (broker, client, self.word)):
                    self.threads.append(threading.Thread(target=self.carry, args=pair))
                    self.threads[-1].start()

    def carry(self, source: socket.socket, sink: socket.socket, word: bytes) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if word and word in data and not self.cut.is_set():
                    self.cut.set()
                    break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()

    def close(self) -> None:
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        for thread in self.threads:
            thread.join()


def test_what_was_handed_out(bus_name: str, tmp_path: Path) -> None:
    """A client that asks again by itself is given what comes next: what the lost answer had would be owed for ever."""
    import redis

    broker = own(Redis, tmp_path)
    broker.start()
    topic = topic_of(bus_name)
    cutter = Cutter(broker.port, b"shmbus-id")
    try:
        with opened(bus_name) as bus, bus.subscriber(topic) as subscriber, redis.Redis(port=broker.port) as client:
            with bridging(bus, broker.url.replace(str(broker.port), str(cutter.port)), in_=[topic], name="here"):
                for id in range(1, 4):
                    fields = {"shmbus-id": f"a-{id}", "payload": msgspec.msgpack.encode(Order(id))}
                    client.xadd(f"shmbus:{topic.name}", fields)
                    if id == 1:
                        assert cutter.cut.wait(PATIENT)
                assert [subscriber.receive(PATIENT).id for _ in range(3)] == [1, 2, 3]
    finally:
        cutter.close()
        broker.kill()
