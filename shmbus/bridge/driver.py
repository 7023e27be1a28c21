"""What talks to a broker: the contract of a driver, and what it is given to do so.

Pure. A driver is a plugin (entry-point group `shmbus.bridges`, by the scheme of its URLs);
`shmbus.testing.bridge_conformance` says whether one keeps what follows.

Must stay true:
- `send` returns when the broker has every event of the batch as safely as it says; else it raises, and all come again.
- What `fetch` handed out and `acked` was not called for is handed out again, to this connection or a later one.
- A broker that is away is `Away`; one that refuses us (credentials, rights, another stream) is BridgeError, at once.
"""

from __future__ import annotations

import os
import ssl
import stat
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from urllib.parse import SplitResult, parse_qsl, urlsplit

from shmbus.errors import BridgeError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

KEYS: Final = ("user", "password", "token", "cafile", "certfile", "keyfile", "creds")
"""What a credentials file may hold, and, as SHMBUS_BRIDGE_USER and so on, the environment."""


class Away(Exception):
    """The broker cannot be reached, or does not answer: it is tried again."""


def away(error: BaseException) -> Away:
    """The error of a client library, some of which say nothing, as Away."""
    return Away(str(error) or type(error).__name__)


class Outgoing(NamedTuple):
    """An event on its way out."""

    id: str
    """What it is known by everywhere: a broker that can drops what it has already."""
    key: str
    """Events of one key stay in order, where the broker has such a thing."""
    headers: dict[str, str]
    payload: bytes


class Incoming(NamedTuple):
    """An event on its way in."""

    headers: dict[str, str]
    payload: bytes
    token: Any
    """What the driver acks it by."""


class Driver(Protocol):
    """One connection to a broker, for one topic and one direction, in one event loop."""

    def __init__(self, setup: Setup) -> None: ...

    async def connect(self) -> None:
        """Connect, once. Raises Away, BridgeError."""
        ...

    async def open_out(self, topic: str) -> None:
        """Make what the broker keeps the topic in, if it is not there."""
        ...

    async def open_in(self, topic: str) -> None:
        """The same, and what keeps our place in it: a bridge of the same name goes on there."""
        ...

    async def send(self, events: Sequence[Outgoing]) -> None:
        """Have the broker take events, in their order."""
        ...

    async def fetch(self, most: int, timeout: float) -> list[Incoming]:
        """Up to `most` events, once there are some; [] after `timeout` seconds."""
        ...

    async def acked(self, events: Sequence[Incoming]) -> None:
        """These are on the bus: the broker may forget that they were ours to take."""
        ...

    async def close(self) -> None:
        """Disconnect. Idempotent, never raises Away."""
        ...


class Setup:
    """Where a broker is, what it is told about us, and under which names our things are there."""

    def __init__(self, url: str, name: str, credentials: Any = None, comes_in: Iterable[str] = ()) -> None:
        self.url: Final = _split(url)
        self.name: Final = name
        self.comes_in: Final = frozenset(comes_in)
        """Topics that the bridge takes in: what is sent of those may come back to it."""
        self.options: Final = dict(parse_qsl(self.url.query))
        """What follows the question mark of the URL: each driver says what it knows."""
        self.secrets: Final = _secrets(credentials)

    @property
    def address(self) -> str:
        """The URL without options; never holds a password."""
        return f"{self.url.scheme}://{self.url.netloc}{self.url.path}"

    @property
    def prefix(self) -> str:
        """What the broker's names of our topics begin with: the option `prefix`, or "shmbus"."""
        return self.options.get("prefix", "shmbus")

    def host(self, port: int) -> tuple[str, int]:
        """Host and port; `port` where the URL has none."""
        return self.url.hostname or "127.0.0.1", self.url.port or port

    def tls(self, *schemes: str) -> ssl.SSLContext | None:
        """The TLS context where the scheme is one of these, or where there is a CA or a certificate to use."""
        if self.url.scheme not in schemes and not {"cafile", "certfile"} & self.secrets.keys():
            return None
        try:
            context = ssl.create_default_context(cafile=self.secrets.get("cafile"))
            if "certfile" in self.secrets:
                context.load_cert_chain(self.secrets["certfile"], self.secrets.get("keyfile"))
        except (OSError, ssl.SSLError) as error:
            raise BridgeError(f"the certificates for {self.address} cannot be used: {error}") from error
        return context


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        for one in parts.netloc.split(","):
            urlsplit(f"//{one}").port  # noqa: B018 -- raises for what is no port
    except ValueError as error:
        raise ConfigError(f"not a URL: {url!r} ({error})") from error
    if parts.username is not None or parts.password is not None:
        raise ConfigError("a URL is seen by everybody: put credentials into a file or the environment, not into it")
    if not parts.scheme or not parts.netloc:
        raise ConfigError(f"a broker is named by a URL such as nats://127.0.0.1:4222: url={url!r}")
    return parts


def _secrets(path: Any) -> dict[str, str]:
    found = {
        key: os.environ[f"SHMBUS_BRIDGE_{key.upper()}"] for key in KEYS if f"SHMBUS_BRIDGE_{key.upper()}" in os.environ
    }
    if path is None:
        return found
    try:
        if stat.S_IMODE(os.stat(path).st_mode) & 0o077:
            raise ConfigError(f"others may read the credentials: chmod 600 {os.fspath(path)}")
        values = tomllib.loads(Path(path).read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"credentials cannot be read: {error}") from error
    if unknown := set(values) - set(KEYS):
        raise ConfigError(f"credentials hold {', '.join(KEYS)}, not {', '.join(sorted(unknown))}: {os.fspath(path)}")
    return found | {key: str(value) for key, value in values.items()}
