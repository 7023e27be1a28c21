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

from shmbus.errors import BridgeError
from shmbus.message import decode_headers, encode_headers, event_id
from shmbus.raw import Form

ID: Final = "shmbus-id"
SCHEMA: Final = "shmbus-schema"
TYPE: Final = "shmbus-codec"
PUBLISHER: Final = "shmbus-publisher"
TIME: Final = "shmbus-time"
PATH: Final = "shmbus-path"
VIA: Final = "shmbus-via"
HEADERS: Final = "shmbus-headers"
PLAIN: Final = ("traceparent", "tracestate", "baggage")
"""Headers that go under their own names, so that what is between the two buses sees them."""
OURS: Final = (ID, PATH, VIA, PUBLISHER, TIME)
"""Headers of an event that came in by a bridge."""


def headers_of(data: bytes) -> dict[str, Any]:
    """The headers of a record; {} for what is none."""
    try:
        return decode_headers(data)
    except msgspec.DecodeError:
        return {}


def outgoing(
    form: Form, bridge: str, headers: dict[str, Any], origin: str, time_ns: int, publisher: str
) -> tuple[str, dict[str, str]]:
    """The id of an event that leaves, and its headers for the broker."""
    id = str(headers.get(ID) or event_id(origin, time_ns))
    path = [*str(headers.get(PATH, "")).split(), bridge]
    own = {key: value for key, value in headers.items() if key not in OURS}
    found = {
        ID: id,
        SCHEMA: f"{form.fingerprint:016x}",
        TYPE: form.codec,
        PUBLISHER: str(headers.get(PUBLISHER) or publisher),
        TIME: str(headers.get(TIME) or time_ns),
        PATH: " ".join(path),
    }
    if own:
        found[HEADERS] = base64.b64encode(encode_headers(own)).decode()
    for name in PLAIN:
        if isinstance(own.get(name), str):
            found[name] = own[name]
    return id, {name: _latin(value) for name, value in found.items()}


def incoming(form: Form, bridge: str, via: str, headers: dict[str, str]) -> dict[str, Any] | None:
    """The headers that an event gets on the bus; None for one that has been here.

    An event without our headers is somebody else's: it is taken as a payload of the topic, with what headers it has.
    Raises BridgeError for another schema.
    """
    schema = headers.get(SCHEMA)
    if schema is not None and (schema, headers.get(TYPE)) != (f"{form.fingerprint:016x}", form.codec):
        raise BridgeError(
            f"topic {form.name!r} at {via} carries another schema: "
            f"theirs {headers.get(TYPE)} {schema}, ours {form.codec} {form.fingerprint:016x}"
        )
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
