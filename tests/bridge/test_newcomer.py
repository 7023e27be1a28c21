"""The newcomer's path: the five commands of docs/bridge.md, as they stand there, to a bus that knows no topic."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import msgspec
from bridges import eventually, own
from brokers import Nats
from events import Order, opened
from journals import publish
from support import Processes

import shmbus

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "bridge.md"


def commands() -> list[str]:
    """The lines of the first block of commands."""
    found = re.search(r"```sh\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert found is not None
    return [line.partition("#")[0].strip() for line in found[1].splitlines()]


def test_five_commands(bus_name: str, tmp_path: Path, processes: Processes) -> None:
    """The commands of the guide carry a topic to a bus that has never heard of it, where `tail` shows its fields."""
    server, install, outward, inward, tail = commands()
    assert server.startswith("nats-server -js")
    assert install == "pip install 'shmbus[nats]'"
    broker = own(Nats, tmp_path)
    broker.start()

    def started(line: str, bus: str, **options: object) -> subprocess.Popen[str]:
        words = shlex.split(line.replace("nats://broker:4222", broker.url).replace(" shop ", f" {bus} "))
        assert words[0] == "shmbus"
        return processes.run([sys.executable, "-m", *words], **options)

    here_name, there_name = bus_name, bus_name + "b"
    topic = shmbus.Topic("orders", Order)
    try:
        with opened(here_name) as here, opened(there_name) as there, here.publisher(topic) as publisher:
            bridges = [
                started(outward, here_name, stderr=subprocess.DEVNULL),
                started(inward, there_name, stderr=subprocess.DEVNULL),
            ]
            eventually(lambda: any(c.workers for c in here.stats().consumers), "the bridge's group")
            publish(publisher, [Order(1, 5)])
            eventually(lambda: [t for t in there.stats().topics if t.name == "orders"], "the topic")
            shown = started(f"{tail} --oldest --json -n 1", there_name, stderr=subprocess.DEVNULL)
            assert shown.stdout is not None
            assert msgspec.json.decode(shown.stdout.readline())["event"] == {"id": 1, "cents": 5}
            for child in (shown, *bridges):
                child.terminate()
                child.wait()
            for bus in (here, there):
                for consumer in bus.stats().consumers:
                    if consumer.kind == "group":
                        bus.remove_group(topic, consumer.name, force=True)
    finally:
        broker.kill()
