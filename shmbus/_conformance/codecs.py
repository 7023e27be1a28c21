"""Whether a codec keeps what `shmbus.codecs.CodecPlugin` says; AssertionError says what it does not."""

from __future__ import annotations

import os
import secrets
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

import shmbus
from shmbus import inspect
from shmbus.journal import Recorder
from shmbus.topic import codec_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shmbus.codecs import CodecPlugin, Coding

PATIENCE = 30.0
"""Seconds that an event may take."""


def codec_conformance(
    codec: Callable[[], CodecPlugin],
    type: Any,
    events: Sequence[Any],
    *,
    name: Any,
    stranger: Any,
    admitted: Any = None,
    refused: Any = None,
    equal: Callable[[Any, Any], bool] = lambda a, b: bool(a == b),
) -> None:
    """Put a codec through what a topic relies on: alone, then on a bus, through a group, dead letters and a journal.

    `name` is that of its entry point. `stranger` is no event of the type. `admitted` is another type whose events this
    one's readers take, and the other way round, `refused` one whose events they do not.
    """
    plugin = codec()
    made = plugin.coding(type)
    _says_what_it_is(plugin, type, made)
    _brings_back(made, events, equal)
    _takes_no_other(made, events, stranger)
    _is_shown(plugin, made, events, equal)
    if refused is not None:
        other = plugin.coding(refused)
        assert other.identity != made.identity, "another schema has another identity"
        assert plugin.admits(made.schema, other.schema) != [], "what is refused is not admitted"
    if admitted is not None:
        _admits(plugin, type, admitted, events)
    with tempfile.TemporaryDirectory() as folder:
        _is_carried(name, type, events, equal, Path(folder))


def _says_what_it_is(plugin: CodecPlugin, type: Any, made: Coding) -> None:
    again = plugin.coding(type)
    assert again[3:] == made[3:], "one type, one schema"
    assert made.identity, "an identity says something"
    assert made.title, "a title too"
    assert plugin.admits(made.schema, made.schema) == [], "a schema admits itself"


def _brings_back(made: Coding, events: Sequence[Any], equal: Callable[[Any, Any], bool]) -> None:
    for event in events:
        payload = made.encode(event)
        assert isinstance(payload, bytes), f"a payload is bytes: {payload.__class__}"
        ring = bytearray(payload)
        for given in (payload, memoryview(payload), memoryview(ring)):
            assert equal(made.decode(given), event), f"comes back as it was: {event!r}"
        kept = made.decode(memoryview(ring))
        ring[:] = b"\xa5" * len(ring)
        assert equal(kept, event), "what is decoded owns its memory"


def _takes_no_other(made: Coding, events: Sequence[Any], stranger: Any) -> None:
    if not made.accepts or stranger.__class__ in made.accepts:
        _raises(lambda: made.encode(stranger), f"no event: {stranger!r}")
    payload = made.encode(events[0])
    for end in range(len(payload)):
        with suppress(Exception):  # or a shorter event
            made.decode(payload[:end])
    for at in range(len(payload)):
        hurt = bytearray(payload)
        hurt[at] ^= 0xFF
        with suppress(Exception):
            made.decode(hurt)


def _is_shown(plugin: CodecPlugin, made: Coding, events: Sequence[Any], equal: Callable[[Any, Any], bool]) -> None:
    plain, packed = plugin.plain(made.schema), plugin.packed(made.schema)
    for event in events:
        shown = plain(made.encode(event))
        text = msgspec.json.encode(shown)
        assert equal(made.decode(packed(msgspec.json.decode(text))), event), f"JSON makes the same event: {text!r}"
    _raises(lambda: [packed(value) for value in ({"no such field": [1]}, 0.5, "x")], "JSON that does not fit")


def _admits(plugin: CodecPlugin, type: Any, admitted: Any, events: Sequence[Any]) -> None:
    ours, theirs = plugin.coding(type), plugin.coding(admitted)
    assert ours.identity != theirs.identity, "another schema has another identity"
    assert plugin.admits(theirs.schema, ours.schema) == [], "what is admitted"
    reader = plugin.bound(admitted, ours.schema) or theirs
    writer = plugin.bound(admitted, ours.schema) or theirs
    for event in events:
        read = reader.decode(ours.encode(event))
        ours.decode(writer.encode(read))


def _is_carried(name: Any, type: Any, events: Sequence[Any], equal: Callable[[Any, Any], bool], folder: Path) -> None:
    bus_name = f"conformance-{secrets.token_hex(4)}"
    topic: shmbus.Topic[Any] = shmbus.Topic("events", type, codec=name)
    assert codec_of(topic).fingerprint == codec_of(shmbus.Topic("events", type, codec=name)).fingerprint
    with shmbus.Bus(bus_name) as bus:
        try:
            _on_a_bus(bus, topic, events, equal, folder)
        finally:
            with suppress(shmbus.BusNotFoundError):
                inspect.remove(bus_name, force=True)


def _on_a_bus(
    bus: shmbus.Bus, topic: shmbus.Topic[Any], events: Sequence[Any], equal: Callable[[Any, Any], bool], folder: Path
) -> None:
    with bus.subscriber(topic) as subscriber, bus.worker(topic, group="all", max_deliver=1) as worker:
        recorder = Recorder(bus, topic, folder / "journal")
        thread = threading.Thread(target=recorder.run)
        thread.start()
        try:
            _wait(lambda: any(c.name.startswith("journal:") and c.workers for c in bus.stats().consumers))
            with bus.publisher(topic) as publisher, bus.subscriber(shmbus.dead_letter_topic(topic)) as dead:
                for event in events:
                    publisher.publish(event)
                    assert equal(subscriber.receive(PATIENCE), event), "a subscriber has it"
                    claimed = worker.receive_message(PATIENCE)
                    assert equal(claimed.event, event), "a worker has it"
                    claimed.reject("conformance")
                    letter = dead.receive(PATIENCE)
                    assert equal(codec_of(topic).decode(letter.payload), event), "a dead letter has it"  # type: ignore[misc]
            _wait(lambda: recorder.written == len(events))
        finally:
            recorder.stop()
            thread.join()
            recorder.close()
    with shmbus.Journal(folder / "journal") as journal:
        replayed = [message.event for message in journal.replay(topic)]
    assert len(replayed) == len(events), "the journal has each once"
    assert all(map(equal, replayed, events)), "the journal has them as they were"


def _wait(condition: Callable[[], object]) -> None:
    over = threading.Event()
    for _ in range(int(PATIENCE / 0.01)):
        if condition():
            return
        over.wait(0.01)
    raise AssertionError(f"not within {PATIENCE:g} s (process {os.getpid()})")


def _raises(call: Callable[[], object], what: str) -> None:
    try:
        call()
    except Exception:
        return
    raise AssertionError(f"is not refused: {what}")
