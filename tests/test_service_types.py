"""What a service carries, what is refused, and what loading it costs."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from typing import Any

import pytest
from events import PATIENT, opened
from test_service import PRICE, Price, Quote, served

import shmbus


def test_refused(bus_name: str) -> None:
    """What cannot be sent is refused where it is: a request in the client, a reply in the server."""
    with opened(bus_name) as bus, bus.server(PRICE) as server, bus.client(PRICE) as client:
        wrong: Any = Price(1)
        with pytest.raises(shmbus.EventTypeError):
            client.call(wrong, timeout=PATIENT)
        future = client.submit(Quote("x"))
        call: Any = next(iter(server))
        with pytest.raises(shmbus.EventTypeError):
            call.reply("cheap")
        call.reply(Price(1))
        assert future.result(PATIENT) == Price(1)
        with pytest.raises(shmbus.SchemaMismatchError):
            bus.client(shmbus.Service("price", Price, Price))


def test_pickle(bus_name: str) -> None:
    """With codec="pickle" requests and replies are any objects; a request that does not load fails its call."""
    anything: shmbus.Service[object, object] = shmbus.Service("any", object, object, codec="pickle")
    assert pickle.loads(pickle.dumps(anything)) == anything
    with opened(bus_name) as bus, bus.server(anything) as server, bus.client(anything) as client:
        future = client.submit({1, 2})
        next(iter(server)).reply([3, None])
        assert future.result(PATIENT) == [3, None]
        future = client.submit(_Unloadable())
        other = client.submit("next")
        next(iter(server)).reply("again")
        with pytest.raises(shmbus.CallFailed, match="does not decode: not here"):
            future.result(PATIENT)
        assert other.result(PATIENT) == "again"


class _Unloadable:
    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise ValueError("not here")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"name": "p" * 38}, "at most 37"), ({"name": "a b"}, "name"), ({"reply_capacity": 5}, "capacity")],
)
def test_bad_service(change: dict[str, Any], message: str) -> None:
    """A service that cannot be is a ConfigError with the value."""
    with pytest.raises(shmbus.ConfigError, match=message):
        shmbus.Service(**{"name": "price", "request": Quote, "reply": Price, **change})


def test_no_thread(bus_name: str) -> None:
    """A client that only calls has no thread, and neither asyncio nor futures are loaded for a bus without clients."""
    with opened(bus_name) as bus, served(bus), bus.client(PRICE) as client:
        before = threading.active_count()
        client.call(Quote("abc"), timeout=PATIENT)
        assert threading.active_count() == before
    code = "import shmbus, sys; shmbus.Bus; print('concurrent' in sys.modules, 'asyncio' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]
