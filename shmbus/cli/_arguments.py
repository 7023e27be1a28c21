"""Argument types that several commands share; argparse makes their errors usage messages (exit code 2)."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Literal, TypeAlias

from shmbus.errors import ConfigError
from shmbus.topic import check_name

if TYPE_CHECKING:
    Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def bus(text: str) -> str:
    """A valid bus name."""
    return _checked("bus", text)


def topic(text: str) -> str:
    """A valid topic name."""
    return _checked("topic", text)


def positive(text: str) -> int:
    """A whole number from 1."""
    number = int(text) if text.isascii() and text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1, not {text!r}")
    return number


def seconds(text: str) -> float:
    """A finite number of seconds above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not (number > 0 and math.isfinite(number)):
        raise argparse.ArgumentTypeError(f"a number of seconds above 0, not {text!r}")
    return number


def _checked(kind: Literal["bus", "topic"], text: str) -> str:
    try:
        return check_name(kind, text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
