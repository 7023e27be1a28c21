"""W6m: one to one, an event of 1 MiB a call, through 8 MiB."""

from __future__ import annotations

from typing import Final

from ..contract import Setup
from .one_to_one import consume, produce

__all__ = ["SETUP", "consume", "produce"]

SETUP: Final = Setup("one", size=1 << 20, capacity=8 << 20, trial=100)
