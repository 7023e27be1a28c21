"""Redis Streams: a stream a topic, a consumer group a bridge; what was sent before is dropped by its id.

What a bridge sends twice is of its last batches, for it sends one at a time and acks it then. So the ids of those are
enough to drop duplicates exactly: a sorted set a topic and bridge. One script a batch: all of it is in, or nothing.

An entry has two fields: `payload`, and `shmbus`, the headers as JSON. Other fields, of strangers, are headers too.
Redis confirms what it has in memory. `appendonly yes` with `appendfsync always` makes that outlive a kill and a power
cut; with `everysec`, its default, it may put off the write of what it has confirmed for two seconds.
Options of the URL: `prefix`, `maxlen` (events that a stream keeps at least; default: all), the path is the database.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec

from shmbus._log import logger
from shmbus.bridge.driver import Away, Incoming, away
from shmbus.errors import BridgeError

try:
    import redis.asyncio
    import redis.exceptions
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
except ImportError as error:
    raise ImportError("redis:// needs redis: pip install 'shmbus[redis]'") from error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shmbus.bridge.driver import Outgoing, Setup

_TIMEOUT: Final = 5.0
_BATCHES: Final = 16  # whose ids are kept: claims that were split up differently come again in as many at most
_PASSING: Final = (
    *("OOM", "MISCONF", "READONLY", "LOADING", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN"),
    *("NOGROUP", "UNBLOCKED"),  # the stream was removed: opening it again makes the group
)
_PAYLOAD: Final = b"payload"
_OURS: Final = b"shmbus"
_decode = msgspec.json.Decoder(dict[str, str]).decode
_MEMBER: Final = "bridge"
_log = logger("shmbus.bridge")

_SEND: Final = """
local turn = redis.call('INCR', KEYS[3])
local maxlen, added = ARGV[1], 0
for at = 3, #ARGV, 3 do
    if redis.call('ZADD', KEYS[2], 'NX', turn, ARGV[at]) == 1 then
        if maxlen == '' then
            redis.call('XADD', KEYS[1], '*', 'shmbus', ARGV[at + 1], 'payload', ARGV[at + 2])
        else
            redis.call('XADD', KEYS[1], 'MAXLEN', '~', maxlen, '*', 'shmbus', ARGV[at + 1], 'payload', ARGV[at + 2])
        end
        added = added + 1
    end
end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', turn - tonumber(ARGV[2]))
return added
"""


class RedisDriver:
    """A connection to Redis."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._client: Any = None
        self._script: Any = None
        self._stream = ""
        self._owed: str | None = "0"
        """What was handed out to an earlier connection comes first: after this number."""

    async def connect(self) -> None:
        """Connect, once."""
        host, port = self._setup.host(6379)
        secrets, tls = self._setup.secrets, self._setup.tls("rediss")
        options: dict[str, Any] = {"username": secrets.get("user"), "password": secrets.get("password")}
        if tls is not None:
            options |= {"ssl": True, "ssl_ca_certs": secrets.get("cafile"), "ssl_check_hostname": True}
            options |= {"ssl_certfile": secrets.get("certfile"), "ssl_keyfile": secrets.get("keyfile")}
        self._client = redis.asyncio.Redis(
            host=host,
            port=port,
            db=int(self._setup.url.path.strip("/") or 0),
            socket_connect_timeout=2,
            socket_timeout=_TIMEOUT,
            client_name=f"shmbus-{self._setup.name}",
            retry=Retry(NoBackoff(), 0),  # whoever asks again for what is new is not told what the lost answer had
            **options,
        )
        self._script = self._client.register_script(_SEND)
        await self._asked(self._client.ping())
        with suppress(redis.exceptions.RedisError, OSError):
            kept = await self._client.config_get("append*")
            if kept.get("appendonly") == "no":
                _log.warning("%s keeps nothing over its end: set appendonly yes", self._setup.address)
            elif kept.get("appendfsync", "always") != "always":
                told = "%s may lose what it has confirmed where it is killed: set appendfsync always, not %s"
                _log.warning(told, self._setup.address, kept["appendfsync"])

    async def open_out(self, topic: str) -> None:
        """Name the stream; the first event makes it."""
        self._stream = f"{self._setup.prefix}:{topic}"

    async def open_in(self, topic: str) -> None:
        """Make the stream and our group of it."""
        self._stream = f"{self._setup.prefix}:{topic}"
        try:
            await self._asked(self._client.xgroup_create(self._stream, self._setup.name, id="0", mkstream=True))
        except BridgeError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def send(self, events: Sequence[Outgoing]) -> None:
        """Add all in one script."""
        arguments: list[Any] = [self._setup.options.get("maxlen", ""), _BATCHES]
        for event in events:
            arguments += [event.id, msgspec.json.encode(event.headers), event.payload]
        seen = f"{self._stream}:sent:{self._setup.name}"
        await self._asked(self._script(keys=[self._stream, seen, f"{seen}:turn"], args=arguments))

    async def fetch(self, most: int, timeout: float) -> list[Incoming]:
        """What the group owes us from before, then what is new."""
        if self._owed is not None:
            found = await self._read(most, self._owed, None)
            self._owed = _text(found[-1].token) if found else None
            if found:
                return found
        return await self._read(most, ">", max(1, int(timeout * 1000)))

    async def _read(self, most: int, since: str, block: int | None) -> list[Incoming]:
        streams = {self._stream: since}
        group = self._setup.name
        answer = await self._asked(self._client.xreadgroup(group, _MEMBER, streams, count=most, block=block))
        entries = answer[0][1] if isinstance(answer, list) and answer else []
        if isinstance(answer, dict):
            entries = [entry for parts in answer.values() for part in parts for entry in part]
        found = []
        for number, fields in entries:
            fields = dict(fields or {})
            payload, ours = fields.pop(_PAYLOAD, b""), fields.pop(_OURS, b"{}")
            headers = {_text(key): _text(value) for key, value in fields.items()}
            with suppress(msgspec.MsgspecError):  # a stranger's
                headers |= _decode(ours)
            found.append(Incoming(headers, payload, number))
        return found

    async def acked(self, events: Sequence[Incoming]) -> None:
        """Ack all at once."""
        await self._asked(self._client.xack(self._stream, self._setup.name, *[event.token for event in events]))

    async def close(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        if client is not None:
            with suppress(redis.exceptions.RedisError, OSError):
                await client.aclose()

    async def _asked(self, question: Any) -> Any:
        try:
            return await question
        except (redis.exceptions.AuthenticationError, redis.exceptions.NoPermissionError) as error:
            raise BridgeError(f"{self._setup.address} refuses our credentials: {error}") from error
        except redis.exceptions.BusyLoadingError as error:
            raise Away(str(error)) from error
        except redis.exceptions.ResponseError as error:
            if str(error).startswith(_PASSING):
                raise Away(str(error)) from error
            raise BridgeError(f"{self._setup.address} refuses: {error}") from error
        except (TimeoutError, redis.exceptions.RedisError, OSError) as error:
            raise away(error) from error


def _text(data: bytes | str) -> str:
    return data if isinstance(data, str) else data.decode(errors="replace")
