"""What an event is on its way between two buses: broker headers that say what shmbus knows of it, and its payload.

Pure.

Must stay true:
- An id stays with an event for ever: out of the second bus it leaves under the id that it had in the first.
- An event returns to no bus that it has been on (`shmbus-path`), nor to the broker that it came from (`shmbus-via`).
"""

from __future__ import annotations

import base64
from typing import Any, Final

import msgspec

from shmbus._schema.codec import fingerprint_of
from shmbus.errors import BridgeError, ShmbusError
from shmbus.message import decode_headers, encode_headers, event_id
from shmbus.raw import Form, require_size

ID: Final = "shmbus-id"
SCHEMA: Final = "shmbus-schema"
PUBLISHER: Final = "shmbus-publisher"
PATH: Final = "shmbus-path"
VIA: Final = "shmbus-via"
HEADERS: Final = "shmbus-headers"
_MAX_FORM: Final = 4096
PLAIN: Final = ("traceparent", "tracestate", "baggage")
"""Headers that go under their own names, so that what is between the two buses sees them."""
FORM: Final = "shmbus-form"
"""The topic itself, with the first event of a batch: so a bus that has never heard of it learns what it is."""
OURS: Final = (ID, PATH, VIA, PUBLISHER)
"""Headers of an event that came in by a bridge."""


def headers_of(data: bytes) -> dict[str, Any]:
    """The headers of a record; {} for what is none."""
    try:
        return decode_headers(data)
    except msgspec.DecodeError:
        return {}


def schema_of(form: Form) -> str:
    """Codec and fingerprint of a topic, as a header."""
    return f"{form.codec}:{form.fingerprint:016x}"


def form_out(form: Form) -> str:
    """A topic as a header; "" for one that needs more room than headers have."""
    text = base64.b64encode(msgspec.msgpack.encode(form)).decode()
    return text if len(text) <= _MAX_FORM else ""


def form_in(name: str, headers: dict[str, str]) -> Form | None:
    """The topic of that name, if an event has it along, and it is what its fingerprint says."""
    try:
        form = msgspec.msgpack.decode(base64.b64decode(headers[FORM], validate=True), type=Form)
        known = form.name == name and fingerprint_of(form.description) == form.fingerprint
        require_size(form.capacity)
    except (KeyError, ValueError, msgspec.MsgspecError, ShmbusError):
        return None
    return form if known and schema_of(form) == headers.get(SCHEMA) else None


class Outward:
    """Makes what the events of one topic leave with; most have no headers of their own, and are made of constants."""

    def __init__(self, form: Form, bridge: str, via: str) -> None:
        self._bridge, self._via = bridge, via
        self._schema = schema_of(form)
        text = form_out(form)
        self.form: Final = {FORM: text} if text else {}
        self._names: dict[str, str] = {}
        """What publishers are called on the wire; there are few."""

    def event(self, data: bytes, origin: str, time_ns: int, publisher: str) -> tuple[str, dict[str, str]] | None:
        """The id of an event and its headers for the broker; None for one that came from there."""
        name = self._names.get(publisher)
        if name is None:
            if len(self._names) > 4096:
                self._names.clear()
            name = self._names[publisher] = _latin(publisher)
        id = event_id(origin, time_ns)
        if not data:
            return id, {ID: id, PUBLISHER: name, SCHEMA: self._schema, PATH: self._bridge}
        own = headers_of(data)
        if own.get(VIA) == self._via:
            return None
        id, path = str(own.pop(ID, id)), str(own.pop(PATH, ""))
        publisher = _latin(str(own.pop(PUBLISHER, name)))
        path = f"{path} {self._bridge}" if path else self._bridge
        found = {ID: id, PUBLISHER: publisher, SCHEMA: self._schema, PATH: path}
        own.pop(VIA, None)
        if own:
            found[HEADERS] = base64.b64encode(encode_headers(own)).decode()
            found.update({key: _latin(own[key]) for key in PLAIN if isinstance(own.get(key), str)})
        return id, found


def incoming(form: Form, bridge: str, via: str, headers: dict[str, str]) -> dict[str, Any] | None:
    """The headers that an event gets on the bus; None for one that has been here.

    An event without our headers is somebody else's: it is taken as a payload of the topic, with what headers it has.
    Raises BridgeError for another schema.
    """
    schema, ours = headers.get(SCHEMA), schema_of(form)
    if schema is not None and schema != ours:
        raise BridgeError(f"topic {form.name!r} at {via} carries another schema: theirs {schema}, ours {ours}")
    path = headers.get(PATH, "")
    if bridge in path.split():
        return None
    found: dict[str, Any] = {}
    if HEADERS in headers:
        try:
            found = headers_of(base64.b64decode(headers[HEADERS], validate=True))
        except ValueError:
            found = {}
    elif schema is None:
        found = dict(headers)
    found.update({name: headers[name] for name in PLAIN if name in headers})
    found.update({name: _text(headers[name]) for name in OURS if name in headers})
    return {**found, VIA: via}


def _latin(text: str) -> str:
    """Printable ASCII without what would end a header line."""
    return text if text.isascii() and text.isprintable() else text.encode("unicode_escape").decode()


def _text(value: str) -> str:
    try:
        return value.encode().decode("unicode_escape") if "\\" in value else value
    except UnicodeDecodeError:
        return value
