"""Tasks that the tests of executors run in workers: they must be importable there."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shmbus.futures import Executor

Make = Callable[..., "Executor"]
"""The fixture `executor`: makes one that ends with the test."""
PATIENT = 60.0
"""Seconds that a result may take before something is wrong."""

_state: dict[str, Any] = {}


def square(number: int) -> int:
    return number * number


def pid(_: object = None) -> int:
    return os.getpid()


def die(how: str) -> None:
    """End this process: by SIGKILL, by SIGSEGV, or by os._exit(7)."""
    if how == "exit":
        os._exit(7)
    faulthandler.disable()  # it is meant
    os.kill(os.getpid(), getattr(signal, how))
    signal.pause()  # until it is there


def some_die(number: int) -> int:
    """Every tenth of three kinds ends its process."""
    if number % 10 == 3:
        die(("SIGKILL", "SIGSEGV", "exit")[number // 10 % 3])
    return number


def dies_at_first(file: str, times: int) -> int:
    """Ends its process the first `times` times, and says how often it was begun."""
    path = Path(file)
    with path.open("ab") as stream:
        stream.write(b"x")
    begun = path.stat().st_size
    if begun <= times:
        die("SIGKILL")
    return begun


def touch_and_wait(begun: str, until: str) -> int:
    """Create a file, and wait for another."""
    Path(begun).touch()
    while not Path(until).exists():
        time.sleep(0.005)  # not a wait: the interval of the poll
    return os.getpid()


def keep(array: Any) -> float:
    """Keep an argument for later."""
    _state["kept"] = array
    return float(array.sum())


def kept() -> float:
    return float(_state["kept"].sum())


def ones_of(array: Any) -> Any:
    """Change an argument in place, and return it."""
    array += 1
    return array


def echo(thing: Any) -> Any:
    return thing


def grow(size: int) -> int:
    """Hold that much more memory."""
    _state.setdefault("ballast", []).append(ctypes.create_string_buffer(b"x" * size))
    return os.getpid()


def raise_it(error: BaseException) -> None:
    raise error


class Stubborn(Exception):
    """An exception that does not pickle."""

    def __reduce__(self) -> Any:
        raise TypeError("not me")


class FailsToLoad:
    """What does not unpickle."""

    def __reduce__(self) -> Any:
        return _refuse, ()


class ExitsAtLoad:
    """What ends the process that unpickles it, but for who takes care."""

    def __reduce__(self) -> Any:
        return exit_of, (3,)


class DoesNotPickle:
    def __reduce__(self) -> Any:
        raise TypeError("stays here")


def exit_of(code: int) -> None:
    raise SystemExit(code)


def _refuse() -> None:
    raise ValueError("not here")


def set_state(value: str) -> None:
    _state["value"] = value


def state() -> Any:
    return _state.get("value")


def fail_to_begin() -> None:
    raise OSError("no licence")


def die_at_start() -> None:
    die("SIGKILL")


def make_failing(_: object) -> Any:
    return FailsToLoad()


def make_exit(_: object) -> Any:
    return ExitsAtLoad()
