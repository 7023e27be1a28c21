"""One face for both rings: `_core`, driven through small subclasses over anonymous memory, and the model.

`BROADCAST` and `WORK` name the implementations; an adapter has the model's methods and result shapes, so that
a test reads the same over both. Payloads are raw bytes; `model.decodes` is the decoder."""

from __future__ import annotations

import mmap
import os
import queue
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from model import Gap, Loss, Message, ModelBroadcastRing, Read, Undecodable, decodes
from model_work import Claim, ModelWorkRing

from shmbus import _core

ACK, NACK, REJECT, UNDECODABLE = range(4)


def decode(payload: Any) -> bytes:
    data = bytes(payload)
    if not decodes(data):
        raise ValueError(data)
    return data


def fill(size: int) -> bytes:
    """A payload whose record takes `size` bytes of the ring, header included."""
    return b"x" * (size - 24)


def until_full(publish: Callable[[], Any], most: int = 1000) -> int:
    """How many got in before queue.Full."""
    for count in range(most):
        try:
            publish()
        except queue.Full:
            return count
    raise AssertionError("never full")


def anonymous(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size)


def in_memory(size: int) -> tuple[int, mmap.mmap]:
    """A map of a file of its own, and the file's descriptor, to free memory by."""
    descriptor = os.memfd_create("ring")
    os.truncate(descriptor, size)
    memory = mmap.mmap(descriptor, size)
    weakref.finalize(memory, os.close, descriptor)
    return descriptor, memory


class Outcome(Exception):
    """Carries what a hook was told out of the call that told it."""

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self.value = value


class Producer(_core.Producer[bytes]):
    """Refuses where `drop` says so, and raises queue.Full elsewhere; its groups are whatever `groups`
    holds."""

    drop = False
    routed = False
    groups: tuple[tuple[_core.WorkRing, int], ...] = ()
    woken: list[tuple[int, int]]

    def _refresh(self) -> None:
        self._seen_epoch()
        self._set_groups(self.routed, list(self.groups))

    def _make_room(self, length: int, first: bool, committed: int) -> bool:
        if self.drop:
            return False
        raise queue.Full

    def _care(self) -> None:
        """There is no bus to look after."""

    def _too_large(self, size: int, maximum: int) -> None:
        raise ValueError((size, maximum))

    def _encode_headers(self, headers: Any) -> bytes:
        return bytes(headers)


class Consumer(_core.Consumer[bytes]):
    """Every hook ends the call with what it was told."""

    def _refresh(self) -> None:
        self._seen_epoch()

    def _gap(self, publisher: str, first: int, last: int) -> None:
        raise Outcome(Gap(first, last))

    def _undecodable(self, publisher: str, sequence: int, error: Exception) -> None:
        raise Outcome(Undecodable(sequence)) from error

    def _nothing(self, timeout: float | None) -> None:
        raise queue.Empty

    def _wake_publisher(self, ring_id: int) -> None:
        pass

    def _call_publisher(self, ring_id: int) -> None:
        pass


class Claimer(_core.Claimer[bytes]):
    """Every hook ends the call with the claim that it was told of."""

    def _refresh(self) -> None:
        self._seen_epoch()

    def _exhausted(self, ring: int, sequence: int, word: int, attempt: int, time: int, *_: str) -> None:
        raise Outcome(self.failed(ring, sequence, word, attempt, "exhausted"))

    def _undecodable(
        self, ring: int, sequence: int, word: int, attempt: int, time: int, name: str, origin: str, error: Exception
    ) -> None:
        raise Outcome(self.failed(ring, sequence, word, attempt, "undecodable")) from error

    def failed(self, ring: int, sequence: int, word: int, attempt: int, failure: str) -> Claim:
        payload = self._payload(ring, sequence, word)
        assert payload is not None
        return Claim(sequence, b"", payload, attempt, word, failure)

    def _nothing(self, timeout: float | None) -> None:
        raise queue.Empty

    def _wake_publisher(self, ring_id: int) -> None:
        pass

    def _call_publisher(self, ring_id: int) -> None:
        pass


def outcome(call: Callable[[], Any]) -> Any:
    """What the call returns, or what a hook was told; NOTHING becomes None."""
    try:
        value = call()
    except Outcome as told:
        return told.value
    return None if value is _core.NOTHING else value


def untimed(losses: dict[str, _core.LossTuple]) -> dict[str, Loss]:
    return {cause: (count, first, last) for cause, (count, first, last, _, _) in losses.items()}


class CoreBroadcastRing:
    """One broadcast segment, its producer, and a consumer for every slot in use."""

    def __init__(self, capacity: int, sequence: int = 1, position: int = 0) -> None:
        self.capacity = capacity
        self.bus = anonymous(_core.BUS_BYTES)
        self.descriptor, self.segment = in_memory(_core.BroadcastRing.size(capacity))
        _core.BroadcastRing.format(self.segment, capacity, 1, sequence=sequence, position=position)
        self.ring = _core.BroadcastRing(self.segment)
        self.consumers: dict[int, Consumer] = {}
        self.reopen()

    def reopen(self) -> None:
        """A new producer on the same segment, as after a crash of the last one."""
        self.producer = Producer(self.bus, 0, self.ring, None, (), "bytes")
        self.producer.routed = bool(self.consumers)

    def trim(self) -> None:
        """What the lock holder does with a ring whose publisher is gone; it may have a new one, to test more."""
        self.ring.shrink(self.descriptor, False)
        self.reopen()

    def bump(self) -> None:
        """Membership changed."""
        self.producer.routed = bool(self.consumers)
        _core.fetch_add(self.bus, _core.TOPIC_LINES + _core.TOPIC_EPOCH, 1)

    def join(self, slot: int, lossy: bool = False, oldest: bool = False) -> None:
        self.ring.join(slot, lossy=lossy, oldest=oldest)
        consumer = Consumer(self.bus, 0, decode)
        consumer._add_source(self.ring, slot, "p")
        self.consumers[slot] = consumer
        self.bump()

    def leave(self, slot: int) -> None:
        self.ring.leave(slot)
        self.consumers.pop(slot)._release()
        self.bump()

    def publish(self, payload: bytes, headers: bytes = b"", drop: bool = False) -> int | None:
        self.producer.drop = drop
        return self.producer.publish(payload, headers=headers or None)  # type: ignore[arg-type]

    def publish_many(self, payloads: Iterable[bytes], drop: bool = False) -> int:
        self.producer.drop = drop
        return self.producer.publish_many(payloads)

    def read(self, slot: int) -> Read:
        value = outcome(self.consumers[slot]._poll_message)
        if not isinstance(value, tuple) or isinstance(value, Gap | Undecodable):
            return value
        event, sequence, _, _, headers, _ = value
        return Message(sequence, headers or b"", event)

    def terms(self, slot: int) -> dict[str, int]:
        terms = dict(self.ring.terms(slot))
        assert bool(terms.pop("oldest_ns")) == bool(terms["depth"])
        return terms  # type: ignore[return-value]

    def losses(self, slot: int) -> dict[str, Loss]:
        return untimed(self.ring.losses(slot))

    def blocking(self, need: int) -> int:
        return self.ring.blocking(need)

    def info(self) -> dict[str, int]:
        """Without what only a waiting publisher sets."""
        return {key: value for key, value in self.ring.info().items() if key not in {"need", "waiting"}}  # type: ignore[misc]


class CoreWorkRing:
    """One work segment, its producer (with a broadcast ring that nobody reads), and a claimer for every
    worker."""

    def __init__(
        self, capacity: int, sequence: int = 1, position: int = 0, max_deliver: int = 5, ring_id: int = 2
    ) -> None:
        self.capacity = capacity
        self.max_deliver = max_deliver
        self.bus = anonymous(_core.BUS_BYTES)
        self.segment = anonymous(_core.WorkRing.size(capacity))
        _core.WorkRing.format(self.segment, capacity, ring_id, sequence=sequence, position=position)
        self.ring = _core.WorkRing(self.segment)
        aside = anonymous(_core.BroadcastRing.size(capacity))
        _core.BroadcastRing.format(aside, capacity, 1)
        self.producer = Producer(self.bus, 0, _core.BroadcastRing(aside), None, (), "bytes")
        self.producer.groups = ((self.ring, 0),)
        self.claimers: dict[tuple[int, int], Claimer] = {}

    def publish(self, payload: bytes, headers: bytes = b"", drop: bool = False) -> bool:
        self.producer.drop = drop
        return self.producer.publish(payload, headers=headers or None) is not None  # type: ignore[arg-type]

    def claimer(self, owner: int, generation: int = 1, prefetch: int = 1) -> Claimer:
        if (owner, generation) not in self.claimers:
            claimer = Claimer(self.bus, 0, decode, 0, owner, generation, self.max_deliver, prefetch)
            claimer._add_source(self.ring, "p")
            self.claimers[owner, generation] = claimer
        return self.claimers[owner, generation]

    def claim(self, owner: int, generation: int = 1) -> Claim | None:
        value = outcome(self.claimer(owner, generation)._poll_message)
        if value is None or isinstance(value, Claim):
            return value
        event, sequence, _, _, headers, attempt, _, word, _ = value
        return Claim(sequence, headers or b"", event, attempt, word)

    def settle(self, claim: Claim, how: int, delay_ns: int = 0, unseen: bool = False) -> bool:
        """Through any claimer: the word says whose it is."""
        assert isinstance(claim.word, int)
        return self.claimer(0)._settle(self.ring.ring_id, claim.sequence, claim.word, how, delay_ns, unseen)

    def ack(self, claim: Claim) -> bool:
        return self.settle(claim, ACK)

    def give_back(self, claim: Claim, unseen: bool = False) -> bool:
        return self.settle(claim, NACK, 0, unseen)

    def delay(self, claim: Claim, unseen: bool = False) -> bool:
        return self.settle(claim, NACK, _core.MAX_DELAY_NS // 2, unseen)

    def pass_time(self) -> None:
        """Whatever is delayed was due at the beginning of time."""
        at = 264
        _core.store(self.segment, at, _core.load(self.segment, at) >> 48 << 48 | 1)
        slots = self.capacity // 64
        for due in range(4096 + slots * 16 + 8, 4096 + slots * 32, 16):
            _core.store(self.segment, due, _core.load(self.segment, due) >> 52 << 52 | 1)

    def claims(self, owner: int, generation: int) -> list[int]:
        return [sequence for sequence, _ in self.ring.claims(owner, generation)]

    def take_back(self, claim: Claim) -> bool:
        assert isinstance(claim.word, int)
        return self.ring.take_back(claim.sequence, claim.word)

    def abandon(self) -> int:
        return self.ring.abandon()

    def reject(self, claim: Claim, undecodable: bool = False) -> bool:
        return self.settle(claim, UNDECODABLE if undecodable else REJECT)

    def held(self, owner: int, generation: int) -> int:
        return self.ring.held(owner, generation)

    def reclaim(self, owner: int, generation: int) -> int:
        return self.ring.reclaim(owner, generation)

    def terms(self) -> dict[str, int]:
        terms = dict(self.ring.terms())
        assert bool(terms.pop("oldest_ns")) == bool(terms["depth"])
        del terms["need"]
        return terms  # type: ignore[return-value]

    def losses(self) -> dict[str, Loss]:
        return untimed(self.ring.losses())


AnyBroadcastRing = ModelBroadcastRing | CoreBroadcastRing
AnyWorkRing = ModelWorkRing | CoreWorkRing
BROADCAST: dict[str, Callable[..., AnyBroadcastRing]] = {
    "model": ModelBroadcastRing,
    "core": CoreBroadcastRing,
}
WORK: dict[str, Callable[..., AnyWorkRing]] = {"model": ModelWorkRing, "core": CoreWorkRing}
