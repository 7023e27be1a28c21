"""Real brokers for the tests of bridges: started on a free port with a folder of their own, killed and started again.

Each is a Broker; `unavailable` says why one cannot be had here.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PATIENCE = 120.0
"""Seconds that a broker may take to answer."""
_claims: list[socket.socket] = []
"""Ports of this process, for as long as it lives."""


def free_port() -> int:
    """A port of the loopback that is nobody's, and stays ours while its broker is down.

    It lies below those that outgoing connections get: one of these could have it when the broker is started again, a
    client that tries to reach it included. Beside us other processes of the tests choose theirs: an abstract socket
    says which are taken.
    """
    while True:
        port = random.randrange(16384, 32768)
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0shmbus-tests-port-{port}")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
            continue
        _claims.append(claim)
        return port


class Broker:
    """A broker process with its data in a folder."""

    scheme = ""
    client = ""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.port = free_port()
        self.options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where bridges find it."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def listen(self) -> str:
        """The address that it listens at: the loopback's, unless the option `listen` says otherwise."""
        return str(self.options.get("listen", "127.0.0.1"))

    @classmethod
    def program(cls) -> str | None:
        """The path of the server."""
        raise NotImplementedError

    @classmethod
    def unavailable(cls) -> str:
        """Why it cannot be had; "" if it can."""
        if find_spec(cls.client) is None:
            return f"needs the extra {cls.scheme!r}"
        return "" if cls.program() else f"no server for {cls.scheme}:// on PATH"

    def command(self) -> list[str]:
        """What starts it."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """What it is started in."""
        return dict(os.environ)

    def start(self) -> None:
        """Start it, and wait until it listens."""
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen(
            self.command(),
            stdout=log,
            stderr=log,
            env=self.environment(),
            cwd=self.folder,  # RabbitMQ leaves a dump where it stands when it falls over
            start_new_session=True,
        )
        log.close()
        deadline = time.monotonic() + PATIENCE
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                text = (self.folder / "log").read_text(errors="replace")[-2000:]
                self.kill()
                raise AssertionError(f"{self.command()[0]} does not come up: {text}")
            time.sleep(0.02)  # not a wait: the interval of the poll

    def answers(self) -> bool:
        """It takes connections."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
        except OSError:
            return False

    def kill(self) -> None:
        """SIGKILL, and reap."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)  # a script may have started the server
            self._process.wait()
            self._process = None


class Nats(Broker):
    scheme, client = "nats", "nats"

    @property
    def url(self) -> str:
        return f"{super().url}?ack_wait=2"  # what was in the hands of the dead comes again soon

    @classmethod
    def program(cls) -> str | None:
        beside = Path(sys.executable).with_name("nats-server")
        return str(beside) if beside.exists() else shutil.which("nats-server")

    def command(self) -> list[str]:
        more = [str(word) for word in self.options.get("arguments", ())]
        where = ["-a", self.listen, "-p", str(self.port), "-js", "-sd", str(self.folder / "data")]
        return [str(self.program()), *where, *more]


class Redis(Broker):
    scheme, client = "redis", "redis"

    @classmethod
    def program(cls) -> str | None:
        return shutil.which("redis-server")

    def command(self) -> list[str]:
        more = [str(word) for word in self.options.get("arguments", ())]
        ports = ["--bind", self.listen, *([] if "--tls-port" in more else ["--port", str(self.port)])]
        if self.listen != "127.0.0.1":
            ports += ["--protected-mode", "no"]
        keep = ["--dir", str(self.folder), "--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        return [str(self.program()), *ports, *keep, *more]


class Rabbit(Broker):
    scheme, client = "amqp", "aio_pika"

    @classmethod
    def program(cls) -> str | None:
        own = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # Debian's script on PATH changes the user
        return str(own) if own.exists() else shutil.which("rabbitmq-server")

    def command(self) -> list[str]:
        return [str(self.program())]

    def environment(self) -> dict[str, str]:
        if not hasattr(self, "dist"):
            self.dist = free_port()
        lines = [f"listeners.tcp.1 = {self.listen}:{self.port}", "log.console = true", "loopback_users = none", ""]
        (self.folder / "rabbitmq.conf").write_text("\n".join(lines))
        (self.folder / "plugins").write_text("[].\n")
        own = {
            "RABBITMQ_NODENAME": f"t{self.port}@localhost",
            "RABBITMQ_BASE": str(self.folder),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "logs"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_DIST_PORT": str(self.dist),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none",
            "HOME": str(self.folder),
            "ERL_EPMD_RELAXED_COMMAND_CHECK": "1",  # or it does not end while it knows of a node, though a dead one
            "ERL_EPMD_PORT": str(self.options.setdefault("epmd", free_port())),
        }
        return {**os.environ, **own}

    def kill(self) -> None:
        super().kill()
        if "epmd" in self.options:
            words = ["epmd", "-port", str(self.options["epmd"]), "-kill"]
            subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


class Kafka(Broker):
    """librdkafka's mock cluster: three brokers in this process, which forget all at their end."""

    scheme, client = "kafka", "confluent_kafka"

    @classmethod
    def program(cls) -> str | None:
        return "confluent_kafka"

    @property
    def url(self) -> str:
        return f"kafka://{self._servers}"

    def start(self) -> None:
        import confluent_kafka

        self._host = confluent_kafka.Producer({"test.mock.num.brokers": 3, "bootstrap.servers": "unused"})
        brokers = self._host.list_topics(timeout=PATIENCE).brokers.values()
        self._servers = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)

    def kill(self) -> None:
        del self._host
