"""An event with what is known about it, and a gap where events are missing. Plain data.

Must stay true: a Message of a worker carries the claim that it was handed out under, and settles that one or none.
"""

from __future__ import annotations

from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec

from shmbus import _core
from shmbus.errors import ConfigError, ReclaimedError

T_co = TypeVar("T_co", covariant=True)

_decode_headers = msgspec.msgpack.Decoder(dict[str, Any]).decode
_encode_headers = msgspec.msgpack.Encoder().encode


def decode_headers(data: bytes) -> dict[str, Any]:
    """Headers out of a record, {} for none. Raises msgspec.DecodeError if they are no map."""
    try:
        return _decode_headers(data) if data else {}
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error


def encode_headers(headers: dict[str, Any]) -> bytes:
    """Headers as they go into a record: a msgpack map. Raises TypeError for what msgspec cannot encode."""
    return _encode_headers(headers)


def event_id(origin: str, time_ns: int) -> str:
    """The id of the event that a publisher stamped so; its `origin` is what `Registry.origin` says."""
    return f"{origin}-{time_ns:x}"


class Gap(msgspec.Struct, frozen=True):
    """Events of one publisher that a subscriber will not get: sequences `first` to `last`, both inclusive.

    One gap stands for many publishers that are gone: `publisher` is "(departed)" then, `first` and `last` are 0.
    """

    publisher: str
    first: int
    last: int
    count: int
    cause: str


class Message(Generic[T_co]):
    """An event, and where it came from."""

    __slots__ = ("_headers", "_origin", "event", "publisher", "sequence", "time_ns")

    def __init__(
        self, event: T_co, sequence: int, publisher: str, time_ns: int, headers: bytes, origin: str = ""
    ) -> None:
        self.event = event
        self.sequence = sequence
        """Count of the publisher's events in the ring that this one came through, from 1, without holes."""
        self.publisher = publisher
        self.time_ns = time_ns
        """CLOCK_REALTIME in ns when it was published; grows strictly within a publisher, whatever the clock does."""
        self._headers = headers
        self._origin = origin

    @property
    def id(self) -> str:
        """What names the event everywhere: the same for every consumer, in every ring, and never used twice.

        Some 36 characters, `[0-9a-f-]`: the bus by a number that was drawn when it was made, the publisher, the stamp.
        """
        return event_id(self._origin, self.time_ns)

    @property
    def headers(self) -> dict[str, Any]:
        """What the publisher passed as `headers`, {} for none. Raises msgspec.DecodeError if they are no map."""
        return decode_headers(self._headers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.event!r}, sequence={self.sequence}, publisher={self.publisher!r})"


class Settles(Protocol):
    """What a claimed message needs of its worker."""

    def settle(self, message: ClaimedMessage[Any], how: int, reason: str = "", delay_ns: int = 0) -> bool:
        """Settle a message; False if it is no longer this worker's."""
        ...

    async def areject(self, message: ClaimedMessage[Any], reason: str) -> bool:
        """The same for a rejection, without blocking the event loop."""
        ...


ACK, NACK, REJECT, UNDECODABLE = range(4)
"""As in claimer.c."""
SPARE: Final = 4
"""A NACK that costs no attempt."""
MAX_DELAY: Final = _core.MAX_DELAY_NS / 1e9
"""Seconds, a week: what is delayed keeps its place in the ring, and its publisher cannot pass it."""


def _delay_ns(delay: object) -> int:
    if not isinstance(delay, (int, float)) or not 0 <= delay <= MAX_DELAY:
        raise ConfigError(f"a delay is a number of seconds from 0 to {MAX_DELAY:g}: delay={delay!r}")
    return int(delay * 1e9)


class ClaimedMessage(Message[T_co]):
    """An event that a worker holds until it settles it: once, with `ack`, `nack` or `reject`, in any thread.

    `aack`, `anack` and `areject` are for event loops: a rejection may have to wait for room for the dead letter.
    """

    __slots__ = ("_worker", "attempt", "ring_id", "settled", "word")

    def __init__(
        self,
        worker: Settles,
        event: T_co,
        sequence: int,
        publisher: str,
        time_ns: int,
        headers: bytes,
        attempt: int,
        ring_id: int,
        word: int,
        origin: str = "",
    ) -> None:
        super().__init__(event, sequence, publisher, time_ns, headers, origin)
        self.attempt = attempt
        """1 at the first delivery; one more after every death and every nack."""
        self.ring_id = ring_id
        self.word = word
        self.settled = False
        self._worker = worker

    def ack(self) -> None:
        """Done. Raises ReclaimedError if it has been given to another worker, ClosedError after close()."""
        self._settle(ACK)

    def nack(self, delay: float = 0.0, *, counts: bool = True) -> None:
        """Give it back, to be delivered again to any worker of the group, but not before `delay` seconds have passed.

        It is on the books as depth meanwhile, holds up no worker, keeps its room in the ring, and outlives whoever gave
        it back. `counts=False`: nobody has tried it, and it costs no attempt; a claim word counts to 4,095 all the
        same. Raises ConfigError for a delay of more than a week, ReclaimedError, ClosedError.
        """
        self._settle(NACK if counts else SPARE, delay_ns=_delay_ns(delay))

    def reject(self, reason: str = "rejected") -> None:
        """Send it to the dead-letter topic, with a reason of at most 1,000 characters, and be done with it.

        Where that has no room for a second (in an event loop: now), or cannot be opened, the event goes back to the
        group, as by `nack` with a delay, and a warning in the log says why.
        """
        self._settle(REJECT, reason)

    async def aack(self) -> None:
        """`ack` in an event loop."""
        self.ack()

    async def anack(self, delay: float = 0.0, *, counts: bool = True) -> None:
        """`nack` in an event loop."""
        self.nack(delay, counts=counts)

    async def areject(self, reason: str = "rejected") -> None:
        """`reject` in an event loop, which goes on meanwhile. If it is cancelled the message is open as before."""
        if not self.settled:
            self._told(await self._worker.areject(self, reason))

    @property
    def origin(self) -> str:
        """What the ids of its publisher's events begin with."""
        return self._origin

    @property
    def claim(self) -> tuple[int, int, int]:
        """What `_core` knows the claim by: ring, sequence, claim word."""
        return self.ring_id, self.sequence, self.word

    def _settle(self, how: int, reason: str = "", delay_ns: int = 0) -> None:
        if not self.settled:
            self._told(self._worker.settle(self, how, reason, delay_ns))

    def _told(self, done: bool) -> None:
        if not done:
            raise ReclaimedError(f"event {self.sequence} of {self.publisher!r} was given to another worker")
